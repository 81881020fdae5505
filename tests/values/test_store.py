"""Large values in a store: written whole, read in pieces, checked, waited for, removed."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import signal
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.exceptions import FSTimeoutError
from fsspec.implementations.local import LocalFileSystem
from taskiq import TaskiqResult

from taskiq_flow import ConfigurationError, FlowMiddleware, ResultUnavailableError
from taskiq_flow.errors import SerializationError
from taskiq_flow.transport import object_store
from taskiq_flow.transport.object_store import PIECE
from taskiq_flow.values import store as value_store
from taskiq_flow.values.classes import Classes
from taskiq_flow.values.codec import ValueCodec
from taskiq_flow.values.results import arrived
from taskiq_flow.values.store import CACHED_BYTES, StoredObject, ValueStore, folder_of
from taskiq_flow.values.wire import Wire, stored_size
from tests.waiting import until

FOLDER = folder_of("a run")
TEXT = bytes(range(256)) * 8_000


def store_at(address: str | Path, *, above: int = 1_000, ttl: float | None = 60.0) -> ValueStore:
    where = address if isinstance(address, str) else f"file://{address}"
    return ValueStore(where, "flow", ValueCodec(), Classes.imported(), above=above, ttl=ttl)


async def put(store: ValueStore, value: Any) -> StoredObject:
    stored = await store.put(FOLDER, value, "a value")
    assert stored is not None
    return stored


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize(
    "value",
    [
        TEXT,
        "ü" * 1_000_000,
        "\ud800" * 100_000,
        list(range(100_000)),
        {"a": (TEXT, {1, 2}), 7: ["x" * 100_000] * 2},
        bytearray(3 * PIECE + 1),
    ],
    ids=["bytes", "text", "surrogates", "numbers", "nested", "pieces"],
)
async def test_a_large_value_is_read_as_it_was_written(tmp_path: Path, value: Any) -> None:
    store = store_at(tmp_path)
    stored = await put(store, value)
    read = await store.get(stored, "it")
    assert (type(read), read) == (type(value), value)
    assert [file.stat().st_size for file in files(tmp_path)] == [stored.size]


async def test_a_value_up_to_the_limit_is_not_stored(tmp_path: Path) -> None:
    store = store_at(tmp_path, above=10_000_000)
    assert await store.put(FOLDER, TEXT, "a value") is None
    assert await store_at(tmp_path, above=0).put(FOLDER, 1, "a value") is None
    assert files(tmp_path) == []


async def test_an_array_is_a_read_only_view_of_what_was_read(tmp_path: Path) -> None:
    numpy = pytest.importorskip("numpy")
    store = store_at(tmp_path)
    array = numpy.arange(1_000_000, dtype="float64")
    stored = await put(store, array)
    tracemalloc.start()
    read = await store.get(stored, "it")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (read == array).all()
    assert peak < array.nbytes + 2 * PIECE
    with pytest.raises(ValueError, match="read-only"):
        read[0] = 1
    with pytest.raises(ValueError, match="WRITEABLE"):
        read.flags.writeable = True


# What is not whole, or not what was written


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def changed(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (truncated, r"it should have \d+ bytes and has \d+; have it computed again"),
        (changed, "its content is not what was written; have it computed again"),
    ],
)
async def test_a_damaged_object_is_refused(
    tmp_path: Path, damage: Callable[[Path], None], says: str
) -> None:
    store = store_at(tmp_path)
    stored = await put(store, TEXT)
    damage(files(tmp_path)[0])
    with pytest.raises(SerializationError, match=says) as caught:
        await store.get(stored, "the value of task 'a'")
    named = f"the value of task 'a', object {stored.name} of store file://{tmp_path}, cannot"
    assert str(caught.value).startswith(named)


async def test_a_frame_that_lies_is_refused(tmp_path: Path) -> None:
    """Whoever writes to the store can write a digest, too, but no value that is not one."""
    store = store_at(tmp_path)
    name = f"{FOLDER}/{1:08x}.{'0' * 32}"
    content = b"tqflow\x00\x01" + (2**60).to_bytes(8, "little") + bytes(100)
    digest = object_store.ObjectStore(f"file://{tmp_path}").write(f"flow/{name}", [content])
    with pytest.raises(SerializationError, match="its head is longer than the frame"):
        await store.get(StoredObject(name, len(content), digest), "it")


async def test_nothing_is_allocated_for_a_size_that_the_object_does_not_have(
    tmp_path: Path,
) -> None:
    store = store_at(tmp_path)
    stored = await put(store, TEXT)
    tracemalloc.start()
    with pytest.raises(SerializationError, match="it should have"):
        await store.get(StoredObject(stored.name, 2**40, stored.digest), "it")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1_000_000


@pytest.mark.parametrize(
    "content",
    [
        ["../../../etc/passwd", 1, "0" * 64],
        [f"{FOLDER}/../{'0' * 8}.{'0' * 32}", 1, "0" * 64],
        [f"/{FOLDER}/{'0' * 8}.{'0' * 32}", 1, "0" * 64],
        [f"{FOLDER}/{'0' * 8}.{'0' * 32}\n", 1, "0" * 64],
        [f"{FOLDER}/.{'0' * 8}.{'0' * 32}", 1, "0" * 64],
        [f"{FOLDER}/{'0' * 8}.{'0' * 32}", -1, "0" * 64],
        [f"{FOLDER}/{'0' * 8}.{'0' * 32}", True, "0" * 64],
        [f"{FOLDER}/{'0' * 8}.{'0' * 32}", 2**80, "0" * 64],
        [f"{FOLDER}/{'0' * 8}.{'0' * 32}", 1, "zz"],
        {"name": "x"},
        None,
    ],
)
def test_a_message_cannot_name_anything_but_an_object_of_the_store(content: Any) -> None:
    with pytest.raises(SerializationError, match="refers to an object of the store is damaged"):
        StoredObject.of(content)


def test_what_refers_to_an_object_survives_a_message() -> None:
    stored = StoredObject(f"{FOLDER}/{'0' * 8}.{'0' * 32}", 7, "a" * 64)
    assert StoredObject.of(json.loads(json.dumps(stored.content()))) == stored


async def test_a_reference_that_is_not_sealed_with_the_secret_is_refused(tmp_path: Path) -> None:
    store = store_at(tmp_path)
    wire = Wire(ValueCodec(), Classes.imported(), b"secret", store)
    result: TaskiqResult[Any] = TaskiqResult(is_err=False, return_value=TEXT, execution_time=0.0)
    referring = wire.refer_to("a", result, await put(store, TEXT))
    assert (await arrived("a", referring, None, wire)).return_value == TEXT
    other = await put(store, list(range(10_000)))
    for task_id, forged in (("b", referring), ("a", referring.model_copy(deep=True))):
        if task_id == "a":
            forged.return_value["object"] = other.content()
        error = (await arrived(task_id, forged, None, wire)).error
        assert isinstance(error, SerializationError)
        assert "are not sealed with this process's secret" in str(error)


async def test_a_process_without_the_store_says_so(tmp_path: Path) -> None:
    result: TaskiqResult[Any] = TaskiqResult(is_err=False, return_value=TEXT, execution_time=0.0)
    wire = Wire(ValueCodec(), Classes.imported())
    referring = wire.refer_to("a", result, await put(store_at(tmp_path), TEXT))
    assert stored_size(referring) is not None
    error = (await arrived("a", referring, None, wire)).error
    assert isinstance(error, SerializationError)
    assert "this process has none; give the FlowMiddleware of engines and workers" in str(error)


async def test_an_object_that_is_gone_is_named_with_the_remedy(tmp_path: Path) -> None:
    store = store_at(tmp_path)
    stored = await put(store, TEXT)
    await store.remove(FOLDER)
    assert files(tmp_path) == []
    says = rf"object {stored.name} of store file://{tmp_path}.*is not there.*the same store="
    with pytest.raises(ResultUnavailableError, match=says):
        await store.get(stored, "it")
    await store.remove(FOLDER)  # once more does no harm


# Writers that end halfway


def test_what_fails_halfway_leaves_nothing(tmp_path: Path) -> None:
    def parts() -> Any:
        yield TEXT
        raise RuntimeError("halfway")

    with pytest.raises(RuntimeError, match="halfway"):
        object_store.ObjectStore(f"file://{tmp_path}").write(f"flow/{FOLDER}/x", parts())
    assert files(tmp_path) == []


KILLED = """
import os, sys
from taskiq_flow.transport.object_store import ObjectStore
def parts():
    yield b"x" * 10_000_000
    print("halfway", flush=True)
    sys.stdin.read()
ObjectStore(sys.argv[1]).write(sys.argv[2], parts())
"""


async def test_what_a_killed_writer_leaves_is_read_by_nobody_and_removed_by_its_age(
    tmp_path: Path,
) -> None:
    name = f"{FOLDER}/{1:08x}.{'0' * 32}"
    words = [sys.executable, "-c", KILLED, f"file://{tmp_path}", f"flow/{name}"]
    pipe = subprocess.PIPE
    with subprocess.Popen(words, stdin=pipe, stdout=pipe) as writer:  # noqa: S603, ASYNC220
        assert writer.stdout is not None
        assert writer.stdout.readline() == b"halfway\n"
        os.kill(writer.pid, signal.SIGKILL)
    assert [path.name for path in files(tmp_path)] == [f".{name.partition('/')[2]}"]
    store = store_at(tmp_path)
    with pytest.raises(ResultUnavailableError, match="is not there"):
        await store.get(StoredObject(name, 10_000_000, "0" * 64), "it")
    assert await store.remove_old() == 1
    assert files(tmp_path) == []


async def test_only_what_is_older_than_the_limit_and_our_own_is_removed(tmp_path: Path) -> None:
    store = store_at(tmp_path)
    stored = await put(store, TEXT)
    old = tmp_path / "flow" / folder_of("old") / f"{1:08x}.{'0' * 32}"
    others = tmp_path / "flow" / "notes.txt"
    elsewhere = tmp_path / "other" / folder_of("old") / f"{1:08x}.{'0' * 32}"
    for path in (old, others, elsewhere):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x")
    assert await store_at(tmp_path, ttl=None).remove_old() == 0
    assert await store.remove_old() == 1
    assert not old.parent.exists()
    assert files(tmp_path) == sorted([others, elsewhere, tmp_path / "flow" / stored.name])


async def test_nothing_is_removed_where_nothing_was_written(tmp_path: Path) -> None:
    assert await store_at(tmp_path).remove_old() == 0


# A store that is away


async def test_a_store_that_is_away_is_waited_for(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root, hidden = tmp_path / "store", tmp_path / "hidden"
    hidden.mkdir()
    store = store_at(root)

    async def meanwhile(work: asyncio.Task[Any], problem: str) -> None:
        await until(lambda: problem in caplog.text, "it was told")
        assert not work.done()
        hidden.rename(root)

    writing = asyncio.create_task(put(store, TEXT))
    await meanwhile(writing, "values cannot be stored yet")
    stored = await writing
    root.rename(hidden)
    reading = asyncio.create_task(store.get(stored, "it"))
    await meanwhile(reading, "values cannot be read yet")
    assert await reading == TEXT


async def test_a_store_that_stays_away_is_an_error_that_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(value_store, "OUTAGE_TIMEOUT", 0.2)
    store = store_at(tmp_path / "away")
    says = rf"a value, of \d+ bytes, cannot be written to store file://{tmp_path}/away: AwayError"
    with pytest.raises(ResultUnavailableError, match=says):
        await put(store, TEXT)


class Scripted(LocalFileSystem):  # type: ignore[misc]
    """A local file system that counts what is read, and raises what a test says."""

    protocol = "scripted"
    errors: list[BaseException]
    reads: list[str]
    errors, reads = [], []

    def _open(self, path: str, mode: str = "rb", **options: Any) -> Any:
        if self.errors:
            raise self.errors.pop(0)
        if mode == "rb":
            self.reads.append(path)
        return super()._open(path, mode=mode, **options)


fsspec.register_implementation("scripted", Scripted, clobber=True)


@pytest.fixture
def scripted(tmp_path: Path) -> ValueStore:
    Scripted.errors, Scripted.reads = [], []
    return store_at(f"scripted://{tmp_path}")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ESTALE])
async def test_room_and_a_file_system_that_hangs_are_waited_for(
    scripted: ValueStore, number: int
) -> None:
    Scripted.errors = [OSError(number, os.strerror(number))] * 2
    stored = await put(scripted, TEXT)
    Scripted.errors = [TimeoutError()]
    assert await scripted.get(stored, "it") == TEXT


async def test_what_does_not_pass_is_not_waited_for(scripted: ValueStore) -> None:
    Scripted.errors = [PermissionError(errno.EACCES, "no")]
    says = "PermissionError.*check that this process may write there"
    with pytest.raises(ResultUnavailableError, match=says):
        await put(scripted, TEXT)
    stored = await put(scripted, TEXT)
    Scripted.errors = [PermissionError(errno.EACCES, "no")]
    with pytest.raises(ResultUnavailableError, match="check that this process may read it"):
        await scripted.get(stored, "it")


def with_status(status: int) -> OSError:
    error, cause = OSError(errno.EIO, "as s3fs says it"), Exception()
    vars(cause)["response"] = {"ResponseMetadata": {"HTTPStatusCode": status}}
    error.__cause__ = cause
    return error


def test_what_counts_as_an_outage() -> None:
    passing = [ConnectionResetError(), TimeoutError(), FSTimeoutError(), with_status(503)]
    passing += [with_status(429), OSError(errno.ESTALE, "stale")]
    assert all(map(object_store.is_outage, passing))
    lasting = [FileNotFoundError(errno.ENOENT, ""), OSError(errno.ENOSPC, ""), ValueError()]
    lasting += [with_status(400), with_status(403), OSError("unknown")]
    assert not any(map(object_store.is_outage, lasting))


# One read for many


async def test_readers_at_the_same_time_share_one_reading(scripted: ValueStore) -> None:
    stored = await put(scripted, TEXT)
    values = await asyncio.gather(*(scripted.get(stored, "it") for _ in range(20)))
    assert values == [TEXT] * 20
    assert len(Scripted.reads) == 1
    await scripted.get(stored, "it")
    assert len(Scripted.reads) == 2


async def test_a_reader_that_gives_up_does_not_end_the_reading_of_others(
    scripted: ValueStore,
) -> None:
    stored = await put(scripted, TEXT)
    first, second = (asyncio.create_task(scripted.get(stored, "it")) for _ in range(2))
    await asyncio.sleep(0)
    first.cancel()
    assert await second == TEXT
    assert first.cancelled()


async def test_a_worker_keeps_what_it_has_read_within_bounds(scripted: ValueStore) -> None:
    scripted.serve_worker()
    several = [await put(scripted, bytes([n]) * (CACHED_BYTES // 2)) for n in range(3)]
    for stored in several:
        for _ in range(3):
            await scripted.get(stored, "it")
    assert len({*Scripted.reads}) == 3
    reads = len(Scripted.reads)
    await scripted.get(several[2], "it")
    assert len(Scripted.reads) == reads
    await scripted.get(several[0], "it")
    assert len(Scripted.reads) > reads
    assert sum(view.nbytes for view in scripted._cached.values()) <= CACHED_BYTES


# Settings


@pytest.mark.parametrize(
    ("address", "says"),
    [
        ("nowhere://x", "Protocol not known: nowhere.*give an address such as"),
        ("gs://x", "gs://x.*cannot be used.*install the package of its scheme"),
    ],
)
def test_an_address_that_cannot_be_used_is_refused(address: str, says: str) -> None:
    with pytest.raises(ConfigurationError, match=says):
        FlowMiddleware(store=address)


def test_without_fsspec_the_extra_is_named() -> None:
    script = (
        "import sys\nsys.modules['fsspec'] = None\nimport taskiq_flow\n"
        "taskiq_flow.FlowMiddleware()\n"
        "try:\n    taskiq_flow.FlowMiddleware(store='file:///mnt/shared')\n"
        "except taskiq_flow.ConfigurationError as error:\n    print(error)"
    )
    words = [sys.executable, "-c", script]
    done = subprocess.run(words, capture_output=True, text=True, check=True)  # noqa: S603
    assert "pip install 'taskiq-flow[store]'" in done.stdout


def test_other_settings_are_checked(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="store_above is -1; give a number of bytes"):
        FlowMiddleware(store=f"file://{tmp_path}", store_above=-1)
    with pytest.raises(ValueError, match="store_ttl is 0"):
        FlowMiddleware(store=f"file://{tmp_path}", store_ttl=0)
    with pytest.raises(TypeError, match="store_ttl is 'a week'"):
        FlowMiddleware(store=f"file://{tmp_path}", store_ttl="a week")  # type: ignore[arg-type]


async def test_passwords_of_an_address_are_not_shown() -> None:
    store = store_at("file://user:hidden@host/x")
    assert "hidden" not in store.address
