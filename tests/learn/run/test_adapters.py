"""Several adapters on one base model: sampled, trained, saved and evaluated by name."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from midstream import api
from midstream.agents.base import AgentFlowBase
from midstream.core.errors import ConfigError, ModelError, TrainingError
from midstream.core.sampling import SamplingParams
from midstream.core.types import Step, Trajectory
from midstream.engines.chat import ChatTokenizer
from midstream.engines.publication import FOLDER, Publication, published
from midstream.engines.torch.decoder import load_decoder
from midstream.engines.torch.engine import TorchEngine
from midstream.evaluate.agent import find_agent, load_agent
from midstream.evaluate.agreement import contents
from midstream.learn.algorithms.base import KLConfig
from midstream.learn.algorithms.grpo import FlowGRPO
from midstream.learn.config import OptimizerConfig, TrainConfig
from midstream.learn.data.batch import make_batch
from midstream.learn.data.packing import pack_sequences
from midstream.learn.model.learner import Learner
from midstream.learn.model.log_probs import TokenSequence, score
from midstream.learn.run import trainer
from midstream.learn.run.adapters import RunAdapters
from midstream.learn.run.checkpoint import checkpoints
from midstream.learn.run.setup import TrainingContext, build
from midstream.learn.run.trainer import train
from midstream.record.store import Store
from midstream.rewards import component
from midstream.rollouts import groups_of


class Pair(AgentFlowBase):
    """A planner's note, and an answer by a solver; the critic has its say and is not trained."""

    roles = ("planner", "critic", "solver")

    async def run(self, sampling_params: SamplingParams, **kwargs: Any) -> int:
        question = {"role": "user", "content": self.task.question}
        note = await self.chat([question], role="planner")
        await self.chat([question], role="critic")
        both = [question, {"role": "assistant", "content": note.text}, {"role": "user", "content": "Answer."}]
        self.answer = (await self.chat(both, role="solver")).text
        return len(self.steps)


@component("pair_lower")
def pair_lower(steps: Sequence[Step]) -> float:
    """Share of lower-case letters, which a model with random weights can learn."""
    text = "".join(step.text for step in steps)
    return sum(letter.islower() for letter in text) / max(len(text), 1)


ROLES = {
    "planner": {"adapter": "planner.v1", "sampling": {"max_tokens": 5}},
    "critic": {"engine": "frozen"},
    "solver": {"adapter": "solver"},
}


def settings(tiny_path: Path, run: Path, roles: dict[str, Any] | None = None, **training: Any) -> dict[str, Any]:
    return {
        "name": "pair",
        "policy": {"model": str(tiny_path), "dtype": "float32", "lora": {"rank": 2, "alpha": 4}},
        "tasks": {"sources": [{"type": "direct"}]},
        "flow": {"name": f"{__name__}:Pair", "roles": ROLES if roles is None else roles},
        "reward": {"components": {"pair_lower": 1.0}, "success": "pair_lower", "success_at": 0.5},
        "rollout": {"tasks_per_step": 2, "group_size": 3, "sampling": {"max_tokens": 4}},
        "algorithm": {"name": "flow_grpo", "kl": {"coef": 0.01, "reference": "start"}},
        "optimizer": {"lr": 0.01},
        "trainer": {
            "deterministic": True,
            "threads": 1,
            "max_steps": 2,
            "save_every": 1,
            "eval_every": 0,
            "test_tasks": 2,
            "run_dir": str(run),
            **training,
        },
    }


@pytest.fixture(scope="module")
def trained(tiny_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("pair") / "run"
    assert train(TrainConfig.model_validate(settings(tiny_path, run))).status == "finished"
    return run


def rows(run: Path, file: str = "metrics.jsonl") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / file).read_text().splitlines()]


def context_of(tiny_path: Path, roles: dict[str, Any] | None = None) -> TrainingContext:
    """Adapters that are not zero and differ, on a model in which a wrong adapter has an effect."""
    context = build(TrainConfig.model_validate(settings(tiny_path, Path("unused"), roles)))
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, value in context.weights.snapshot().items():
            if name.endswith("lora_B"):
                value.normal_(0, 0.3, generator=generator)
            context.weights._live[name].copy_(value)
    context.decoder.version += 1
    return context


def roll(context: TrainingContext) -> list[list[Trajectory]]:
    """Two groups of three trajectories, with rewards that differ."""
    tasks = [context.tasks.get("train", place) for place in range(2)]
    made = asyncio.run(context.manager(None).run(groups_of(tasks, 3, prefix="r", seed=3)))
    rewarded = [replace(t, reward=float(n % 3)) for n, t in enumerate(made)]
    return [rewarded[:3], rewarded[3:]]


def test_each_role_is_sampled_with_its_adapter_and_both_learn(trained: Path) -> None:
    with Store(trained / "store.sqlite") as store:
        steps = [step for t in store.trajectories.iterate(channel="train") for step in t.steps]
    assert {(step.role, step.adapter) for step in steps} == {
        ("planner", "planner.v1"),
        ("critic", ""),
        ("solver", "solver"),
    }
    assert {step.policy_version for step in steps if step.trainable} == {0, 1}
    for row in rows(trained):
        own = [row["grad_norm/planner.v1"], row["grad_norm/solver"]]
        assert min(own) > 0 and row["grad_norm"] == pytest.approx(sum(one**2 for one in own) ** 0.5)
        # Sampler and learner compute with the same adapter.
        assert row["mismatch/mean_abs"] < 1e-5
    first, last = (load_file(one / "adapters" / "solver" / "adapter_model.safetensors") for one in ends(trained))
    assert any(not torch.equal(first[name], last[name]) for name in first)


def ends(run: Path) -> tuple[Path, Path]:
    found = checkpoints(run)
    return found[0], found[-1]


def test_a_run_that_stops_half_way_ends_as_if_it_had_not(trained: Path, tiny_path: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    train(TrainConfig.model_validate(settings(tiny_path, run, max_steps=1, test_tasks=0)))
    assert (run / "checkpoints" / "step-000001" / "adapters" / "planner.v1" / "adapter_config.json").is_file()
    train(TrainConfig.model_validate(settings(tiny_path, run)), resume=True, force=True)
    ended, expected = contents(run), contents(trained)
    for name in (*(name for name in expected if name.startswith("step-")), "metrics.jsonl"):
        assert ended[name] == expected[name], name
    assert any("adapters/solver" in name for name in expected)


def test_a_publication_has_the_name_and_the_files_of_its_adapter(trained: Path) -> None:
    for name in ("planner.v1", "solver"):
        newest, checkpoint = published(trained / FOLDER, name)[-1], ends(trained)[1]
        assert newest.version == 2
        own = checkpoint / "adapters" / name / "adapter_model.safetensors"
        assert (newest.folder / "adapter_model.safetensors").samefile(own)


def test_greedy_evaluation_loads_both_adapters(trained: Path, tiny_path: Path) -> None:
    context = load_agent(find_agent(run=trained), trust=True)
    tasks = [context.tasks.get("test", place) for place in range(2)]
    made = asyncio.run(context.evaluate(tasks, "again", channel="test"))
    sampled = {role: [s for t in made for s in t.steps if s.role == role] for role in ROLES}
    for role, steps in sampled.items():
        sequences = [TokenSequence.of(step) for step in steps]
        own, base = (score(context.decoder, sequences, adapter=adapter).log_probs for adapter in (True, False))
        reported = torch.tensor([value for step in steps for value in step.rollout_log_probs or ()])
        expected, other = (base, own) if role == "critic" else (own, base)
        assert (reported - expected).abs().max() < 1e-5 < (reported - other).abs().max() or role == "critic"
    with Store(trained / "store.sqlite") as store:
        final = {t.task.id: t for t in store.trajectories.iterate(channel="test", train_step=2)}
    assert {t.task.id: t.answer for t in made} == {name: t.answer for name, t in final.items()}


def test_export_writes_every_adapter_or_the_one_that_is_named(trained: Path, tmp_path: Path) -> None:
    both = api.export(trained, tmp_path / "both")
    assert {path.name for path in both.iterdir()} == {"planner.v1", "solver"}
    one = api.export(trained, tmp_path / "one", adapter="solver")
    assert (one / "adapter_model.safetensors").read_bytes() == (
        both / "solver" / "adapter_model.safetensors"
    ).read_bytes()
    assert "| roles | solver |" in (one / "README.md").read_text()
    with pytest.raises(ConfigError, match="several adapters"):
        api.export(trained, tmp_path / "merged", merge=True)
    with pytest.raises(ConfigError, match="no adapter 'solvr'"):
        api.export(trained, tmp_path / "merged", adapter="solvr")
    merged = api.export(trained, tmp_path / "merged", merge=True, adapter="solver")
    assert (merged / "model.safetensors").is_file()


def test_an_adapter_does_not_move_by_the_steps_of_another(tiny_path: Path) -> None:
    context = context_of(tiny_path)
    groups = [
        [replace(t, steps=tuple(s for s in t.steps if s.role == "solver")) for t in group] for group in roll(context)
    ]
    batch = make_batch(groups, FlowGRPO(), failed="mask")
    assert batch.turns
    before = context.weights.snapshot()
    # Weight decay and moments from before must not move it either.
    config = OptimizerConfig(lr=0.1, weight_decay=0.1)
    learner = Learner(context.decoder, context.weights, config)
    found = learner.update(batch, FlowGRPO())
    after = context.weights.snapshot()
    moved = {name.partition("/")[0] for name in before if not torch.equal(before[name], after[name])}
    assert moved == {"solver"}
    assert found["grad_norm/planner.v1"] == 0 < found["grad_norm/solver"]


def test_the_gradient_of_a_shared_adapter_is_the_sum_of_those_of_its_roles(tiny_path: Path) -> None:
    """The loss is one mean over the batch, however many adapters its turns belong to."""
    apart = context_of(tiny_path)
    groups = roll(apart)
    by_role = {
        role: {
            name.partition("/")[2]: value
            for name, value in apart.weights.snapshot().items()
            if name.startswith(f"{adapter}/")
        }
        for role, adapter in (("planner", "planner.v1"), ("solver", "solver"))
    }
    # The same weights in both adapters, and in the one of a run with one.
    apart.weights.restore(
        {f"{adapter}/{name}": value for adapter in apart.adapters.names for name, value in by_role["solver"].items()}
    )
    shared = context_of(tiny_path, {"critic": {"engine": "frozen"}})
    shared.weights.restore(by_role["solver"])
    algorithm = FlowGRPO(kl=KLConfig(coef=0.0))
    found: list[dict[str, torch.Tensor]] = []
    for context in (apart, shared):
        Learner(context.decoder, context.weights, OptimizerConfig()).accumulate(
            make_batch(groups, algorithm, failed="mask"), algorithm
        )
        found.append(context.weights.gradients())
    own, whole = found
    for name, gradient in whole.items():
        together = own[f"planner.v1/{name}"] + own[f"solver/{name}"]
        assert torch.allclose(together, gradient, atol=1e-6 * float(gradient.abs().max()) + 1e-9), name


def test_a_pass_has_one_adapter_and_a_mixed_one_is_refused(tiny_path: Path) -> None:
    context = context_of(tiny_path)
    sequences = [TokenSequence((5, 6, 7), (8, 9), adapter=name) for name in ("solver", "planner.v1", "solver")]
    packs = pack_sequences(sequences, 4096, lambda one: one)
    assert [{one.adapter for one in pack} for pack in packs] == [{"planner.v1"}, {"solver"}]
    with pytest.raises(ValueError, match=r"planner\.v1, solver"):
        score(context.decoder, sequences)
    with pytest.raises(ModelError, match="no adapter 'other'"):
        score(context.decoder, [replace(sequences[0], adapter="other")])


def test_steps_recorded_elsewhere_train_the_adapter_that_sampled_them_or_that_of_their_role(tiny_path: Path) -> None:
    context = context_of(tiny_path)
    (one, *_), _ = roll(context)
    foreign = [replace(step, adapter="policy") for step in one.steps]
    swapped = replace(foreign[0], adapter="solver")
    (found,) = context.adapters.assign([replace(one, steps=(swapped, *foreign[1:]))])
    assert [step.adapter for step in found.steps] == ["solver", "policy", "solver"]
    assert RunAdapters(("mine",)).assign([one])[0] is one


ONE = {
    "tokens": "855f9950a30b161e442453fc65cba0351576aa0f78fd47ae259a6475203b9104",
    "loss": [2.7939677238464355e-09, 0.00012977969890926033],
    "grad_norm": [0.22914553767401302, 0.16163448290312296],
    "kl": [0.0, 0.012977016000569821],
}
"""A run with one adapter, recorded before there could be several."""


def test_with_one_adapter_nothing_changed(tiny_path: Path, tmp_path: Path) -> None:
    rules, run = {"engine": "rules"}, tmp_path / "run"
    data = settings(tiny_path, run, eval_every=0, test_tasks=0)
    flow = {
        "name": "agentflow",
        "tools": ["calculator"],
        "roles": {
            "analysis": rules,
            "executor": rules,
            "verifier": {"sampling": {"max_tokens": 4}},
            "planner": {"sampling": {"max_tokens": 5}},
        },
        "settings": {"notation": "compact", "fields": [], "max_turns": 2},
    }
    tasks = {"sources": [{"type": "calculate"}, {"type": "direct"}]}
    rollout = {"tasks_per_step": 3, "group_size": 3, "sampling": {"max_tokens": 3}}
    train(TrainConfig.model_validate({**data, "flow": flow, "tasks": tasks, "rollout": rollout}))
    with Store(run / "store.sqlite") as store:
        steps = sorted(
            (t.uid, s.role, s.prompt_ids, s.response_ids, s.adapter, s.policy_version)
            for t in store.trajectories.iterate(channel="train")
            for s in t.steps
        )
    assert hashlib.sha256(repr(steps).encode()).hexdigest() == ONE["tokens"]
    found = rows(run)
    for name in ("loss", "grad_norm", "kl"):
        assert [row[name] for row in found] == pytest.approx(ONE[name], rel=1e-3, abs=1e-7), name
    # The files of a checkpoint are where they were, and no metric is by adapter.
    assert {"adapter_config.json", "adapter_model.safetensors"} <= {path.name for path in ends(run)[1].iterdir()}
    assert not any("/policy" in name for row in found for name in row)


class Server(TorchEngine):
    """Stands in for a server: samples from weights of its own, and keeps old ones of the adapter `stuck`."""

    stuck = ""

    async def load_weights(self, publication: Publication) -> None:
        if publication.version and publication.adapter == self.stuck:
            self._versions[publication.adapter] = publication.version
        else:
            await super().load_weights(publication)

    def frozen(self) -> TorchEngine:
        return TorchEngine(self.decoder, self.tokenizer, name="frozen", adapter=None, beside=self)


def test_a_server_gets_every_adapter_and_each_has_a_canary(
    tiny_path: Path, tiny_tokenizer: ChatTokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = Server(load_decoder(tiny_path, torch.float32), tiny_tokenizer, name="the server")

    async def connect(*_: Any) -> Server:
        return server

    monkeypatch.setattr(trainer, "connect_sampler", connect)
    data = settings(tiny_path, tmp_path / "run", deterministic=False, test_tasks=0)
    config = TrainConfig.model_validate({**data, "policy": {**data["policy"], "engine": "http://server"}})
    train(config)
    assert set(server.decoder.adapter_names) == {"planner.v1", "solver"}
    assert [row["canary/decided"] for row in rows(tmp_path / "run")] == [1.0, 1.0]
    assert all(row["mismatch/mean_abs"] < 1e-5 for row in rows(tmp_path / "run"))
    assert {path.name for path in (tmp_path / "run").glob("canary*")} == {
        "canary-planner.v1.json",
        "canary-solver.json",
    }
    server.stuck = "solver"
    longer = config.model_copy(update={"trainer": config.trainer.model_copy(update={"max_steps": 3})})
    with pytest.raises(TrainingError, match="the server with the adapter 'solver' is nearer to the weights before"):
        train(longer, resume=True, force=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"policy": {"tuning": "full"}}, r"flow\.roles\.planner\.adapter is 'planner\.v1', but policy\.tuning 'full'"),
        ({"flow": {"roles": {"planner": {"engine": "frozen", "adapter": "a"}}}}, "is for the engine policy"),
        ({"flow": {"roles": {"planner": {"adapter": "../a"}}}}, "begin with a letter or digit"),
        ({"flow": {"roles": {**ROLES, "critic": {"adapter": "c", "train": False}}}}, "none of these roles is trained"),
        ({"flow": {"roles": {**ROLES, "critic": {"train": False}}}}, "'policy' is used by critic"),
        ({"flow": {"roles": {**ROLES, "policy": {"adapter": "x"}}}}, "no role of the flow .* samples with it"),
    ],
)
def test_what_cannot_be_trained_is_refused_by_name(tiny_path: Path, change: dict[str, Any], message: str) -> None:
    data = settings(tiny_path, Path("unused"))
    with pytest.raises(ConfigError, match=message):
        build(api.load_config({**data, **{name: {**data[name], **own} for name, own in change.items()}}))


def test_roles_without_an_adapter_share_the_default_one(tiny_path: Path) -> None:
    context = build(TrainConfig.model_validate(settings(tiny_path, Path("unused"), {"solver": {"adapter": "solver"}})))
    assert context.adapters.names == ("policy", "solver")
    assert {role: one.adapter for role, one in context.role_engines.items()} == {"policy": "policy", "solver": "solver"}
