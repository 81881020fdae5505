from __future__ import annotations

import json
import struct
from typing import Any

import pytest

from taskiq_flow.errors import SerializationError
from taskiq_flow.values.classes import Classes
from taskiq_flow.values.codec import ValueCodec
from tests.values.kinds import Point  # noqa: F401 - a class that this module only re-exports

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
