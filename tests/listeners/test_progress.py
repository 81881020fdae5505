"""Progress: what is shown of real runs, on a terminal and elsewhere, and what it may not do."""

from __future__ import annotations

import asyncio
import fcntl
import importlib
import io
import logging
import os
import pty
import re
import struct
import subprocess
import sys
import termios
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from taskiq import InMemoryBroker

from taskiq_flow import (
    DAG,
    ConfigurationError,
    DAGBuilder,
    DAGNode,
    ExecutionEngine,
    MemoryJournal,
    Progress,
    Retry,
    RunCancelledError,
)
from taskiq_flow.listeners.lines import MOST_LINES
from tests.virtual_clock import run_virtually, virtual_loop, virtually

CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


async def run(dag: DAG, progress: Progress, inputs: Any = None, run_id: str = "nightly") -> None:
    engine = ExecutionEngine(InMemoryBroker(), dag, listeners=[progress], on_error="collect")
    await engine.execute(inputs, run_id=run_id)


def sleeping(seconds: float) -> Callable[..., Any]:
    async def sleep(*_: object) -> int:
        await asyncio.sleep(seconds)
        return 1

    return sleep


def mapped(task: Callable[..., Any], name: str = "crop", **options: Any) -> DAG:
    node = DAGNode(task, name=name, inputs={"x": "xs"}, map_over="xs", **options)
    dag = DAG()
    dag.add_node(node)
    return dag


def without_times(text: str) -> list[str]:
    """The lines without the time at which each was written."""
    return [line[10:] for line in text.splitlines()]


# Lines


@virtually
async def test_a_node_has_a_line_when_it_runs_and_when_it_has_ended() -> None:
    file = io.StringIO()
    dag = DAGBuilder().node(sleeping(2), name="load").node(sleeping(0), name="tiny").build()
    await run(dag, Progress(file))
    assert file.getvalue() == (
        "    0 ms  run nightly: 2 nodes\n"
        "    0 ms  load: running\n"
        "    0 ms  tiny: completed in 0 ms\n"
        "   2.0 s  load: completed in 2.0 s\n"
        "   2.0 s  run nightly: completed in 2.0 s; 2 completed\n"
    )


@virtually
async def test_failures_say_why_and_skips_are_shown() -> None:
    async def odd() -> int:
        raise ValueError("7 is odd\nand that is that")

    dag = DAGBuilder().node(odd, retry=Retry(2, wait=0)).node(lambda odd: odd, name="use").build()
    file = io.StringIO()
    await run(dag, Progress(file))
    assert without_times(file.getvalue())[1:] == [
        "odd: failed after 2 attempts: ValueError: 7 is odd",
        "use: skipped",
        "run nightly: completed in 0 ms; 1 failed, 1 skipped",
    ]


@virtually
async def test_a_mapped_node_has_few_lines_and_the_last_state() -> None:
    async def crop(x: int) -> int:
        await asyncio.sleep(0.01)
        if x == 13:
            raise ValueError("13 is odd")
        return x

    file = io.StringIO()
    await run(mapped(crop, max_parallel=2), Progress(file), {"xs": range(1000)})
    lines = without_times(file.getvalue())
    assert len(lines) < 10
    assert lines[1].endswith("/1000, 1 failed, 2 running")
    assert lines[-2] == "crop: failed, 1000/1000, 1 failed; crop[13] (13): ValueError: 13 is odd"


@virtually
async def test_the_first_elements_that_failed_are_named_and_the_others_counted() -> None:
    async def crop(x: int) -> int:
        if x % 2:
            raise ValueError(f"{x} is odd")
        return x

    file = io.StringIO()
    await run(mapped(crop), Progress(file), {"xs": range(20)})
    assert without_times(file.getvalue())[1:-1] == [
        "crop: failed, 20/20, 10 failed; crop[1] (1): ValueError: 1 is odd",
        *(f"crop[{n}] ({n}): ValueError: {n} is odd" for n in (3, 5, 7, 9)),
        "and 5 more elements failed",
    ]


@virtually
async def test_a_message_that_is_cut_says_so() -> None:
    async def crop(x: int) -> int:
        raise ValueError("x" * (200 + x))

    file = io.StringIO()
    await run(mapped(crop), Progress(file), {"xs": range(2)})
    errors = [line.partition("Error: ")[2] for line in without_times(file.getvalue())[1:-1]]
    assert errors == ["x" * 200, "x" * 200 + "…"]


@virtually
async def test_of_many_changes_at_a_time_the_first_have_a_line_and_failures_go_first() -> None:
    async def odd() -> int:
        raise ValueError("odd")

    builder = DAGBuilder()
    for number in range(MOST_LINES + 5):
        builder.node(sleeping(0), name=f"n{number}")
    file = io.StringIO()
    await run(builder.node(odd).build(), Progress(file))
    lines = without_times(file.getvalue())
    assert lines[1] == "odd: failed: ValueError: odd"
    assert lines[-2:] == [
        "and 6 more nodes: 6 completed",
        f"run nightly: completed in 0 ms; {MOST_LINES + 5} completed, 1 failed",
    ]


@virtually
async def test_a_run_that_is_cancelled_says_so() -> None:
    file = io.StringIO()
    dag = DAGBuilder().node(sleeping(99), name="load").build()
    engine = ExecutionEngine(InMemoryBroker(), dag, listeners=[Progress(file)])
    handle = engine.start()
    await asyncio.sleep(1)
    handle.cancel()
    with pytest.raises(RunCancelledError):
        await handle
    assert "load: cancelled\n" in file.getvalue()
    assert ": cancelled in 1.0 s; 1 cancelled" in file.getvalue().splitlines()[-1]


@virtually
async def test_lines_of_runs_at_the_same_time_name_their_run() -> None:
    file = io.StringIO()
    dag = DAGBuilder().node(sleeping(1), name="load").build()
    engine = ExecutionEngine(InMemoryBroker(), dag, listeners=[Progress(file)])
    await asyncio.gather(*(engine.execute(run_id=name) for name in ("a", "b")))
    lines = without_times(file.getvalue())
    assert all(re.match(r"\[[ab]\] ", line) for line in lines)
    assert "[a] load: running" in lines
    assert "[b] load: completed in 1.0 s" in lines


@pytest.mark.parametrize("name", ["two\nlines", "\x1b[31mred", "\u202eturned", "\x07"])
@virtually
async def test_a_name_can_not_move_the_cursor(name: str) -> None:
    file = io.StringIO()
    await run(DAGBuilder().node(sleeping(0), name=name).build(), Progress(file))
    assert all(c.isprintable() or c == "\n" for c in file.getvalue())
    assert len(file.getvalue().splitlines()) == 3


@virtually
async def test_an_output_that_has_ascii_only_gets_names_in_other_letters() -> None:
    file = io.TextIOWrapper(io.BytesIO(), encoding="ascii", errors="strict")
    await run(DAGBuilder().node(sleeping(0), name="größe").build(), Progress(file))
    file.seek(0)
    assert r"gr\xf6\xdfe: completed" in file.read()


@virtually
async def test_a_closed_output_ends_the_display_and_not_the_run(
    caplog: pytest.LogCaptureFixture,
) -> None:
    file = io.StringIO()
    progress = Progress(file)
    file.close()
    for _ in range(2):
        await run(DAGBuilder().node(sleeping(1), name="load").build(), progress)
    assert [r.message for r in caplog.records if r.levelno >= logging.WARNING] == [
        "progress is not shown any more: ValueError: I/O operation on closed file"
    ]


@virtually
async def test_behind_its_block_nothing_is_shown_and_no_timer_is_left() -> None:
    file = io.StringIO()
    dag = DAGBuilder().node(sleeping(5), name="load").build()
    with Progress(file) as progress:
        handle = ExecutionEngine(InMemoryBroker(), dag, listeners=[progress]).start()
        await asyncio.sleep(0.05)
    shown = file.getvalue()
    timers = [t for t in virtual_loop().pending_timers if "_show" in repr(t)]
    await handle
    assert (file.getvalue(), timers) == (shown, [])
    with progress:
        await run(dag, progress)
    assert "run nightly: completed" in file.getvalue()


def test_standard_error_is_written_and_standard_output_is_not(
    capsys: pytest.CaptureFixture[str],
) -> None:
    dag = DAGBuilder().node(sleeping(0), name="load").build()
    ExecutionEngine(InMemoryBroker(), dag, listeners=[Progress()]).execute_sync()
    out, err = capsys.readouterr()
    assert out == ""
    assert "load: completed" in err


def test_without_a_standard_error_nothing_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", None)
    dag = DAGBuilder().node(sleeping(0), name="load").build()
    ExecutionEngine(InMemoryBroker(), dag, listeners=[Progress()]).execute_sync()


def test_runs_in_several_threads_are_shown_by_one(capsys: pytest.CaptureFixture[str]) -> None:
    dag = DAGBuilder().node(sleeping(0), name="load").build()
    progress = Progress()
    engines = [ExecutionEngine(InMemoryBroker(), dag, listeners=[progress]) for _ in range(4)]
    threads = [threading.Thread(target=engine.execute_sync) for engine in engines]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert capsys.readouterr().err.count("completed in") == 8


def test_rich_is_imported_for_a_terminal_only() -> None:
    script = (
        "import sys\nfrom taskiq_flow import Progress\nProgress()\nassert 'rich' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script], check=True, stderr=subprocess.PIPE)  # noqa: S603


# A terminal


class Pty:
    """A terminal of which everything is read that is written to it."""

    def __init__(self) -> None:
        self._master, slave = pty.openpty()
        self.file = os.fdopen(slave, "w", encoding="utf-8")
        self._parts: list[bytes] = []
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def _read(self) -> None:
        while True:
            try:
                part = os.read(self._master, 65536)
            except OSError:  # so Linux tells that the other end is closed
                return
            self._parts.append(part)

    def close(self) -> str:
        """All that was written."""
        self.file.close()
        self._thread.join()
        os.close(self._master)
        self._master = -1
        return b"".join(self._parts).decode()


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[Pty]:
    for name in ("NO_COLOR", "FORCE_COLOR", "CI", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"TERM": "xterm", "COLUMNS": "80", "LINES": "24"}.items():
        monkeypatch.setenv(name, value)
    found = Pty()
    yield found
    if found._master >= 0:
        found.close()


def pictures(written: str) -> list[list[str]]:
    """What was shown, time after time, without colours."""
    parts = re.split(r"(?:\r|\x1b\[1A|\x1b\[2K)+(?=[^\n\r\x1b]|\x1b\[[0-9;]*m)", written)
    return [CONTROL.sub("", part).replace("\r", "").rstrip().split("\n") for part in parts]


def pipeline() -> DAG:
    async def crop(x: int) -> int:
        await asyncio.sleep(1)
        return x

    dag = mapped(crop, max_parallel=10)
    dag.add_node(DAGNode(sleeping(9), name="slow", expected_seconds=9))
    dag.add_node(DAGNode(sleeping(1), name="total", inputs=["crop", "slow"]))
    return dag


@virtually
async def shown_pipeline(file: Any, run_id: str = "nightly") -> None:
    await run(pipeline(), Progress(file), {"xs": range(40)}, run_id)


def test_a_terminal_shows_a_bar_and_what_runs(terminal: Pty) -> None:
    shown_pipeline(terminal.file)
    written = terminal.close()
    half = next(p for p in pictures(written) if any("20/40" in line for line in p))
    assert re.fullmatch(r"● nightly  ━+  0/3  [23]\.\d s  \d s left", half[0]), half
    assert re.fullmatch(r"  ● crop  ━+  20/40  10 running", half[1])
    assert re.fullmatch(r"  ● slow  running  [23]\.\d s", half[2])
    assert (
        CONTROL.sub("", written).splitlines()[-1] == "✓ nightly  completed in 10.0 s; 3 completed"
    )
    assert written.rfind("\x1b[?25h") > written.rfind("\x1b[?25l")  # the cursor is visible again


def test_the_time_left_is_that_of_an_earlier_run_before_a_node_has_ended(terminal: Pty) -> None:
    @virtually
    async def show() -> None:
        journal = MemoryJournal()
        dag = DAGBuilder("naps").node(sleeping(7), name="a").node(sleeping(2), inputs=["a"]).build()
        for listeners in ([], [Progress(terminal.file, journal=journal)]):
            engine = ExecutionEngine(InMemoryBroker(), dag, listeners=listeners, journal=journal)
            await engine.execute()

    show()
    text = " ".join(picture[0] for picture in pictures(terminal.close()))
    shown = re.findall(r"0/2  (\d\.\d) s  (\d) s left", text)
    assert shown
    assert all(abs(9 - float(passed) - int(left)) < 1 for passed, left in shown), shown


def test_on_a_narrow_terminal_the_time_left_comes_before_the_time_that_has_passed(
    terminal: Pty, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise ValueError

    @virtually
    async def show() -> None:
        builder = DAGBuilder().node(fail).node(sleeping(9), name="nap", expected_seconds=9)
        await run(builder.build(), Progress(terminal.file))

    monkeypatch.setenv("COLUMNS", "36")
    show()
    heads = [picture[0] for picture in pictures(terminal.close()) if "1 failed" in picture[0]]
    assert any(re.search(r"1/2  1 failed  (\d|< 1) s left$", head) for head in heads), heads


def test_nodes_that_have_begun_are_shown_before_those_that_have_not(terminal: Pty) -> None:
    async def crop(x: int) -> int:
        await asyncio.sleep(9)
        return x

    @virtually
    async def show() -> None:
        builder = DAGBuilder().node(crop, name="a", inputs={"x": "xs"}, map_over="xs", output="b")
        dag = builder.node(crop, name="again", inputs={"x": "b"}, map_over="b").build()
        await run(dag, Progress(terminal.file), {"xs": [1]})

    show()
    first = next(p for p in pictures(terminal.close()) if len(p) == 3)
    assert [line.split()[1] for line in first[1:]] == ["a", "again"]


def test_an_earlier_run_that_cannot_be_read_is_no_error(
    terminal: Pty, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken(MemoryJournal):
        async def summaries(self, **_: Any) -> Any:
            raise OSError("gone")

    @virtually
    async def show() -> None:
        dag = DAGBuilder("naps").node(sleeping(1), name="a").build()
        shown = Progress(terminal.file, journal=Broken())
        await ExecutionEngine(InMemoryBroker(), dag, listeners=[shown]).execute(run_id="r")

    show()
    assert "✓ r  completed in 1.0 s; 1 completed" in CONTROL.sub("", terminal.close())
    assert "no earlier run is looked up for progress: OSError: gone" in caplog.text


@pytest.mark.parametrize("width", [20, 40, 80])
def test_no_line_of_a_picture_is_wider_than_the_terminal(
    terminal: Pty, monkeypatch: pytest.MonkeyPatch, width: int
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    shown_pipeline(terminal.file)
    for picture in pictures(terminal.close()):
        assert all(len(line) <= width for line in picture), picture
        assert len(picture) <= 4  # none is continued on a line of its own


@pytest.mark.parametrize("width", [34, 40])
def test_on_a_narrow_terminal_the_counts_and_the_time_left_are_seen(
    terminal: Pty, monkeypatch: pytest.MonkeyPatch, width: int
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    shown_pipeline(terminal.file, "the-census-of-2026-11-26")
    heads = [picture[0] for picture in pictures(terminal.close()) if "left" in picture[0]]
    assert heads
    assert all(re.search(r"\d/3  [\d.]+ m?s  (\d+|< 1) s left$", head) for head in heads)


def test_a_terminal_that_is_no_standard_stream_is_as_large_as_it_is(
    terminal: Pty, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("COLUMNS")
    monkeypatch.delenv("LINES")
    fcntl.ioctl(terminal.file, termios.TIOCSWINSZ, struct.pack("HHHH", 6, 30, 0, 0))
    shown_pipeline(terminal.file)
    shown = pictures(terminal.close())
    assert max(len(line) for picture in shown for line in picture[:-1]) == 30
    assert max(map(len, shown)) <= 6


def test_no_color_is_heeded(terminal: Pty, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    shown_pipeline(terminal.file)
    assert not re.search(r"\x1b\[[0-9;]*(3[0-7]|9[0-7])m", terminal.close())


def test_colours_are_used_otherwise(terminal: Pty) -> None:
    shown_pipeline(terminal.file)
    assert "\x1b[32m" in terminal.close()


def test_a_dumb_terminal_gets_lines(terminal: Pty, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    shown_pipeline(terminal.file)
    written = terminal.close()
    assert "\x1b" not in written
    assert "slow: completed in 9.0 s" in written


def test_more_nodes_than_fit_are_counted(terminal: Pty) -> None:
    builder = DAGBuilder()
    for number in range(100):
        builder.node(sleeping(1), name=f"n{number}")

    @virtually
    async def show() -> None:
        await run(builder.build(), Progress(terminal.file))

    show()
    written = terminal.close()
    assert "  … and 92 running" in CONTROL.sub("", written)
    assert max(map(len, pictures(written))) < 24


def test_markup_in_names_and_errors_is_text(terminal: Pty) -> None:
    async def odd() -> int:
        raise ValueError("[bold]no[/bold] \x1b[31m")

    @virtually
    async def show() -> None:
        await run(DAGBuilder().node(odd, name="[red]x[/red]").build(), Progress(terminal.file))

    show()
    shown = CONTROL.sub("", terminal.close())
    assert r"✗ [red]x[/red]  ValueError: [bold]no[/bold] \x1b[31m" in shown


def test_a_block_that_is_left_within_a_run_frees_the_terminal(terminal: Pty) -> None:
    @virtually
    async def show() -> None:
        dag = DAGBuilder().node(sleeping(5), name="load").build()
        with Progress(terminal.file) as progress:
            handle = ExecutionEngine(InMemoryBroker(), dag, listeners=[progress]).start()
            await asyncio.sleep(1)
        await handle

    show()
    written = terminal.close()
    assert written.rfind("\x1b[?25h") > written.rfind("\x1b[?25l") >= 0


def test_a_terminal_without_rich_is_a_configuration_error(
    terminal: Pty, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "rich"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "rich", None)
    monkeypatch.delitem(sys.modules, "taskiq_flow.listeners.terminal", raising=False)
    with pytest.raises(ConfigurationError, match=r"needs rich.*pip install 'taskiq-flow\[prog"):
        Progress(terminal.file)
    monkeypatch.undo()
    importlib.invalidate_caches()


def test_prints_to_a_standard_output_that_is_no_terminal_stay_there(
    terminal: Pty, capsys: pytest.CaptureFixture[str]
) -> None:
    async def talk(slow: int) -> int:
        sys.stdout.write("a result\n")
        return slow

    @virtually
    async def show() -> None:
        dag = DAGBuilder().node(sleeping(1), name="slow").node(talk).node(sleeping(2), name="last")
        await run(dag.build(), Progress(terminal.file))

    show()
    assert capsys.readouterr().out == "a result\n"
    assert "a result" not in terminal.close()


def test_a_process_that_ends_within_a_run_leaves_the_cursor_visible(terminal: Pty) -> None:
    script = (
        "import asyncio\n"
        "from taskiq import InMemoryBroker\n"
        "from taskiq_flow import DAGBuilder, ExecutionEngine, Progress\n"
        "async def hang() -> None:\n"
        "    await asyncio.sleep(60)\n"
        "async def main() -> None:\n"
        "    dag = DAGBuilder().node(hang).build()\n"
        "    engine = ExecutionEngine(InMemoryBroker(), dag, listeners=[Progress()])\n"
        "    held.append(engine.start())\n"
        "    await asyncio.sleep(0.5)\n"
        "held, loop = [], asyncio.new_event_loop()\n"
        "loop.run_until_complete(main())\n"
        "import sys; sys.exit()\n"
    )
    command = [sys.executable, "-c", script]
    subprocess.run(command, stderr=terminal.file, check=True, timeout=20)  # noqa: S603
    written = terminal.close()
    assert "● hang" in CONTROL.sub("", written)
    assert written.rfind("\x1b[?25h") > written.rfind("\x1b[?25l") >= 0


def test_of_many_runs_the_first_are_shown_and_the_others_counted(terminal: Pty) -> None:
    @virtually
    async def show() -> None:
        dag = DAGBuilder().node(sleeping(1), name="load").build()
        engine = ExecutionEngine(InMemoryBroker(), dag, listeners=[Progress(terminal.file)])
        await asyncio.gather(*(engine.execute(run_id=f"run{number}") for number in range(9)))

    show()
    written = terminal.close()
    assert "and 5 more runs" in CONTROL.sub("", written)
    assert max(map(len, pictures(written))) < 24
    assert CONTROL.sub("", written).count("✓ run") == 9


def test_the_last_lines_on_a_terminal_name_the_first_elements_that_failed(terminal: Pty) -> None:
    async def crop(x: int) -> int:
        if x % 2:
            raise ValueError(f"{x} is odd")
        return x

    async def main() -> None:
        await run(mapped(crop), Progress(terminal.file), {"xs": range(20)})

    run_virtually(main())
    lines = [line.rstrip() for line in CONTROL.sub("", terminal.close()).splitlines()]
    at = next(n for n, line in enumerate(lines) if "crop[1] (1): ValueError" in line)
    assert lines[at] == "  ✗ crop  20/20, 10 failed; crop[1] (1): ValueError: 1 is odd"
    assert [line for line in lines[at + 1 :] if line] == [
        *(f"    crop[{n}] ({n}): ValueError: {n} is odd" for n in (3, 5, 7, 9)),
        "    and 5 more elements failed",
    ]
