"""The report of a run: one complete file that is safe to open, whatever a model wrote."""

from __future__ import annotations

import base64
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from midstream.evaluate.report import write_report


class _Page(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.open: list[str] = []
        self.loads: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in ("meta", "img"):
            self.open.append(tag)
        self.loads += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "action")]
        assert not [name for name, _ in attrs if name.startswith("on")]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture
def page(run_dir: Path) -> _Page:
    return _Page(write_report(run_dir).read_text(encoding="utf-8"))


def test_text_of_models_and_tools_is_escaped(page: _Page) -> None:
    assert "script" not in page.tags
    assert page.open == []
    # kind, question and reference once a pair; text, arguments, result, verdict, reward name and answer for each of two
    assert page.text.count("<script>alert(") == 1 + 3 + 2 * 6


def test_the_report_loads_nothing_from_the_network(page: _Page, run_dir: Path) -> None:
    assert len(page.loads) == 1
    kind, _, data = page.loads[0].partition(",")
    assert kind == "data:image/png;base64"
    assert base64.b64decode(data) == (run_dir / "curve.png").read_bytes()
    assert "@import" not in page.text and "url(" not in page.text


def test_before_and_after_are_shown_with_intervals(page: _Page) -> None:
    text = re.sub(r"\s+", " ", page.text)
    assert "3 %1 to 11" in text and "90 %80 to 95" in text
    assert "+57 points" in text


def test_the_reward_is_shown_by_component(page: _Page) -> None:
    assert "reward: answer" in page.text and "reward: cost-0.050-0.050-0.050" in page.text


def test_a_run_killed_at_the_start_has_a_report(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text('{"name": "cut", "status": "running"}')
    (tmp_path / "metrics.jsonl").write_text('{"stage": "rl", "step": 1, "rewa')
    (tmp_path / "samples.jsonl").write_text('{"label": "base"}\n{"label": "final", "turns": [{"role": null}, 3]}\n')
    page = _Page(write_report(tmp_path).read_text(encoding="utf-8"))
    assert page.open == [] and "cut interrupted" in page.text
