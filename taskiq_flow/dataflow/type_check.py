"""Compares what nodes return with what the nodes after them take, by their annotations.

An edge is a mismatch only if no value of the producer's annotation fits the consumer's, and
pydantic's lax mode converts none of them. What these rules do not know is let pass. An empty
collection does not count as a value: ``list[str]`` does not fit ``list[date | None]`` because of
``[]``.
"""

from __future__ import annotations

import dataclasses
import inspect
import types
import typing
from collections import deque
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Awaitable,
    Callable,
    Collection,
    Container,
    Coroutine,
    Generator,
    Iterable,
    Iterator,
    Mapping,
    MutableMapping,
    MutableSequence,
    MutableSet,
    Reversible,
    Sequence,
    Sized,
)
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from fractions import Fraction
from inspect import Parameter
from pathlib import PurePath
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin
from uuid import UUID

from pydantic import BaseModel, RootModel

from taskiq_flow.dataflow.binding import (
    Binding,
    is_generator_function,
    original_function,
    task_info,
)
from taskiq_flow.dataflow.dag import Plan
from taskiq_flow.dataflow.node import DAGNode
from taskiq_flow.dataflow.options import NO_FALLBACK
from taskiq_flow.errors import TypeMismatchError, TypeMismatchWarning, warn

TypeCheck = Literal["warn", "error", "off"]

_MOST_SHOWN = 5
_REMEDY = "No such value fits or can be converted: correct one of the annotations"

NUMBERS = (bool, int, float, Decimal, Fraction)

# What pydantic's lax mode converts into a class, besides that class.
_CONVERTED: dict[type, tuple[type, ...]] = {
    type(None): (),
    bool: (*NUMBERS, str, bytes),
    int: (*NUMBERS, str, bytes),
    float: (*NUMBERS, str, bytes),
    complex: (*NUMBERS, str),
    str: (bytes, bytearray),
    bytes: (str, bytearray),
    Decimal: (*NUMBERS, str),
    Fraction: (*NUMBERS, str),
    date: (*NUMBERS, str, bytes),
    datetime: (*NUMBERS, str, bytes, date),
    time: (*NUMBERS, str, bytes),
    timedelta: (*NUMBERS, str, bytes),
    UUID: (str, bytes),
}

_TEXT_IN_JSON = (date, time, timedelta, UUID, PurePath, Decimal)
"""Without ``FlowMiddleware`` these arrive as text, which pydantic parses."""

_NO_SUBCLASS = (type(None), bool, *_CONVERTED, bytearray, range)

_COLLECTIONS = (list, tuple, set, frozenset, deque, AbstractSet, MutableSet, MutableSequence)
"""pydantic converts any iterable into these, except for text and mappings."""

_ABSTRACT = (
    Sequence,
    Collection,
    Container,
    Iterable,
    Iterator,
    Reversible,
    Sized,
    Mapping,
    MutableMapping,
    *_COLLECTIONS[5:],
)
_TEXT = (str, bytes, bytearray)
_STREAMS = (Generator, Iterator, Iterable, AsyncGenerator, AsyncIterator, AsyncIterable)
_DEEPEST = 20


@dataclass(frozen=True, slots=True)
class Mismatch:
    """An edge whose consumer can be given no value of what the producer returns."""

    producer: str
    key: str
    produced: Any
    consumer: str
    parameter: str
    wanted: Any

    def __str__(self) -> str:
        return (
            f"node {self.producer!r} gives {self.key!r} as {_shown(self.produced)}, and node "
            f"{self.consumer!r} takes it as its parameter {self.parameter!r}: "
            f"{_shown(self.wanted)}"
        )


def check_types(plan: Plan, mode: TypeCheck) -> None:
    """Warn of a graph's mismatches with ``TypeMismatchWarning``, or raise ``TypeMismatchError``."""
    found = [] if mode == "off" else mismatches(plan)
    if not found:
        return
    more = f"; and {len(found) - _MOST_SHOWN} more" if len(found) > _MOST_SHOWN else ""
    message = (
        f"{'; '.join(map(str, found[:_MOST_SHOWN]))}{more}. {_REMEDY}, or add a node that converts "
        'the value, or give the engine type_check="off"'
    )
    if mode == "warn":
        warn(message, TypeMismatchWarning)
        return
    first = found[0]
    raise TypeMismatchError(
        message,
        producer=first.producer,
        key=first.key,
        consumer=first.consumer,
        parameter=first.parameter,
    )


def check_reduction(mapped: DAGNode, reduction: DAGNode, key: str) -> None:
    """Warn if the list of a map's results is a mismatch to what its reduction takes as ``key``."""
    returned = returned_type(mapped)
    produced = list[returned]  # type: ignore[valid-type]
    for taken, parameter in _Known().taken(reduction):
        if taken == key and not may_fit(produced, parameter.annotation):
            names = mapped.task_name, reduction.task_name
            edge = Mismatch(names[0], key, produced, names[1], parameter.name, parameter.annotation)
            warn(f"{edge}. {_REMEDY}", TypeMismatchWarning)


def mismatches(plan: Plan) -> list[Mismatch]:
    """The mismatches of a graph, one for each consumer and key, in the order of the nodes."""
    found: list[Mismatch] = []
    known = _Known()
    levels = {} if plan.elements is None else plan.elements.levels
    generators = () if plan.elements is None else plan.elements.generators
    for node in plan.order:
        fallback = node.fallback_node
        for consumer in (node,) if fallback is None else (node, fallback):
            for key, parameter in known.taken(consumer):
                producer = plan.producers.get(key)
                if producer is None:
                    continue
                for given in known.given(producer, key):
                    is_joined = producer.flatten or producer in generators
                    returned = _element(given) if is_joined else given
                    produced = _as_taken(returned, key, producer, node, levels.get(key, 0))
                    if known.may_fit(produced, parameter.annotation):
                        continue
                    names = producer.task_name, node.task_name
                    found.append(
                        Mismatch(
                            names[0], key, produced, names[1], parameter.name, parameter.annotation
                        )
                    )
    return found


def annotations_of_inputs(plan: Plan) -> dict[str, Any]:
    """By external input key, the annotation of the parameter that takes it; ``Any`` without one.

    A key that is mapped over has the list of what the task takes.
    """
    found: dict[str, Any] = {}
    known = _Known()
    for node in plan.order:
        for key, parameter in known.taken(node):
            if key in plan.producers:
                continue
            annotation = parameter.annotation
            if annotation is Parameter.empty:
                annotation = Any
            for _ in range(node.map_over.get(key, 0)):
                annotation = list[annotation]  # type: ignore[valid-type]
            if found.get(key, Any) is Any:
                found[key] = annotation
    return found


def _as_taken(given: Any, key: str, producer: DAGNode, consumer: DAGNode, levels: int) -> Any:
    """What a consumer takes of what a producer's task returns: it, an element, or lists of it.

    ``levels``: how many levels of lists the elements of the producer make.
    """
    if producer.filter:  # it gives what it was given
        given = Any
    for _ in range(levels, consumer.map_over.get(key, 0)):
        given = _element(given)
    for _ in range(consumer.map_over.get(key, 0), levels):
        given = list[given]
    return given


def _element(annotation: Any) -> Any:
    """What is mapped over, of a list. ``Any`` if that cannot be told."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is tuple:
        return arguments[0] if arguments[1:] == (Ellipsis,) else Any
    is_row = isinstance(origin, type) and issubclass(origin, (Sequence, Iterable))
    is_row = is_row and not issubclass(origin, (Mapping, AbstractSet))
    return arguments[0] if is_row and len(arguments) == 1 else Any


class _Known:
    """What has been found out about tasks and annotations, so that it is found out once."""

    def __init__(self) -> None:
        self._verdicts: dict[tuple[int, int], bool] = {}
        self._compared: list[Any] = []  # keeps the annotations whose ids are in ``_verdicts``
        self._parameters: dict[int, dict[str, Parameter]] = {}
        self._returned: dict[int, tuple[Any, ...]] = {}

    def may_fit(self, produced: Any, wanted: Any) -> bool:
        pair = id(produced), id(wanted)
        verdict = self._verdicts.get(pair)
        if verdict is None:
            self._compared += produced, wanted
            verdict = self._verdicts[pair] = may_fit(produced, wanted)
        return verdict

    def taken(self, node: DAGNode) -> Iterable[tuple[str, Parameter]]:
        """The keys that a node's task takes, with the parameter of each."""
        parameters = self._parameters.get(id(node.task))
        if parameters is None:
            parameters = {p.name: p for p in task_info(node.task).parameters[0]}
            self._parameters[id(node.task)] = parameters
        binding = node.binding
        named = binding.keyword + binding.optional_keyword
        try:
            pairs = [(key, parameters[name]) for name, key in named]
        except KeyError:  # some are passed to **kwargs
            rest = next(p for p in parameters.values() if p.kind is Parameter.VAR_KEYWORD)
            pairs = [(key, parameters.get(name, rest)) for name, key in named]
        if binding.positional or binding.optional_positional or binding.var_args:
            pairs += _by_position(binding, list(parameters.values()))
        return pairs

    def given(self, node: DAGNode, key: str) -> tuple[Any, ...]:
        """The annotations of what a node gives under a key: its task's, and its fallback's."""
        returned = self._returned.get(id(node.task))
        if returned is None:
            returned = self._returned[id(node.task)] = (returned_type(node),)
        if node.fallback is not NO_FALLBACK:
            other = node.fallback_node
            returned += (type(node.fallback) if other is None else returned_type(other),)
        outputs = node.outputs
        if len(outputs) == 1:
            return returned
        return tuple(_by_key(each, outputs).get(key, Any) for each in returned)


def may_fit(produced: Any, wanted: Any) -> bool:
    """Whether some value of one annotation fits another, or pydantic converts it.

    Also true whenever that cannot be told.
    """
    try:
        return _may_fit(produced, wanted, 0)
    except Exception:  # classes of the user's may raise anything when they are asked
        return True


def _by_position(
    binding: Binding, parameters: Sequence[Parameter]
) -> Iterable[tuple[str, Parameter]]:
    """The keys of arguments by position, with the parameter of each."""
    by_position: list[str | None] = list(binding.positional)
    for position, _ in binding.fixed:
        by_position.insert(position, None)
    by_position += (key for key, _ in binding.optional_positional)
    by_position += binding.var_args
    kinds = (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)
    single = [p for p in parameters if p.kind in kinds]
    others = next((p for p in parameters if p.kind is Parameter.VAR_POSITIONAL), None)
    for index, key in enumerate(by_position):
        parameter = single[index] if index < len(single) else others
        if key is not None and parameter is not None:
            yield key, parameter


def returned_type(node: DAGNode) -> Any:
    """What a task returns by its annotation. A generator function returns the list of its items."""
    returned = task_info(node.task).signature.return_annotation
    if returned is inspect.Signature.empty:
        return Any
    origin, arguments = get_origin(returned) or returned, get_args(returned)
    if is_generator_function(original_function(node.task)):
        return list[arguments[0]] if origin in _STREAMS and arguments else list  # type: ignore[valid-type]
    if origin in (Awaitable, Coroutine):
        return arguments[-1] if arguments else Any
    return returned


def _by_key(returned: Any, keys: Sequence[str]) -> dict[str, Any]:
    """The type of each output. One that cannot be told is left out."""
    origin, arguments = get_origin(returned), get_args(returned)
    if origin is tuple and Ellipsis not in arguments and len(arguments) == len(keys):
        return dict(zip(keys, arguments, strict=True))
    if origin in (list, tuple) and arguments and (origin is list or arguments[-1] is Ellipsis):
        return dict.fromkeys(keys, arguments[0])
    if origin in (dict, Mapping) and arguments:
        return dict.fromkeys(keys, arguments[1])
    if _is_typed_dict(returned):
        hints = typing.get_type_hints(returned)
        return {key: hints[key] for key in keys if key in hints}
    return {}


# Two annotations


def _may_fit(  # noqa: PLR0911 - one case for each form of an annotation
    produced: Any, wanted: Any, depth: int
) -> bool:
    produced, wanted = _plain(produced), _plain(wanted, is_wanted=True)
    if depth > _DEEPEST or produced is Any or wanted is Any or wanted in (object, Parameter.empty):
        return True
    if (parts := _members(produced)) is not None:
        return any(_may_fit(part, wanted, depth + 1) for part in parts)
    if (parts := _members(wanted)) is not None:
        return any(_may_fit(produced, part, depth + 1) for part in parts)
    if get_origin(wanted) is Literal:
        return _may_be_literal(produced, get_args(wanted))
    if get_origin(produced) is Literal:
        return any(_may_fit(type(value), wanted, depth + 1) for value in get_args(produced))
    start, end = get_origin(produced) or produced, get_origin(wanted) or wanted
    if not (isinstance(start, type) and isinstance(end, type)):
        return True
    return _class_may_fit(start, end) and _items_may_fit(produced, wanted, start, end, depth)


def _plain(  # noqa: C901 - one case for each form of an annotation
    annotation: Any, *, is_wanted: bool = False
) -> Any:
    """An annotation without what says nothing about its values; ``Any`` if it is not known."""
    for _ in range(_DEEPEST):
        if annotation is None:
            return type(None)
        if get_origin(annotation) is Annotated:
            annotation, *extras = get_args(annotation)
            if is_wanted and any(hasattr(e, "__get_pydantic_core_schema__") for e in extras):
                return Any
        elif isinstance(annotation, typing.NewType):
            annotation = annotation.__supertype__
        elif isinstance(annotation, TypeVar):
            if annotation.__constraints__:
                return Union[annotation.__constraints__]  # noqa: UP007 - of any number
            annotation = Any if annotation.__bound__ is None else annotation.__bound__
        elif type(annotation).__name__ == "TypeAliasType":
            annotation = annotation.__value__
        elif _is_typed_dict(annotation):
            return dict[str, Any]
        elif get_origin(annotation) in (typing.Final, typing.Required, typing.NotRequired):
            annotation = get_args(annotation)[0]
        else:
            known = isinstance(annotation, type) or get_origin(annotation) is not None
            return annotation if known else Any
    return Any


def _is_typed_dict(annotation: Any) -> bool:
    # Not ``typing.is_typeddict``: that does not know those of typing_extensions.
    is_class = isinstance(annotation, type) and dict in annotation.__mro__
    return is_class and hasattr(annotation, "__required_keys__")


def _members(annotation: Any) -> tuple[Any, ...] | None:
    """The members of a union; ``None`` for anything else."""
    is_union = get_origin(annotation) in (Union, types.UnionType)
    return get_args(annotation) if is_union else None


def _may_be_literal(produced: Any, values: tuple[Any, ...]) -> bool:
    if any(isinstance(value, Enum) for value in values):
        return True
    if get_origin(produced) is Literal:
        return any(value in values or isinstance(value, Enum) for value in get_args(produced))
    start = get_origin(produced) or produced
    return not isinstance(start, type) or any(_class_may_fit(start, type(v)) for v in values)


def _class_may_fit(  # noqa: C901, PLR0911 - one case for each kind of class
    start: type, end: type
) -> bool:
    """Whether an instance of one class may be one of another, or be converted into it."""
    if _may_be(start, end) or issubclass(start, Enum) or issubclass(end, Enum):
        return True
    if _customised(end):
        return True
    if issubclass(start, _TEXT_IN_JSON) and _class_may_fit(str, end):
        return True
    if _has_fields(end):
        return _is_mapping(start) or (_has_fields(start) and _has_the_fields_of(start, end))
    if issubclass(end, Mapping) or end in (Mapping, MutableMapping):
        # Without FlowMiddleware a model arrives as a dictionary.
        return _is_mapping(start) or _has_fields(start)
    if hasattr(end, "_fields") and issubclass(end, tuple) and _is_mapping(start):
        return True
    if end in _COLLECTIONS or (issubclass(end, tuple) and end is not tuple):
        is_other = issubclass(start, (*_TEXT, Mapping)) or _is_closed(start)
        return start in _ABSTRACT or (not is_other and hasattr(start, "__iter__"))
    if end is Sequence:
        return not issubclass(start, Mapping) and hasattr(start, "__iter__")
    if end in _CONVERTED:
        if end in (bool, int, float, complex) and any(
            name in dir(start) for name in ("__int__", "__index__", "__float__", "__complex__")
        ):
            return start is not complex
        return any(_may_be(start, source) for source in _CONVERTED[end])
    if issubclass(end, PurePath):
        return _may_be(start, str) or hasattr(start, "__fspath__")
    return not _is_judged(end)


def _may_be(start: type, end: type) -> bool:
    """Whether an instance of ``start`` may be an instance of ``end``."""
    if getattr(end, "_is_protocol", False) or getattr(start, "_is_protocol", False):
        known = end in _ABSTRACT or end in _NO_SUBCLASS
        if not (known and (start in _ABSTRACT or start in _NO_SUBCLASS)):
            return True
    if start is object or issubclass(start, end) or issubclass(end, start):
        return True
    if start in (int, float) and end in (float, complex):
        return True
    if start in _ABSTRACT and end in _ABSTRACT:
        return True  # a class of both, as list is a Sequence and Reversible
    if _is_abstract(end) or _is_abstract(start):
        other = start if _is_abstract(end) else end
        return not (other in _NO_SUBCLASS or other in (*_COLLECTIONS, dict))
    return any(issubclass(sub, end) for sub in _subclasses(start))


def _is_mapping(kind: type) -> bool:
    return issubclass(kind, Mapping) or (not _has_fields(kind) and _may_be(kind, Mapping))


def _subclasses(kind: type) -> Iterator[type]:
    """The subclasses of a class that have been defined so far."""
    subclasses: list[type] = type.__subclasses__(kind)
    for sub in subclasses:
        yield sub
        yield from _subclasses(sub)


def _is_abstract(kind: type) -> bool:
    return kind in _ABSTRACT or inspect.isabstract(kind)


def _is_closed(kind: type) -> bool:
    return kind in _NO_SUBCLASS and kind is not range


def _is_judged(kind: type) -> bool:
    """Whether nothing but its own instances becomes an instance of a class."""
    if kind in _ABSTRACT or kind.__module__ == "builtins":
        return True
    is_users = kind.__module__.partition(".")[0] not in ("typing", "collections", "numbers", "os")
    return is_users and type(kind) is type


def _customised(kind: type) -> bool:
    """Whether a class says by itself what pydantic makes an instance from."""
    if issubclass(kind, BaseModel):
        own = kind.__get_pydantic_core_schema__.__func__  # type: ignore[attr-defined]
        if own is not BaseModel.__get_pydantic_core_schema__.__func__:  # type: ignore[attr-defined]
            return True
        if issubclass(kind, RootModel) or kind.model_config.get("from_attributes"):
            return True
    elif hasattr(kind, "__get_pydantic_core_schema__") or hasattr(kind, "__get_validators__"):
        return True
    decorators = getattr(kind, "__pydantic_decorators__", None)
    return bool(decorators and (decorators.model_validators or decorators.root_validators))


def _has_fields(kind: type) -> bool:
    """Whether pydantic makes an instance from a dictionary of fields."""
    is_model = issubclass(kind, BaseModel) and kind is not BaseModel
    return is_model or dataclasses.is_dataclass(kind)


def _has_the_fields_of(start: type, end: type) -> bool:
    """Whether a dictionary of one class's fields has those that another requires."""
    given, wanted = _fields(start), _fields(end)
    return (
        given is None or wanted is None or {n for n, needed in wanted.items() if needed} <= {*given}
    )


def _fields(kind: type) -> dict[str, bool] | None:
    """The fields of a class, and whether each is required; ``None`` if that cannot be told."""
    if issubclass(kind, BaseModel):
        fields = kind.model_fields
        open_ = kind.model_config.get("extra") == "allow" or kind.model_computed_fields
        if open_ or any(
            f.alias or f.validation_alias or f.serialization_alias for f in fields.values()
        ):
            return None
        return {name: field.is_required() for name, field in fields.items()}
    if dataclasses.is_dataclass(kind):
        empty = dataclasses.MISSING
        return {
            f.name: f.init and f.default is empty and f.default_factory is empty
            for f in dataclasses.fields(kind)
        }
    return None


# Items of collections


def _items_may_fit(  # noqa: PLR0911 - one case for each kind of collection
    produced: Any, wanted: Any, start: type, end: type, depth: int
) -> bool:
    """Whether the items of one collection may be those of another."""
    takes = get_args(wanted)
    if not takes or not _is_collection(end):
        return True
    if end is start and issubclass(end, Callable):  # type: ignore[arg-type]
        return True
    if issubclass(end, Mapping):
        gives = get_args(produced) if issubclass(start, Mapping) else ()
        if len(gives) != 2 or len(takes) != 2:  # noqa: PLR2004 - keys and values
            return True
        keys = _may_fit(gives[0], takes[0], depth + 1) or _may_fit(str, takes[0], depth + 1)
        return keys and _may_fit(gives[1], takes[1], depth + 1)
    is_fixed = end is tuple and takes[-1] is not Ellipsis
    gives = get_args(produced)
    if is_fixed and start is tuple and gives and gives[-1] is not Ellipsis:
        if any(_is_unpacked(part) for part in (*gives, *takes)):
            return True
        pairs = zip(gives, takes, strict=False)
        return len(gives) == len(takes) and all(_may_fit(*pair, depth + 1) for pair in pairs)
    wanted_items = takes if is_fixed else takes[:1]
    if any(_is_unpacked(part) for part in wanted_items):
        return True
    return all(
        _may_fit(item, part, depth + 1) for item in _items(start, gives) for part in wanted_items
    )


def _is_collection(kind: type) -> bool:
    return kind in (*_COLLECTIONS, *_ABSTRACT) or kind.__module__ in ("builtins", "collections")


def _items(kind: type, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    """The types of all that iterating over a collection gives; none if they cannot be told."""
    if kind is str:
        return (str,)
    if issubclass(kind, BaseModel) and kind.__iter__ is BaseModel.__iter__:
        return (tuple[str, Any],)
    if not _is_collection(kind) or any(_is_unpacked(part) for part in arguments):
        return ()
    if kind is tuple and Ellipsis not in arguments:
        return arguments
    return arguments[:1]


def _is_unpacked(part: Any) -> bool:
    return get_origin(part) is typing.Unpack or getattr(part, "__unpacked__", False)


def _shown(annotation: Any) -> str:
    return "None" if annotation is None else inspect.formatannotation(annotation)
