"""Carries out a search: trains every trial, scores it on validation, and writes the best config.

Layout of the search's folder: `config.yaml` (the config without the trials' settings), `trials.log` (optuna's journal),
`trials.json`, `best.yaml`, and `trial-000/seed-0`, ..., which are run directories.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from midstream.agents.endpoint import AgentEndpoint
from midstream.core.blocking import run_blocking
from midstream.core.config import parse_config
from midstream.core.errors import ConfigError, RunError, TrainingError
from midstream.core.secrets import without_secrets
from midstream.learn.config import TrainConfig
from midstream.learn.run.run_dir import RunDirectory, run_path
from midstream.learn.run.trainer import Training
from midstream.learn.tune.config import TuneConfig
from midstream.learn.tune.study import RunningTrial, Search, Trial

BEST = "best.yaml"


@dataclass(frozen=True, slots=True)
class TuneResult:
    """Outcome of a search: `status` is `finished` or `stopped`."""

    folder: Path
    status: str
    trials: list[Trial]
    best: Trial | None
    config: Path | None
    """The best config; None while no trial is complete."""


def tune(
    config: TrainConfig,
    trials: int,
    *,
    resume: bool = False,
    endpoint: Callable[[], AgentEndpoint | None] = lambda: None,
    on_trial: Callable[[Trial], None] = lambda trial: None,
) -> TuneResult:
    """Search until there are `trials` trials, those of an interrupted search included when `resume`.

    The folder is `trainer.run_dir`, by default `runs/NAME-tune`. Ctrl-C stops after the current training step.
    `endpoint` makes the endpoint of black-box agents, `on_trial` is called with each trial that ended. Raises
    `ConfigError` for settings that do not exist or do not fit, `RunError` when the folder cannot be used and when every
    trial failed."""
    if config.tune is None:
        raise ConfigError("the config has no section `tune`", "say what to search: tune.search, see docs/training.md")
    base = config.model_copy(update={"tune": None})
    _check(base, config.tune)
    named = base.model_copy(update={"name": f"{base.name}-tune"})
    directory = RunDirectory(run_path(named, resume))
    try:
        return _Tuning(directory, config, config.tune, endpoint, on_trial).go(trials, resume)
    finally:
        directory.release()


class _Tuning:
    def __init__(
        self,
        directory: RunDirectory,
        config: TrainConfig,
        settings: TuneConfig,
        endpoint: Callable[[], AgentEndpoint | None],
        on_trial: Callable[[Trial], None],
    ) -> None:
        self.directory, self.config, self.settings = directory, config, settings
        self.endpoint, self.on_trial = endpoint, on_trial

    def go(self, trials: int, resume: bool) -> TuneResult:
        self._begin(resume)
        search = Search(self.directory.path, self.settings, self.config.trainer.seed)
        status = "finished"
        while len([one for one in search.trials if one.state != "running"]) < trials:
            trial = search.next()
            if not self._carry_out(trial):
                status = "stopped"
                break
            self._write(search)
            self.on_trial(search.trials[trial.number])
        best = search.best
        if best is None and status == "finished":
            reasons = {one.reason for one in search.trials if one.reason}
            raise RunError(f"no trial of the {trials} is complete: {'; '.join(sorted(reasons)) or 'all were pruned'}")
        path = self.directory / BEST
        return TuneResult(self.directory.path, status, search.trials, best, path if path.exists() else None)

    def _begin(self, resume: bool) -> None:
        if not self.directory.started:
            dumped = without_secrets(json.loads(self.config.model_dump_json()))
            self.directory.write("config.yaml", yaml.safe_dump(dumped, sort_keys=False))
            return
        if not resume:
            raise RunError(
                f"there is a search in '{self.directory.path}' already",
                "continue it with --resume, or give this one another trainer.run_dir",
            )
        if changes := self.directory.config_changes(self.config.model_dump(mode="json")):
            raise RunError(
                f"the config changed since the search in '{self.directory.path}' began:\n  " + "\n  ".join(changes),
                "resume with the old config, or give the new one another trainer.run_dir",
            )

    def _carry_out(self, trial: RunningTrial) -> bool:
        """Train with each seed and report the score. False when the user stopped it."""
        scores: list[float] = []
        for number in range(self.settings.seeds):
            try:
                config = self._config(trial, number)
                watch = _Watch(trial, self.settings.metric, number, config.trainer.max_steps)
                begun = (Path(str(config.trainer.run_dir)) / "config.yaml").exists()
                training = Training(config, [watch], resume=begun, endpoint=self.endpoint())
                watch.stop = training.stop
                result = run_blocking(training.run(), interrupt=training.stop)
            except (ConfigError, TrainingError) as error:  # settings may be valid alone, but not together
                trial.fail(error.message)
                return True
            if watch.pruned:
                trial.prune()
                return True
            if result.status != "finished":
                return False
            scores.append(_last_score(result.run_dir, self.settings.metric))
        trial.complete(sum(scores) / len(scores))
        return True

    def _config(self, trial: RunningTrial, number: int) -> TrainConfig:
        folder = self.directory / f"trial-{trial.number:03d}" / f"seed-{number}"
        trainer = {"seed": self.config.trainer.seed + number, "run_dir": str(folder), "test_tasks": 0}
        made = with_settings(
            self.config, {**trial.settings, **{f"trainer.{key}": value for key, value in trainer.items()}}
        )
        _check_evaluated(made)
        return made

    def _write(self, search: Search) -> None:
        self.directory.write_json("trials.json", [asdict(one) for one in search.trials])
        if (best := search.best) is not None:
            trained = with_settings(self.config, {**best.settings, "trainer.run_dir": None})
            dumped = without_secrets(json.loads(trained.model_dump_json(exclude_unset=True, exclude={"tune"})))
            score = f"# Trial {best.number}: {self.settings.metric} {best.score:.3f} on validation.\n"
            self.directory.write(BEST, score + yaml.safe_dump(dumped, sort_keys=False))


class _Watch:
    """Callback that stops a hopeless training."""

    def __init__(self, trial: RunningTrial, metric: str, seed: int, steps: int) -> None:
        self.pruned = False
        self.stop: Callable[[], None] = lambda: None
        self._trial, self._metric, self._seed, self._steps = trial, metric, seed, steps

    def on_start(self, info: dict[str, Any]) -> None: ...

    def on_metrics(self, row: dict[str, Any]) -> None: ...

    def on_eval(self, row: dict[str, Any]) -> None:
        score = row.get(self._metric)
        if row["split"] != "val" or score is None or row["step"] >= self._steps:
            return
        if not self.pruned and self._trial.hopeless(float(score), self._seed * self._steps + row["step"]):
            self.pruned = True
            self.stop()

    def on_finish(self, result: dict[str, Any]) -> None: ...


def with_settings(config: TrainConfig, settings: Mapping[str, Any]) -> TrainConfig:
    """Return `config` with settings by dotted path, without `tune`. Raises `ConfigError` for what does not fit."""
    data = config.model_dump(mode="json", exclude_unset=True, exclude={"tune"})
    for path, value in settings.items():
        *sections, leaf = path.split(".")
        target = data
        for name in sections:
            target = target.setdefault(name, {})
            if not isinstance(target, dict):
                raise ConfigError(f"tune.search.{path}: '{name}' is a value, not a section")
        target[leaf] = value
    return parse_config(TrainConfig, data, f"the config with {', '.join(f'{k}={v}' for k, v in settings.items())}")


def _check(config: TrainConfig, settings: TuneConfig) -> None:
    """Raise `ConfigError` when a setting does not exist, a value does not fit, or nothing is evaluated at the end."""
    for values in ("first", "last"):
        tried = {path: _end_of(one, values) for path, one in settings.search.items()}
        _check_evaluated(with_settings(config, tried))


def _check_evaluated(config: TrainConfig) -> None:
    steps, every = config.trainer.max_steps, config.trainer.eval_every
    if not every or steps % every:
        raise ConfigError(
            f"trainer.eval_every is {every}, so the policy after the last step ({steps}) is not evaluated",
            "set trainer.eval_every to a divisor of trainer.max_steps",
        )


def _end_of(values: Any, which: str) -> Any:
    if values.choices:
        return values.choices[0 if which == "first" else -1]
    end = values.low if which == "first" else values.high
    return int(end) if values.whole else end


def _last_score(run_dir: Path, metric: str) -> float:
    rows = [json.loads(line) for line in (run_dir / "evals.jsonl").read_text(encoding="utf-8").splitlines()]
    row = [row for row in rows if row["split"] == "val"][-1]
    if row.get(metric) is None:
        raise RunError(f"the evaluation '{row['label']}' in '{run_dir}' has no {metric}", "use tune.metric=success")
    return float(row[metric])
