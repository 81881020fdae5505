"""One task with the keys that it takes and gives."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, NoReturn

from taskiq_flow.dataflow.binding import Binding, Inputs, bind
from taskiq_flow.dataflow.condition import Condition
from taskiq_flow.dataflow.node_arguments import (
    checked_fallback,
    checked_given,
    checked_inputs,
    checked_outputs,
    checked_window,
)
from taskiq_flow.dataflow.options import (
    NO_FALLBACK,
    Cache,
    MapOver,
    Retry,
    Seconds,
    as_cache,
    as_retry,
    check_join,
    in_seconds,
    mapped_keys,
    most_parallel,
    time_limit,
)
from taskiq_flow.dataflow.ready_set import Join
from taskiq_flow.dataflow.tasks import (
    Task,
    default_name,
    is_generator_function,
    original_function,
    takes,
    task_info,
)
from taskiq_flow.errors import BindingError, GraphError
from taskiq_flow.processes.in_process import check_importable
from taskiq_flow.suggestions import suggests_keywords
from taskiq_flow.values.handle import ResultHandle, split_outputs
from taskiq_flow.values.isolation import Take

ERROR = "error"
"""The parameter of a fallback that is given the task's exception, unless the node has that key."""


class _Nothing(dict[str, Any]):
    """An empty mapping that stays empty."""

    __slots__ = ()

    def _refuse(self, *_: object, **__: object) -> NoReturn:
        raise TypeError(
            "given and map_over of a node do not change; make another node, with what it is given"
        )

    __setitem__ = update = setdefault = __ior__ = _refuse


_NOTHING = _Nothing()
"""What most nodes have in ``given`` and ``map_over``: they share it, as a graph may have many."""

_BY_KEYS = "inputs=, with the output keys of those nodes, or dag.add_edge(from_task, to_task)"


@suggests_keywords(
    retries="retry=3, or retry=Retry(attempts=3)",
    max_retries="retry=3, or retry=Retry(attempts=3)",
    attempts="retry=3, or retry=Retry(attempts=3)",
    retry_policy="retry=Retry(...)",
    after=_BY_KEYS,
    dependencies=_BY_KEYS,
    depends_on=_BY_KEYS,
    requires=_BY_KEYS,
    upstream=_BY_KEYS,
    condition="when=",
    run_if="when=",
    default="fallback=",
    cached="cache=Cache(ttl=seconds)",
    ttl="cache=Cache(ttl=seconds)",
    task_name="name=",
    trigger_rule="join=",
    map="map_over=",
    foreach="map_over=",
    for_each="map_over=",
    mapspec="map_over=",
    expand="map_over=",
    concurrency="max_parallel=, with map_over=",
)
class DAGNode:
    """A task, the input keys it needs and the output keys it gives.

    ``task``: a taskiq task or a plain callable, sync or async. ``output="x"`` and
    ``outputs=["x"]`` mean the same; several ``outputs`` split a returned tuple or list by
    position, or a mapping by key; with neither, the output key is the node's name.
    Their order matters, so a set is refused; a mapping stands for its keys.
    ``inputs``: input keys, or a mapping parameter → key, or ``None`` for every parameter under
    its own name. ``name``: the node's name, else the task's custom name, else the function's.
    ``task_name`` is the name then; a graph that has it already makes it ``name_2``.
    ``given``: values of parameters that are the same in every run, as they are now; no key
    reaches these.
    ``metadata`` is the user's own. ``expected_seconds``: an estimate of the run time, which
    orders the sending when ``max_parallel`` makes nodes wait.

    ``retry``: a ``Retry``, or a number of attempts. ``timeout``: how long an attempt may run,
    ``queue_timeout``: how long it may wait for a worker; each in seconds or as a ``timedelta``.
    ``None``: as the engine says.
    ``fallback``: a value, or a task called as the node's is, in place of a result when the node has
    failed for good; its parameter ``error`` is given the exception. ``join``: when the node may
    start: ``"all"`` of its inputs are there, ``"any"`` is, ``"none_failed"`` of what it waits for,
    or all of that has ``"ended"``, whichever way; under the latter three, parameters whose inputs
    are not there keep their defaults. The input ``"NAME.failures"`` of an ``"ended"`` node is the
    list of ``Failure`` of that node. ``when``: a function of keys, by its parameters' names, sync
    or async, called when the node may start; with a false answer it is skipped. ``cache``: a
    ``Cache``, or ``True`` for ``Cache()``. ``has_policy``: whether any of these is asked for but
    ``join``.

    ``map_over``: a key, or several keys. The task runs once for each element of their lists, and
    gives the list of what it returned; several keys are taken together, by position. A node that
    maps over the output of a mapped node runs for an element as soon as that one is there. The
    other keys are passed whole. ``{"rows": 2}`` maps over the lists within the list ``rows``, and
    gives such lists; ``Product("xs", "ys")`` runs for each pair. ``max_parallel``: how many of its
    elements run at once. All options above hold for each element by itself.
    A task that is a generator function gives its items while it runs, to nodes that map over its
    output and to readers with ``items=``; ``window``: how many items it may be ahead of them.
    ``flatten``: each element gives a list, and these are joined to one. ``filter``: the task says
    whether the element that it is given, of the key ``filtered``, is part of the list that the
    node gives.

    Raises ``TypeError`` or ``ValueError`` for arguments that no node can have.

    >>> def split(text, at=" "): return text.partition(at)[::2]
    >>> node = DAGNode(split, outputs=["head", "tail"], inputs=["line"], given={"at": "="}, retry=3)
    >>> dag = DAG()
    >>> dag.add_node(node)
    >>> ExecutionEngine(InMemoryBroker(), dag).execute_sync({"line": "tide=high"})
    {'head': 'tide', 'tail': 'high'}

    >>> dag = DAG()
    >>> dag.add_node(DAGNode(str.split, name="words", inputs=["lines"], map_over="lines"))
    >>> dag.add_node(DAGNode(len, name="count", inputs=["words"], map_over="words"))
    >>> ExecutionEngine(InMemoryBroker(), dag).execute_sync({"lines": ["ebb and flow", "tide"]})
    {'words': [['ebb', 'and', 'flow'], ['tide']], 'count': [3, 1]}
    """

    index: Final = None
    """The place of an element. A node of a graph is none."""

    is_computed: bool = False
    """Whether the engine makes its value itself. It has no task that is sent then."""

    looks_into: bool = False
    """Whether the engine looks into its inputs, beyond what its options ask for."""

    __slots__ = (
        "__weakref__",
        "_binding",
        "_fallback_node",
        "_info",
        "_inputs",
        "_metadata",
        "_output_names",
        "_outputs",
        "_placed",
        "cache",
        "condition",
        "expected_seconds",
        "factors",
        "fallback",
        "filter",
        "filtered",
        "flatten",
        "given",
        "gives_items",
        "has_policy",
        "is_generator",
        "join",
        "map_over",
        "max_parallel",
        "queue_timeout",
        "retry",
        "task",
        "task_name",
        "timeout",
        "waits_for",
        "when",
        "window",
    )

    def __init__(
        self,
        task: Task,
        output: str | None = None,
        inputs: Inputs = None,
        *,
        outputs: Iterable[str] | None = None,
        name: str | None = None,
        given: Mapping[str, Any] | None = None,
        metadata: Mapping[str, Any] | None = None,
        retry: Retry | int | None = None,
        timeout: Seconds | None = None,
        queue_timeout: Seconds | None = None,
        fallback: Any = NO_FALLBACK,
        join: Join = "all",
        when: Callable[..., object] | None = None,
        cache: Cache | bool | None = None,
        map_over: MapOver | None = None,
        flatten: bool = False,
        filter: bool = False,  # noqa: A002 - the word that everybody knows
        max_parallel: int | None = None,
        window: int | None = None,
        expected_seconds: Seconds = 1.0,
    ) -> None:
        if not callable(task):
            raise TypeError(f"a node's task is a taskiq task or a callable, not {task!r}")
        check_importable(original_function(task))
        if name is not None and not isinstance(name, str):
            raise TypeError(f"name is {name!r}; give a string")
        self.task = task
        self._info = task_info(task)  # which all nodes of the task share, and only they hold
        self.task_name = name if name is not None else default_name(task)
        self._inputs = checked_inputs(self.task_name, inputs)
        self._outputs = checked_outputs(self.task_name, output, outputs)
        self.given: Mapping[str, Any] = checked_given(self.task_name, given) or _NOTHING
        self._metadata = dict(metadata) if metadata else None
        of_node = f"of node {self.task_name!r}"
        self.expected_seconds = in_seconds(f"expected_seconds {of_node}", expected_seconds)
        if not (math.isfinite(self.expected_seconds) and self.expected_seconds >= 0):
            raise ValueError(
                f"expected_seconds {of_node} is {self.expected_seconds!r}; give a number of "
                "seconds, zero or more"
            )
        check_join(self.task_name, join)
        self.retry = as_retry(f"retry {of_node}", retry)
        self.timeout = time_limit(f"timeout {of_node}", timeout)
        self.queue_timeout = time_limit(f"queue_timeout {of_node}", queue_timeout)
        self.cache = as_cache(f"cache {of_node}", cache)
        self.fallback = checked_fallback(self.task_name, fallback)
        self.join, self.when = join, when
        asked = (self.retry, self.timeout, self.queue_timeout, when, self.cache)
        self.has_policy = fallback is not NO_FALLBACK or any(part is not None for part in asked)
        self.condition = None if when is None else Condition.of(self.task_name, when)
        self._output_names: tuple[str, ...] | None = None
        self.waits_for: tuple[str, ...] = ()
        self.factors = mapped_keys(self.task_name, map_over)
        mapped = {key: levels for keys in self.factors for key, levels in keys.items()}
        self.map_over: Mapping[str, int] = mapped or _NOTHING
        self.max_parallel = most_parallel(f"max_parallel {of_node}", max_parallel)
        self.is_generator = is_generator_function(original_function(task))
        self.window = checked_window(self.task_name, window, is_generator=self.is_generator)
        self.flatten, self.filter = flatten, filter
        self.filtered = next(iter(self.map_over)) if filter and self.map_over else None
        self._check_options_of_map()
        # What is cached, or may be replaced by a fallback, is the whole list.
        is_whole = self.cache is not None or fallback is not NO_FALLBACK
        self.gives_items = self.is_generator and not is_whole
        """Whether what its task gives can be taken item by item, while the task runs."""
        self._binding: Binding | None = None
        self._fallback_node: DAGNode | None = None
        self._placed = False

    def _check_options_of_map(self) -> None:
        name = self.task_name
        flags = {"flatten": self.flatten, "filter": self.filter}
        for flag, given in flags.items():
            if not isinstance(given, bool):
                raise TypeError(f"{flag} of node {name!r} is {given!r}; give True or False")
        asked: dict[str, object] = {option: value for option, value in flags.items() if value}
        if self.max_parallel is not None:
            asked["max_parallel"] = self.max_parallel
        if asked and not self.map_over:
            option, value = asked.popitem()
            more = ", or give the engine max_parallel=" if option == "max_parallel" else ""
            raise ValueError(
                f"node {name!r} has {option}={value} and runs once; give it map_over={more}"
            )
        if self.filter and self.is_generator:
            raise ValueError(
                f"node {name!r} has filter=True, and its task is a generator function, which "
                "does not say yes or no; give it a function that returns True or False"
            )
        if self.filter and (len(self.map_over) != 1 or self.output is None or self.flatten):
            raise ValueError(
                f"node {name!r} has filter=True, which takes one key in map_over=, gives one "
                "output, and goes without flatten=; let another node do the rest"
            )

    @property
    def metadata(self) -> dict[str, Any]:
        """The user's own, without effect on a run."""
        if self._metadata is None:  # not made before, as a graph may have many nodes
            self._metadata = {}
        return self._metadata

    @metadata.setter
    def metadata(self, metadata: dict[str, Any]) -> None:
        self._metadata = metadata

    @property
    def given_key(self) -> str | None:
        """The key whose elements it passes on as they are. It has no task that is sent then."""
        return None

    @property
    def output(self) -> str | None:
        """The output key, or ``None`` for a node with several."""
        keys = self._outputs or (self.task_name,)
        return keys[0] if len(keys) == 1 else None

    @property
    def outputs(self) -> list[str]:
        """All output keys."""
        return list(self._outputs or (self.task_name,))

    @property
    def inputs(self) -> list[str]:
        """The input keys as declared; undeclared: the names of the required parameters."""
        if self._inputs is None:
            return self.binding.required_keys
        keys = self._inputs.values() if isinstance(self._inputs, Mapping) else self._inputs
        return list(keys)

    @property
    def binding(self) -> Binding:
        """How the input keys reach the task's parameters; may raise ``BindingError``."""
        if self._binding is None:
            binding = bind(
                self.task_name, self.task, self._inputs, self.given, lenient=self.join != "all"
            )
            if callable(self.fallback):
                self._fallback_node = self._placed_fallback(binding.keys)
            if self._inputs == binding.positional:  # then one tuple is enough
                self._inputs = binding.positional
            self._binding = binding
        return self._binding

    @property
    def fallback_node(self) -> DAGNode | None:
        """A fallback that is a task, as a node in the place of this one; else ``None``.

        May raise ``BindingError``, as it may need no more keys than this node takes.
        """
        return self._fallback_node if self.binding else None

    @property
    def required_keys(self) -> list[str]:
        """The keys that have to be there for the task to be called and the condition to be asked.

        May raise ``BindingError``, as ``optional_keys`` may.
        """
        asked = () if self.condition is None else self.condition.required.values()
        if not (asked or self.waits_for):
            return self.binding.required_keys
        return list(dict.fromkeys((*self.binding.required_keys, *asked, *self.waits_for)))

    @property
    def optional_keys(self) -> list[str]:
        """The keys that the task and the condition are given if they have a value."""
        if self.condition is None or not self.condition.optional:
            return self.binding.optional_keys
        asked = self.condition.optional.values()
        return list(dict.fromkeys((*self.binding.optional_keys, *asked)))

    def renamed(
        self, name: str, keys: Mapping[str, str], factors: tuple[dict[str, int], ...]
    ) -> DAGNode:
        """The same node under another name, and under other keys, for another graph.

        ``factors``: what it maps over there, by the new keys. It waits for those that it does not
        take.
        """
        node = copy.copy(self)
        node.rename(name, keys, factors)
        return node

    def with_task(self, task: Task, fallback: Task | None = None) -> DAGNode:
        """The same node for another graph, with another task that is called as its own would be.

        ``fallback``: in the place of a fallback that is a task. May raise ``BindingError``.
        """
        node = copy.copy(self)
        node.replace_task(self.binding, task, fallback)
        return node

    def replace_task(self, binding: Binding, task: Task, fallback: Task | None) -> None:
        """Take another task for the same binding, as a node that is in no graph yet may."""
        self._binding, self._placed = binding, False
        self.task, self._info = task, task_info(task)
        if self._fallback_node is not None and fallback is not None:
            self.fallback = fallback
            self._fallback_node = self._fallback_node.with_task(fallback)

    def rename(
        self, name: str, keys: Mapping[str, str], factors: tuple[dict[str, int], ...]
    ) -> None:
        """Take another name and other keys, as a node that is in no graph yet may."""

        def new(old: Iterable[str]) -> tuple[str, ...]:
            return tuple(keys.get(key, key) for key in old)

        binding = self.binding.renamed(keys)
        self._output_names = self._output_names or tuple(self.outputs)
        self._inputs, self._outputs = new(self.inputs), new(self.outputs)
        self._binding, self._placed, self.task_name = binding, False, name
        self.condition = None if self.condition is None else self.condition.renamed(new)
        self._metadata = None if self._metadata is None else dict(self._metadata)
        self.factors = factors
        self.filtered = None if self.filtered is None else keys.get(self.filtered, self.filtered)
        self.map_over = {key: levels for factor in factors for key, levels in factor.items()}
        known = {*binding.keys, *(() if self.condition is None else self.condition.keys)}
        waits_for = dict.fromkeys((*new(self.waits_for), *self.map_over))
        self.waits_for = tuple(key for key in waits_for if key not in known)
        if self._fallback_node is not None:
            self._fallback_node = self._fallback_node.renamed(name, keys, ())

    def place(self, name: str) -> None:
        """Fix the node's name for good, as a graph or a registry does when it takes the node in.

        Raises ``GraphError`` if another graph has fixed a different one.
        """
        if self._placed and name != self.task_name:
            raise GraphError(
                f"node {self.task_name!r} belongs to another graph under that name, which is taken "
                "in this one; make a new DAGNode of the same task"
            )
        self.task_name, self._placed = name, True

    def arguments(self, values: Mapping[str, Any]) -> tuple[list[Any], dict[str, Any]]:
        """Positional and keyword arguments of the task's call, taken from ``values``."""
        return (self._binding or self.binding).arguments(values)

    def computing(self, take: Take) -> Callable[[Mapping[str, Any]], Any] | None:
        """What makes the value of a node that ``is_computed``, from its inputs."""
        return None

    def _placed_fallback(self, known: set[str]) -> DAGNode:
        inputs = self._inputs
        if inputs is not None and ERROR not in known and takes(self.fallback, ERROR):
            # Also if it has a default, with which declared inputs would leave it alone.
            inputs = {ERROR: ERROR, **inputs} if isinstance(inputs, Mapping) else (*inputs, ERROR)
        node = DAGNode(
            self.fallback,
            outputs=self._outputs,
            inputs=inputs,
            name=self.task_name,
            join=self.join,
        )
        known_here = {*known, ERROR}
        if unknown := [key for key in node.binding.required_keys if key not in known_here]:
            raise BindingError(
                f"the fallback of node {self.task_name!r} needs {unknown[0]!r}, which the node's "
                f"task does not take; it takes {', '.join(map(repr, sorted(known))) or 'nothing'}",
                task_name=self.task_name,
                key=unknown[0],
            )
        return node

    def store(self, result: Any, values: dict[str, Any]) -> None:
        """Put what the task returned under this node's output keys.

        Raises ``OutputShapeError``, with ``values`` unchanged, if it cannot be split into them.
        """
        keys = self._outputs
        if keys is None:
            values[self.task_name] = result
        elif len(keys) == 1:
            values[keys[0]] = result
        else:
            names = self._output_names or keys
            if isinstance(result, ResultHandle):
                stored: dict[str, Any] = {**result.split(self.task_name, names)}
            else:
                stored = split_outputs(self.task_name, names, result)
            values.update((key, stored[name]) for key, name in zip(keys, names, strict=True))

    def __repr__(self) -> str:
        # Not what the task's signature says: that may be an error, which a repr does not raise.
        inputs = "its parameters" if self._inputs is None else self.inputs
        task = default_name(self.task)
        of = "" if task == self.task_name else f" of task {task}"
        return f"<DAGNode {self.task_name}{of}: {inputs} -> {self.outputs}>"
