"""White-box flows in the style of a gateway: they request tokens, create their own steps and submit them."""

from midstream import MultiStepAgentFlow, SingleStepSingleTurnAgentFlow, Step, register


@register("my_agent_flow")
class MyAgentFlow(SingleStepSingleTurnAgentFlow):
    async def run(self, sampling_params, **kwargs) -> int:
        messages = [{"role": "user", "content": kwargs["raw_prompt"]}]
        text, response_ids, prompt_ids = await self.gateway_generate(
            trajectory_uid=kwargs["trajectory_uid"],
            prompt_uid=kwargs["prompt_uid"],
            messages=messages,
            max_tokens=8,
            temperature=1.0,
        )
        step = Step(
            prompt_ids=prompt_ids,
            response_ids=response_ids,
            reward=float(len(text)),
            trajectory_uid=kwargs["trajectory_uid"],
            prompt_uid=kwargs["prompt_uid"],
            step_index=0,
            is_last=True,
        )
        await self.gateway_submit_steps([step])
        return 1


@register("tool_agent_flow")
class ToolAgentFlow(MultiStepAgentFlow):
    async def run(self, sampling_params, **kwargs) -> int:
        messages = [{"role": "user", "content": kwargs["task"]}]
        step_index = 0

        while True:
            text, response_ids, prompt_ids = await self.gateway_generate(
                trajectory_uid=kwargs["trajectory_uid"],
                prompt_uid=kwargs["prompt_uid"],
                messages=messages,
                max_tokens=8,
            )
            is_last = self.is_terminal(text) or step_index == 3

            step = Step(
                prompt_ids=prompt_ids,
                response_ids=response_ids,
                step_index=step_index,
                is_last=is_last,
                trajectory_uid=kwargs["trajectory_uid"],
                prompt_uid=kwargs["prompt_uid"],
            )
            await self.gateway_submit_steps([step])

            if is_last:
                break

            messages.append({"role": "assistant", "content": text})
            tool_result = await self.execute_tool(text)
            messages.append({"role": "tool", "content": tool_result})
            step_index += 1

        return step_index + 1
