"""Checks what a ``DAGNode`` is declared with. Most raise ``TypeError`` or ``ValueError``."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, KeysView, Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Any, Final, cast

from taskiq_flow.dataflow.binding import Inputs
from taskiq_flow.dataflow.options import most_parallel
from taskiq_flow.errors import BindingError, SerializationError
from taskiq_flow.suggestions import did_you_mean
from taskiq_flow.values.inspection import refuse_once_only
from taskiq_flow.values.isolation import isolated

WINDOW: Final = 16
"""How many items a generator may be ahead of those that take them."""


def check_named(
    what: str,
    keys: Iterable[str],
    known: Collection[str],
    name: str,
    hint: Callable[[str, Collection[str]], str] = did_you_mean,
) -> None:
    """Raise ``BindingError`` for a key that ``what`` names and that is unknown. ``name``: whose.

    ``hint``: the end of the message, of the key and the known ones.
    """
    for key in keys:
        if key not in known:
            raise BindingError(
                f"{what} names {key!r}, which is none of "
                f"{', '.join(map(repr, known)) or 'its keys'}{hint(key, known)}",
                task_name=name,
                key=key,
            )


def checked_inputs(name: str, inputs: Inputs) -> dict[str, str] | tuple[str, ...] | None:
    """The declared input keys, as they are now; ``None`` if there are none."""
    if inputs is None:
        return None
    keys: Sequence[Any]
    if isinstance(inputs, Mapping):
        keys = [*inputs, *inputs.values()]
    elif isinstance(inputs, str):
        raise TypeError(f"inputs of node {name!r} is the string {inputs!r}; write [{inputs!r}]")
    else:
        _check_order(name, "inputs", inputs)
        inputs = keys = tuple(inputs)
    _check_strings(name, "inputs", keys)
    return dict(inputs) if isinstance(inputs, Mapping) else tuple(inputs)


def checked_outputs(
    name: str, output: str | None, outputs: Iterable[str] | None
) -> tuple[str, ...] | None:
    """The declared output keys; ``None`` means that the node's name is its key."""
    if isinstance(outputs, str):
        raise TypeError(f"outputs of node {name!r} is the string {outputs!r}; write output=")
    _check_order(name, "outputs", outputs)
    keys = () if outputs is None else tuple(outputs)
    if output is not None:
        if outputs is not None and keys != (output,):
            raise ValueError(
                f"node {name!r} has both output={output!r} and outputs={list(keys)}; keep one"
            )
        keys = (output,)
    elif outputs is not None and not keys:
        raise ValueError(f"outputs of node {name!r} is empty; leave it out to use the node's name")
    _check_strings(name, "outputs", keys)
    if len(set(keys)) != len(keys):
        raise ValueError(f"outputs of node {name!r} repeat a key: {list(keys)}")
    return keys or None


def checked_given(name: str, given: Mapping[str, Any] | None) -> dict[str, Any]:
    """The fixed values, as they are now: what their owner does to them later does not count."""
    if given is not None and not isinstance(given, Mapping):
        raise TypeError(
            f"given of node {name!r} is {given!r}; give a mapping, as in {{'factor': 2}}"
        )
    taken: dict[str, Any] = {}
    for parameter, value in (given or {}).items():
        if not isinstance(parameter, str):
            raise TypeError(f"given of node {name!r} holds {parameter!r}; parameters are strings")
        try:
            taken[parameter] = isolated(value)
        except SerializationError as error:
            raise TypeError(
                f"given= of node {name!r} for parameter {parameter!r}: {error}"
            ) from None
    return taken


def checked_fallback(name: str, fallback: Any) -> Any:
    """The fallback, unless it is a value that can be read only once."""
    try:
        refuse_once_only(fallback)
    except SerializationError as error:
        raise TypeError(f"fallback= of node {name!r}: {error}") from None
    return fallback


def checked_window(name: str, window: Any, *, is_generator: bool) -> int:
    """How many items a generator may be ahead of those that take them."""
    if window is None:
        return WINDOW
    window = most_parallel(f"window of node {name!r}", window)
    if not is_generator:
        raise ValueError(
            f"node {name!r} has window={window}, and its task is no generator function; leave it "
            "out"
        )
    return cast("int", window)


def _check_order(name: str, what: str, keys: Iterable[str] | None) -> None:
    if keys is not None and not isinstance(keys, Iterable):
        raise TypeError(f"{what} of node {name!r} is {keys!r}; give a list of keys")
    if isinstance(keys, AbstractSet) and not isinstance(keys, KeysView):
        listed = sorted(map(repr, keys))
        raise TypeError(
            f"{what} of node {name!r} is a set, which has no order; give a list, as in "
            f"{what}=[{', '.join(listed)}]"
        )


def _check_strings(name: str, what: str, keys: Sequence[Any]) -> None:
    for key in keys:
        if not isinstance(key, str):
            raise TypeError(f"{what} of node {name!r} holds {key!r}; keys are strings")
