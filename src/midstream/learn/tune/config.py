"""Config of a search for hyper-parameters, the section `tune`. Does not import optuna."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from midstream.core.config import Config

FIXED = ("trainer.seed", "trainer.run_dir", "trainer.test_tasks", "name", "tune", "tasks", "reward")
"""Settings and sections that a search may not change: the numbers of its trials would mean different things."""


class SearchRange(Config):
    """The values of one setting: a range (`low`, `high`), or `choices`."""

    low: float | None = None
    """Least value."""
    high: float | None = None
    """Greatest value, included."""
    step: float | None = Field(default=None, gt=0)
    """Only values in steps of this from `low`. When all three are whole numbers, so are the values."""
    log: bool = False
    """Draw the logarithm uniformly: for learning rates."""
    choices: tuple[str | int | float | bool | None, ...] = ()
    """The values themselves."""

    @model_validator(mode="before")
    @classmethod
    def _written_as_list(cls, data: Any) -> Any:
        return {"choices": data} if isinstance(data, list) else data

    @model_validator(mode="after")
    def _one_of_both(self) -> SearchRange:
        ranged = self.low is not None and self.high is not None
        if bool(self.choices) is ranged or (self.low is None) is not (self.high is None):
            raise ValueError("give either low and high, or choices")
        if self.choices and (self.log or self.step):
            raise ValueError("log and step belong to a range, not to choices")
        if ranged:
            assert self.low is not None and self.high is not None
            if not self.low < self.high:
                raise ValueError(f"low ({self.low:g}) must be below high ({self.high:g})")
            if self.log and (self.low <= 0 or self.step):
                raise ValueError("a logarithmic range needs low above 0, and no step")
        return self

    @property
    def whole(self) -> bool:
        """Whether the values are whole numbers."""
        given = (self.low, self.high, 1.0 if self.step is None else self.step)
        return not self.choices and not self.log and all(one is not None and one == int(one) for one in given)


class TuneConfig(Config):
    """Search for hyper-parameters with `midstream tune`. Trials are compared on the validation split; the test split is
    not used. `midstream train` ignores this section."""

    search: dict[str, SearchRange] = Field(min_length=1)
    """Range by setting: `{optimizer.lr: {low: 1e-5, high: 1e-3, log: true}, policy.lora.rank: [8, 16, 32]}`."""
    metric: Literal["success", "reward"] = "success"
    """What is made large: the last evaluation on the validation split."""
    seeds: int = Field(default=1, ge=1)
    """Trainings of each trial, with seeds `trainer.seed` and following. Their mean is the trial's score."""
    prune: bool = True
    """End a trial early when it is below the median of the earlier trials at the same step."""
    startup_trials: int = Field(default=5, ge=1)
    """Random trials at the start. Those after are drawn by a tree-structured Parzen estimator (Bergstra et al. 2011)
    and can be pruned."""

    @model_validator(mode="after")
    def _allowed(self) -> TuneConfig:
        for path in self.search:
            if any(path == fixed or path.startswith(f"{fixed}.") for fixed in FIXED):
                raise ValueError(f"search.{path}: this setting is the same in all trials; remove it from the search")
        return self
