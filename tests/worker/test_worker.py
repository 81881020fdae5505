"""When a worker reports that a task has begun, and what it logs of tasks that fail."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import re
import threading
import types
from collections.abc import AsyncIterator, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import anyio
import pytest
from taskiq import SimpleRetryMiddleware, TaskiqMessage, TaskiqMiddleware, TaskiqResult

from taskiq_flow import (
    DAGBuilder,
    ExecutionEngine,
    Listener,
    NodeBegan,
    NodeCompleted,
    NodeFailedError,
    NodeStarted,
    NodeTimeoutError,
    Retry,
    RunCancelledError,
    RunFinished,
    RunStarted,
)
from taskiq_flow.processes.name import process_name
from taskiq_flow.testing import LocalBroker, LocalFlowMiddleware, LocalNotices, LocalNotifier
from taskiq_flow.transport.notice import Kind, Notice
from tests.local_flow import with_flow
from tests.recording import Recorder
from tests.waiting import LONGEST, until

pytestmark = pytest.mark.usefixtures("plain_task_ids")


class Site:
    """A worker in this process with one thread, and the notices that it publishes."""

    def __init__(self) -> None:
        self.board = LocalNotices()
        self.broker = LocalBroker()
        self.flow: LocalFlowMiddleware = with_flow(self.broker, self.board)
        self.release = threading.Event()
        self.begun: list[str] = []

        @self.broker.task(task_name="hold")
        def hold(name: str) -> str:
            self.begun.append(name)
            if name == "first":
                self.release.wait(10)
            return name

        self.hold = hold

    def engine(
        self, name: str, listeners: Sequence[Listener] = (), **options: Any
    ) -> ExecutionEngine:
        dag = DAGBuilder().node(self.hold, name=name, inputs={"name": "name"}, **options).build()
        return ExecutionEngine(self.broker, dag, listeners=listeners)

    def run(
        self, name: str, listeners: Sequence[Listener] = (), **options: Any
    ) -> asyncio.Task[dict[str, Any]]:
        engine = self.engine(name, listeners, **options)
        return asyncio.ensure_future(engine.execute({"name": name}, run_id=name))

    @contextlib.asynccontextmanager
    async def working(self, pool: Executor | None = None) -> AsyncIterator[None]:
        async with self.broker.worker(pool=pool):
            try:
                async with asyncio.timeout(LONGEST):
                    yield
            finally:
                self.release.set()
                await self.flow.shutdown()

    async def notices(self, kind: Kind) -> list[Notice]:
        """The notices of a kind that were published so far."""
        inbox = await self.flow.inbox()
        opened = [Notice.opened(data, inbox.key) for _, data in self.board.published]
        return [notice for notice in opened if notice is not None and notice.kind is kind]

    async def named_in(self, kind: Kind) -> set[str]:
        """The tasks that the notices of a kind have named so far."""
        return {task for notice in await self.notices(kind) for task in notice.task_ids()}

    async def until_named_in(self, kind: Kind, task_id: str) -> None:
        async def is_named() -> bool:
            return task_id in await self.named_in(kind)

        await until(is_named, f"{task_id} is told")


@pytest.fixture
def one_thread() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(1) as pool:
        yield pool


async def test_a_sync_task_that_waits_for_a_thread_is_reported_and_has_not_begun(
    one_thread: ThreadPoolExecutor,
) -> None:
    site = Site()
    async with site.working(one_thread):
        first = site.run("first", timeout=60.0)
        await site.until_named_in(Kind.BEGUN, "first:first:1")
        second = site.run("second", timeout=60.0)
        await site.until_named_in(Kind.HERE, "second:second:1")
        assert await site.named_in(Kind.BEGUN) == {"first:first:1"}
        site.release.set()
        assert await first == {"first": "first"}
        assert await second == {"second": "second"}
        assert await site.named_in(Kind.BEGUN) == {"first:first:1", "second:second:1"}


async def test_a_queue_timeout_covers_the_wait_for_a_thread(
    one_thread: ThreadPoolExecutor,
) -> None:
    site = Site()
    async with site.working(one_thread):
        first = site.run("first")
        await until(lambda: site.begun, "the first has the thread")
        with pytest.raises(NodeFailedError) as caught:
            await site.run("second", queue_timeout=0.2)
        error = caught.value.__cause__
        assert isinstance(error, NodeTimeoutError)
        assert error.waited
        site.release.set()
        assert await first == {"first": "first"}
    assert site.begun == ["first"]


# What listeners are told of that


async def test_a_listener_is_told_of_the_begin_before_the_end_though_its_notice_is_slow(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    publish = LocalNotifier.publish

    async def slowly(self: LocalNotifier, channel: str, data: bytes) -> None:
        if data[16:17] == Kind.BEGUN.value:  # behind the seal
            await asyncio.sleep(0.1)
        await publish(self, channel, data)

    monkeypatch.setattr(LocalNotifier, "publish", slowly)
    site, recorder = Site(), Recorder()
    async with site.working():
        await site.run("quick", [recorder])
    kinds = [type(event) for event in recorder.events]
    assert kinds == [RunStarted, NodeStarted, NodeBegan, NodeCompleted, RunFinished]
    assert recorder.of(NodeBegan)[0].worker == process_name()


async def test_a_listener_is_told_once_of_each_worker_that_executes_an_attempt() -> None:
    site, recorder = Site(), Recorder()
    async with site.working():
        first = site.run("first", [recorder])
        await site.until_named_in(Kind.BEGUN, "first:first:1")
        inbox = await site.flow.inbox()
        other = Notice.of_tasks(Kind.BEGUN, ["first:first:1"], "other:8").sealed(inbox.key)
        for _ in range(3):  # heartbeats say so again
            site.board.tell(inbox.channel, other)
        site.release.set()
        await first
    workers = [(event.worker, event.attempt) for event in recorder.of(NodeBegan)]
    assert workers == [(process_name(), 1), ("other:8", 1)]


async def test_workers_do_not_report_the_begin_where_nobody_asks() -> None:
    site = Site()
    async with site.working():
        await site.run("quick")
        assert await site.named_in(Kind.BEGUN) == set()


async def test_elements_beside_a_generator_are_reported_with_heartbeats_only() -> None:
    site, count = Site(), 40

    @site.broker.task(task_name="names")
    async def names() -> AsyncIterator[str]:
        for _ in range(count):
            yield "quick"
        yield "first"

    builder = DAGBuilder().node(names, name="names")
    builder.node(site.hold, name="held", inputs={"name": "names"}, map_over="names")
    engine = ExecutionEngine(site.broker, builder.build())
    async with site.working():
        running = asyncio.ensure_future(engine.execute(run_id="run"))
        await site.until_named_in(Kind.BEGUN, f"run:held[{count}]:1")
        assert len(await site.notices(Kind.BEGUN)) < count // 2
        site.release.set()
        assert (await running)["held"] == [*["quick"] * count, "first"]


# What is logged


def lines_of(caplog: pytest.LogCaptureFixture) -> list[tuple[str, str, bool]]:
    """The lines that taskiq's receiver logs above INFO: level, text, whether with a traceback."""
    return [
        (record.levelname, record.getMessage(), bool(record.exc_info))
        for record in caplog.records
        if record.name.startswith("taskiq.receiver") and record.levelno > logging.INFO
    ]


async def fail() -> None:
    raise LookupError("not here")


def fail_in_thread() -> None:
    raise LookupError("not here")


def copy_of(function: Any) -> Any:
    """A function that taskiq may rename."""
    return types.FunctionType(function.__code__, globals(), function.__name__)


def fails_at(function: Any) -> str:
    """Where the error of one of these is raised."""
    code = function.__code__
    return f"{code.co_filename}:{code.co_firstlineno + 1}"


@pytest.mark.parametrize("function", [fail, fail_in_thread])
@pytest.mark.parametrize("level", [logging.WARNING, logging.DEBUG])
async def test_an_attempt_that_fails_is_one_line_that_says_where(
    caplog: pytest.LogCaptureFixture, function: Any, level: int
) -> None:
    """Whether it is an error the engine knows: it may try again. DEBUG shows the traceback."""
    caplog.set_level(level, "taskiq")
    site = Site()
    place = fails_at(function)
    node = site.broker.register_task(copy_of(function), task_name="fail")
    dag = DAGBuilder().node(node, retry=Retry(attempts=2, wait=0)).build()
    async with site.working():
        with pytest.raises(NodeFailedError):
            await ExecutionEngine(site.broker, dag).execute(run_id="run")
    assert lines_of(caplog) == [
        (
            "WARNING",
            f"task 'run:fail:{attempt}' ended with LookupError: not here ({place})",
            level == logging.DEBUG,
        )
        for attempt in (1, 2)
    ]


async def test_an_attempt_that_taskiq_repeats_is_one_line(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "taskiq.receiver")
    site = Site()
    site.broker.add_middlewares(SimpleRetryMiddleware())
    place = fails_at(fail)
    labels = {"retry_on_error": True, "max_retries": 2}
    node = site.broker.register_task(copy_of(fail), task_name="fail", **labels)
    async with site.working():
        with pytest.raises(NodeFailedError):
            await ExecutionEngine(site.broker, DAGBuilder().node(node).build()).execute(run_id="r")
    line = ("WARNING", f"task 'r:fail:1' ended with LookupError: not here ({place})", False)
    assert lines_of(caplog) == [line] * 2


@pytest.mark.parametrize(
    ("how", "is_async"), [("cancelled", True), ("cancelled", False), ("timed out", False)]
)
async def test_a_task_that_was_cancelled_on_purpose_is_no_error(
    caplog: pytest.LogCaptureFixture, how: str, is_async: bool, one_thread: ThreadPoolExecutor
) -> None:
    caplog.set_level(logging.WARNING, "taskiq.receiver")
    site = Site()
    begun = asyncio.Event()

    @site.broker.task(task_name="wait")
    async def wait() -> None:
        begun.set()
        await asyncio.Event().wait()

    loop = asyncio.get_running_loop()

    @site.broker.task(task_name="wait_in_thread")
    def wait_in_thread() -> None:
        loop.call_soon_threadsafe(begun.set)
        site.release.wait(10)
        raise LookupError("left alone")

    timeout = 0.1 if how == "timed out" else None
    dag = DAGBuilder().node(wait if is_async else wait_in_thread, timeout=timeout).build()
    engine = ExecutionEngine(site.broker, dag)
    async with site.working(one_thread):
        run = asyncio.ensure_future(engine.execute())
        await begun.wait()
        if how == "cancelled":
            engine.cancel()
        with pytest.raises((NodeFailedError, RunCancelledError)):
            await run
        await until(lambda: site.board.revoked, "it is revoked")
    assert lines_of(caplog) == []


async def test_a_task_that_the_worker_times_out_is_one_line(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.WARNING, "taskiq.receiver")
    site = Site()

    @site.broker.task(task_name="wait")
    async def wait() -> None:
        await asyncio.Event().wait()

    dag = DAGBuilder().node(wait, timeout=0.1).build()
    async with site.working():
        with pytest.raises(NodeFailedError):
            await ExecutionEngine(site.broker, dag).execute(run_id="r")
    ((level, text, has_traceback),) = lines_of(caplog)
    assert (level, has_traceback) == ("WARNING", False)
    assert text == "task 'r:wait:1' did not end within 0.1 s, its timeout"


async def times_out_itself() -> None:
    with anyio.fail_after(0):
        await asyncio.Event().wait()


async def fails_in_a_library() -> None:
    json.loads("no JSON")


def fails_in_a_library_in_thread() -> None:
    anyio.run(fails_in_a_library)  # calls code of the user's again


@pytest.mark.parametrize(
    ("function", "line_of"),
    [
        (times_out_itself, "times_out_itself"),
        (fails_in_a_library, "fails_in_a_library"),
        (fails_in_a_library_in_thread, "fails_in_a_library"),
    ],
)
async def test_the_last_line_of_the_users_own_code_is_told(
    caplog: pytest.LogCaptureFixture, function: Any, line_of: str
) -> None:
    caplog.set_level(logging.WARNING, "taskiq.receiver")
    site = Site()
    node = site.broker.register_task(copy_of(function), task_name="fail")
    async with site.working():
        with pytest.raises(NodeFailedError):
            await ExecutionEngine(site.broker, DAGBuilder().node(node, timeout=9).build()).execute()
    (text,) = [text for _, text, _ in lines_of(caplog) if "ended" in text]
    first = globals()[line_of].__code__
    assert re.search(rf"ended with .*\({re.escape(first.co_filename)}:(\d+)\)$", text)
    line = int(text.rpartition(":")[2].rstrip(")"))
    assert first.co_firstlineno < line <= first.co_firstlineno + 2


async def test_an_installed_package_with_the_tasks_function_is_the_users_own(
    caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    caplog.set_level(logging.WARNING, "taskiq.receiver")
    site, space = Site(), tmp_path / "lib" / "site-packages"
    calls: dict[str, Any] = {"__name__": __name__}
    for name, lines in [
        ("others", "def call(it): it()\ndef fail(): raise LookupError"),
        ("shop", "async def task(): call(fail)"),
    ]:
        exec(compile(lines, str(space / name / "its.py"), "exec"), calls)  # noqa: S102
    node = site.broker.register_task(calls["task"], task_name="fail")
    async with site.working():
        with pytest.raises(NodeFailedError):
            await ExecutionEngine(site.broker, DAGBuilder().node(node).build()).execute()
    ((_, text, _),) = lines_of(caplog)
    assert text.endswith(f"ended with LookupError ({space / 'shop' / 'its.py'}:1)")


async def test_a_task_that_no_engine_has_sent_is_logged_as_ever(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.WARNING, "taskiq.receiver")
    site = Site()
    node = site.broker.register_task(copy_of(fail), task_name="fail")
    async with site.working():
        await (await node.kiq()).wait_result(check_interval=0.001)
    assert lines_of(caplog) == [("ERROR", "Exception found while executing function.", True)]


async def test_a_middleware_that_fails_after_saving_is_logged_as_ever(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.WARNING, "taskiq.receiver")
    site = Site()
    site.release.set()

    class Broken(TaskiqMiddleware):
        def post_save(self, message: TaskiqMessage, result: TaskiqResult[Any]) -> None:
            raise LookupError("not here")

    site.broker.add_middlewares(Broken())
    async with site.working():
        assert await site.run("first") == {"first": "first"}
    assert lines_of(caplog) == [("ERROR", "Can't set result in result backend.", True)]
