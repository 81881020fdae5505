"""Compares what nodes return with what the nodes after them take, by their annotations.

An edge is a mismatch only if no value of the producer's annotation fits the consumer's, as
``values/may_fit.py`` has it.
"""

from __future__ import annotations

import inspect
import typing
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Generator,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from inspect import Parameter
from typing import Any, Literal, get_args, get_origin

from taskiq_flow.dataflow.binding import Binding
from taskiq_flow.dataflow.map_hints import how_to_map, item_of
from taskiq_flow.dataflow.node import DAGNode
from taskiq_flow.dataflow.options import NO_FALLBACK
from taskiq_flow.dataflow.plan import Plan
from taskiq_flow.dataflow.tasks import is_generator_function, original_function, task_info
from taskiq_flow.dataflow.unknown_names import Unknown, unknown_names
from taskiq_flow.errors import TypeMismatchError, TypeMismatchWarning, warn
from taskiq_flow.values.annotations import awaited, is_typed_dict
from taskiq_flow.values.may_fit import may_fit

TypeCheck = Literal["warn", "error", "off"]

_MOST_SHOWN = 5
_REMEDY = "No such value fits or can be converted: correct one of the annotations"

_STREAMS = (Generator, Iterator, Iterable, AsyncGenerator, AsyncIterator, AsyncIterable)


@dataclass(frozen=True, slots=True)
class Mismatch:
    """An edge whose consumer can be given no value of what the producer returns."""

    producer: str
    key: str
    produced: Any
    consumer: str
    parameter: str
    wanted: Any
    remedy: str = ""
    """What to write, if the parameter takes an item of the list that the producer returns."""

    def __str__(self) -> str:
        return (
            f"node {self.producer!r} gives {self.key!r} as {_shown(self.produced)}, and node "
            f"{self.consumer!r} takes it as its parameter {self.parameter!r}: "
            f"{_shown(self.wanted)}"
        )


def check_types(plan: Plan, mode: TypeCheck) -> None:
    """Warn of a graph's mismatches with ``TypeMismatchWarning``, or raise ``TypeMismatchError``.

    Likewise of annotations with a name that is nowhere.
    """
    if mode == "off":
        return
    unknown = _unknown(plan)
    if unknown:
        node, it = unknown[0]
        told = _listed([f"node {name!r} has {each}" for name, each in unknown]).removesuffix("?")
        remedy = 'correct the annotation, import the name, or give the engine type_check="off"'
        message = f"{told}; {remedy}"
        if mode == "warn":
            warn(message, TypeMismatchWarning)
        else:
            raise TypeMismatchError(message, consumer=node, parameter=it.parameter or "")
    found = mismatches(plan)
    if not found:
        return
    message = (
        f"{_listed([*map(str, found)])}. {_REMEDY}, or add a node that converts "
        f'the value{found[0].remedy}, or give the engine type_check="off"'
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


def _listed(texts: Sequence[str]) -> str:
    more = f"; and {len(texts) - _MOST_SHOWN} more" if len(texts) > _MOST_SHOWN else ""
    return "; ".join(texts[:_MOST_SHOWN]) + more


def _unknown(plan: Plan) -> list[tuple[str, Unknown]]:
    """The annotations of tasks with a name that is nowhere, each with the first node of the task.

    Only of those that could not be evaluated is asked why.
    """
    nodes: dict[int, DAGNode] = {}
    for node in plan.order:
        for each in (node, node.fallback_node):
            if each is not None:
                nodes.setdefault(id(each.task), each)
    return [
        (node.task_name, it)
        for node in nodes.values()
        if _has_text(task_info(node.task).signature)
        for it in unknown_names(original_function(node.task))
    ]


def _has_text(signature: inspect.Signature) -> bool:
    """Whether an annotation could not be evaluated, so that it is a text."""
    parameters = signature.parameters.values()
    return any(isinstance(p.annotation, str) for p in parameters) or isinstance(
        signature.return_annotation, str
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
                    wanted, name = parameter.annotation, node.task_name
                    remedy, item = "", item_of(produced)
                    if item is not Parameter.empty and known.may_fit(item, wanted):
                        remedy = f", or have {name!r} take each item: "
                        remedy += how_to_map(node, parameter.name, key)
                    edge = producer.task_name, key, produced, name, parameter.name, wanted
                    found.append(Mismatch(*edge, remedy))
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
    return awaited(returned)


def _by_key(returned: Any, keys: Sequence[str]) -> dict[str, Any]:
    """The type of each output. One that cannot be told is left out."""
    origin, arguments = get_origin(returned), get_args(returned)
    if origin is tuple and Ellipsis not in arguments and len(arguments) == len(keys):
        return dict(zip(keys, arguments, strict=True))
    if origin in (list, tuple) and arguments and (origin is list or arguments[-1] is Ellipsis):
        return dict.fromkeys(keys, arguments[0])
    if origin in (dict, Mapping) and arguments:
        return dict.fromkeys(keys, arguments[1])
    if is_typed_dict(returned):
        hints = typing.get_type_hints(returned)
        return {key: hints[key] for key in keys if key in hints}
    return {}


def _shown(annotation: Any) -> str:
    return "None" if annotation is None else inspect.formatannotation(annotation)
