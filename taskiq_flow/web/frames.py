"""Events as they go over the wire: lines, many of them in one frame, encoded once."""

from __future__ import annotations

import json
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator
from operator import itemgetter
from typing import Any, Literal

from taskiq_flow.events import WIRE_VERSION, ElementsKnown, Event, Gap, RunStarted
from taskiq_flow.previews import printable
from taskiq_flow.views.node_view import depth_of, name_of_map
from taskiq_flow.views.run_view import RunView
from taskiq_flow.web.shown import Shown

Form = Literal["lines", "sse"]
"""Lines of JSON, or server-sent events."""

Line = tuple[int, str]
"""The number of an event, and its JSON."""

ALL = "*"
"""What a WebSocket takes in place of a run's id: the list of runs, or all pipelines."""

MOST_IN_FRAME, MOST_CHARACTERS = 1_000, 128 * 1024
"""Events and characters from which on a frame is full. A client that is stuck costs two frames."""

_json = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode


def encoded(content: Any) -> str:
    """JSON in one line, as UTF-8 can hold it."""
    return _json(content)


class Frame:
    """Events that are sent together. ``last``: the number of the last one."""

    __slots__ = ("_bytes", "_lines", "last")

    def __init__(self, lines: list[Line]) -> None:
        self._lines = lines
        self.last = lines[-1][0]
        self._bytes: dict[Form, bytes] = {}

    def __len__(self) -> int:
        return len(self._lines)

    def after(self, seq: int) -> Frame:
        """The frame without the events up to ``seq``: itself where there are none of these."""
        if self._lines[0][0] > seq:
            return self
        return Frame(self._lines[bisect_right(self._lines, seq, key=itemgetter(0)) :])

    def encoded(self, form: Form) -> bytes:
        """The frame's bytes."""
        if (found := self._bytes.get(form)) is None:
            found = self._bytes[form] = "".join(self._parts(form)).encode()
        return found

    def _parts(self, form: Form) -> Iterator[str]:
        for seq, line in self._lines:
            yield f"{line}\n" if form == "lines" else f"id: {seq}\ndata: {line}\n\n"


class KnownElements:
    """How many elements of mapped nodes are known. ``view``: of a run that has begun already.

    In lists within lists each list is an event of its own. Sums of them, which never become less,
    tell the same, however many events are left out, and whichever event a client goes on after.
    """

    def __init__(self, view: RunView | None = None) -> None:
        nodes = {} if view is None else view.nodes
        of_nodes = {name: node.elements for name, node in nodes.items() if node.elements}
        self._levels = {name: elements.levels for name, elements in of_nodes.items()}
        self._known = Counter({name: elements.known for name, elements in of_nodes.items()})
        self._seq = 0 if view is None else view.seq

    def begin(self, event: RunStarted) -> None:
        """An engine begins, or goes on, and tells all of them once more."""
        if event.seq > self._seq:
            self._levels, self._known = dict(event.mapped), Counter()

    def content(self, event: ElementsKnown) -> dict[str, Any]:
        """The event for the whole mapped node, with all of its elements so far."""
        content = event.to_dict()
        name, depth = event.task_name, 0
        if name not in self._levels:
            name, depth = name_of_map(name), depth_of(name)
        levels = self._levels.get(name, 1)
        if levels <= 1:
            return content
        if event.seq > self._seq and depth == levels - 1:
            self._known[name] += event.count
        return {**content, "node": printable(name), "known": self._known[name]}


class FrameWriter:
    """Encodes the events of one run that come after event ``last``, and tells where some miss.

    A frame has one event of the elements of each mapped node: the last one.
    """

    def __init__(self, run_id: str, shown: Shown, last: int, known: KnownElements) -> None:
        self.last = last
        self._run_id = run_id
        self._shown = shown
        self._known = known
        self._lines: list[Line] = []
        self._elements: dict[str, dict[str, Any]] = {}
        self._characters = 0

    @property
    def is_full(self) -> bool:
        """Whether a frame is full."""
        return len(self._lines) >= MOST_IN_FRAME or self._characters >= MOST_CHARACTERS

    def add(self, event: Event) -> None:
        """Add the next event; before it, the gap if there is one."""
        if event.seq > self.last + 1 and not isinstance(event, Gap):
            gap = Gap(self._run_id, event.at, event.seq - 1 - self.last, event.seq - 1)
            self._lines.append((gap.seq, encoded(gap.to_dict())))
        self.last = event.seq
        if isinstance(event, ElementsKnown):
            content = self._known.content(event)
            self._elements[content["node"]] = content
            return
        if isinstance(event, RunStarted):
            self._known.begin(event)
        line = encoded(self._shown.event(event.to_dict()))
        self._lines.append((event.seq, line))
        self._characters += len(line)

    def take(self) -> Frame | None:
        """A frame of what was added since."""
        lines, self._lines, self._characters = self._lines, [], 0
        if self._elements:
            lines += [(each["seq"], encoded(each)) for each in self._elements.values()]
            lines.sort(key=itemgetter(0))
            self._elements = {}
        return Frame(lines) if lines else None


def reset(run_id: str) -> Frame:
    """Tells a client to forget what it has of a run: all of its events follow."""
    content = {"v": WIRE_VERSION, "run": printable(run_id), "seq": 0, "type": "reset"}
    return Frame([(0, encoded(content))])


def requested(run_id: str, after: int, request: str) -> Frame:
    """Tells a client that has the events up to ``after`` what the run's engine was asked for."""
    content = {"v": WIRE_VERSION, "run": printable(run_id), "seq": after, "type": "run.requested"}
    return Frame([(after, encoded({**content, "request": request}))])
