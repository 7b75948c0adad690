"""TRL's side of one workload, in its own process: an unmodified `GRPOTrainer` with given numbers of tokens to sample.

    python benchmarks/throughput/by_trl.py '{"workload": "W1", ...}'

Takes the request of `__main__.py` as JSON. The trainer generates with transformers' `generate`; W4 uses its own loop of
tool calls; W6 uses `rollout_func`, which accepts turns from outside. Seconds are from the end of one step to the end of
the next.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from datasets import Dataset  # pyright: ignore[reportMissingImports]
from peft import LoraConfig
from transformers import AutoTokenizer, LogitsProcessor, LogitsProcessorList, TrainerCallback
from transformers.generation.continuous_batching.continuous_api import ContinuousBatchingManager
from trl.chat_template_utils import qwen2_5_chat_template  # pyright: ignore[reportMissingImports]
from trl.trainer.grpo_config import GRPOConfig  # pyright: ignore[reportMissingImports]
from trl.trainer.grpo_trainer import GRPOTrainer  # pyright: ignore[reportMissingImports]
from workloads import ALPHA, LEARNING_RATE, RANK, WORKLOADS, is_flat, lengths, peak_mb, prompt, result, reward

CALL = '<tool_call>\n{"name": "lookup", "arguments": {"key": "it"}}\n</tool_call>'
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]

Replay = list[list[dict[str, Any]]]
"""What our side recorded of each trajectory of each step."""


class Pace(LogitsProcessor):
    """Ends each row of a generation after the tokens it is to have, and none before; where a tool is to be called, the
    last of them are a call. No other token may open one: a model that has seen three calls makes a fourth."""

    def __init__(self, tokenizer: Any) -> None:
        self._end_id, self._call = int(tokenizer.eos_token_id), list[int](tokenizer.encode(CALL))
        self._withheld = [self._end_id, *(number for token, number in tokenizer.get_vocab().items() if "<" in token)]
        self._position, self._turn = 0, 0
        self._rows: list[list[int]] = []

    def start(self, rows: list[list[int]]) -> None:
        """What each row samples in the generations to come, turn by turn."""
        self._rows, self._turn = rows, 0

    def around(self, generate: Callable[..., Any]) -> Callable[..., Any]:
        """`generate`, one call a turn."""

        def paced(*args: Any, **kwargs: Any) -> Any:
            self._position = 0
            out = generate(*args, logits_processor=LogitsProcessorList([self]), **kwargs)
            self._turn += 1
            return out

        return paced

    def requests(self, manager: Any, inputs: list[list[int]], **kwargs: Any) -> list[str]:
        """In place of `add_requests` of transformers' continuous batching: each row with a limit of its own, no end."""
        turn, self._turn = self._turn, self._turn + 1
        return [
            manager.add_request(ids, max_new_tokens=turns[turn], eos_token_id=-1)
            for ids, turns in zip(inputs, self._rows, strict=True)
        ]

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:  # pyright: ignore
        scores[:, self._withheld] = float("-inf")
        for row, turns in enumerate(self._rows):
            close = [*(self._call if self._turn < len(turns) - 1 else []), self._end_id]
            place = self._position - (turns[self._turn] - len(close))
            if 0 <= place < len(close):
                scores[row] = float("-inf")
                scores[row, close[place]] = 0.0
        self._position += 1
        return scores


class Timed(GRPOTrainer):
    """The trainer with a stopwatch around its rollouts: generation, tools and rewards, until there is a batch."""

    pace: Pace
    scripts: Callable[[int], list[list[int]]] | None
    """What each row samples in a step; None where a `rollout_func` says so."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.rollouts: list[dict[str, Any]] = []
        super().__init__(*args, **kwargs)

    def _generate_and_score_completions(self, inputs: Any) -> Any:
        if self.scripts is not None:
            self.pace.start(self.scripts(len(self.rollouts)))
        self._scoring_s, began = 0.0, time.perf_counter()
        batch = super()._generate_and_score_completions(inputs)
        rollout_s = time.perf_counter() - began - self._scoring_s
        seen = batch["completion_mask"]
        sampled = seen * batch.get("tool_mask", 1)
        largest = batch["advantages"].view(-1, self.num_generations or 1).abs().amax(1)
        self.rollouts.append(
            {
                "rollout_s": rollout_s,
                "flat_groups": int((largest < 1e-4).sum()),
                "samples": len(seen),
                "prompt_tokens": int(batch["prompt_mask"].sum()),
                "sampled_tokens": int(sampled.sum()),
                "sequence_tokens": int(batch["prompt_mask"].sum() + seen.sum()),
            }
        )
        return batch

    def _get_per_token_logps_and_entropies(self, *args: Any, **kwargs: Any) -> Any:
        began = time.perf_counter()
        out = super()._get_per_token_logps_and_entropies(*args, **kwargs)
        if not torch.is_grad_enabled():
            self._scoring_s += time.perf_counter() - began  # counts as learning
        return out


class Clock(TrainerCallback):
    """Notes when training began and when each update was done."""

    def __init__(self) -> None:
        self.updates: list[float] = []
        self.began = 0.0

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.began = self.began or time.time()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.updates.append(time.time())


def drawn(completion_ids: list[list[int]], flat: list[bool], **kwargs: Any) -> list[float]:
    """The workload's reward."""
    return [reward(str(ids), equal) for ids, equal in zip(completion_ids, flat, strict=True)]


def recorded(reward: list[float], **kwargs: Any) -> list[float]:
    """What our side's trajectories earned."""
    return reward


def config(folder: Path, batch: int, group: int, parts: int, updates: int, asked: dict[str, Any]) -> GRPOConfig:
    """`batch` trajectories a step, in `parts` for one update or for as many as there are `updates`."""
    return GRPOConfig(
        output_dir=str(folder / "trl"),
        use_cpu=True,
        bf16=asked["autocast"],
        model_init_kwargs={"dtype": asked["dtype"]},
        gradient_checkpointing=False,
        per_device_train_batch_size=batch // parts,
        gradient_accumulation_steps=parts // updates,
        steps_per_generation=parts,
        num_generations=group,
        max_completion_length=512,
        use_transformers_continuous_batching=asked["continuous"],
        beta=0.0,
        loss_type="dapo",
        scale_rewards="batch" if updates > 1 else "group",
        temperature=1.0,
        top_p=1.0,
        top_k=0,
        disable_dropout=True,
        shuffle_dataset=False,
        lr_scheduler_type="constant",
        learning_rate=LEARNING_RATE,
        adam_beta2=0.99,
        optim="adamw_torch",
        max_steps=asked["steps"] * updates,
        logging_steps=1,
        report_to="none",
        save_strategy="no",
        dataloader_num_workers=0,
        disable_tqdm=True,
    )


def scripted(asked: dict[str, Any], tokenizer: Any, lora: LoraConfig, clock: Clock) -> Timed:
    """W1 to W5."""
    name = asked["workload"]
    workload = WORKLOADS[name]
    tools: list[Callable[..., str]] = []
    if workload.calls:
        # One with tools, close to the model's own: TRL reads calls only from templates it knows.
        tokenizer.chat_template = qwen2_5_chat_template

        def between(text: str) -> int:
            wrapped = (
                f"\n<|im_start|>user\n<tool_response>\n{text}\n</tool_response><|im_end|>\n<|im_start|>assistant\n"
            )
            return len(tokenizer.encode(wrapped))

        found = result(name, between)

        def lookup(key: str) -> str:
            """Look something up.

            Args:
                key: What to look for.

            Returns:
                What was found.
            """
            time.sleep(workload.call_s)
            return found

        tools = [lookup]

    def count(messages: list[dict[str, str]]) -> int:
        rendered = tokenizer.apply_chat_template(messages, tools=tools or None, add_generation_prompt=True)
        return len(rendered["input_ids"])

    def scripts(step: int) -> list[list[int]]:
        first = step * workload.prompts
        return [turns for number in range(first, first + workload.prompts) for turns in lengths(name, number)]

    rows = [
        {"prompt": prompt(name, number, count), "flat": is_flat(name, number)}
        for number in range(asked["steps"] * workload.prompts)
    ]
    batch = workload.prompts * workload.group
    trainer = Timed(
        model=asked["model"],
        reward_funcs=drawn,
        args=config(Path(asked["folder"]), batch, workload.group, workload.parts, 1, asked),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        callbacks=[clock],
        peft_config=lora,
        tools=tools or None,
    )
    trainer.scripts = scripts
    return trainer


def replaying(asked: dict[str, Any], tokenizer: Any, lora: LoraConfig, clock: Clock) -> Timed:
    """W6: the lengths and rewards of what our side recorded. What stood between two turns is inserted without a tool
    being called."""
    replay: Replay = json.loads(Path(asked["replay"]).read_text())
    updates, batch = asked["updates"], len(replay[0])

    def rollout(prompts: list[Any], trainer: Any) -> dict[str, Any]:
        rows = replay[len(trainer.rollouts)]
        starts = [row["prompt_ids"] for row in rows]
        completions: list[list[int]] = [[] for _ in rows]
        masks: list[list[int]] = [[] for _ in rows]
        for turn in range(max(len(row["sampled"]) for row in rows)):
            speaking = [number for number, row in enumerate(rows) if turn < len(row["sampled"])]
            for number in speaking if turn else []:
                completions[number] += rows[number]["inserted"][turn - 1]
                masks[number] += [0] * len(rows[number]["inserted"][turn - 1])
            trainer.pace.start([[rows[number]["sampled"][turn]] for number in speaking])
            history = [starts[number] + completions[number] for number in speaking]
            replies, _ = trainer._generate_single_turn(history, None, {}, 1)
            for number, reply in zip(speaking, replies, strict=True):
                completions[number] += reply
                masks[number] += [1] * len(reply)
        rewards = [row["reward"] for row in rows]
        return {
            "prompt_ids": starts,
            "completion_ids": completions,
            "logprobs": None,
            "env_mask": masks,
            "reward": rewards,
        }

    trainer = Timed(
        model=asked["model"],
        reward_funcs=recorded,
        args=config(Path(asked["folder"]), batch, asked["group"], updates, updates, asked),
        train_dataset=Dataset.from_list([{"prompt": "?"}] * (asked["steps"] * batch // asked["group"])),
        processing_class=tokenizer,
        callbacks=[clock],
        peft_config=lora,
        rollout_func=rollout,
    )
    trainer.scripts = None
    return trainer


def main() -> None:
    asked: dict[str, Any] = json.loads(sys.argv[1])
    tokenizer = AutoTokenizer.from_pretrained(asked["model"], padding_side="left", truncation_side="left")
    clock = Clock()
    lora = LoraConfig(
        r=RANK,
        lora_alpha=ALPHA,
        lora_dropout=0.0,
        target_modules=TARGETS,
        layers_to_transform=asked["layers"],
        task_type="CAUSAL_LM",
    )
    trainer = (replaying if asked["workload"] == "W6" else scripted)(asked, tokenizer, lora, clock)
    trainer.pace = pace = Pace(tokenizer)
    model: Any = trainer.model
    model.generate = pace.around(model.generate)
    # Continuous batching takes no processor of scores; what a row is to say cannot be told, only how much.
    with mock.patch.object(ContinuousBatchingManager, "add_requests", lambda *args, **kw: pace.requests(*args, **kw)):
        trainer.train()
    each = len(clock.updates) // asked["steps"]
    steps: list[dict[str, Any]] = []
    last = clock.began
    for at, rollout in zip(clock.updates[each - 1 :: each], trainer.rollouts, strict=True):
        steps.append({"step_s": at - last, "learn_s": at - last - rollout["rollout_s"], **rollout})
        last = at
    out = {
        "startup_s": clock.began - asked["began"],
        "peak_mb": peak_mb(),
        "dtype": asked["dtype"],
        "threads": torch.get_num_threads(),
        "steps": steps,
    }
    (Path(asked["folder"]) / "result.json").write_text(json.dumps(out))


if __name__ == "__main__":
    main()
