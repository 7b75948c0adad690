"""The learning curve, drawn from a run's files in any state."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from midstream.evaluate.curve import BASE, EVALUATION, REWARD, SUCCESS, WARM, draw_curve, smooth


def test_the_curve_shows_all_series(run_dir: Path) -> None:
    pixels = _pixels(draw_curve(run_dir))
    for colour in (SUCCESS, REWARD, EVALUATION, BASE, WARM):
        assert _count(pixels, colour) > 50, colour
    assert sorted(path.name for path in run_dir.iterdir() if "curve" in path.name) == ["curve.png"]


def test_missing_evaluations_are_not_drawn(run_dir: Path) -> None:
    (run_dir / "evals.jsonl").unlink()
    pixels = _pixels(draw_curve(run_dir))
    assert _count(pixels, SUCCESS) > 50
    assert _count(pixels, EVALUATION) == _count(pixels, WARM) == 0


def test_rising_success_is_drawn_rising(run_dir: Path) -> None:
    (run_dir / "evals.jsonl").unlink()
    pixels = _pixels(draw_curve(run_dir))
    rows, columns = np.nonzero(_is(pixels, SUCCESS))
    below_the_legend = rows > pixels.shape[0] * 0.11
    rows, columns = rows[below_the_legend], columns[below_the_legend]
    left, right = rows[columns < np.quantile(columns, 0.1)].mean(), rows[columns > np.quantile(columns, 0.9)].mean()
    assert right < left - 100


def test_a_run_without_steps_or_values_is_drawn(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text("")
    assert draw_curve(tmp_path).stat().st_size > 1000
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "reward": null, "success": NaN}\n{"step": 2, "reward": 0.5}\n')
    (tmp_path / "evals.jsonl").write_text('{"label": "final", "split": "test", "success": null}\n')
    assert draw_curve(tmp_path).stat().st_size > 1000


@given(st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=60))
def test_smoothed_values_stay_within_the_range_of_the_data(values: list[float]) -> None:
    smoothed = smooth(values)
    assert len(smoothed) == len(values)
    assert min(values) - 1e-6 <= min(smoothed) and max(smoothed) <= max(values) + 1e-6


def test_smoothing_keeps_a_constant_and_reduces_noise() -> None:
    assert smooth([0.25] * 9) == pytest.approx([0.25] * 9)
    noisy = [float(index % 2) for index in range(40)]
    assert max(smooth(noisy)[5:-5]) - min(smooth(noisy)[5:-5]) < 0.1


def _pixels(path: Path) -> np.ndarray:
    from matplotlib.image import imread

    return np.rint(imread(path)[:, :, :3] * 255).astype(int)


def _is(pixels: np.ndarray, colour: str) -> np.ndarray:
    wanted = [int(colour[start : start + 2], 16) for start in (1, 3, 5)]
    return np.abs(pixels - wanted).max(axis=2) <= 2


def _count(pixels: np.ndarray, colour: str) -> int:
    return int(_is(pixels, colour).sum())
