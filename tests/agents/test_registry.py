"""Flows by name: registered in code, listed in YAML, or given by import path."""

from __future__ import annotations

import sys
import textwrap
from pathlib import Path

import pytest

from midstream.agents import MultiStepAgentFlow, SingleStepSingleTurnAgentFlow, find_flow, load_flows, register
from midstream.agents.agentflow.flow import AgentFlow
from midstream.agents.base import AgentFlowBase
from midstream.core.errors import ConfigError


def test_built_in_flows_are_found_by_name() -> None:
    assert find_flow("agentflow") is AgentFlow
    assert find_flow("single_step_single_turn_agent") is SingleStepSingleTurnAgentFlow
    assert find_flow("multi_step_agent") is MultiStepAgentFlow


def test_a_name_belongs_to_one_flow_and_a_reloaded_module_can_reuse_it() -> None:
    def declare() -> type[AgentFlowBase]:
        @register("test_registry_mine")
        class Mine(SingleStepSingleTurnAgentFlow): ...

        return Mine

    declare()
    again = declare()
    assert find_flow("test_registry_mine") is again
    with pytest.raises(ConfigError, match=r"already registered: .*Mine"):

        @register("test_registry_mine")
        class Other(SingleStepSingleTurnAgentFlow): ...


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    name = "flows_of_a_test"
    (tmp_path / f"{name}.py").write_text(
        textwrap.dedent(
            """
            from midstream.agents import SingleStepSingleTurnAgentFlow

            class Desk(SingleStepSingleTurnAgentFlow): ...

            NOT_A_FLOW = dict
            """
        )
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, name, raising=False)
    return name


def test_flows_listed_in_yaml_are_registered(module: str, tmp_path: Path) -> None:
    listed = tmp_path / "flows.yaml"
    listed.write_text(f"- name: test_registry_desk\n  _target_: {module}.Desk\n")
    assert load_flows(listed) == ["test_registry_desk"]
    assert find_flow("test_registry_desk") is find_flow(f"{module}:Desk")
    assert find_flow("test_registry_desk").__name__ == "Desk"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: one\n", "must hold a list"),
        ("- name: one\n", "entry 1 of .* must have exactly"),
        ("- {name: one, _target_: no.such.Module}\n", "entry 1 of .*: cannot import 'no.such.Module'"),
        ("- {name: one, _target_: flows_of_a_test.Missing}\n", "cannot import"),
        ("- {name: one, _target_: flows_of_a_test.NOT_A_FLOW}\n", "is not a subclass of AgentFlowBase"),
        ("- {name: one, _target_: Desk}\n", "cannot import 'Desk'"),
        ("- [", "cannot read agent flows"),
    ],
)
def test_an_invalid_flow_list_names_the_entry(module: str, tmp_path: Path, text: str, message: str) -> None:
    listed = tmp_path / "flows.yaml"
    listed.write_text(text)
    with pytest.raises(ConfigError, match=message):
        load_flows(listed)


def test_an_unknown_flow_name_suggests_the_nearest() -> None:
    with pytest.raises(ConfigError, match="did you mean 'agentflow'"):
        find_flow("agentflw")
    with pytest.raises(ConfigError, match="cannot read agent flows"):
        load_flows("nowhere.yaml")
