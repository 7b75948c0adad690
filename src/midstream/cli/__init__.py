"""The command line, `midstream COMMAND`: one thin module per command, which imports its dependencies when it runs.

Exit codes: 0 success, 1 a run stopped because its attempts failed, 2 wrong input (both with a message), 130 stopped
with Ctrl-C. Any other error is a bug in Midstream and keeps its traceback.
"""

from __future__ import annotations

import importlib
import logging
import os
import sys
from collections.abc import Sequence

import click

from midstream.core.errors import UserError
from midstream.core.text import visible

COMMANDS = {
    "train": "train",
    "tune": "tune",
    "eval": "evaluate",
    "ask": "ask",
    "gateway": "gateway",
    "rollout": "rollout",
    "export": "export",
    "runs": "runs",
    "show": "show",
    "store": "store",
    "models": "models",
    "sandbox": "sandbox",
    "mcp": "mcp",
    "workflow": "workflow",
    "infer": "infer",
    "devices": "devices",
    "data": "data",
    "plan": "plan",
    "algorithms": "algorithms",
    "config": "config",
    "doctor": "doctor",
}
INTERRUPTED = 130
EXTRAS = {
    "train": ("torch", "transformers", "peft", "safetensors", "tensorboard", "matplotlib", "jinja2"),
    "gateway": ("starlette", "uvicorn", "prometheus_client", "itsdangerous"),
    "sandbox": ("pydantic_monty",),
    "tune": ("optuna",),
    "mcp": ("mcp", "mcp_types", "httpx2"),
    "prompts": ("gepa",),
    "tools": ("duckdb", "lxml", "pint", "trafilatura"),
}
"""Top-level modules that an optional extra installs, by extra."""


class _Commands(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        return importlib.import_module(f"midstream.cli.{COMMANDS[cmd_name]}").command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            from midstream.core.errors import nearest

            ctx.fail(f"no command '{args[0]}'; {nearest(args[0], COMMANDS)}")
        return super().resolve_command(ctx, args)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="midstream", message="midstream %(version)s")
def cli() -> None:
    """Train LLM agents in the flow.

    \b
    midstream train quickstart          train an agent in minutes
    midstream ask "What is 17 * 23?"    ask it, and watch its four modules work
    """


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit with its code."""
    sys.exit(run(arguments))


def run(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    _log_to_stderr()
    if "" not in sys.path:
        sys.path.insert(0, "")  # the user's flows, tools, tasks and rewards are modules in the working directory
    try:
        code = cli.main(args=None if arguments is None else list(arguments), standalone_mode=False)
        sys.stdout.flush()
    except UserError as error:
        click.secho("error: ", fg="red", bold=True, nl=False, err=True)
        click.echo(visible(str(error)), err=True)
        return error.exit_code
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        extra = next((extra for extra, modules in EXTRAS.items() if missing in modules), None)
        if extra is None:
            raise
        click.secho("error: ", fg="red", bold=True, nl=False, err=True)
        click.echo(f"this needs the package '{error.name}': pip install 'midstream[{extra}]'", err=True)
        return 2
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        click.echo("stopped", err=True)
        return INTERRUPTED
    except BrokenPipeError:
        # The reader of the output, such as `head`, has exited; without this, python's flush at exit fails again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    return code if isinstance(code, int) else 0


class _Visible(logging.Formatter):
    """Shows control characters as escapes, because a message may quote a model or a tool."""

    def format(self, record: logging.LogRecord) -> str:
        return visible(super().format(record))


def _log_to_stderr() -> None:
    log = logging.getLogger("midstream")
    if not log.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(_Visible("%(message)s"))
        log.addHandler(handler)
        log.setLevel(logging.INFO)
        log.propagate = False
