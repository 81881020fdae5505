"""Servers and workers, started when a test first needs them and shared from then on."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import pytest
import uvloop
from taskiq import AsyncBroker

from tests.distributed.app import KINDS, Settings, started
from tests.distributed.watching import Notes
from tests.servers.nats import NatsServer
from tests.servers.rabbitmq import RabbitServer
from tests.servers.redis import RedisServer
from tests.servers.server import Server
from tests.servers.workers import Workers

S = TypeVar("S", bound=Server)

APP = "tests.distributed.app:from_environment"

AT_LENGTH = bool(os.environ.get("TASKIQ_FLOW_TESTS_AT_LENGTH"))
"""Whether tests last as long as what they are about, as ``scripts/production`` has them."""

ENGINES_ON_UVLOOP = ("test_contract", "test_generators", "test_maps", "test_policies")

CONTRACT = "contract"
"""The queues of workers that several modules share."""

HOW_TO_INSTALL = "RabbitMQ is not installed; scripts/test does so where it may (apt-get)"


def pytest_asyncio_loop_factories(
    item: pytest.Item,
) -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    """The engines of some modules are on uvloop, as those within many services are."""
    if item.path.stem in ENGINES_ON_UVLOOP:
        return {"uvloop": uvloop.new_event_loop}
    return {"asyncio": asyncio.new_event_loop}


class Farm:
    """The servers of a test session, and the workers that serve its tests.

    ``module``: that of the tests that run now, whose queues are no other module's.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.module = ""
        self._servers: list[Server] = []
        self._workers: dict[Settings, Workers] = {}

    @cached_property
    def redis(self) -> RedisServer:
        return self._started(RedisServer(self.folder / "redis", appendonly=False))

    @cached_property
    def nats(self) -> NatsServer:
        return self._started(NatsServer(self.folder / "nats"))

    @cached_property
    def rabbitmq(self) -> RabbitServer:
        return self._started(RabbitServer(self.folder / "rabbitmq"))

    def settings(self, kind: str, queue: str = CONTRACT, **others: object) -> Settings:
        """A broker of a kind at these servers, its workers with all that the tests need."""
        own = "" if queue == CONTRACT else f"-{self.module}"
        settings = Settings(kind, queue=f"{queue}-{kind}{own}")
        if kind == "nats":
            settings = replace(settings, nats=self.nats.url)
        elif kind != "in-memory":
            settings = replace(settings, redis=self.redis.url)
        if kind == "rabbitmq":
            settings = replace(settings, rabbitmq=self.rabbitmq.url)
        return replace(settings, **others)  # type: ignore[arg-type]

    def serve(self, settings: Settings, **options: Any) -> None:
        """See to it that workers serve this broker until the module's tests have ended."""
        if settings.kind != "in-memory" and settings not in self._workers:
            workers = self.workers(settings, **options)
            workers.start()
            self._workers[settings] = workers

    def workers(self, settings: Settings, **options: Any) -> Workers:
        """Workers of a broker, not started yet."""
        options.setdefault("folder", self.folder / f"workers-{settings.queue}")
        options.setdefault("on_uvloop", settings.on_uvloop)
        return Workers(APP, env=settings.environment, **options)

    def dismiss(self) -> None:
        """Stop the workers that no other module's tests need."""
        for settings in [each for each in self._workers if not each.queue.startswith(CONTRACT)]:
            self._workers.pop(settings).kill()

    def close(self) -> None:
        """Stop everything."""
        for workers in self._workers.values():
            workers.kill()
        for server in self._servers:
            server.kill()

    def _started(self, server: S) -> S:
        server.start()
        self._servers.append(server)
        return server


@pytest.fixture(scope="session")
def farm_of_session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Farm]:
    with contextlib.closing(Farm(tmp_path_factory.mktemp("farm"))) as farm:
        yield farm


@pytest.fixture(scope="module")
def farm(farm_of_session: Farm, request: pytest.FixtureRequest) -> Iterator[Farm]:
    """Servers, and workers that other modules have only where they are the contract's."""
    farm_of_session.module = request.module.__name__.partition(".test_")[2]
    yield farm_of_session
    farm_of_session.dismiss()


@pytest.fixture
def notes(tmp_path: Path) -> Notes:
    """Where the tasks of a test note that they began and ended."""
    return Notes(tmp_path)


NEEDS_RABBITMQ = pytest.param(
    "rabbitmq",
    marks=pytest.mark.skipif(not RabbitServer.is_available(), reason=HOW_TO_INSTALL),
)
"""The kind of broker as a parameter, left out where there is no server for it."""


def _each(kinds: tuple[str, ...]) -> list[object]:
    return [NEEDS_RABBITMQ if kind == "rabbitmq" else kind for kind in kinds]


@pytest.fixture(params=_each(KINDS))
def kind(request: pytest.FixtureRequest) -> str:
    """Each kind of broker in turn."""
    chosen: str = request.param
    return chosen


@pytest.fixture(params=_each(KINDS[1:]))
def remote_kind(request: pytest.FixtureRequest) -> str:
    """Each kind of broker with workers elsewhere in turn."""
    chosen: str = request.param
    return chosen


@pytest.fixture
async def any_broker(kind: str, farm: Farm) -> AsyncIterator[AsyncBroker]:
    """A broker that workers serve, of each kind."""
    settings = farm.settings(kind, retries=True, broken=True)
    farm.serve(settings)
    async with started(settings) as broker:
        yield broker


@pytest.fixture
async def remote(remote_kind: str, farm: Farm) -> AsyncIterator[AsyncBroker]:
    """A broker that workers in other processes serve, of each kind."""
    settings = farm.settings(remote_kind, retries=True, broken=True)
    farm.serve(settings)
    async with started(settings) as broker:
        yield broker
