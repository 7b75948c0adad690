"""One gateway serves several adapters: a request chooses one by its model, and each step records the one it got."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tests.engines.test_adapters import add
from tests.gateway.served import Served, error

from midstream.engines.chat import ChatTokenizer
from midstream.engines.publication import Publication, Publisher
from midstream.engines.scripted import ScriptedEngine
from midstream.engines.torch.decoder import Decoder, load_decoder
from midstream.engines.torch.engine import TorchEngine
from midstream.gateway.sessions.adapters import ServedAdapters
from midstream.learn.model.log_probs import TokenSequence, score
from midstream.record.recorder import RoleEngine


@pytest.fixture
def trained(tiny_path: Path) -> Decoder:
    """A decoder with two adapters, as a run would publish them."""
    decoder = load_decoder(tiny_path, torch.float32)
    add(decoder, "solver", 3)
    add(decoder, "critic", 4)
    return decoder


@pytest.fixture
def served(tiny_path: Path, tiny_tokenizer, trained: Decoder, tmp_path: Path) -> Iterator[Served]:
    engine = TorchEngine(load_decoder(tiny_path, torch.float32), tiny_tokenizer)
    served = Served(engine, tiny_tokenizer, tmp_path / "g.sqlite", limits={"max_response_tokens": 6})
    for version, name in enumerate(("solver", "critic"), 7):
        publication = Publisher(tmp_path / "published", name).publish(
            version, lambda folder, name=name: trained.save_adapter(folder, "tiny", name)
        )
        served.in_loop(served.gateway.load_weights(publication))
    yield served
    served.stop()


def test_a_request_chooses_an_adapter_by_its_model(served: Served, trained: Decoder) -> None:
    opened = served.open()
    for model in ("solver", "critic", "tiny"):
        response = opened.chat(model=model, seed=5)
        assert response.status_code == 200, response.text
        assert response.json()["model"] == model
    assert [(step.adapter, step.policy_version) for step in opened.steps] == [
        ("solver", 7),
        ("critic", 8),
        ("critic", 8),  # the first in alphabetical order
    ]
    for step in opened.steps:
        for name in ("solver", "critic"):
            sequence = TokenSequence(step.prompt_ids, step.response_ids, adapter=name)
            own = score(trained, [sequence]).log_probs.detach()
            difference = float((own - torch.tensor(step.rollout_log_probs)).abs().max())
            assert (difference < 1e-4) == (name == step.adapter)


def test_every_dialect_and_generate_can_choose(served: Served) -> None:
    opened = served.open()
    text = {"model": "solver", "max_tokens": 4}
    hello = [{"role": "user", "content": "Hello?"}]
    for path, body in {
        "/completions": {**text, "prompt": "Hello"},
        "/messages": {**text, "messages": hello},
        "/responses": {"model": "solver", "input": "Hello?", "max_output_tokens": 4},
    }.items():
        response = opened.post(path, body)
        assert response.status_code == 200, response.text
    own = {"trajectory_uid": opened.uid, "prompt_uid": opened.prompt_uid, "messages": hello, "role": "planner"}
    response = served.post("/generate", {**own, **text}, Authorization=f"Bearer {opened.token}")
    assert response.status_code == 200 and response.json()["adapter"] == "solver", response.text
    response = served.post("/generate", {**text, "prompt_ids": [5, 6, 7]})
    assert response.status_code == 200 and response.json()["adapter"] == "solver", response.text
    assert [step.adapter for step in opened.steps] == ["solver"] * 4
    assert opened.steps[-1].role == "planner"


def test_the_models_have_their_own_versions_and_others_are_refused(served: Served) -> None:
    listed = served.client.get("/v1/models").json()["data"]
    assert [(one["id"], one["policy_version"]) for one in listed] == [("tiny", 8), ("critic", 8), ("solver", 7)]
    code, _, message = error(served.open().chat(model="planner"))
    assert code == 404 and "this gateway serves tiny, critic, solver" in message


def test_a_key_stands_for_one_adapter(served: Served) -> None:
    opened = served.open()
    first = opened.chat(model="solver", key="k")
    assert opened.chat(model="solver", key="k").json()["id"] == first.json()["id"]
    assert error(opened.chat(model="critic", key="k"))[:2] == (409, "idempotency_key_reused")


def test_one_adapter_needs_no_name(tiny_path: Path, tiny_tokenizer, trained: Decoder, tmp_path: Path) -> None:
    engine = TorchEngine(load_decoder(tiny_path, torch.float32), tiny_tokenizer)
    served = Served(engine, tiny_tokenizer, tmp_path / "g.sqlite")
    try:
        publication = Publisher(tmp_path / "published", "solver").publish(
            3, lambda folder: trained.save_adapter(folder, "tiny", "solver")
        )
        served.in_loop(served.gateway.load_weights(publication))
        assert [one["id"] for one in served.client.get("/v1/models").json()["data"]] == ["tiny"]
        opened = served.open()
        opened.say([{"role": "user", "content": "Hello?"}], max_tokens=4)
        assert [(step.adapter, step.policy_version) for step in opened.steps] == [("solver", 3)]
    finally:
        served.stop()


@pytest.mark.parametrize(
    ("loaded", "names"),
    [
        (("alpha",), ()),
        (("beta", "zeta", "alpha"), ("alpha", "beta", "zeta")),
        (("alpha", "policy", "beta"), ("policy", "alpha", "beta")),
    ],
)
def test_the_default_adapter_does_not_depend_on_what_was_loaded_last(
    tiny_tokenizer: ChatTokenizer, loaded: tuple[str, ...], names: tuple[str, ...]
) -> None:
    served = ServedAdapters(RoleEngine(ScriptedEngine(tiny_tokenizer, "x"), tiny_tokenizer, True))
    for version, name in enumerate(loaded):
        served.loaded(Publication(Path(), version, name))
    assert served.names == names
    assert served.adapter("tiny") == (names[0] if names else "")
    assert served.adapter("beta") == ("beta" if names else "")
