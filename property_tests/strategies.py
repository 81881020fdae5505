"""What chance may make: graphs, limits, signatures, inputs, sources."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from hypothesis import strategies as st

from property_tests.mapping import ItemSpec, MapSpec, SourceKind
from property_tests.model import Form, GraphSpec, NodeSpec, Returns
from property_tests.signatures import INJECTED, ParameterSpec, SignatureSpec

LIMITS = st.none() | st.integers(1, 4)
"""``max_parallel``."""

DELAYS = st.integers(0, 2)
"""Seconds that a reader takes for each pair."""

LONGEST_CLEANING = 2
"""Seconds that a node may need when it is cancelled; well below what the engine grants."""

_SENDING = (0, 0, 0, 0, 1, 2)
_NEVER = st.just(value=False)


@cache
def subsets(size: int) -> st.SearchStrategy[tuple[int, ...]]:
    """Some of the numbers below ``size``: often none or one, so that graphs are not all dense."""
    if not size:
        return st.just(())
    one = st.integers(0, size - 1).map(lambda number: (number,))
    some = st.integers(0, 2**size - 1).map(
        lambda bits: tuple(number for number in range(size) if bits >> number & 1)
    )
    return st.just(()) | one | one | some


@dataclass(frozen=True)
class _Traits:
    """What a node is like, whatever its place in the graph."""

    given_name: str
    sending: int
    seconds: int
    cleaning: int
    fails: bool
    form: Form = "by position"
    returns: Returns = "number"
    outputs: int = 1
    has_key_of_its_name: bool = False
    takes_outside: bool = False
    may_take_outside: bool = False
    picks: int = 0


def one_of_each(**choices: Sequence[object]) -> st.SearchStrategy[dict[str, Any]]:
    """One of each, in a single draw: it is draws that take time."""

    def chosen(number: int) -> dict[str, Any]:
        parts: dict[str, Any] = {}
        for name, values in choices.items():
            number, place = divmod(number, len(values))
            parts[name] = values[place]
        return parts

    return st.integers(0, math.prod(map(len, choices.values())) - 1).map(chosen)


def _plain(*, failing: bool, cleaning: bool) -> st.SearchStrategy[_Traits]:
    return one_of_each(
        given_name=["node"],
        sending=_SENDING,
        seconds=range(4),
        cleaning=range(LONGEST_CLEANING + 1) if cleaning else [0],
        fails=[False, False, False, True] if failing else [False],
    ).map(lambda parts: _Traits(**parts))


def _varied(*, failing: bool) -> st.SearchStrategy[_Traits]:
    return one_of_each(
        given_name="abc",
        sending=_SENDING,
        seconds=range(3),
        cleaning=[0],
        fails=[False, False, False, False, True] if failing else [False],
        form=["undeclared", "by name", "by position", "spelled out"],
        returns=["number", "list", "tuple", "mapping"],
        outputs=range(1, 4),
        has_key_of_its_name=[False, True],
        takes_outside=[False, True],
        may_take_outside=[False, True],
        picks=range(6),
    ).map(lambda parts: _Traits(**parts))


@st.composite
def graphs(
    draw: st.DrawFn,
    *,
    most_nodes: int = 12,
    failing: bool = False,
    cleaning: bool = False,
    varied: bool = False,
) -> GraphSpec:
    """Acyclic graphs whose nodes are added in any order.

    ``failing``: some nodes fail; ``cleaning``: some need time when they are cancelled; ``varied``:
    all ways to declare names, inputs and outputs, edges without data, inputs from outside.
    """
    kind = _varied(failing=failing) if varied else _plain(failing=failing, cleaning=cleaning)
    size = draw(st.integers(0, most_nodes))
    traits = draw(st.lists(kind, min_size=size, max_size=size))
    places = draw(st.permutations(range(size)))
    names = _names([traits[index].given_name for index in places])
    made: list[NodeSpec] = []
    for index, trait in enumerate(traits):
        before = draw(subsets(index))
        after = draw(subsets(index)) if varied else ()
        made.append(_node(index, names[places.index(index)], trait, made, (before, after)))
    outside = {key: draw(st.integers(0, 9)) for key in ("x", "y")} if varied else {}
    if varied and draw(st.booleans()):
        outside["maybe"] = draw(st.integers(0, 9))
    return GraphSpec(tuple(made[index] for index in places), _taken(made, outside))


def _names(given: Sequence[str]) -> list[str]:
    """The second node of a name gets a number behind it."""
    seen: Counter[str] = Counter()
    names = []
    for name in given:
        seen[name] += 1
        names.append(name if seen[name] == 1 else f"{name}_{seen[name]}")
    return names


def _node(
    index: int,
    name: str,
    trait: _Traits,
    made: Sequence[NodeSpec],
    edges: tuple[Sequence[int], Sequence[int]],
) -> NodeSpec:
    before, after = edges
    keys = [made[other].outputs[trait.picks % len(made[other].outputs)] for other in before]
    optional: list[str] = []
    if trait.form == "undeclared":  # the only form in which inputs are optional
        split = trait.picks % (len(keys) + 1)
        keys, optional = keys[split:], keys[:split]
        if trait.may_take_outside:
            optional.append("maybe")
    if trait.takes_outside:
        keys.append("x" if trait.picks % 2 else "y")
    outputs = tuple(f"{name}_gives_{number}" for number in range(trait.outputs))
    several = trait.outputs > 1
    return NodeSpec(
        index=index,
        name=name,
        given_name=trait.given_name,
        outputs=(name,) if trait.has_key_of_its_name else outputs,
        required=tuple(keys),
        optional=tuple(optional),
        after=tuple(after),
        form=trait.form,
        returns="tuple"
        if several and not trait.has_key_of_its_name and trait.returns == "number"
        else trait.returns,
        sending=trait.sending,
        seconds=trait.seconds,
        cleaning=trait.cleaning,
        fails=trait.fails,
    )


def _taken(nodes: Sequence[NodeSpec], outside: dict[str, int]) -> dict[str, int]:
    """The inputs that some node takes: others would be warned about."""
    keys = {key for node in nodes for key in node.keys}
    return {key: value for key, value in outside.items() if key in keys}


Edges = tuple[tuple[int, ...], ...]
"""For each node of a bare graph, in order of insertion, the nodes that it waits for."""


@st.composite
def acyclic_edges(draw: st.DrawFn, *, most_nodes: int = 15) -> Edges:
    """Bare acyclic graphs, their nodes inserted in any order."""
    size = draw(st.integers(0, most_nodes))
    places = draw(st.permutations(range(size)))
    edges: list[tuple[int, ...]] = [()] * size
    for index in range(size):
        before = draw(subsets(index))
        edges[places[index]] = tuple(sorted(places[other] for other in before))
    return tuple(edges)


@st.composite
def any_edges(draw: st.DrawFn, *, most_nodes: int = 8) -> Edges:
    """Bare graphs that may have cycles."""
    size = draw(st.integers(0, most_nodes))
    return tuple(draw(subsets(size)) for _ in range(size))


PARAMETERS = "abcdefgh"
_KINDS = ("position", "either", "name")
_NAMES = st.sampled_from([*PARAMETERS[:5], "x", "y", "args", "kwargs", INJECTED])

INPUT_LISTS = st.lists(_NAMES, max_size=6)
INPUT_MAPPINGS = st.dictionaries(_NAMES, st.sampled_from(["a", "b", "x", "y"]), max_size=4)


@st.composite
def signatures(draw: st.DrawFn) -> SignatureSpec:
    """All kinds of parameters, with and without defaults, one of which taskiq may inject."""
    counts = [draw(st.integers(0, most)) for most in (3, 3, 2)]
    kinds = [kind for kind, count in zip(_KINDS, counts, strict=True) for _ in range(count)]
    names = list(PARAMETERS[: len(kinds)])
    by_name_too = [place for place, kind in enumerate(kinds) if kind != "position"]
    injects: bool = draw(st.booleans())
    if by_name_too and injects:
        names[draw(st.sampled_from(by_name_too))] = INJECTED
    first_default = draw(st.integers(0, counts[0] + counts[1]))
    return SignatureSpec(
        tuple(
            ParameterSpec(
                name, kind, draw(st.booleans()) if kind == "name" else place >= first_default
            )
            for place, (name, kind) in enumerate(zip(names, kinds, strict=True))
        ),
        takes_args=draw(st.booleans()),
        takes_kwargs=draw(st.booleans()),
    )


@st.composite
def maps(
    draw: st.DrawFn,
    *,
    failing: bool = False,
    kinds: Sequence[SourceKind] = ("list", "generator", "async generator"),
) -> MapSpec:
    """Items with run times, from a source of any kind."""
    fails = st.sampled_from([False] * 5 + [True]) if failing else _NEVER
    items = st.lists(st.builds(ItemSpec, st.integers(0, 3), fails), max_size=10)
    return MapSpec(
        items=tuple(draw(items)),
        kind=draw(st.sampled_from(kinds)),
        reading=draw(st.integers(0, 2)),
        limit=draw(LIMITS),
    )
