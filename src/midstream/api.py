"""The Python API: train, tune, evaluate, ask, roll out, serve, and load configs. Wires the packages together.

A config argument may also be a mapping of settings or the path of a YAML file.

`train`, `ask`, `evaluate` and `rollout` block until they are done, even when an event loop is running (a notebook).
`train_async`, `ask_async`, `evaluate_async` and `rollout_async` take the same arguments and are awaited.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from midstream.agents.registry import offer
from midstream.core.blocking import run_blocking
from midstream.core.config import apply_overrides, load_yaml, parse_config
from midstream.core.errors import ConfigError, EngineError, RunError
from midstream.core.text import visible
from midstream.evaluate.ask import ask, ask_async
from midstream.evaluate.evaluation import evaluate, evaluate_async
from midstream.evaluate.export import export
from midstream.learn.config import TrainConfig, resolve_aliases
from midstream.learn.config import load_config as _load_file
from midstream.workflows.seed003 import is_seed003, split_overrides, translate

if TYPE_CHECKING:
    from midstream.core.types import Trajectory
    from midstream.engines.factory import EngineSettings
    from midstream.gateway.config import GatewayConfig
    from midstream.learn.run.callback import Callback
    from midstream.learn.run.trainer import TrainResult
    from midstream.learn.tune.run import TuneResult
    from midstream.learn.tune.study import Trial

__all__ = [
    "ask",
    "ask_async",
    "evaluate",
    "evaluate_async",
    "export",
    "load_config",
    "load_gateway_config",
    "rollout",
    "rollout_async",
    "serve",
    "train",
    "train_async",
    "tune",
]

_log = logging.getLogger(__name__)

offer("workflow_writer", "midstream.workflows.flow")

Settings = TrainConfig | Mapping[str, Any] | str | Path
"""A config, a mapping of settings, or the path of a YAML file."""


def load_config(source: Mapping[str, Any] | str | Path, overrides: Sequence[str] = ()) -> TrainConfig:
    """Load a training config from a YAML file or a mapping, and apply dotted overrides (`trainer.max_steps=30`).

    Raises a `ConfigError` that lists every error.
    """
    data = dict(source) if isinstance(source, Mapping) else load_yaml(source)
    if is_seed003(data):
        return _load_seed003(data, source, overrides)
    if isinstance(source, Mapping):
        return parse_config(TrainConfig, apply_overrides(data, resolve_aliases(overrides)), "the config")
    return _load_file(source, overrides)


def _load_seed003(
    data: dict[str, Any], source: Mapping[str, Any] | str | Path, overrides: Sequence[str]
) -> TrainConfig:
    """The config that the keys of seed 003's `training.yaml` amount to. Overrides may use its keys and ours. Its files
    are relative to the folder above that of the config, as in the seed, or to the working directory."""
    theirs, ours = split_overrides(overrides)
    folder = Path() if isinstance(source, Mapping) or Path("config").is_dir() else Path(source).resolve().parents[1]
    settings, notes = translate(apply_overrides(data, theirs), folder)
    for note in notes:
        _log.warning("%s", note)
    return parse_config(TrainConfig, apply_overrides(settings, resolve_aliases(ours)), "the config")


def train(
    config: Settings, *, resume: bool = False, force: bool = False, callbacks: Sequence[Callback] | None = None
) -> TrainResult:
    """Train, then draw `curve.png` and write `report.html` in the run's directory, also after Ctrl-C.

    `callbacks` are notified of each step; by default one line is printed per step. `resume` continues the run in its
    directory and gives the numbers of an uninterrupted run; `force` resumes even if the config changed. Raises
    `UserError` for errors the user can fix; saved data is kept. `train_async` is the async form.
    """
    from midstream.gateway.in_process import InProcessGateway
    from midstream.learn.run.trainer import Training

    endpoint = InProcessGateway()
    training = Training(*_to_train(config, callbacks), resume=resume, force=force, endpoint=endpoint)
    return run_blocking(training.run(), interrupt=training.stop)


async def train_async(
    config: Settings, *, resume: bool = False, force: bool = False, callbacks: Sequence[Callback] | None = None
) -> TrainResult:
    """Async form of `train`."""
    from midstream.gateway.in_process import InProcessGateway
    from midstream.learn.run.trainer import Training

    async with InProcessGateway() as endpoint:  # closed here, because the caller's event loop keeps running
        training = Training(*_to_train(config, callbacks), resume=resume, force=force, endpoint=endpoint)
        return await training.run()


def _to_train(config: Settings, callbacks: Sequence[Callback] | None) -> tuple[TrainConfig, list[Callback]]:
    resolved = config if isinstance(config, TrainConfig) else load_config(config)
    # The report first, so that the other callbacks can link to its files.
    return resolved, [_ReportWriter(), *([_LinePrinter()] if callbacks is None else callbacks)]


def tune(
    config: Settings,
    trials: int,
    *,
    overrides: Sequence[str] = (),
    resume: bool = False,
    on_trial: Callable[[Trial], None] = lambda trial: None,
) -> TuneResult:
    """Search for hyper-parameters as the config's section `tune` says, with `trials` trainings, compared on the
    validation split. Writes the best config to `best.yaml` in the folder of the search. `resume` continues an
    interrupted search. Raises `UserError` for errors the user can fix."""
    from midstream.gateway.in_process import InProcessGateway
    from midstream.learn.tune.run import tune as search

    resolved = config if isinstance(config, TrainConfig) else load_config(config, overrides)
    return search(resolved, trials, resume=resume, endpoint=InProcessGateway, on_trial=on_trial)


def rollout(
    config: Settings,
    gateway: str,
    *,
    key_env: str | None = None,
    split: str = "train",
    tasks: int = 8,
    channel: str = "train",
    prefix: str | None = None,
    on_done: Callable[[Trajectory], None] | None = None,
) -> list[Trajectory]:
    """Run the config's flow on `tasks` tasks with `rollout.group_size` attempts each, against the gateway at a URL.

    The gateway samples and records; the agent and the rewards run in this process, which loads no model and trains
    nothing. `rollout_async` is the async form."""
    return run_blocking(
        rollout_async(
            config,
            gateway,
            key_env=key_env,
            split=split,
            tasks=tasks,
            channel=channel,
            prefix=prefix,
            on_done=on_done,
        )
    )


async def rollout_async(
    config: Settings,
    gateway: str,
    *,
    key_env: str | None = None,
    split: str = "train",
    tasks: int = 8,
    channel: str = "train",
    prefix: str | None = None,
    on_done: Callable[[Trajectory], None] | None = None,
) -> list[Trajectory]:
    """Async form of `rollout`."""
    import secrets

    from midstream.agents.registry import load_flows, with_frozen_roles
    from midstream.record.recorder import RoleEngine
    from midstream.rewards import RewardFunction
    from midstream.rewards.judge import remote_judge
    from midstream.rollouts import AgentFlowManager, AgentFlowWorker, groups_of
    from midstream.rollouts.client import GatewayClient
    from midstream.rollouts.remote import RemoteEngine, RemoteSink
    from midstream.tasks import load_tasks
    from midstream.tasks.taskset import check, shortage, take

    config = config if isinstance(config, TrainConfig) else load_config(config)
    source = load_tasks(config.tasks)
    check(source, [split])
    if short := shortage(source, split, tasks):
        _log.warning("%s", short)
    if config.flow.flows_file is not None:
        load_flows(config.flow.flows_file)
    for role, its in with_frozen_roles(config.flow).roles.items():
        if its.engine not in ("policy", "rules") or its.train is False or its.adapter is not None:
            raise ConfigError(
                f"flow.roles.{role}: with a gateway, every role without a rule uses the gateway's model and is trained",
                "keep the defaults of engine, train and adapter (train: true for a role that the flow keeps frozen), "
                "or run the flow with midstream train",
            )
    async with GatewayClient(gateway, key_env) as client:
        try:
            model = await client.model()
        except EngineError as error:
            hint = "start one with midstream gateway --store agents.sqlite, or give the key it needs"
            raise RunError(str(error), hint) from None
        sink = RemoteSink(client, group_size=config.rollout.group_size, model=model)
        worker = AgentFlowWorker(
            config.flow,
            {"policy": RoleEngine(RemoteEngine(), None, True)},
            sampling=config.rollout.sampling,
            sink=sink,
            score=RewardFunction(config.reward, remote_judge(config.reward.judge)).single_trajectory().score,
            timeout_s=config.rollout.timeout_s,
        )
        attempts = groups_of(
            take(source, split, tasks),
            config.rollout.group_size,
            prefix=prefix or secrets.token_hex(4),
            seed=config.trainer.seed,
            channel=channel,
        )
        return await AgentFlowManager(worker, concurrency=config.rollout.concurrency).run(attempts, on_done=on_done)


def load_gateway_config(
    path: str | Path | None = None, overrides: Sequence[str] = (), given: Mapping[str, Any] | None = None
) -> GatewayConfig:
    """Load a gateway config from a YAML file, and apply the settings in `given`, then dotted overrides."""
    from midstream.gateway.config import GatewayConfig

    data = {**({} if path is None else load_yaml(path)), **(given or {})}
    source = "the gateway's config" if path is None else f"'{path}'"
    return parse_config(GatewayConfig, apply_overrides(data, overrides), source)


def serve(config: GatewayConfig, *, on_ready: Callable[[str, str, str], None] | None = None) -> None:
    """Serve the gateway of `config` until it is stopped. `on_ready` is called with its URL, model and store."""
    from midstream.gateway.server import run

    run(_serve(config, on_ready))


async def _serve(config: GatewayConfig, on_ready: Callable[[str, str, str], None] | None) -> None:
    from midstream.engines.chat import load_tokenizer
    from midstream.engines.factory import make_policy_engine
    from midstream.engines.follow import check_followed, follow
    from midstream.engines.models import resolve
    from midstream.gateway.limits.tokens import TokenSigner, load_secret
    from midstream.gateway.server import listen
    from midstream.gateway.server import serve as run_server
    from midstream.gateway.service import Gateway
    from midstream.plans.load import open_plans
    from midstream.record.recorder import RoleEngine
    from midstream.record.store import Store

    if config.follow is not None:
        check_followed(Path(config.follow))
    listening = listen(config.host, config.port)  # first: an address in use fails before the model is loaded
    tokenizer = load_tokenizer(resolve(config.model), tool_format=config.tool_format or "")
    async with AsyncExitStack() as stack:
        engine = await make_policy_engine(_engine_settings(config), tokenizer, stack)
        store = stack.enter_context(Store(config.store, config.durability))
        plans = None if config.plans is None else await stack.enter_async_context(open_plans(config.plans))
        signer = TokenSigner(load_secret(config.secret_env))
        gateway = Gateway(config, RoleEngine(engine, tokenizer, True), store, signer, plans)
        if config.follow is not None:
            first = asyncio.Event()
            following = asyncio.create_task(follow(Path(config.follow), gateway, first, adapter=config.adapter))
            stack.callback(following.cancel)
            await first.wait()  # so that no call is answered with older weights than the newest checkpoint
        notify = on_ready or (lambda url, model, where: None)
        scripted = " (scripted replies, no model)" if config.engine == ("scripted",) else ""
        await run_server(gateway, listening, lambda url: notify(url, f"{config.model}{scripted}", store.where))


def _engine_settings(config: GatewayConfig) -> EngineSettings:
    from midstream.engines.factory import EngineSettings

    return EngineSettings(
        model=config.model,
        engine=config.engine,
        device=config.device,
        dtype=config.dtype,
        numerics=config.numerics,
        run=None if config.follow is None else Path(config.follow),
        concurrency=config.limits.concurrency,
        replies=config.script.replies,
        latency_s=config.script.latency_s,
        tokens_per_s=config.script.tokens_per_s,
        api_key_env=config.api_key_env,
    )


class _ReportWriter:
    """Callback that draws the curve and writes the report when a run ends."""

    def on_start(self, info: dict[str, Any]) -> None: ...

    def on_metrics(self, row: dict[str, Any]) -> None: ...

    def on_eval(self, row: dict[str, Any]) -> None: ...

    def on_finish(self, result: dict[str, Any]) -> None:
        from midstream.evaluate.curve import draw_curve
        from midstream.evaluate.report import write_report

        try:
            draw_curve(result["run_dir"])
            write_report(result["run_dir"])
        except OSError as error:
            raise RunError(
                f"the run is saved, but its report cannot be written to '{result['run_dir']}': {error.strerror}",
                "free some disk space; --resume writes it again",
            ) from None


class _LinePrinter:
    """Callback that prints one line per step and evaluation, and the first traceback."""

    _traceback = ""

    def on_start(self, info: dict[str, Any]) -> None:
        print(f"{info['name']}: {info['model']}, {info['max_steps']} steps, in {info['run_dir']}", flush=True)
        print(f"numerics: {info['numerics']}", flush=True)

    def on_metrics(self, row: dict[str, Any]) -> None:
        if row["stage"] == "rl":
            reward = "-" if row["reward"] is None else f"{row['reward']:.3f}"
            print(f"step {row['step']}: reward {reward}, success {row['success']:.0%}", flush=True)
            self._print_failures(row)

    def on_eval(self, row: dict[str, Any]) -> None:
        interval = f"95 % interval {row['low']:.0%} to {row['high']:.0%}"
        print(f"{row['label']} ({row['split']}, n = {row['n']}): success {row['success']:.0%}, {interval}", flush=True)
        self._print_failures(row)

    def _print_failures(self, row: dict[str, Any]) -> None:
        for error in row["errors"][:1]:
            print(visible(f"  {error['count']} attempts failed: {error['reason']}"), flush=True)
            if error.get("traceback") and not self._traceback:
                self._traceback = error["traceback"]
                print(visible(self._traceback), flush=True)

    def on_finish(self, result: dict[str, Any]) -> None:
        print(f"{result['status']}: {result['run_dir']}/report.html", flush=True)
