from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from taskiq_flow.errors import SerializationError
from taskiq_flow.values.classes import Classes
from taskiq_flow.values.codec import ValueCodec
from tests.commands import Scripts
from tests.values.kinds import Custom, GuardedError, Point  # noqa: F401 - only re-exported

OPEN = Classes.imported()


def nested(levels: int) -> Any:
    tree: Any = 1.5
    for _ in range(levels):
        tree = {"$tf": ["t", [tree]]}
    return tree


HOSTILE: dict[str, Any] = {
    "a function": ["o", "os:system", []],
    "a class of another kind": ["o", "subprocess:Popen", []],
    "an attribute of a class": ["o", "tests.values.kinds:Point.__init__", []],
    "another kind": ["m", "tests.values.kinds:Point", [], [], None, None],
    "an exception that is none": ["x", "tests.values.kinds:Money", [], [["cents", 1]], None, False],
    "an attrs class that is none": [
        "at",
        "tests.values.kinds:Frozen",
        [["when", 1], ["points", 1]],
    ],
    "a named tuple that is none": ["nt", "builtins:tuple", []],
    "a re-exported class": ["o", "tests.values.test_codec_hostile:Point", [["x", 1], ["y", 2]]],
    "a missing field": ["o", "tests.values.kinds:Point", [["x", 1]]],
    "a field too many": ["o", "tests.values.kinds:Point", [["x", 1], ["y", 1], ["__class__", 1]]],
    "a field twice": ["o", "tests.values.kinds:Point", [["x", 1], ["x", 1], ["y", 1]]],
    "a module that is not imported": ["x", "antigravity:Error", [], [], None, False],
    "an exception's method": ["x", "builtins:ValueError", [], [["add_note", 1]], None, False],
    "pickle": ["pk", "gASVAQ=="],
    "an unknown tag": ["zzz", 1],
    "deep tags": nested(5000)["$tf"],
    "a huge exponent": ["de", "1e999999999"],
    "a huge fraction": ["fr", {"$tf": ["i", "0x1" + "0" * 100_000]}, 3],
    "a fraction of text": ["fr", "1e2000000", 1],
    "a fraction by zero": ["fr", 1, 0],
    "no base64": ["b", "!!"],
    "a missing buffer": ["b", 3],
    "a path outside": ["zi", "../../etc/passwd"],
    "a debug pattern": ["re", "a", 128],
    "a bad pattern": ["re", "(" * 5000, 32],
    "an unknown factory": ["dd", "eval", []],
    "an unhashable element": ["s", [[1]]],
    "an array of objects": ["na", "|O", [1], "C", "AAAAAAAAAAA="],
    "an array that lies": ["na", "<f8", [10**12], "C", "AAAAAAAAAAA="],
    "an array with too many bytes": ["na", "<i2", [1], "C", "AAAAAAAAAAA="],
    "an array of negative size": ["na", "<f8", [-1, -1], "C", "AAAAAAAAAAA="],
    "an empty array of huge size": ["na", "<f8", [0, 10**15], "C", ""],
    "an item of huge size": ["na", "|V999999999999", [1], "C", "AA=="],
    "a strange dtype": ["na", "os.system", [1], "C", "AA=="],
    "a table that lies": ["pa", "table", 10**15, "AAAA"],
    "an unknown flag": ["en", "tests.values.kinds:Access", None, 8],
    "a flag of text": ["en", "tests.values.kinds:Access", None, "1"],
    "an enum of an object": ["en", "tests.values.kinds:Colour", "RED", {"$tf": ["e"]}],
    "an argument without a name": [
        "m",
        ["tests.values.kinds:Box", "os.system"],
        [],
        [],
        None,
        None,
    ],
    "a union of nothing": ["m", ["tests.values.kinds:Box", ["|"]], [], [], None, None],
    "no table": ["pa", "table", 1, "AAAA"],
    "no polars table": ["pl", "frame", 1, "AAAA"],
    "no parts": ["dt"],
    "no tag": [],
    "a tag that is a number": [1],
}


@pytest.fixture(autouse=True)
def libraries_are_imported() -> None:
    for name in ("numpy", "pyarrow", "polars"):
        pytest.importorskip(name)


@pytest.mark.parametrize("parts", HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_tag_is_a_clear_error(parts: Any) -> None:
    with pytest.raises(SerializationError):
        ValueCodec().decode({"$tf": 1, "v": {"$tf": parts}}, OPEN)


@pytest.mark.parametrize("tree", [{"$tf": 2, "v": 1}, {"$tf": 1, "v": {"$tf": ["zzz"]}}])
def test_what_is_not_known_was_written_by_a_newer_version(tree: Any) -> None:
    with pytest.raises(SerializationError, match="newer taskiq_flow"):
        ValueCodec().decode(tree, OPEN)


def frame(head: Any, rest: bytes = b"", length: int | None = None) -> bytes:
    text = json.dumps(head).encode()
    start = b"tqflow\0\1" + struct.pack("<Q", len(text) if length is None else length)
    return start + text + rest


@pytest.mark.parametrize(
    "content",
    [
        b"", b"x" * 100, frame({"v": 1, "sizes": []}, length=2**60),
        frame({"v": 1, "sizes": [10**15]}), frame({"v": 1, "sizes": [-1]}),
        frame({"v": 1, "sizes": []}, b"more"), frame({"v": 1}), frame([]),
        frame({"v": 1, "sizes": [2**3000]}), frame({"v": {"$tf": ["b", 0]}, "sizes": []}),
        b"tqflow\0\2" + bytes(8),
    ],
)  # fmt: skip
def test_a_frame_that_lies_is_refused(content: bytes) -> None:
    with pytest.raises(SerializationError):
        ValueCodec().decode_frame(content, OPEN)


def test_a_frame_cut_anywhere_is_refused() -> None:
    content = b"".join(ValueCodec().encode_frame({"a": (b"x" * 100, bytearray(b"y"))}))
    for end in range(len(content)):
        with pytest.raises(SerializationError):
            ValueCodec().decode_frame(content[:end], OPEN)


def test_tags_nested_beyond_the_limit_are_refused_before_the_stack_is_full() -> None:
    with pytest.raises(SerializationError, match="levels deep"):
        ValueCodec().decode({"$tf": 1, "v": nested(220)}, OPEN)


def test_no_method_of_a_restored_class_is_called() -> None:
    both = {"$tf": 1, "v": {"$tf": ["en", "tests.values.kinds:Custom", None, 3]}}
    assert ValueCodec().decode(both, OPEN) is Custom.ONE | Custom.TWO
    for unknown in (4, -9):
        with pytest.raises(SerializationError):
            ValueCodec().decode(
                {"$tf": 1, "v": {"$tf": ["en", "tests.values.kinds:Custom", None, unknown]}}, OPEN
            )
    state = ["x", "tests.values.kinds:GuardedError", [], [["state", 1]], None, False]
    error = ValueCodec().decode({"$tf": 1, "v": {"$tf": state}}, OPEN)
    assert type(error) is GuardedError
    assert GuardedError.calls == []


LIMITED = """
import base64, io, json, random, resource, struct, sys, time
import polars as pl, pyarrow as pa
from taskiq_flow.errors import SerializationError
from taskiq_flow.values.classes import Classes
from taskiq_flow.values.codec import ValueCodec
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))
start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

def decoded(*parts):
    try:
        return ValueCodec().decode({"$tf": 1, "v": {"$tf": [*parts]}}, Classes.imported())
    except SerializationError as error:
        return error

def stream(table, **options):
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, table.schema, options=pa.ipc.IpcWriteOptions(**options)) as writer:
        writer.write_table(table)
    return sink.getvalue()

def sent(content):
    return base64.b64encode(content).decode()
"""


Runner = Callable[[str], None]


@pytest.fixture
def within_limits(scripts: Scripts, tmp_path: Path) -> Runner:
    """Runs a script that may use 4 GB of memory and 300 MB of it in fact."""

    def run(script: str) -> None:
        end = (
            "used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - start\n"
            "assert used < 300 * 1024, f'{used / 1024} MB'"
        )
        scripts.output(LIMITED + script + end, cwd=tmp_path)

    return run


@pytest.mark.parametrize("tag", ["pa", "pl"])
def test_a_compressed_table_is_refused_before_it_is_read(tag: str, within_limits: Runner) -> None:
    form = "table" if tag == "pa" else "frame"
    within_limits(f"""
for compression in ("zstd", "lz4"):
    content = stream(pa.table({{"a": [0] * 10**6}}), compression=compression)
    for size in (8 * 10**6, 2 * 10**9, 2**62):
        lying = content.replace(struct.pack("<q", 8 * 10**6), struct.pack("<q", size))
        error = decoded({tag!r}, {form!r}, 10**6, sent(lying))
        assert "compressed" in str(error), error
""")


@pytest.mark.parametrize("tag", ["pa", "pl"])
def test_a_damaged_table_neither_ends_the_process_nor_takes_memory(
    tag: str, within_limits: Runner
) -> None:
    form = "table" if tag == "pa" else "frame"
    within_limits(f"""
content = stream(pa.table({{
    "a": [1, None, 3], "b": ["x", "a text of more than twelve bytes", None], "c": [[1], [], [2, 3]],
    "d": pa.array(["p", "q", "p"]).dictionary_encode(), "e": [True, None, False],
    "f": [{{"x": "a"}}, None, {{"x": "b"}}],
}}))
assert len(decoded({tag!r}, {form!r}, 3, sent(content))) == 3
chance, refused = random.Random(7), 0
for _ in range(3000):
    damaged = bytearray(content)
    for _ in range(chance.choice([1, 1, 2, 4])):
        damaged[chance.randrange(len(damaged))] = chance.choice([0, 1, 127, 255])
    refused += isinstance(decoded({tag!r}, {form!r}, 3, sent(damaged)), SerializationError)
assert refused > 500, refused
""")


def test_a_table_whose_values_are_addresses_is_refused(within_limits: Runner) -> None:
    within_limits("""
field = pa.field("a", pa.binary(16), metadata={
    "ARROW:extension:name": "POLARS_EXTENSION_TYPE", "ARROW:extension:metadata": "1;1",
})
content = stream(pa.table([pa.array([b"x" * 16], pa.binary(16))], schema=pa.schema([field])))
assert "Python objects" in str(decoded("pl", "frame", 1, sent(content)))
""")


def test_a_few_bytes_do_not_stand_for_many(within_limits: Runner) -> None:
    within_limits("""
import pandas as pd, numpy as np
encoded = lambda value: ValueCodec().encode(value)["v"]
tag = lambda *parts: {"$tf": [*parts]}
indexes = lambda count: tag("pi", "range", [0, count, 1], None)
many, most = indexes(10**8), indexes(2**20)
columns = pa.nulls(2**20), pa.RunEndEncodedArray.from_arrays([2**20], [1])
nulls, runs = (encoded(pa.table({"": column}))["$tf"][2:] for column in columns)
series = lambda *column, index=many: tag("ps", [*column], index, None, {}, True)
REFUSED = {
    "made of": [
        *(series("numpy", many), series("period", many, "D"), series("zoned", many, "ns", None)),
        *(series("category", each, many, True) for each in (many, tag("r", 0, 10**8, 1))),
        tag("pi", "multi", [[indexes(9)], [tag("r", 0, 10**8, 1)]], [None]),
        *(series("numpy", tag("na", "<" + kind, [10**8], "C", "")) for kind in ("U0", "V0")),
        *(series("masked", "Int64", tag("pa", "array", *each), index=most)
          for each in (nulls, runs)),
        *(series("text", each, "NA", tag("pa", "array", *nulls), index=most)
          for each in ("python", "pyarrow")),
    ],
    "a range stands for": [
        series("interval", many, many, "right"),
        tag("pi", "multi", [[many], [tag("na", "|i1", [0], "C", "")]], [None]),
    ],
    "without its text": [tag("ns", "bytes_", None, 10**9), tag("ns", "str_", None, [])],
}
for text, trees in REFUSED.items():
    for tree in trees:
        error = decoded("t", [[tree] * 40])
        assert text in str(error), (str(error)[:300], tree)
""")


@pytest.mark.parametrize("tag", ["b", "ba", "su"])
def test_a_buffer_stands_in_one_place(tag: str) -> None:
    leaf = {"$tf": [tag, 0]}
    for tree, is_fine in [(leaf, True), ([leaf, leaf], False)]:
        head = json.dumps({"v": tree, "sizes": [3]}).encode()
        head += b" " * (-(16 + len(head)) % 64)
        content = b"tqflow\0\1" + struct.pack("<Q", len(head)) + head + b"abc"
        if is_fine:
            assert len(ValueCodec().decode_frame(content, OPEN)) == 3
        else:
            with pytest.raises(SerializationError, match="buffer 0 stands in two places"):
                ValueCodec().decode_frame(content, OPEN)


def test_indexes_that_are_ranges_within_others_arrive_as_they_were() -> None:
    pandas = pytest.importorskip("pandas")
    levels = pandas.MultiIndex.from_arrays([[0, 1, 2], [True, False, True]])
    levels = levels.set_levels(pandas.RangeIndex(3), level=0)
    assert type(levels.levels[0]) is pandas.RangeIndex
    codec = ValueCodec()
    pandas.testing.assert_index_equal(codec.decode(codec.encode(levels), OPEN), levels)
    stands = {"$tf": ["pi", "range", [0, 4, 1], None]}  # as earlier versions wrote them
    tree = {"$tf": ["pi", "values", [["interval", stands, stands, "both"], None], None]}
    assert len(codec.decode({"$tf": 1, "v": tree}, OPEN)) == 4


def test_ten_megabytes_of_tags_take_memory_in_proportion_and_seconds(within_limits: Runner) -> None:
    within_limits("""
tags = ['{"$tf":["e"]}'] * 250_000
tree = json.loads("[" + ",".join(['{"$tf":["dq",[],1]}'] * 250_000 + tags) + "]")
start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
begun = time.process_time()
assert len(decoded("t", tree)) == 500_000
assert time.process_time() - begun < 15
""")
