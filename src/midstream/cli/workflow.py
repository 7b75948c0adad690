"""`midstream workflow`: checks, shows, runs, searches for and compares workflows."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from collections.abc import Sequence

    from midstream.workflows.config import WorkflowConfig
    from midstream.workflows.run.trace import WorkflowRun
    from midstream.workflows.search.candidate import Candidate
    from midstream.workflows.search.comparison import Comparison, Entry

REFUSED = 2
FORMS = ("python", "hybrid", "mermaid", "svg", "graph")
FILE = click.Path(path_type=Path)


@click.group(name="workflow")
def command() -> None:
    """Operators wired into a graph: check, run, search, compare."""


@command.command(name="check")
@click.argument("files", nargs=-1, required=True, type=FILE)
def check_command(files: tuple[Path, ...]) -> int:
    """Check workflows: FILE is code, or JSON with prompts and graph_code, or a folder with graph.py and prompt.py.

    Prints each problem with its line and reason. Exits with 2 if a workflow must not run. Executes nothing in FILE.
    """
    from midstream.core.text import visible
    from midstream.workflows import OPERATORS, WorkflowLimits
    from midstream.workflows.budget import most_model_calls
    from midstream.workflows.files import check_file

    refused = False
    for file in files:
        checked = check_file(file)
        for problem in checked.problems:
            click.echo(visible(f"{file}: {problem}"))
        refused = refused or not checked.ok
        if checked.workflow is not None and checked.ok:
            calls = most_model_calls(checked.workflow, OPERATORS, WorkflowLimits())
            click.echo(f"{file}: ok, {len(checked.workflow.nodes)} operator calls, at most {calls} model calls")
    return REFUSED if refused else 0


@command.command(name="show")
@click.argument("file")
@click.option("--as", "form", type=click.Choice(FORMS), default="python", show_default=True)
@click.option("--out", type=FILE, help="Write to a file.")
def show_command(file: str, form: str, out: Path | None) -> None:
    """Show a workflow, or a baseline by name (io, cot, cot-sc, ...), as code, hybrid JSON, or a picture."""
    from midstream.core.text import visible
    from midstream.workflows import write_hybrid, write_python
    from midstream.workflows.files import load_workflow
    from midstream.workflows.graph import graph_of
    from midstream.workflows.picture import write_mermaid, write_svg

    workflow = load_workflow(file)
    text = {
        "python": lambda: write_python(workflow),
        "hybrid": lambda: write_hybrid(workflow) + "\n",
        "mermaid": lambda: write_mermaid(workflow),
        "svg": lambda: write_svg(workflow),
        "graph": lambda: json.dumps(graph_of(workflow).as_json(), indent=2) + "\n",
    }[form]()
    if out is None:
        click.echo(visible(text), nl=False)
    else:
        out.write_text(text, encoding="utf-8")


@command.command(name="operators")
def operators_command() -> None:
    """List the operators with their arguments and results."""
    from midstream.workflows import OPERATORS

    click.echo(OPERATORS.cards())


@command.command(name="run")
@click.argument("file")
@click.option("--problem", required=True, help="The problem, as text.")
@click.option(
    "--model", metavar="NAME|URL", help="The executor: a local model, or the URL of an OpenAI-compatible server."
)
@click.option("--model-name", help="Name of the model at a URL.")
@click.option("--api-key-env", help="Environment variable with the key for a URL.")
@click.option("--executors", type=FILE, help="A YAML file of executor models, in the form of config/aflow_llm.yaml.")
@click.option("--prompts", type=FILE, help="A JSON file with an object of prompts that replace the workflow's.")
@click.option("--entry-point", default="", help="The function that a code problem requires.")
@click.option("--public-test", "tests", multiple=True, help="A public test, shown to the workflow. Repeatable.")
@click.option(
    "--fallback", is_flag=True, help="If the workflow fails, answer with a default workflow; the trace says so."
)
@click.option(
    "--durable",
    type=FILE,
    metavar="STORE",
    help="Run on the plan executor, in this SQLite file: with the same --uid, a run that was interrupted goes on.",
)
@click.option("--uid", help="Name of a durable run.")
@click.option("--seed", default=0, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print the full trace as JSON.")
def run_command(file: str, as_json: bool, **options: Any) -> int:
    """Run a workflow on one problem and show each operator's result, tokens, cost and time."""
    run = asyncio.run(_run(file, **options))
    if as_json:
        click.echo(json.dumps(run.as_json(), indent=2, ensure_ascii=False))
    else:
        _show_run(run)
    return 0 if run.answer is not None else 1


async def _run(
    file: str,
    problem: str,
    model: str | None,
    model_name: str | None,
    api_key_env: str | None,
    executors: Path | None,
    prompts: Path | None,
    entry_point: str,
    tests: tuple[str, ...],
    fallback: bool,
    durable: Path | None,
    uid: str | None,
    seed: int,
) -> WorkflowRun:
    from contextlib import AsyncExitStack

    from midstream.core.errors import UserError
    from midstream.workflows import WorkflowInput, WorkflowRunner
    from midstream.workflows.executors import ExecutorConfig, open_models, read_executors
    from midstream.workflows.files import load_workflow
    from midstream.workflows.run.serving import serve

    if (model is None) == (executors is None):
        raise UserError("give the executor model", "--model smollm2-135m, --model URL, or --executors FILE")
    if (durable is None) != (uid is None):
        raise UserError("--durable and --uid go together", "--durable plans.sqlite --uid first")
    if durable is not None and fallback:
        raise UserError("a durable run has no fallback", "leave out --fallback")
    named = {"default": ExecutorConfig(engine=model, model=model_name, api_key_env=api_key_env)} if model else {}
    configs = read_executors(executors) if executors is not None else named
    problem_input = WorkflowInput(problem=problem, entry_point=entry_point, public_tests=tests)
    async with AsyncExitStack() as stack:
        runner = await stack.enter_async_context(WorkflowRunner(await open_models(configs, stack)))
        if fallback and prompts is None and Path(file).is_file():
            return await serve(Path(file).read_text(encoding="utf-8"), problem_input, runner, seed=seed)
        workflow = load_workflow(file)
        if prompts is not None:
            from midstream.workflows.bound import BoundWorkflow

            bound = BoundWorkflow(workflow, runner)
            bound.prompts = _prompts(prompts)
            workflow = bound.graph
        if durable is not None and uid is not None:
            from midstream.workflows.run.durable import DurableRuns

            async with DurableRuns(runner, durable) as runs:
                return await runs.run(workflow, problem_input, uid=uid, seed=seed)
        return await (serve if fallback else _plain)(workflow, problem_input, runner, seed=seed)


async def _plain(workflow: Any, problem_input: Any, runner: Any, *, seed: int) -> WorkflowRun:
    return await runner.run(workflow, problem_input, seed=seed)


def _prompts(path: Path) -> dict[str, str]:
    from midstream.core.errors import UserError

    try:
        prompts = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read prompts from '{path}': {error}") from None
    if not isinstance(prompts, dict) or not all(isinstance(text, str) for text in prompts.values()):
        raise UserError(f"'{path}' is not an object of texts", '{"Custom": "Solve step by step."}')
    return prompts


def _show_run(run: WorkflowRun) -> None:
    from rich.markup import escape
    from rich.table import Table

    from midstream.cli.tables import console, number

    table = Table(box=None, header_style="bold", pad_edge=False)
    for heading in ("node", "operator", "calls", "tokens", "USD", "s", "result"):
        table.add_column(heading, overflow="fold")
    for node in run.nodes:
        tokens = (
            None
            if None in (node.prompt_tokens, node.completion_tokens)
            else ((node.prompt_tokens or 0) + (node.completion_tokens or 0))
        )
        result = node.error or "; ".join(f"{key}: {value}" for key, value in (node.output or {}).items())
        notes = "".join(f" [{issue}]" for issue in node.issues)
        table.add_row(
            node.key, node.operator, str(node.model_calls), "-" if tokens is None else str(tokens),
            number(node.cost_usd, 5), number(node.latency_s, 2), escape((result + notes).replace("\n", " ")[:300]),
        )  # fmt: skip
    shown = console()
    shown.print(table)
    if run.fallback:
        shown.print(escape(f"fallback '{run.fallback}': {run.fallback_reason}"))
    shown.print(escape(f"answer: {run.answer}" if run.answer is not None else f"{run.status}: {run.error}"))


@command.command(name="search")
@click.argument("settings", metavar="CONFIG", type=click.Path())
@click.argument("changes", nargs=-1, metavar="[KEY=VALUE]...")
def search_command(settings: str, changes: tuple[str, ...]) -> None:
    """Search for a workflow with the settings of CONFIG. The same command continues after a stop or a crash.

    \b
    midstream workflow search workflow_search search.rounds=5
    """
    from midstream.core.text import visible
    from midstream.workflows.config import load_workflow_config
    from midstream.workflows.search.session import BEST, run_search

    config = load_workflow_config(settings, changes)

    def show(candidate: Candidate) -> None:
        score = "-" if candidate.score is None else f"{candidate.score:.3f} ({candidate.low:.2f}-{candidate.high:.2f})"
        early = ", given up early" if candidate.stopped else ""
        change = candidate.modification or "start"
        problem = f": {candidate.problems[0]}" if candidate.score is None and candidate.problems else ""
        click.echo(visible(f"{candidate.number:3d}  {score}{early}  {candidate.tokens} tokens  {change}{problem}"))

    result = asyncio.run(run_search(config, show))
    cost = "unknown cost" if result.cost_usd is None else f"{result.cost_usd:.4f} USD"
    click.echo(f"ended after {result.reason}; {result.tokens} tokens, {cost}")
    click.echo(f"best: candidate {result.candidate.number}, in {config.folder / BEST}")


@command.command(name="prompts")
@click.argument("settings", metavar="CONFIG", type=click.Path())
@click.argument("changes", nargs=-1, metavar="[KEY=VALUE]...")
def prompts_command(settings: str, changes: tuple[str, ...]) -> None:
    """Optimise the prompts of CONFIG's `start` with GEPA, and leave its graph alone. Needs midstream[prompts].

    \b
    midstream workflow prompts workflow_search start=cot prompt_runs=300
    """
    from midstream.workflows.config import load_workflow_config
    from midstream.workflows.search.session import PROMPTS, run_prompts

    config = load_workflow_config(settings, changes)
    result = asyncio.run(run_prompts(config))
    score = "-" if result.made.val_score is None else f"{result.made.val_score:.3f}"
    tokens = "unknown" if result.made.tokens is None else str(result.made.tokens)
    click.echo(f"{result.made.how}; validation {score}; {tokens} tokens; in {config.folder / PROMPTS}")


@command.command(name="pairs")
@click.argument("settings", metavar="CONFIG", type=click.Path())
@click.option("--policy", required=True, metavar="CONFIG", help="The training config of the policy that will learn.")
@click.option("--tasks", default=64, show_default=True, type=click.IntRange(min=1), help="Training tasks to score on.")
@click.option("--out", default="pairs.sqlite", show_default=True, type=FILE, help="Store to record the pairs in.")
@click.option("--set", "changes", multiple=True, metavar="KEY=VALUE", help="Change a setting. Repeatable.")
def pairs_command(settings: str, policy: str, tasks: int, out: Path, changes: tuple[str, ...]) -> None:
    """Make preference pairs from the search of CONFIG: for each training task the best and the worst candidate.

    \b
    midstream workflow pairs workflow_compare --policy workflow_learning
    midstream train workflow_learning --from-store pairs.sqlite algorithm.name=dpo reward.preset=null \\
        reward.components='{given: 1.0}'
    """
    from midstream.api import load_config
    from midstream.core.errors import UserError
    from midstream.engines.chat import load_tokenizer
    from midstream.engines.models import resolve
    from midstream.evaluate.pairs import record_pairs
    from midstream.workflows.config import load_workflow_config
    from midstream.workflows.search.pairs import search_pairs

    if out.exists():
        raise UserError(f"'{out}' exists, and may hold the pairs of another search", "delete it, or give another --out")
    config, training = load_workflow_config(settings, changes), load_config(policy)
    tokenizer = load_tokenizer(resolve(training.policy.model))

    async def act() -> int:
        return await record_pairs(await search_pairs(config, tasks), training, tokenizer, out)

    click.echo(f"{asyncio.run(act())} pairs of {tasks} tasks in {out}")


@command.command(name="compare")
@click.argument("settings", metavar="CONFIG", type=click.Path())
@click.argument("workflows", nargs=-1, metavar="[WORKFLOW]...")
@click.option("--set", "changes", multiple=True, metavar="KEY=VALUE", help="Change a setting. Repeatable.")
@click.option("--learned", multiple=True, metavar="RUN", help="A run whose policy writes workflows. Repeatable.")
@click.option("--runs-dir", default="runs", show_default=True, envvar="MIDSTREAM_RUNS", type=click.Path())
@click.option("--trust", is_flag=True, help="Run what the config of a run from elsewhere names; it is shown first.")
@click.option("--tokens", type=click.IntRange(min=1), help="Token budget of each run, the same for all workflows.")
@click.option("--out", type=FILE, help="Write the comparison to this JSON file.")
@click.option("--html", type=FILE, help="Write it as a page with the cost frontier.")
def compare_command(
    settings: str,
    workflows: tuple[str, ...],
    changes: tuple[str, ...],
    tokens: int | None,
    out: Path | None,
    html: Path | None,
    **learned: Any,
) -> None:
    """Compare workflows on the test tasks of CONFIG.

    WORKFLOW is a file, a baseline (io, cot, cot-sc, medprompt, multi-persona, self-refine), `best`, the result of the
    config's search, or `prompts`, that of its prompt optimisation. Default: all baselines, and those of `best` and
    `prompts` that exist. Differences are to the first.
    """
    from midstream.workflows.baselines import BASELINES
    from midstream.workflows.config import load_workflow_config
    from midstream.workflows.search.page import write_page
    from midstream.workflows.search.session import FOUND, write_comparison

    config = load_workflow_config(settings, changes)
    found = [name for name, file in FOUND.items() if (config.folder / file).is_file()]
    names = workflows or (*BASELINES, *found)
    comparison = asyncio.run(_compared(config, names, tokens, **learned))
    _show_comparison(comparison)
    if out is not None:
        write_comparison(comparison, out)
    if html is not None:
        write_page(comparison, html)


async def _compared(
    config: WorkflowConfig, names: Sequence[str], tokens: int | None, learned: tuple[str, ...], **runs: Any
) -> Comparison:
    from midstream.core.errors import UserError
    from midstream.workflows.search.session import run_comparison, test_tasks

    written: dict[str, Entry] = {}
    if learned:
        from midstream.evaluate.written import written_workflows

        tasks = test_tasks(config)
        for run in learned:
            if (name := Path(run).name) in written:
                raise UserError(f"two runs are named '{name}'", "rename the folder of one")
            written[name] = await written_workflows(run, tasks, **runs)
    return await run_comparison(config, names, written=written, most_tokens=tokens)


def _show_comparison(comparison: Comparison) -> None:
    from rich.markup import escape
    from rich.table import Table

    from midstream.cli.tables import console, number

    table = Table(box=None, header_style="bold", pad_edge=False)
    for heading in (
        "workflow",
        "score (95 %)",
        "to the first (95 %)",
        "tokens",
        "writing",
        "calls",
        "USD",
        "s",
        "failed",
        "frontier",
    ):
        table.add_column(heading)
    for row in comparison.rows:
        difference = "-"
        if row.difference is not None:
            difference = f"{row.difference[0]:+.3f} ({row.difference[1]:+.2f} to {row.difference[2]:+.2f})"
        table.add_row(
            escape(row.name), f"{number(row.score)} ({row.low:.2f}-{row.high:.2f})", difference, number(row.tokens, 0),
            number(row.writer_tokens, 0),
            number(row.model_calls, 1), number(row.cost_usd, 6), number(row.latency_s, 2), str(row.failed),
            "yes" if row.on_frontier else "",
        )  # fmt: skip
    console().print(table)
