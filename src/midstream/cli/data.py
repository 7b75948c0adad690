"""`midstream data`: prepares a mix of tasks from files, and checks that no training task occurs in a test file."""

from __future__ import annotations

from pathlib import Path

import click

LEAKED = 1
SHOWN = 5


@click.group(name="data")
def command() -> None:
    """Task files: prepare a mix of maths, code and QA; check for leaks."""


@command.command(name="prepare")
@click.option("--math", multiple=True, metavar="FILE|SET", help="A source of maths problems. Repeatable.")
@click.option("--code", multiple=True, metavar="FILE|SET", help="A source of code problems with tests. Repeatable.")
@click.option("--qa", multiple=True, metavar="FILE|SET", help="A source of questions. Repeatable.")
@click.option("--out", default="data", show_default=True, type=click.Path(path_type=Path), help="Folder to write to.")
@click.option("--train", default=1000, show_default=True, type=click.IntRange(min=0), help="Training tasks.")
@click.option("--val", default=100, show_default=True, type=click.IntRange(min=0), help="Validation tasks.")
@click.option("--test", default=100, show_default=True, type=click.IntRange(min=0), help="Test tasks.")
@click.option("--ratio", "ratios", multiple=True, metavar="DOMAIN=SHARE", help="Share of a domain (40/30/30).")
@click.option(
    "--threshold",
    default=0.6,
    show_default=True,
    type=click.FloatRange(0, 1, min_open=True),
    help="Similarity from which a task counts as occurring in another split.",
)
@click.option("--seed", default=0, show_default=True)
def prepare_command(
    math: tuple[str, ...],
    code: tuple[str, ...],
    qa: tuple[str, ...],
    out: Path,
    train: int,
    val: int,
    test: int,
    ratios: tuple[str, ...],
    threshold: float,
    seed: int,
) -> None:
    """Write OUT/{train,val,test}/mixed_dataset.jsonl: 40 % maths, 30 % code, 30 % questions.

    FILE is an unchanged file of GSM8K, MATH, HumanEval, MBPP, HotpotQA, DROP or Game of 24, or any task file; SET is a
    built-in task set. A domain without a source gets a generated one (calculate, programs, facts). Tasks that occur in
    val or test, also near-duplicates, are left out of train.

    \b
    midstream data prepare --math gsm8k/train.jsonl --math gsm8k/test.jsonl --code HumanEval.jsonl.gz
    """
    from midstream.core.text import visible
    from midstream.tasks.prepare import FILE, RATIOS, SPLITS, prepare

    sources = {domain: given for domain, given in (("math", math), ("code", code), ("qa", qa)) if given}
    shares = dict(RATIOS) if not ratios else {"math": 0.0, "code": 0.0, "qa": 0.0} | dict(map(_ratio, ratios))
    sizes = {"train": train, "val": val, "test": test}
    made = prepare(sources, out, sizes=sizes, ratios=shares, threshold=threshold, seed=seed)
    for split in SPLITS:
        parts = ", ".join(f"{count} {domain}" for domain, count in made.counts[split].items())
        leaks = f"; {made.leaks[split]} left out, they occur in a later split" if made.leaks.get(split) else ""
        click.echo(visible(f"{out / split / FILE}: {parts}{leaks}"))
    for one in made.short:
        click.echo(f"warning: fewer tasks than asked for: {one}", err=True)


def _ratio(text: str) -> tuple[str, float]:
    name, equals, value = text.partition("=")
    try:
        share = float(value)
    except ValueError:
        share = -1.0
    if not equals or not 0 <= share < float("inf"):
        raise click.BadParameter(f"'{text}' is not DOMAIN=SHARE, such as math=0.4", param_hint="--ratio")
    return name, share


@command.command(name="check")
@click.argument("files", nargs=-1, required=True, metavar="TRAINING_FILE...", type=click.Path())
@click.option("--against", multiple=True, type=click.Path(), help="A test file. Repeatable.")
@click.option(
    "--threshold",
    default=0.6,
    show_default=True,
    type=click.FloatRange(0, 1, min_open=True),
    help="Similarity from which a task counts as occurring in a test file.",
)
def check_command(files: tuple[str, ...], against: tuple[str, ...], threshold: float) -> int:
    """Check task files: every row is readable, no question occurs twice, and no training task occurs in a test file, by
    equal normalised text or as a near-duplicate (Jaccard similarity of word 3-grams).

    Exits with 1 if one does, and with 2 for an unreadable file.

    \b
    midstream data check train.jsonl --against HumanEval.jsonl.gz --against gsm8k/test.jsonl
    """
    from midstream.core.text import visible
    from midstream.tasks.leaks import duplicates, find_leaks

    questions = [(file, question) for file in files for question in _questions(file)]
    others = [(file, question) for file in against for question in _questions(file)]
    texts = [question for _, question in questions]
    repeated = duplicates(texts)
    click.echo(f"{len(texts)} tasks; {len(repeated)} occur twice")
    if not against:
        return 0
    leaks = find_leaks(texts, [question for _, question in others], threshold)
    equal = sum(one.similarity == 1 for one in leaks)
    click.echo(f"{len(leaks)} occur in a test file: {equal} equal, {len(leaks) - equal} nearly")
    for one in sorted(leaks, key=lambda one: -one.similarity)[:SHOWN]:
        for file, question in (questions[one.place], others[one.other]):
            click.echo(visible(f"  {one.similarity:.2f}  {file}: {' '.join(question.split())[:150]}"))
    return LEAKED if leaks else 0


def _questions(file: str) -> list[str]:
    from midstream.tasks.files import file_tasks
    from midstream.tasks.rows import RowFields
    from midstream.tasks.taskset import take

    tasks = file_tasks(file, RowFields(split="train"))
    return [task.question for task in take(tasks, "train", tasks.size("train") or 0)]
