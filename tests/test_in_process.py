"""``in_process``, with real child processes."""

from __future__ import annotations

import asyncio
import functools
import inspect
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from taskiq import InMemoryBroker

from taskiq_flow import (
    DAG,
    ConfigurationError,
    DAGNode,
    ExecutionEngine,
    NodeFailedError,
    NodeTimeoutError,
    SerializationError,
    TaskLostError,
    in_process,
)
from taskiq_flow.processes import children
from tests import plain_functions as plain
from tests import process_functions as functions
from tests.commands import ROOT, Scripts
from tests.servers.process import descendants, process_info
from tests.waiting import until


async def has_ended(pid: int) -> None:
    """Wait until a process has ended, which does so at once; on a busy machine, in a moment."""
    await until(lambda: not process_info(pid), f"{pid} has ended", 5.0)


async def noted_pid(path: Path) -> int:
    await until(path.exists, "its pid is noted")
    return int(path.read_text())


def engine_of(*nodes: DAGNode, **options: Any) -> ExecutionEngine:
    dag = DAG()
    for node in nodes:
        dag.add_node(node)
    return ExecutionEngine(InMemoryBroker(), dag, **options)


# What it is


def test_it_has_the_name_the_signature_and_the_docstring_of_its_function() -> None:
    assert inspect.iscoroutinefunction(functions.add)
    assert functions.add.__name__ == "add"
    assert functions.add.__doc__ == "Adds."
    signature = "(a: 'int', b: 'int' = 1, *more: 'int', c: 'int' = 0) -> 'int'"
    assert str(inspect.signature(functions.add)) == signature


async def test_a_call_runs_in_another_process() -> None:
    assert await functions.add(1, 2, 3, c=4) == 10
    assert await functions.pid() != os.getpid()


async def test_an_idle_process_is_used_again() -> None:
    assert await functions.pid() == await functions.pid()


async def test_an_array_keeps_its_byte_order() -> None:
    np = pytest.importorskip("numpy")
    for array in (np.arange(6, dtype=">i2").reshape(2, 3).T, np.arange(6, dtype=">f8")[::2]):
        given = await functions.give(array)
        assert (given.dtype, given.tolist()) == (array.dtype, array.tolist())


async def test_a_function_is_given_without_a_decorator(tmp_path: Path) -> None:
    assert await in_process(plain.Holder.double)(4) == 8
    assert await in_process(plain._alone, limit=2)(str(tmp_path / "x")) != os.getpid()


async def test_it_is_the_task_of_a_node() -> None:
    engine = engine_of(DAGNode(functions.add, output="sum", inputs=["a"]))
    assert await engine.execute({"a": 4}) == {"sum": 5}


async def test_it_is_given_to_a_broker(broker: InMemoryBroker) -> None:
    task: Any = broker.task(functions.add)
    result = await (await task.kiq(1, b=2)).wait_result()
    assert result.return_value == 3


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (lambda: 1, "is a lambda"),
        (plain.waits, "is async"),
        (plain.yields, "is a generator function"),
        (functools.partial(plain._alone, "x"), "is a partial"),
        (functions.add, "is async"),
    ],
)
def test_what_no_process_can_call_is_refused_when_it_is_declared(
    function: Any, reason: str
) -> None:
    with pytest.raises(ConfigurationError, match=reason):
        in_process(function)


def test_a_local_function_is_refused_when_it_is_declared() -> None:
    with pytest.raises(ConfigurationError, match="within a function"):

        @in_process
        def local() -> None: ...


def test_a_function_that_its_name_does_not_stand_for_is_refused_by_the_graph() -> None:
    def other() -> None: ...

    other.__qualname__ = "_alone"
    other.__module__ = plain.__name__
    with pytest.raises(ConfigurationError, match=r"_alone.* is found under its name"):
        DAGNode(in_process(other))
    with pytest.raises(ConfigurationError, match="cannot be imported by another process"):
        DAGNode(in_process(plain.Holder().method))


@pytest.mark.parametrize("limit", [0, -1, True, 1.5])
def test_a_limit_is_a_positive_number(limit: Any) -> None:
    with pytest.raises(ValueError, match="limit of in_process"):
        in_process(limit=limit)


# Errors


async def test_an_exception_has_its_class_arguments_and_traceback() -> None:
    with pytest.raises(ZeroDivisionError, match=r"^division by zero$") as caught:
        await functions.divide(1, 0)
    assert "return a / b" in str(caught.value.__cause__)
    assert "child_main" not in str(caught.value.__cause__)


async def test_an_exception_whose_class_takes_other_arguments_arrives() -> None:
    with pytest.raises(plain.OddError) as caught:
        await functions.fail_oddly(7)
    assert caught.value.args == ("code 7",)
    assert vars(caught.value) == {"code": 7, "why": "so"}


async def test_an_exception_that_allows_no_changes_arrives() -> None:
    with pytest.raises(plain.FrozenError) as caught:
        await functions.fail_frozen()
    assert (caught.value, caught.value.args) == (plain.FrozenError(3), (3,))


async def test_an_exception_that_cannot_be_pickled_is_told_as_text() -> None:
    with pytest.raises(SerializationError, match=r"(?s)LocalError: here.*line"):
        await functions.fail_locally()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: functions.give(lambda: 1), "argument 'value' of .*:give, a .*function"),
        (lambda: functions.give(value=print_lock()), "argument 'value' of .*:give, a _thread.lock"),
        (lambda: functions.give(plain.Unreadable()), "argument 'value' cannot be unpickled"),
        (functions.give_a_lambda, "its result, a builtins.function, cannot be pickled"),
    ],
)
async def test_what_cannot_be_pickled_is_named(call: Any, message: str) -> None:
    with pytest.raises(SerializationError, match=message):
        await call()
    assert await functions.add(1) == 2


def print_lock() -> Any:
    return threading.Lock()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: functions.exit_with(3), "exit code 3"),
        (lambda: functions.leave(4), "exit code 4"),
        (functions.kill_itself, "SIGKILL"),
    ],
)
async def test_a_process_that_ends_fails_its_call_and_the_next_has_a_new_one(
    call: Any, message: str
) -> None:
    with pytest.raises(TaskLostError, match=message):
        await call()
    assert await functions.add(1) == 2


async def test_a_process_that_ends_fails_its_node() -> None:
    engine = engine_of(DAGNode(functions.exit_with, output="x", inputs=["code"]))
    with pytest.raises(NodeFailedError, match="exit code 9"):
        await engine.execute({"code": 9})


async def test_a_process_that_ends_is_noticed_though_its_own_child_lives(tmp_path: Path) -> None:
    path = tmp_path / "pid"
    with pytest.raises(TaskLostError, match="exit code 5"):
        await functions.leave_a_child_and_end(str(path))
    os.kill(int(path.read_text()), signal.SIGKILL)


# Ending


async def test_a_cancelled_call_is_gone_at_once(tmp_path: Path) -> None:
    call = asyncio.ensure_future(functions.spin(str(tmp_path / "pid")))
    pid = await noted_pid(tmp_path / "pid")
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    await has_ended(pid)


async def test_a_cancelled_call_ends_the_processes_that_it_has_started(tmp_path: Path) -> None:
    call = asyncio.ensure_future(functions.leave_a_child(str(tmp_path / "pid")))
    grandchild = await noted_pid(tmp_path / "pid")
    call.cancel()
    await asyncio.wait([call])
    await has_ended(grandchild)


async def test_a_node_that_is_timed_out_is_gone_at_once(tmp_path: Path) -> None:
    pid = await functions.pid()  # of the idle process, which is used again
    engine = engine_of(DAGNode(functions.spin, output="x", inputs=["path"], timeout=0.3))
    with pytest.raises(NodeFailedError) as caught:
        await engine.execute({"path": str(tmp_path / "pid")})
    assert isinstance(caught.value.__cause__, NodeTimeoutError)
    await has_ended(pid)


async def test_a_run_that_is_cancelled_ends_its_process(tmp_path: Path) -> None:
    path = tmp_path / "pid"
    engine = engine_of(DAGNode(functions.spin, output="x", inputs=["path"]))
    run = asyncio.ensure_future(engine.execute({"path": str(path)}))
    pid = await noted_pid(path)
    engine.cancel()
    await asyncio.wait([run])
    assert not run.cancelled()
    run.exception()
    await has_ended(pid)


async def test_a_call_that_is_cancelled_while_its_process_starts_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(children, "_pool", children._Pool())
    before = set(descendants(os.getpid()))
    for turns in range(20):
        call = asyncio.ensure_future(functions.pid())
        await asyncio.sleep(turns * 0.003)
        call.cancel()
        await asyncio.wait([call])
    await until(lambda: set(descendants(os.getpid())) <= before, "all have ended")


async def test_an_idle_process_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(children, "IDLE_SECONDS", 0.05)
    monkeypatch.setattr(children, "_pool", children._Pool())
    pid = await functions.pid()
    await until(lambda: not Path(f"/proc/{pid}").exists(), "it has ended")
    assert await functions.pid() != pid


@pytest.mark.parametrize("function", ["spin", "hold_the_gil"])
async def test_a_killed_parent_leaves_nothing(function: str, tmp_path: Path) -> None:
    path = tmp_path / "pid"
    script = (
        "import asyncio\nfrom tests import process_functions as functions\n"
        f"asyncio.run(functions.{function}({str(path)!r}))"
    )
    parent = subprocess.Popen([sys.executable, "-c", script], cwd=ROOT)  # noqa: ASYNC220, S603
    try:
        pid = await noted_pid(path)
        parent.kill()
        parent.wait()
        await has_ended(pid)
    finally:
        parent.kill()
        parent.wait()
        if path.exists() and process_info(child := int(path.read_text())):
            os.kill(child, signal.SIGKILL)


async def test_a_parent_that_returns_does_not_wait_for_its_processes(scripts: Scripts) -> None:
    script = (
        "import asyncio\nfrom tests import process_functions as functions\n"
        "print(asyncio.run(functions.pid()))"
    )
    pid = int(scripts.output(script, cwd=ROOT))
    await has_ended(pid)


# Places


async def test_no_more_calls_run_than_the_limit(tmp_path: Path) -> None:
    calls = [functions.one_at_a_time(str(tmp_path / "busy")) for _ in range(10)]
    assert len(set(await asyncio.gather(*calls))) == 1


def test_a_limit_holds_over_several_event_loops(tmp_path: Path) -> None:
    path, failures = str(tmp_path / "busy"), []

    def work() -> None:
        try:
            for _ in range(3):
                asyncio.run(functions.one_at_a_time(path))
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


async def test_a_call_that_is_cancelled_while_it_waits_takes_no_place(tmp_path: Path) -> None:
    first, end = tmp_path / "first", tmp_path / "end"
    holding = asyncio.ensure_future(functions.hold(str(first), str(end)))
    await until(first.exists, "the first one has the place")
    waiting = [
        asyncio.ensure_future(functions.hold(str(tmp_path / f"{i}"), str(end))) for i in range(3)
    ]
    await asyncio.sleep(0)
    waiting[0].cancel()
    end.touch()
    await holding
    waiting[1].cancel()  # the place may be on its way to it
    await asyncio.wait(waiting)
    assert waiting[2].exception() is None
    assert not (tmp_path / "0").exists()


async def test_a_call_that_waits_begins_though_the_event_loop_is_busy(tmp_path: Path) -> None:
    first, second, end = (tmp_path / name for name in ("first", "second", "end"))
    calls = [asyncio.ensure_future(functions.hold(str(path), str(end))) for path in (first, second)]
    await until(first.exists, "the first one has the place")
    end.touch()
    busy_until = time.monotonic() + 10.0
    while not second.exists() and time.monotonic() < busy_until:
        time.sleep(0.01)  # noqa: ASYNC251 - the event loop does nothing else
    assert second.exists()
    await asyncio.gather(*calls)


async def test_waiting_for_a_place_does_not_count_as_the_attempt(tmp_path: Path) -> None:
    first, end = tmp_path / "first", tmp_path / "end"
    holding = asyncio.ensure_future(functions.hold(str(first), str(end)))
    await until(first.exists, "the first one has the place")
    engine = engine_of(
        DAGNode(functions.hold, output="x", inputs=["path", "until"], timeout=1.5),
    )
    run = asyncio.ensure_future(
        engine.execute({"path": str(tmp_path / "second"), "until": str(end)})
    )
    done, _ = await asyncio.wait([run], timeout=1.7)  # longer than an attempt may take
    assert not done
    end.touch()
    assert await run == {"x": None}
    await holding


async def test_a_node_that_waits_too_long_for_a_place_ends_by_its_queue_timeout(
    tmp_path: Path,
) -> None:
    first, end = tmp_path / "first", tmp_path / "end"
    holding = asyncio.ensure_future(functions.hold(str(first), str(end)))
    await until(first.exists, "the first one has the place")
    node = DAGNode(functions.hold, output="x", inputs=["path", "until"], queue_timeout=0.2)
    with pytest.raises(NodeFailedError) as caught:
        await engine_of(node).execute({"path": str(tmp_path / "second"), "until": str(end)})
    cause = caught.value.__cause__
    assert isinstance(cause, NodeTimeoutError)
    assert cause.waited
    end.touch()
    await holding
    assert not (tmp_path / "second").exists()


# Surroundings


def run_python(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(  # noqa: S603 - this interpreter
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )


async def test_what_a_child_prints_reaches_the_user(capfd: pytest.CaptureFixture[str]) -> None:
    children._pool = children._Pool()  # a process that has the captured descriptors
    await functions.say("good morning")
    output, errors = capfd.readouterr()
    assert output == "good morning\ngood morning\n"
    assert errors == "good morning\n"
    children._pool = children._Pool()


MAIN = """
import asyncio
from dataclasses import dataclass
from taskiq_flow import in_process

print("imported")

@dataclass
class Point:
    x: int

@in_process
def double(point):
    return Point(2 * point.x)

{call}
"""


def test_a_function_of_a_guarded_main_script_runs(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    guarded = 'if __name__ == "__main__":\n    print(asyncio.run(double(Point(2))))'
    script.write_text(MAIN.format(call=guarded))
    for arguments in (["script.py"], ["-m", "script"]):
        done = run_python(*arguments, cwd=tmp_path)
        assert done.stderr == ""
        assert done.stdout == "imported\nimported\nPoint(x=4)\n"


def test_a_main_script_without_a_guard_is_refused_and_runs_once(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(MAIN.format(call="asyncio.run(double(Point(2)))"))
    done = run_python("script.py", cwd=tmp_path)
    assert 'if __name__ == "__main__"' in done.stderr.splitlines()[-1]
    assert done.stdout == "imported\n"


def test_a_main_script_that_calls_above_its_guard_starts_no_chain(tmp_path: Path) -> None:
    call = 'asyncio.run(double(Point(2)))\nif __name__ == "__main__":\n    pass'
    (tmp_path / "script.py").write_text(MAIN.format(call=call))
    done = run_python("script.py", cwd=tmp_path)
    assert "ConfigurationError" in done.stderr
    assert done.stdout == "imported\nimported\n"


def test_the_main_script_does_not_run_again_for_a_function_of_a_module(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(
        "import asyncio\nfrom tests.process_functions import add\n"
        "print('once')\nprint(asyncio.run(add(1)))"
    )
    assert run_python("script.py", cwd=tmp_path).stdout == "once\n2\n"


def test_a_function_of_an_interactive_session_is_refused(scripts: Scripts) -> None:
    code = "from taskiq_flow import in_process\n@in_process\ndef f(): pass"
    done = scripts.run(code, cwd=ROOT)
    assert "interactive session or by -c" in done.errors


def test_a_forked_process_has_processes_of_its_own(scripts: Scripts) -> None:
    script = (
        "import asyncio, os, warnings\nfrom tests.process_functions import pid\n"
        "first = asyncio.run(pid())\n"
        "warnings.simplefilter('ignore', DeprecationWarning)  # of a fork beside threads\n"
        "if (child := os.fork()) == 0:\n"
        "    own = asyncio.run(pid())\n"
        "    os._exit(0 if own != first else 1)\n"
        "print(os.waitpid(child, 0)[1], asyncio.run(pid()) == first)"
    )
    assert scripts.output(script, cwd=ROOT) == "0 True\n"


async def test_a_large_argument_reaches_a_process_that_is_slow_to_start(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(children, "LOOK_SECONDS", 0.01)
    monkeypatch.setattr(children, "_pool", children._Pool())
    assert await functions.give(b"x" * 10_000_000) == b"x" * 10_000_000
