"""Records preference pairs in a store, as groups that `midstream train --from-store STORE algorithm.name=dpo` learns.

The flow itself writes them, so a pair has the tokens that the policy would have been shown and would have sampled.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from midstream.core.errors import EngineError
from midstream.core.types import FinishReason, Trajectory
from midstream.engines.base import Completion, Request
from midstream.engines.chat import ChatTokenizer
from midstream.learn.config import TrainConfig
from midstream.record.recorder import RoleEngine
from midstream.record.store import Store
from midstream.rollouts import AgentFlowManager, AgentFlowWorker
from midstream.rollouts.attempts import Attempt, groups_of
from midstream.rollouts.sinks import LocalSink
from midstream.workflows.search.pairs import Pair


async def record_pairs(pairs: Sequence[Pair], config: TrainConfig, tokenizer: ChatTokenizer, path: Path) -> int:
    """Record `pairs` as groups of two with their scores as rewards, in the store at `path`; return their number.
    `config` names the flow that writes workflows."""
    attempts = groups_of([pair.task for pair in pairs], 2, prefix="pair", seed=config.trainer.seed)
    texts = {attempt.uid: text for attempt, text in zip(attempts, _in_turn(pairs, "better", "worse"), strict=True)}
    scores = dict(zip(texts, (score for one in pairs for score in (one.better_score, one.worse_score)), strict=True))

    async def score(trajectory: Trajectory) -> Trajectory:
        reward = scores[trajectory.uid]
        return replace(trajectory, reward=reward, rewards={"score": reward})

    engine = _Writer(tokenizer, texts)
    roles = {role: RoleEngine(engine, tokenizer, role == "policy") for role in ("policy", "executor")}
    with Store(path) as store:
        worker = AgentFlowWorker(
            config.flow, roles, sampling=config.rollout.sampling, sink=_PairSink(store), score=score, timeout_s=60.0
        )
        await AgentFlowManager(worker, concurrency=16, in_order=True).run(attempts)
    return len(pairs)


def _in_turn(pairs: Sequence[Pair], *names: str) -> list[str]:
    return [getattr(pair, name) for pair in pairs for name in names]


class _PairSink(LocalSink):
    """Records the two attempts at a task as one group."""

    def __init__(self, store: Store) -> None:
        super().__init__(store)
        self._trajectories = store.trajectories

    async def begin(self, attempt: Attempt) -> None:
        self._trajectories.begin(attempt.uid, attempt.prompt_uid, attempt.task, attempt.channel, group_size=2)


class _Writer:
    """An engine that replies with the text of its trajectory. Its log-probabilities are 0: DPO does not use them."""

    policy_version = -1
    """Older than every policy: the trainer does not expect that its own log-probabilities are these."""
    name = "pairs"
    context_length = 1 << 20

    def __init__(self, tokenizer: ChatTokenizer, texts: Mapping[str, str]) -> None:
        self._tokenizer, self._texts = tokenizer, texts

    def join(self, session: str) -> None: ...

    def leave(self, session: str) -> None: ...

    async def generate(self, request: Request) -> Completion:
        if request.session not in self._texts:
            raise EngineError(f"no pair for trajectory '{request.session}'")
        text = self._texts[request.session] if request.role == "policy" else "-"
        ids = (*self._tokenizer.encode(text), self._tokenizer.closing_id())
        return Completion(
            ids=ids,
            log_probs=(0.0,) * len(ids),
            text=text,
            finish_reason=FinishReason.STOP,
            policy_version=self.policy_version,
        )
