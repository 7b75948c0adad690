"""The config of a checkpoint from elsewhere runs no code unless it is trusted."""

from __future__ import annotations

import logging
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from midstream import api, cli
from midstream.core.errors import ConfigError
from midstream.core.types import Status
from midstream.evaluate.trust import effects_of

EVIL = "open('ran', 'w').close()\n"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, tiny_path: Path) -> Path:
    settings: dict[str, Any] = {
        "name": "theirs",
        "policy": {"model": str(tiny_path), "dtype": "float32", "lora": {"rank": 2}},
        "tasks": {"sources": [{"type": "direct"}]},
        "rollout": {"tasks_per_step": 2, "group_size": 2, "sampling": {"max_tokens": 2}},
        "trainer": {"max_steps": 1, "eval_every": 0, "test_tasks": 0, "threads": 1},
    }
    settings["trainer"]["run_dir"] = str(tmp_path_factory.mktemp("sent") / "runs" / "theirs")
    return api.train(settings, callbacks=()).run_dir


@pytest.fixture
def theirs(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A checkpoint outside `runs/` with a changed config, and an importable module in the working directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "evil.py").write_text(EVIL)
    monkeypatch.delitem(sys.modules, "evil", raising=False)

    def change(**sections: Any) -> Path:
        folder = tmp_path / "downloads" / "step-000001"
        shutil.copytree(run / "checkpoints" / "step-000001", folder)
        config = yaml.safe_load((folder / "config.yaml").read_text())
        for name, settings in sections.items():
            config[name] = {**config[name], **settings}
        (folder / "config.yaml").write_text(yaml.safe_dump(config))
        return folder

    return change


ATTACKS: dict[str, tuple[dict[str, Any], str]] = {
    "a program": (
        {
            "flow": {
                "name": "blackbox_command_agent",
                "settings": {"command": [sys.executable, "-c", EVIL]},
            }
        },
        "starts the program: ",
    ),
    "a flow": ({"flow": {"name": "evil:Flow"}}, "flow.name imports and runs 'evil:Flow'"),
    "a file of flows": (
        {"flow": {"name": "theirs", "flows_file": "flows.yaml"}},
        "flow.flows_file imports the classes that 'flows.yaml' lists",
    ),
    "a tool": ({"flow": {"tools": ["calculator", "evil:tool"]}}, "flow.tools imports and runs 'evil:tool'"),
    "an MCP server": (
        {"flow": {"mcp_servers": {"files": {"command": [sys.executable, "-c", EVIL]}}}},
        "flow.mcp_servers.files starts the program: ",
    ),
    "an MCP server elsewhere": (
        {"flow": {"mcp_servers": {"files": {"url": "http://127.0.0.1:9/mcp"}}}},
        "flow.mcp_servers.files sends what its tools are called with to http://127.0.0.1:9/mcp",
    ),
    "an engine": (
        {"flow": {"roles": {"executor": {"engine": "evil:engine"}}}},
        "flow.roles.executor.engine imports and runs 'evil:engine'",
    ),
    "texts to search": (
        {"flow": {"tools": ["search"], "tool_settings": {"search": {"documents": "evil:texts"}}}},
        "flow.tool_settings.search.documents imports and runs 'evil:texts'",
    ),
    "records of a memory": (
        {
            "flow": {
                "tools": ["memory_retrieve"],
                "tool_settings": {"memory_retrieve": {"records": "evil:no name", "namespace": "n"}},
            }
        },
        "flow.tool_settings.memory_retrieve.records imports and runs 'evil:no name'",
    ),
    "an embedder of a flow": (
        {
            "flow": {
                "name": "react",
                "settings": {"reflections": {"database": "m.sqlite", "namespace": "n", "embedder": "evil:embed"}},
            }
        },
        "flow.settings.reflections.embedder imports and runs 'evil:embed'",
    ),
    "a server": (
        {"flow": {"roles": {"policy": {"engine": "http://127.0.0.1:9/v1", "model": "m", "api_key_env": "HOME"}}}},
        "flow.roles.policy sends its prompts to http://127.0.0.1:9/v1, with the key in $HOME",
    ),
}
IN_EVAL: dict[str, tuple[dict[str, Any], str]] = {
    "a reward": ({"reward": {"components": {"evil:reward": 1.0}}}, "reward imports and runs 'evil:reward'"),
    "a success": ({"reward": {"success": "evil:reward"}}, "reward imports and runs 'evil:reward'"),
    "what a judge is compared with": (
        {"reward": {"components": {"judge": 1.0}, "judge": {"compare_with": "evil:reward"}}},
        "reward imports and runs 'evil:reward'",
    ),
    "a judge at a server": (
        {"reward": {"judge": {"engine": "http://127.0.0.1:9/v1", "model": "m", "api_key_env": "HOME"}}},
        "reward.judge sends its prompts to http://127.0.0.1:9/v1, with the key in $HOME",
    ),
    "a taskset of verifiers": (
        {"tasks": {"sources": [{"type": "verifiers", "env": "evil"}]}},
        "tasks.sources imports and runs the taskset 'evil' of verifiers",
    ),
    "an environment elsewhere": (
        {"tasks": {"sources": [{"type": "openenv", "env": "http://127.0.0.1:9"}]}},
        "tasks.sources sends replies to http://127.0.0.1:9",
    ),
    "tasks": ({"tasks": {"sources": [{"type": "evil:tasks"}]}}, "tasks.sources imports and runs 'evil:tasks'"),
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_asking_an_untrusted_agent_runs_none_of_its_code(theirs, tmp_path: Path, attack: str) -> None:
    sections, effect = ATTACKS[attack]
    folder = theirs(**sections)
    (tmp_path / "flows.yaml").write_text("- name: theirs\n  _target_: evil.Flow\n")
    with pytest.raises(ConfigError, match="is not in your folder of runs") as caught:
        api.ask("What is 2 + 3?", checkpoint=folder)
    assert effect in caught.value.message and "--trust" in caught.value.hint
    assert not (tmp_path / "ran").exists() and "evil" not in sys.modules


@pytest.mark.parametrize("attack", [*ATTACKS, *IN_EVAL])
def test_evaluating_an_untrusted_agent_runs_none_of_its_code(theirs, tmp_path: Path, attack: str) -> None:
    sections, effect = {**ATTACKS, **IN_EVAL}[attack]
    with pytest.raises(ConfigError, match="is not in your folder of runs") as caught:
        api.evaluate(checkpoint=theirs(**sections), n=1)
    assert effect in caught.value.message
    assert not (tmp_path / "ran").exists() and "evil" not in sys.modules


def test_a_trusted_agent_runs_after_its_effects_are_listed(
    theirs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = theirs(**ATTACKS["a program"][0])
    assert cli.run(["ask", "What is 2 + 3?", "--checkpoint", str(folder)]) == 2
    assert "--trust" in capsys.readouterr().err and not (tmp_path / "ran").exists()
    assert cli.run(["ask", "What is 2 + 3?", "--checkpoint", str(folder), "--trust"]) == 0
    assert "starts the program: " in capsys.readouterr().err and (tmp_path / "ran").exists()


def test_listed_effects_are_escaped_for_the_terminal(theirs, caplog: pytest.LogCaptureFixture) -> None:
    settings = {"command": "true \x1b[2J"}
    with pytest.raises(ConfigError, match=r"true \\x1b\[2J"):
        api.ask("?", checkpoint=theirs(flow={"name": "blackbox_command_agent", "settings": settings}))


def test_built_in_parts_and_own_runs_need_no_trust(theirs, run: Path, tmp_path: Path) -> None:
    assert api.ask("What is 2 + 3?", checkpoint=theirs()).status is Status.COMPLETED
    program = {"name": "blackbox_command_agent", "settings": {"command": [sys.executable, "-c", EVIL]}}
    own = tmp_path / "runs" / "mine"
    shutil.copytree(tmp_path / "downloads", own / "checkpoints")
    config = own / "checkpoints" / "step-000001" / "config.yaml"
    config.write_text(yaml.safe_dump({**yaml.safe_load(config.read_text()), "flow": program}))
    api.ask("What is 2 + 3?", checkpoint=own / "checkpoints" / "step-000001")
    assert (tmp_path / "ran").exists()


def test_a_link_in_the_folder_of_runs_is_not_trusted(theirs, tmp_path: Path) -> None:
    folder = theirs(**ATTACKS["a flow"][0])
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "mine").symlink_to(folder)
    with pytest.raises(ConfigError, match="is not in your folder of runs"):
        api.ask("?", checkpoint=tmp_path / "runs" / "mine")


def test_exporting_an_untrusted_policy_runs_none_of_its_code(theirs, tmp_path: Path) -> None:
    sections = {**ATTACKS["a flow"][0], **IN_EVAL["a reward"][0], **IN_EVAL["tasks"][0]}
    api.export(theirs(**sections), tmp_path / "out", merge=True)
    assert not (tmp_path / "ran").exists() and "evil" not in sys.modules


def test_an_ordinary_config_has_no_effects(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    config = yaml.safe_load(Path(__file__).parents[2].joinpath("configs/quickstart.yaml").read_text())
    assert list(effects_of(config)) == []


def test_a_database_that_a_config_would_write_is_an_effect() -> None:
    (effect,) = effects_of({"flow": {"name": "plan_scheduler", "settings": {"journal": "/etc/plans.sqlite"}}})
    assert "'/etc/plans.sqlite'" in effect
    memory = {"database": "/etc/m.sqlite", "namespace": "n"}
    assert list(effects_of({"flow": {"tool_settings": {"memory_retrieve": memory}}})) == []
    (effect,) = effects_of({"flow": {"tool_settings": {"memory_retrieve": {**memory, "write": True}}}})
    assert "writes into the database '/etc/m.sqlite'" in effect
    plans = {"store": "/etc/plans.sqlite", "handlers": ["trip.py", "trip:desk"]}
    effects = list(effects_of({"flow": {"tool_settings": {"plans": plans}}}))
    assert [effect.partition(" ")[2] for effect in effects] == [
        "imports and runs 'trip:desk'",
        "imports and runs 'trip.py'",
        "changes the plans in '/etc/plans.sqlite'",
    ]
