"""Your own tool and your own agent, trained: `python examples/own_agent.py`. Takes seconds, with random weights.

The tool accepts only letters. The agent is not told this; it gets a reward for successful calls.
"""

import midstream as ms


@ms.tool
def find_page(word: str) -> str:
    """Find the page of a word in the index."""
    if not word.isalpha():
        raise ValueError("a word is made of letters")
    return f"{word}: page {len(word)}"


@ms.register("librarian")
class Librarian(ms.AgentFlowBase):
    """Chooses a word, looks it up, answers with what it found."""

    async def run(self, sampling_params: ms.SamplingParams, **kwargs: object) -> int:
        question = {"role": "user", "content": f"{kwargs['task']} Which word should I look up?"}
        word = (await self.chat([question], sampling_params=sampling_params)).text
        self.answer = (await self.call_tool("find_page", {"word": word})).result
        return len(self.steps)


if __name__ == "__main__":
    ms.train(
        {
            "name": "own_agent",
            "policy": {"model": "tiny", "tuning": "full"},
            "tasks": {"sources": [{"type": "direct"}]},
            "flow": {"name": "librarian", "tools": [f"{__name__}:find_page"]},
            "reward": {"components": {"tool_success": 1.0}, "success": "tool_success"},
            "rollout": {"tasks_per_step": 8, "group_size": 8, "sampling": {"max_tokens": 3}},
            "algorithm": {"name": "flow_grpo", "kl": {"coef": 0.0}},
            "optimizer": {"lr": 0.01},
            "trainer": {"max_steps": 12, "eval_every": 0, "test_tasks": 20},
        }
    )
