"""`examples/classify.py` fine-tunes BERT, and reports precision, recall and F1 by class before and after."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.environments
EXAMPLE = Path(__file__).parents[2] / "examples" / "classify.py"


def test_the_classifier_learns_and_is_saved(tmp_path: Path) -> None:
    command = [sys.executable, str(EXAMPLE), "--size", "12", "--epochs", "3", "--lr", "2e-4"]
    # Two threads of OpenMP on a busy machine wait for each other in a loop, and the test takes minutes.
    single = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=single, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    before, _, after = done.stdout.partition("after, on test:")
    accuracy = [float(line.split()[1]) for text in (before, after) for line in text.splitlines() if "accuracy" in line]
    assert accuracy[1] > accuracy[0] + 0.2
    assert "precision" in after and "letter_counting" in after and before.count("macro F1 on validation") == 3

    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "classifier")
    assert model.config.num_labels == 7
