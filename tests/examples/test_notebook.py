"""The notebook runs from the first to the last cell, and its agent improves."""

from __future__ import annotations

from pathlib import Path

import nbformat
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).parents[2] / "examples" / "notebook.ipynb"


def test_every_cell_runs_and_the_agent_gets_better(tmp_path: Path) -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    NotebookClient(notebook, timeout=100, resources={"metadata": {"path": str(tmp_path)}}).execute()
    texts = ["".join(o.get("text", "") for o in cell.get("outputs", ())) for cell in notebook.cells]
    printed = [text for text in texts if text]
    trained, asked, evaluated = printed
    assert "step 12: reward" in trained and "finished: runs/notebook/report.html" in trained
    assert "page" in asked
    assert int(evaluated.split("%")[0]) > 80


def test_the_notebook_is_stored_without_outputs() -> None:
    for cell in nbformat.read(NOTEBOOK, as_version=4).cells:
        assert not cell.get("outputs") and cell.get("execution_count") is None
