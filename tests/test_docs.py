"""What README and docs show is there: commands parse, settings exist, code compiles, links lead somewhere."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
import yaml

from midstream.api import load_config
from midstream.cli import cli
from midstream.core.shipped import shipped_configs
from midstream.gateway.config import GatewayConfig

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
ELSEWHERE = ("langgraph",)
"""Packages of extras that the tests are run without."""


def blocks(page: Path, language: str) -> list[str]:
    return [body for found, body in FENCE.findall(page.read_text(encoding="utf-8")) if found == language]


def commands(page: Path) -> Iterator[list[str]]:
    """Each command of the page's bash blocks as words, without comments."""
    for block in blocks(page, "bash"):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            while words and re.fullmatch(r"[A-Z_]+=\S*", words[0]):
                words.pop(0)
            if words:
                yield words


def parse(command: click.Command, words: list[str]) -> click.Context:
    """Parse `words` as the command line would, down to the subcommand, and run nothing."""
    context = command.make_context(command.name, list(words))
    if isinstance(command, click.Group):
        name, found, rest = command.resolve_command(context, [*context._protected_args, *context.args])
        assert found is not None, name
        return parse(found, rest)
    return context


by_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


@by_page
def test_every_command_parses_and_its_files_settings_and_targets_exist(page: Path) -> None:
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for program, *arguments in commands(page):
        if program == "midstream":
            given = parse(cli, arguments).params
            config, overrides = given.get("config"), given.get("overrides", ())
            if config is not None and not Path(config).is_absolute():
                load_config(config if config in shipped_configs() else ROOT / config, overrides)
        elif program == "python":
            assert (ROOT / arguments[0]).is_file(), arguments[0]
        elif program == "make":
            assert [word for word in arguments if "=" not in word and word not in targets] == []
        else:
            assert program in ("source", "git", "cd", "pip", "export"), f"{program} is not checked"


@by_page
def test_python_compiles_and_what_it_takes_from_midstream_is_there(page: Path) -> None:
    for block in blocks(page, "python"):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("midstream"):
                try:
                    module = importlib.import_module(node.module or "")
                except ModuleNotFoundError as error:  # of an extra that needs an environment of its own
                    assert (error.name or "").partition(".")[0] in ELSEWHERE, error
                    continue
                assert [alias.name for alias in node.names if not hasattr(module, alias.name)] == []
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "ms":
                assert hasattr(importlib.import_module("midstream"), node.attr), node.attr


@by_page
def test_yaml_is_a_config_or_a_part_of_one_and_json_is_json(page: Path) -> None:
    for block in blocks(page, "yaml"):
        data = yaml.safe_load(block)
        if isinstance(data, dict) and data.keys() <= set(GatewayConfig.model_fields):
            GatewayConfig.model_validate(data)
        elif isinstance(data, dict):
            load_config({"tasks": {"sources": [{"type": "calculate"}]}, **data})
    for block in blocks(page, "json"):
        assert json.loads(block)


@by_page
def test_every_relative_link_leads_to_a_file_and_a_heading(page: Path) -> None:
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    for link in LINK.findall(text):
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = page if not path else (page.parent / path).resolve()
        assert target.exists(), link
        if anchor:
            assert anchor in headings(target), link


def headings(page: Path) -> set[str]:
    """Anchors as GitHub makes them of headings."""
    found = re.findall(r"^#+ (.+)$", FENCE.sub("", page.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in found}


def test_every_page_is_reached_from_the_readme() -> None:
    linked = set(LINK.findall((ROOT / "README.md").read_text(encoding="utf-8")))
    assert {f"docs/{page.name}" for page in PAGES if page.parent.name == "docs"} <= linked


@pytest.mark.parametrize(("script", "page"), [("make_configuration", "configuration"), ("make_arguments", "agents")])
def test_a_page_that_is_written_from_the_code_is_current(script: str, page: str) -> None:
    spec = importlib.util.spec_from_file_location(script, ROOT / "docs" / f"{script}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    current = (ROOT / "docs" / f"{page}.md").read_text(encoding="utf-8")
    assert current == module.page(), f"the code changed; run: python docs/{script}.py"


def test_the_agent_of_the_readme_is_the_example() -> None:
    example = (ROOT / "examples" / "own_agent.py").read_text(encoding="utf-8")
    shown = [block for block in blocks(ROOT / "README.md", "python") if "ms.AgentFlowBase" in block]
    assert len(shown) == 1 and shown[0] in example
