"""The optuna study behind a search: proposes settings, remembers scores in a file, and prunes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from midstream.core.errors import UserError
from midstream.core.seeds import derive_seed
from midstream.learn.tune.config import SearchRange, TuneConfig

if TYPE_CHECKING:
    import optuna

JOURNAL = "trials.log"
SEED = "seed"


@dataclass(frozen=True, slots=True)
class Trial:
    """One proposal and what came of it."""

    number: int
    settings: Mapping[str, Any]
    """Value by setting."""
    state: str
    """`complete`, `pruned`, `failed` or `running`."""
    score: float | None = None
    reason: str = ""
    """Why it failed."""


class Search:
    """A search in `folder`, new or continued. What it proposes depends on `seed`, the number of the trial and the
    scores before it, not on interruptions."""

    def __init__(self, folder: Path, config: TuneConfig, seed: int) -> None:
        try:
            import optuna
            from optuna.storages.journal import JournalFileBackend, JournalStorage
        except ModuleNotFoundError as error:
            raise UserError(f"midstream tune needs {error.name}", "pip install 'midstream[tune]'") from None
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._optuna, self._config, self._seed = optuna, config, seed
        startup = config.startup_trials
        self._study = optuna.create_study(
            storage=JournalStorage(JournalFileBackend(str(folder / JOURNAL))),
            study_name="tune",
            direction="maximize",
            pruner=optuna.pruners.MedianPruner(n_startup_trials=startup)
            if config.prune
            else optuna.pruners.NopPruner(),
            load_if_exists=True,
        )
        self._study.set_user_attr(SEED, seed)

    def next(self) -> RunningTrial:
        """Return the trial that a killed process left unfinished, else a new one."""
        optuna = self._optuna
        left = self._study.get_trials(deepcopy=False, states=[optuna.trial.TrialState.RUNNING])
        if left:
            # optuna has no public way to continue a trial of another process.
            trial = optuna.trial.Trial(self._study, left[0]._trial_id)  # pyright: ignore[reportPrivateUsage]
        else:
            number = len(self._study.get_trials(deepcopy=False))
            # A sampler of its own for each trial: a continued search draws what an uninterrupted one would have drawn.
            self._study.sampler = optuna.samplers.TPESampler(
                seed=derive_seed(self._seed, "trial", number) % 2**32, n_startup_trials=self._config.startup_trials
            )
            trial = self._study.ask()
        settings = {path: _suggest(trial, path, values) for path, values in self._config.search.items()}
        return RunningTrial(self._study, trial, settings)

    @property
    def trials(self) -> list[Trial]:
        """All trials, in order."""
        names = {"COMPLETE": "complete", "PRUNED": "pruned", "FAIL": "failed"}
        return [
            Trial(
                one.number,
                dict(one.params),
                names.get(one.state.name, "running"),
                one.value if one.state.name == "COMPLETE" else None,
                str(one.user_attrs.get("reason", "")),
            )
            for one in self._study.get_trials(deepcopy=False)
        ]

    @property
    def best(self) -> Trial | None:
        """The complete trial with the highest score, the first of equals."""
        complete = [one for one in self.trials if one.score is not None]
        return max(complete, key=lambda one: (one.score, -one.number), default=None)


class RunningTrial:
    """A trial to be carried out."""

    def __init__(self, study: optuna.Study, trial: optuna.Trial, settings: Mapping[str, Any]) -> None:
        self.number, self.settings = trial.number, settings
        self._study, self._trial = study, trial
        self._reported = set(study.get_trials(deepcopy=False)[trial.number].intermediate_values)

    def hopeless(self, score: float, step: int) -> bool:
        """Report a score at a step; returns whether the trial is to be pruned."""
        if step not in self._reported:
            self._trial.report(score, step)
            self._reported.add(step)
        return self._trial.should_prune()

    def complete(self, score: float) -> None:
        self._study.tell(self._trial, score)

    def prune(self) -> None:
        self._end("PRUNED")

    def fail(self, reason: str) -> None:
        self._trial.set_user_attr("reason", reason)
        self._end("FAIL")

    def _end(self, state: str) -> None:
        from optuna.trial import TrialState

        self._study.tell(self._trial, state=TrialState[state])


def _suggest(trial: optuna.Trial, path: str, values: SearchRange) -> Any:
    if values.choices:
        return trial.suggest_categorical(path, values.choices)
    assert values.low is not None and values.high is not None
    if values.whole:
        step = 1 if values.step is None else int(values.step)
        return trial.suggest_int(path, int(values.low), int(values.high), step=step)
    return trial.suggest_float(path, values.low, values.high, step=values.step, log=values.log)
