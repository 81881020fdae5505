"""Walks through a value while it is encoded, and through a tree while it is decoded."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Callable, Iterable
from functools import cached_property
from typing import Any

from taskiq_flow.values.classes import Classes, script
from taskiq_flow.values.plain import LEAVES, MAX_DEPTH, MOST_BITS, TAG, floats_are_finite

NEWER = "was written by a newer taskiq_flow; upgrade this process"
_WORD = 64
_LONG = 65_536
"""Characters above which a frame has a text among its buffers: its head is copied several times."""
_NO_INT = frozenset({type(None), bool, str})
_STRICT = frozenset({type(None), bool})
_READ_AS_IS = frozenset({*LEAVES, float})


class RefusedError(Exception):
    """A value or a tree that the codec refuses.

    ``kind``: the value's type; ``Encoder.encode`` sets it where it is not given. ``parts``: the
    path to the value, innermost part first.
    """

    def __init__(self, why: str, *, kind: type | None = None) -> None:
        super().__init__(why)
        self.kind = kind
        self.parts: list[str] = []

    def path(self) -> str:
        """The way to the refused part, as it would be written in Python."""
        return "".join(reversed(self.parts))


Encode = Callable[["Encoder", Any], Iterable[Any]]
"""Gives the parts of a tag."""

Decode = Callable[["Decoder", list[Any]], Any]
Handler = tuple[str, Encode]


class Encoder:
    """Makes a tree of one value.

    ``find``: gives the tag of a type and its function, or raises ``RefusedError``. ``fallback``:
    encodes what is refused, if there is such a way. ``keeps_main``: whether objects of classes of
    the main script are encoded, which other processes do not have. ``leaves_out``: whether an
    exception is encoded without those of its attributes that are refused. ``buffers``: takes the
    binary leaves of a frame; without it they become base64 text.
    """

    def __init__(
        self,
        find: Callable[[Any], Handler],
        *,
        strict: bool = False,
        buffers: list[memoryview] | None = None,
        fallback: Handler | None = None,
        keeps_main: bool = False,
        leaves_out: bool = False,
    ) -> None:
        self.keeps_main = keeps_main
        self._leaves_out = leaves_out
        self._find = find
        self._strict = strict
        self._buffers = buffers
        self._fallback = fallback
        self._active: set[int] = set()

    @cached_property
    def script(self) -> str | None:
        """As ``classes.script``, looked for once in a value of many objects."""
        return script()

    def encode(self, value: Any) -> Any:
        """The tree of a value, which is the value itself where JSON carries it exactly."""
        kind = type(value)
        if kind in LEAVES:
            return self._leaf(kind, value)
        if kind is float and floats_are_finite((value,), {float}):
            return value
        marker = id(value)
        if marker in self._active:
            raise RefusedError("it contains itself; break the cycle", kind=kind)
        if len(self._active) >= MAX_DEPTH:
            raise RefusedError(f"it is nested more than {MAX_DEPTH} levels deep", kind=kind)
        self._active.add(marker)
        try:
            if kind is list:
                return self.items(value)
            if kind is dict:
                return self._mapping(value)
            return self._tagged(value)
        except RefusedError as error:
            error.kind = error.kind or kind
            raise
        finally:
            self._active.discard(marker)

    def items(self, items: Iterable[Any]) -> list[Any]:
        """The trees of several values; the very list if JSON carries all of it exactly."""
        if type(items) is not list:
            items = list(items)
        kinds = set(map(type, items))
        if self._are_fine(items, kinds):
            return items
        trees: list[Any] = []
        try:
            for item in items:
                trees.append(self.encode(item))  # noqa: PERF401 - its length is the path's part
        except RefusedError as error:
            error.parts.append(f"[{len(trees)}]")
            raise
        return trees

    def pairs(self, items: Iterable[tuple[Any, Any]]) -> list[list[Any]]:
        """The trees of keys and values."""
        trees = []
        for key, value in items:
            try:
                trees.append([self.encode(key), self.encode(value)])
            except RefusedError as error:
                error.parts.append(f"[{_shown(key)}]")
                raise
        return trees

    def fields(self, items: Iterable[tuple[str, Any]]) -> list[list[Any]]:
        """The names and the trees of attributes."""
        trees = []
        for name, value in items:
            try:
                trees.append([name, self.encode(value)])
            except RefusedError as error:
                error.parts.append(f".{name}")
                raise
        return trees

    def attributes(self, items: Iterable[tuple[str, Any]]) -> list[list[Any]]:
        """As ``fields``, for an exception."""
        trees = []
        for item in items:
            try:
                trees += self.fields([item])
            except RefusedError:
                if not self._leaves_out:
                    raise
        return trees

    def in_order(self, items: Iterable[Any]) -> list[Any]:
        """The trees of a set's elements, ordered by their text."""
        buffers, self._buffers = self._buffers, None  # the text must not depend on an index
        try:
            found = [(json.dumps(tree := self.encode(item)), item, tree) for item in items]
        finally:
            self._buffers = buffers
        found.sort(key=lambda entry: entry[0])
        if buffers is None:
            return [tree for _, _, tree in found]
        return [self.encode(item) for _, item, _ in found]

    def binary(self, content: Any) -> str | int:
        """A binary leaf: base64 text, or its number among the buffers of a frame."""
        if self._buffers is None:
            return base64.b64encode(content).decode("ascii")
        self._buffers.append(memoryview(content).cast("B"))
        return len(self._buffers) - 1

    def _leaf(self, kind: type, value: Any) -> Any:
        if kind is int:
            bits = value.bit_length()
            if bits > MOST_BITS or (self._strict and not -(2**63) <= value < 2**_WORD):
                return {TAG: ["i", hex(value)]}
        elif kind is str and self._buffers is not None and len(value) > _LONG:
            return {TAG: ["su", self.binary(value.encode("utf-8", "surrogatepass"))]}
        elif kind is str and self._strict and not _is_unicode(value):
            content = value.encode("utf-8", "surrogatepass")
            return {TAG: ["su", base64.b64encode(content).decode("ascii")]}
        return value

    def _are_fine(self, items: list[Any], kinds: set[type]) -> bool:
        if self._strict:
            return kinds <= _STRICT
        if not kinds <= _READ_AS_IS or not floats_are_finite(items, kinds):
            return False
        if kinds <= _NO_INT or int not in kinds:
            return True
        integers = items if len(kinds) == 1 else [item for item in items if type(item) is int]
        return max(max(integers).bit_length(), min(integers).bit_length()) <= MOST_BITS

    def _mapping(self, value: dict[Any, Any]) -> Any:
        if set(map(type, value)) <= {str} and TAG not in value and self._are_keys(value):
            values = list(value.values())
            if self._are_fine(values, set(map(type, values))):
                return value
            return dict(self.pairs(value.items()))
        return {TAG: ["d", self.pairs(value.items())]}

    def _are_keys(self, value: dict[str, Any]) -> bool:
        return not self._strict or all(map(_is_unicode, value))

    def _tagged(self, value: Any) -> Any:
        try:
            return self._by_its_tag(value)
        except RefusedError as error:
            if self._fallback is None or error.parts:
                raise
            tag, function = self._fallback
            return {TAG: [tag, *function(self, value)]}

    def _by_its_tag(self, value: Any) -> Any:
        try:
            tag, function = self._find(value)
            return {TAG: [tag, *function(self, value)]}
        except (RefusedError, RecursionError, MemoryError):
            raise
        except Exception as error:  # of the value's own code
            text = f"{type(error).__name__}: {error}"[:300]
            raise RefusedError(f"its own code raised {text}") from error


class Decoder:
    """Makes the value of one tree. ``classes``: those that may be restored."""

    def __init__(
        self,
        find: Callable[[str], Decode],
        classes: Classes,
        buffers: list[memoryview] | None = None,
    ) -> None:
        self._find = find
        self.classes = classes
        self._buffers: list[memoryview | None] | None = None if buffers is None else [*buffers]
        self._depth = 0

    def decode(self, tree: Any) -> Any:
        """The value of a tree."""
        kind = type(tree)
        if kind in _READ_AS_IS:
            return tree
        if self._depth > 2 * MAX_DEPTH:  # a tag may hold one level of ours in two
            raise RefusedError(f"the data are nested more than {MAX_DEPTH} levels deep")
        self._depth += 1
        try:
            if kind is list:
                return self.items(tree)
            if kind is not dict:
                raise RefusedError(f"the data contain a {kind.__name__}, which is no JSON")
            if TAG not in tree:
                return {key: self.decode(item) for key, item in tree.items()}
            return self._untagged(tree)
        finally:
            self._depth -= 1

    def items(self, trees: Any) -> list[Any]:
        """The values of a list of trees."""
        if type(trees) is not list:
            raise RefusedError("the data have no list where a tag needs one")
        if set(map(type, trees)) <= _READ_AS_IS:
            return trees
        return list(map(self.decode, trees))

    def pairs(self, trees: Any) -> list[tuple[Any, Any]]:
        """The keys and values of a list of pairs, all keys different."""
        found = [(self.decode(key), self.decode(value)) for key, value in trees]
        if len(dict(found)) != len(found):
            raise RefusedError("a dictionary was written with the same key twice")
        return found

    def fields(self, trees: Any) -> dict[str, Any]:
        """The attributes of an object."""
        found = {str(name): self.decode(tree) for name, tree in trees}
        if len(found) != len(trees):
            raise RefusedError("an object was written with the same field twice")
        return found

    def binary(self, leaf: Any) -> memoryview:
        """The content of a binary leaf."""
        if type(leaf) is str:
            try:
                return memoryview(base64.b64decode(leaf, validate=True))
            except binascii.Error as error:
                raise RefusedError("binary data are no base64") from error
        if type(leaf) is int and self._buffers is not None and 0 <= leaf < len(self._buffers):
            content = self._buffers[leaf]
            if content is None:  # else a short tree would have many copies of it made
                raise RefusedError(f"buffer {leaf} stands in two places")
            self._buffers[leaf] = None
            return content
        raise RefusedError(f"binary data are missing: there is no buffer {_shown(leaf)}")

    def _untagged(self, tree: dict[str, Any]) -> Any:
        parts = tree[TAG]
        if len(tree) != 1 or type(parts) is not list or not parts or type(parts[0]) is not str:
            raise RefusedError(f"the form of a tag {NEWER}")
        tag, *rest = parts
        decode = self._find(tag)
        try:
            return decode(self, rest)
        except (RefusedError, KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # polars panics with a BaseException
            if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
                raise
            text = f"{type(error).__name__}: {error}"[:300]
            raise RefusedError(f"the data of tag {tag!r} are damaged: {text}") from error


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _shown(value: object) -> str:
    try:
        text = repr(value)
    except Exception:  # a user's key whose __repr__ raises
        text = f"<{type(value).__name__}>"
    return text if len(text) <= 80 else text[:77] + "..."  # noqa: PLR2004 - a line's width
