"""Facts about a run: `run.json`, and what callbacks receive at its start."""

from __future__ import annotations

import json
import platform
import resource
from datetime import UTC, datetime
from typing import Any

import torch

from midstream import __version__
from midstream.learn.run.run_dir import RunDirectory
from midstream.learn.run.setup import TrainingContext


class RunInfo:
    """Writes `run.json` of one run. The time of creation is kept when it resumes."""

    def __init__(self, context: TrainingContext, directory: RunDirectory) -> None:
        self._context, self._directory = context, directory
        path = directory / "run.json"
        self._created = (
            json.loads(path.read_text())["created"]
            if directory.started and path.exists()
            else datetime.now(UTC).isoformat(timespec="seconds")
        )

    def at_start(self, step: int) -> dict[str, Any]:
        """Return the argument of `Callback.on_start`, for a run that has done `step` training steps."""
        config = self._context.config
        return {
            "name": config.name,
            "model": config.policy.model,
            "seed": config.trainer.seed,
            "max_steps": config.trainer.max_steps,
            "step": step,
            "run_dir": str(self._directory.path),
            "numerics": self._context.numerics.summary(),
        }

    def write(self, status: str) -> None:
        """Write `run.json`."""
        config, decoder, numerics = self._context.config, self._context.decoder, self._context.numerics
        self._directory.write_json(
            "run.json",
            {
                "name": config.name,
                "created": self._created,
                "status": status,
                "model": config.policy.model,
                "seed": config.trainer.seed,
                "peak_memory_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
                "numerics": numerics.as_json(),
                "versions": {
                    "midstream": __version__,
                    "torch": torch.__version__,
                    "python": platform.python_version(),
                    "dtype": str(decoder.dtype).removeprefix("torch."),
                    "device": str(decoder.device),
                    "threads": torch.get_num_threads(),
                },
            },
        )
