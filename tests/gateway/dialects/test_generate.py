"""`POST /inference/v1/generate`: ids in, ids with log-probabilities out, as vLLM's clients expect them."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from tests.gateway.conftest import Start
from tests.gateway.served import Opened


def generate(opened: Opened, ids: list[int], **sampling: Any) -> httpx.Response:
    body = {"model": "tiny", "token_ids": ids, "sampling_params": sampling, "return_token_ids": True}
    return opened.post("/../inference/v1/generate", body)


def test_the_answer_is_what_was_sampled_and_recorded(start: Start) -> None:
    served = start("One two.")
    opened = served.open(trajectory_uid="t")
    tokenizer = served.gateway.tokenizer
    ids = list(tokenizer.encode("<|im_start|>user\nCount.<|im_end|>\n<|im_start|>assistant\n"))
    # What the client of `renderers` sends.
    asked = {"max_tokens": 9, "stop_token_ids": sorted(tokenizer.end_ids), "logprobs": 3, "skip_special_tokens": False}
    answer = generate(opened, ids, **asked, temperature=1.0, top_k=-1, min_tokens=0).json()
    (choice,) = answer["choices"]
    (step,) = served.steps("t")
    assert answer["prompt_token_ids"] == list(step.prompt_ids) == ids
    assert choice["token_ids"] == list(step.response_ids) == [*tokenizer.encode("One two."), *tokenizer.end_ids]
    assert (choice["finish_reason"], answer["usage"]["completion_tokens"]) == ("stop", len(step.response_ids))
    positions = choice["logprobs"]["content"]
    assert [one["logprob"] for one in positions] == list(step.rollout_log_probs or ())
    for token, position in zip(step.response_ids, positions, strict=True):
        assert position["token"] == f"token_id:{token}" and position["token_id"] == token
        candidates = [one["token_id"] for one in position["top_logprobs"]]
        assert candidates[0] == token and len(candidates) == len(set(candidates)) >= 3
    # The next turn extends the tokens of this one.
    following = ids + choice["token_ids"] + list(tokenizer.encode("\n<|im_start|>user\nOn."))
    assert generate(opened, following, max_tokens=4).status_code == 200
    assert served.steps("t")[1].parent == step.step_index


@pytest.mark.parametrize(
    ("sampling", "param"),
    [
        ({"stop_token_ids": [5]}, "sampling_params.stop_token_ids"),
        ({"min_tokens": 4}, "sampling_params.min_tokens"),
        ({"ignore_eos": True}, "sampling_params.ignore_eos"),
        ({"prompt_logprobs": 1}, "sampling_params.prompt_logprobs"),
        ({"temprature": 1.0}, "sampling_params.temprature"),
    ],
)
def test_what_would_change_the_answer_is_refused_by_name(start: Start, sampling: dict[str, Any], param: str) -> None:
    refused = generate(start().open(), [1, 2], **sampling)
    assert refused.status_code == 400 and refused.json()["error"]["param"] == param


@pytest.mark.parametrize("ids", [[], [10**6], [-1]])
def test_ids_that_are_not_tokens_are_refused(start: Start, ids: list[int]) -> None:
    refused = generate(start().open(), ids)
    assert refused.status_code == 400 and refused.json()["error"]["param"].startswith("token_ids")
