"""A run hands its weights to a sampler that has its own, and stops when that one does not take them."""

from __future__ import annotations

import json
import logging
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from midstream import api
from midstream.core.errors import ConfigError, EngineUnreachable, RunError, TrainingError
from midstream.engines.base import Capabilities, Completion, Request
from midstream.engines.chat import ChatTokenizer
from midstream.engines.factory import EngineSettings
from midstream.engines.publication import FOLDER, Publication, published
from midstream.engines.replicas import Replicas
from midstream.engines.torch.decoder import load_decoder
from midstream.engines.torch.engine import TorchEngine
from midstream.learn.config import PolicyConfig, TrainConfig
from midstream.learn.run import trainer
from midstream.learn.run.checkpoint import checkpoints
from midstream.learn.run.setup import build
from midstream.record.store import Store


class Sampler(TorchEngine):
    """Stands in for a server: samples from weights of its own, and ignores what is published after `last` versions."""

    last = 1000

    async def load_weights(self, publication: Publication) -> None:
        if publication.version <= self.last:
            await super().load_weights(publication)
        self.decoder.version, self.adapter = publication.version, publication.adapter


@pytest.fixture
def sampler(tiny_path: Path, tiny_tokenizer: ChatTokenizer, monkeypatch: pytest.MonkeyPatch) -> Sampler:
    import torch

    found = Sampler(load_decoder(tiny_path, torch.float32), tiny_tokenizer, name="the server")

    async def connect(config: PolicyConfig, stack: AsyncExitStack) -> Sampler:
        return found

    monkeypatch.setattr(trainer, "connect_sampler", connect)
    return found


@pytest.fixture(autouse=True)
def reward(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reward in which the attempts of a random model differ."""
    (tmp_path / "letters_reward.py").write_text(
        "def letters(steps):\n"
        "    text = ''.join(step.text for step in steps)\n"
        "    return sum(c.islower() for c in text) / max(len(text), 1)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)


def settings(tiny_path: Path, run: Path, *, lr: float = 0.01, remote: bool = True, **training: Any) -> dict[str, Any]:
    policy = {"engine": "http://server", "adapter": "planner"} if remote else {}
    return {
        "policy": {"model": str(tiny_path), "dtype": "float32", "lora": {"rank": 2}, **policy},
        "tasks": {"sources": [{"type": "direct"}]},
        "reward": {"components": {"letters_reward:letters": 1.0}},
        "rollout": {"tasks_per_step": 3, "group_size": 3, "sampling": {"max_tokens": 6}},
        "algorithm": {"name": "rloo"},
        "optimizer": {"lr": lr},
        "trainer": {
            "max_steps": 4,
            "save_every": 2,
            "eval_every": 0,
            "test_tasks": 0,
            "threads": 1,
            "run_dir": str(run),
            **training,
        },
    }


def rows(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_each_update_reaches_the_sampler_before_it_samples_again(sampler: Sampler, tiny_path: Path, tmp_path) -> None:
    run = tmp_path / "run"
    assert api.train(settings(tiny_path, run), callbacks=()).status == "finished"
    steps = rows(run)
    assert [row["canary/decided"] for row in steps] == [1.0] * 4
    assert all(row["canary/share"] == pytest.approx(1, abs=0.01) for row in steps)
    # What was sampled is what the learner's weights of that version say.
    assert all(row["mismatch/mean_abs"] < 1e-5 and row["mismatch/staleness"] == 0 for row in steps)
    with Store(run / "store.sqlite") as store:
        # The uid of an attempt names its training step.
        said = {
            int(t.uid.split("-")[1]): {(s.adapter, s.policy_version) for s in t.steps}
            for t in store.trajectories.iterate()
        }
    assert said == {step: {("planner", step - 1)} for step in (1, 2, 3, 4)}
    assert [one.version for one in published(run / FOLDER, "planner")] == [3, 4]
    # A resumed run goes on with the same canary.
    longer = settings(tiny_path, run, max_steps=6)
    assert api.train(longer, resume=True, force=True, callbacks=()).step == 6
    assert [row["canary/decided"] for row in rows(run)] == [1.0] * 6


def test_a_sampler_that_keeps_an_old_adapter_stops_the_run(sampler: Sampler, tiny_path: Path, tmp_path: Path) -> None:
    run, sampler.last = tmp_path / "run", 2
    with pytest.raises(TrainingError, match=r"the sampler did not take the update: .* policy version 3, the server"):
        api.train(settings(tiny_path, run), callbacks=())
    *before, last = rows(run)
    assert last["step"] == 3 and last["canary/share"] < 0.1
    assert all(row["canary/share"] > 0.9 for row in before)
    assert [path.name for path in checkpoints(run)] == ["step-000000", "step-000002"]
    # It is found at once on resume, and with a server that works the run goes on.
    sampler.last = 0
    with pytest.raises(TrainingError, match="did not take the update"):
        api.train(settings(tiny_path, run), resume=True, callbacks=())
    sampler.last = 1000
    assert api.train(settings(tiny_path, run), resume=True, callbacks=()).status == "finished"


def test_an_update_below_the_mismatch_is_called_undecidable(
    sampler: Sampler, tiny_path: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch
) -> None:
    generate = sampler.generate

    async def rounded(request: Request) -> Completion:
        """As another program would answer: rounded otherwise."""
        said = await generate(request)
        tops = [
            tuple((token, value + 0.01 * ((token * 7919) % 11 - 5)) for token, value in top)
            for top in said.top_log_probs
        ]
        return replace(said, top_log_probs=tuple(tops))

    monkeypatch.setattr(sampler, "generate", rounded)
    with caplog.at_level(logging.WARNING, "midstream.learn.run.policy_publisher"):
        api.train(settings(tiny_path, tmp_path / "run", lr=1e-6, max_steps=2), callbacks=())
    assert [row["canary/decided"] for row in rows(tmp_path / "run")] == [0.0, 0.0]
    (record,) = (record for record in caplog.records if "canary" in record.getMessage())
    assert "canary undecidable at policy version 1" in record.getMessage()


def test_a_replica_that_was_unreachable_at_a_publication_is_not_accused(
    sampler: Sampler, tiny_path: Path, tiny_tokenizer: ChatTokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Flaky(Sampler):
        missed: Any = ()

        async def load_weights(self, publication: Publication) -> None:
            if publication.version == 3 and not self.missed:
                self.missed = (3,)
                raise EngineUnreachable("connection reset")
            await super().load_weights(publication)

    import torch

    flaky = Flaky(load_decoder(tiny_path, torch.float32), tiny_tokenizer, name="the server")
    both = Replicas([sampler, flaky])

    async def connect(config: PolicyConfig, stack: AsyncExitStack) -> Replicas:
        return both

    monkeypatch.setattr(trainer, "connect_sampler", connect)
    api.train(settings(tiny_path, tmp_path / "run"), callbacks=())
    assert flaky.missed == (3,)
    assert [row["canary/decided"] for row in rows(tmp_path / "run")] == [1.0] * 4
    # Once it answers again it has the newest weights, and is judged again.
    assert flaky.decoder.version == sampler.decoder.version == 4


def test_a_sampler_in_this_process_gets_no_publications_and_followers_do(tiny_path: Path, tmp_path: Path) -> None:
    seen: list[list[int]] = []

    class Watching:
        def on_metrics(self, row: dict[str, Any]) -> None:
            seen.append([one.version for one in published(tmp_path / "run" / FOLDER)])

        def on_start(self, info: dict[str, Any]) -> None: ...

        def on_eval(self, row: dict[str, Any]) -> None: ...

        def on_finish(self, result: dict[str, Any]) -> None: ...

    config = settings(tiny_path, tmp_path / "run", remote=False, max_steps=5, save_every=4, publish_every=2)
    api.train(config, callbacks=[Watching()])
    assert seen == [[0], [0, 2], [0, 2], [2, 4], [2, 4]]
    assert [one.version for one in published(tmp_path / "run" / FOLDER)] == [4, 5]
    assert not (tmp_path / "run" / "canary.json").exists()
    assert not any(name.startswith("canary") for row in rows(tmp_path / "run") for name in row)
    # The checkpoint and its publication share their files.
    (newest,), checkpoint = published(tmp_path / "run" / FOLDER)[-1:], checkpoints(tmp_path / "run")[-1]
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        assert (newest.folder / name).samefile(checkpoint / name)
    assert {path.name for path in newest.folder.iterdir()} == {
        "adapter_model.safetensors",
        "adapter_config.json",
        "publication.json",
    }


def test_weights_that_the_server_cannot_load_stop_the_run_with_what_to_do(
    sampler: Sampler, tiny_path: Path, tmp_path: Path, monkeypatch
) -> None:
    async def refuse(publication: Publication) -> None:
        from midstream.core.errors import EngineError

        raise EngineError("HTTP 400: rank 2 is more than --max-lora-rank")

    monkeypatch.setattr(sampler, "load_weights", refuse)
    with pytest.raises(RunError, match=r"could not load policy version 0: .*max-lora-rank"):
        api.train(settings(tiny_path, tmp_path / "run"), callbacks=())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"trainer": {"deterministic": True}}, "needs policy.engine 'torch'"),
        ({"policy": {"numerics": "exact"}}, "needs policy.engine 'torch'"),
        ({"policy": {"engine": ["http://one", "torch"]}}, "URLs of vLLM servers"),
        ({"policy": {"engine": "vllm"}}, "URLs of vLLM servers"),
        ({"policy": {"engine": []}}, "URLs of vLLM servers"),
        ({"policy": {"adapter": "../elsewhere"}}, "begin with a letter or digit"),
    ],
)
def test_what_a_server_cannot_do_is_refused_by_name(change: dict[str, Any], message: str) -> None:
    data = settings(Path("tiny"), Path("run"))
    with pytest.raises(ConfigError, match=message):
        api.load_config({**data, **{name: {**data[name], **values} for name, values in change.items()}})


def test_outside_training_this_process_samples(tiny_path: Path, tmp_path: Path) -> None:
    context = build(TrainConfig.model_validate(settings(tiny_path, tmp_path / "run")))
    assert context.shares_weights and context.engine.adapter == "planner"


def test_one_url_is_a_list_of_one() -> None:
    assert PolicyConfig(engine="http://one").engine == ("http://one",)  # type: ignore[arg-type]
    assert PolicyConfig(engine=("http://one", "http://two")).remote and not PolicyConfig().remote


def test_full_tuning_is_refused_for_a_server_that_takes_adapters(
    sampler: Sampler, tiny_path: Path, tmp_path: Path, monkeypatch
) -> None:
    from midstream.learn.run import setup

    asked: list[EngineSettings] = []

    async def made(settings: EngineSettings, *_: Any) -> Sampler:
        asked.append(settings)
        return sampler

    sampler.capabilities = Capabilities(full=False)
    monkeypatch.undo()
    monkeypatch.setattr(setup, "make_policy_engine", made)
    config = TrainConfig.model_validate(settings(tiny_path, tmp_path / "run"))
    changes = {"tuning": "full", "api_key_env": "A_KEY"}
    full = config.model_copy(update={"policy": config.policy.model_copy(update=changes)})
    with pytest.raises(ConfigError, match=r"policy\.tuning is full, but the server takes LoRA adapters only"):
        api.train(full, callbacks=())
    assert [one.api_key_env for one in asked] == ["A_KEY"]
