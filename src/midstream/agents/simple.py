"""The two smallest flows: a single response, and a loop of chat and tool calls to subclass."""

from __future__ import annotations

from typing import Any

from midstream.agents.base import AgentFlowBase
from midstream.agents.registry import register
from midstream.core.sampling import SamplingParams
from midstream.core.types import Message
from midstream.tools.marking import RULE, marked


@register("single_step_single_turn_agent")
class SingleStepSingleTurnAgentFlow(AgentFlowBase):
    """One prompt, one response: the response is the answer."""

    async def run(self, sampling_params: SamplingParams, **kwargs: Any) -> int:
        prompt = self.task.prompt
        messages: list[Message] = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
        self.answer = (await self.chat(messages, sampling_params=sampling_params)).text
        return 1


@register("multi_step_agent")
class MultiStepAgentFlow(AgentFlowBase):
    """Chats and calls tools until a reply calls none.

    A model whose chat template has tools calls them as it was trained to. Any other writes `tool: argument`, as do
    subclasses that override `is_terminal` or `execute_tool` to read calls from the text themselves."""

    max_turns = 6

    async def run(self, sampling_params: SamplingParams, **kwargs: Any) -> int:
        if self._calls_natively():
            return await self._run_natively(sampling_params)
        asked = "Answer the question. To use a tool write its name, a colon and its argument."
        messages: list[Message] = [
            {"role": "system", "content": f"{asked} {RULE}\n{self.session.tools.cards(self.task.question)}"},
            {"role": "user", "content": self.task.question},
        ]
        while self.turns < self.max_turns:
            self.turns += 1
            reply = await self.chat(messages, sampling_params=sampling_params)
            self.answer = reply.text
            if self.is_terminal(reply.text):
                break
            messages += [
                {"role": "assistant", "content": reply.text},
                {"role": "user", "content": await self.execute_tool(reply.text)},
            ]
        return len(self.steps)

    def is_terminal(self, text: str) -> bool:
        """True when `text` calls no tool."""
        name, colon, _ = text.partition(":")
        return not colon or self.session.tools.get(name.strip()) is None

    async def execute_tool(self, text: str) -> str:
        """Call the tool that `text` names, and return what the agent is shown: the result in tags, as data."""
        name, _, argument = text.partition(":")
        tool = self.session.tools.get(name.strip())
        first = next(iter(tool.parameters.get("properties", {})), "text") if tool else "text"
        return marked(await self.call_tool(name.strip(), {first: argument.strip()}))

    def _calls_natively(self) -> bool:
        flow, tokenizer = type(self), self.session.role_engines["policy"].tokenizer
        reads_text = (flow.is_terminal, flow.execute_tool) != (
            MultiStepAgentFlow.is_terminal,
            MultiStepAgentFlow.execute_tool,
        )
        return not reads_text and tokenizer is not None and tokenizer.format.native_tools

    async def _run_natively(self, sampling_params: SamplingParams) -> int:
        tools = self.session.tools.shown(self.task.question)
        messages: list[Message] = [{"role": "user", "content": self.task.question}]
        while self.turns < self.max_turns:
            self.turns += 1
            reply = await self.chat(messages, sampling_params=sampling_params, tools=tools)
            self.answer = reply.content.strip()
            if not reply.tool_calls:
                break
            messages += [reply.message, *await self.call_tools(reply)]
        return len(self.steps)
