"""`learn` works with any `PolicyModel`: only where models are created does it know their classes."""

from __future__ import annotations

import ast
from pathlib import Path

import midstream.learn
from midstream.engines.torch.decoder import load_decoder
from midstream.learn.model.policy_model import PolicyModel

CLASSES = {"Decoder", "TorchEngine"}
CREATES = {
    # Creates the models of a run: the policy, a critic's own, and a reference.
    "run/setup.py": {"load_decoder"},
}
"""What a file of `learn` may import from the modules of the decoder and the engine."""


def imports(source: str) -> set[str]:
    """What `source` imports from the decoder's and the engine's modules, inside functions and for types too."""
    modules = ("midstream.engines.torch.decoder", "midstream.engines.torch.engine")
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module in modules:
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module == "midstream.engines.torch":
            found |= {name.name for name in node.names} & {"decoder", "engine"}
        elif isinstance(node, ast.Import):
            found |= {name.name for name in node.names if name.name in modules}
    return found


def test_learn_names_no_class_of_a_model_or_an_engine() -> None:
    root = Path(midstream.learn.__file__).parent
    files = sorted(root.rglob("*.py"))
    found = {str(file.relative_to(root)): names for file in files if (names := imports(file.read_text()))}
    assert found == CREATES
    assert not any(names & CLASSES for names in CREATES.values())


def test_the_check_sees_every_kind_of_import() -> None:
    for line in (
        "from midstream.engines.torch.decoder import Decoder",
        "def f():\n    from midstream.engines.torch.engine import TorchEngine",
        "import midstream.engines.torch.engine",
        "from midstream.engines.torch import decoder",
    ):
        assert imports(line), line


def test_the_decoder_is_a_policy_model(tiny_path: Path) -> None:
    import torch

    decoder = load_decoder(tiny_path, torch.float32)
    model: PolicyModel = decoder  # pyright checks the signatures
    declared = {name for name in (*PolicyModel.__annotations__, *vars(PolicyModel)) if not name.startswith("_")}
    assert declared and all(hasattr(model, name) for name in declared)
