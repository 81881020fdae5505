"""Steps of a pipeline, and the graph that they compile to."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from inspect import Parameter
from typing import Any, Final, Literal

from taskiq_flow.dataflow.computed import ComputedNode, as_list
from taskiq_flow.dataflow.dag import DAG
from taskiq_flow.dataflow.node import DAGNode
from taskiq_flow.dataflow.tasks import Task, default_name, task_info
from taskiq_flow.errors import BindingError, PipelineError
from taskiq_flow.suggestions import did_you_mean

NOT_PASSED: Final = -1
"""As ``param_name``: the step is not given the result of the step before it."""

ParamName = str | Literal[-1] | None
"""The parameter that takes the result of the step before; ``None``: the first one that is free."""

Kind = Literal["call", "map", "filter"]


@dataclass(frozen=True, slots=True)
class Call:
    """A task with its fixed arguments, and where the value from before goes."""

    task: Task
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    param_name: ParamName = None

    @property
    def name(self) -> str:
        """The name of the task, as nodes have it."""
        return default_name(self.task)

    def check(self) -> None:
        """Raise ``TypeError`` for what cannot be a step."""
        if not callable(self.task):
            raise TypeError(f"a step's task is a taskiq task or a callable, not {self.task!r}")
        if not (self.param_name in (None, NOT_PASSED) or isinstance(self.param_name, str)):
            raise TypeError(
                f"param_name of step {self.name!r} is {self.param_name!r}; give the name of a "
                "parameter, None for the first one, or -1 for none"
            )

    def check_first(self, *, is_mapped: bool) -> None:
        """Raise ``BindingError`` for a first step that no arguments of ``kiq`` make callable."""
        takes_one = is_mapped or isinstance(self.param_name, str)
        self.bound(Taken(("",) if takes_one else ()), may_lack=self.param_name != NOT_PASSED)

    def bound(
        self, taken: Taken, *, may_lack: bool = False
    ) -> tuple[dict[str, str] | list[str], dict[str, Any]]:
        """The ``inputs`` and the ``given`` of a node that takes keys. Raises ``BindingError``.

        ``may_lack``: whether more values are given later.
        """
        parameters = self._parameters()
        if self.param_name == NOT_PASSED:
            taken = Taken()
        inputs, given = dict(taken.by_name), dict(self.kwargs)
        positional = list(taken.by_position)
        if isinstance(self.param_name, str):
            inputs.update((self.param_name, key) for key in positional[:1])
            positional = positional[1:]
        if twice := [name for name in inputs if name in given]:
            raise self._error(f"is given {twice[0]!r} twice", twice[0])
        by_position = (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)
        named = {*inputs, *given}
        free = [p.name for p in parameters if p.kind in by_position and p.name not in named]
        rest = [*positional, *self.args][len(free) :]
        inputs.update(zip(free, positional, strict=False))
        given.update(zip(free[len(positional) :], self.args, strict=False))
        if rest:
            return self._with_var_args(parameters, inputs, positional, given), given
        known = {p.name for p in parameters}
        takes_any = any(p.kind is Parameter.VAR_KEYWORD for p in parameters)
        if odd := [name for name in (*inputs, *given) if name not in known and not takes_any]:
            meant = did_you_mean(odd[0], known)
            raise self._error(f"has no parameter {odd[0]!r}{meant}", odd[0])
        variable = (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD)
        required = [p for p in parameters if p.default is p.empty and p.kind not in variable]
        if may_lack:
            return inputs, given
        if missing := [p.name for p in required if p.name not in inputs and p.name not in given]:
            raise self._error(f"lacks {missing[0]!r}", missing[0])
        return inputs, given

    def _with_var_args(
        self,
        parameters: Sequence[Parameter],
        inputs: Mapping[str, str],
        positional: list[str],
        given: Mapping[str, Any],
    ) -> list[str]:
        """The keys of a call whose last ones go to ``*args``, in order."""
        if not any(p.kind is Parameter.VAR_POSITIONAL for p in parameters):
            raise self._error("is given more values than it takes", None)
        if self.args:
            raise self._error("takes *args, to which no fixed value can be given", None)
        named = {name: key for name, key in inputs.items() if key not in positional}
        known = {p.name for p in parameters}
        if odd := [name for name in (*named, *given) if name not in known]:
            raise self._error(f"has no parameter {odd[0]!r} beside *args", odd[0])
        if same := [key for key in positional if key in known]:  # it would go there by its name
            raise self._error(
                f"has a parameter {same[0]!r}, which is also the name of the step before", same[0]
            )
        return [*named.values(), *positional]

    def _parameters(self) -> tuple[Parameter, ...]:
        try:
            return task_info(self.task).parameters[0]
        except ValueError as error:
            raise BindingError(
                f"step {self.name!r} has parameters that cannot be read ({error}); wrap its task "
                "in a function of your own",
                task_name=self.name,
            ) from error

    def _error(self, problem: str, parameter: str | None) -> BindingError:
        names = [str(p.replace(default=p.empty, annotation=p.empty)) for p in self._parameters()]
        return BindingError(
            f"step {self.name!r} {problem}; its task takes ({', '.join(names)}), and is given the "
            "result of the step before it, or the arguments of kiq(), and what was added with it",
            task_name=self.name,
            parameter=parameter,
        )


@dataclass(frozen=True, slots=True)
class Taken:
    """Keys that a step takes, as the arguments of a call."""

    by_position: tuple[str, ...] = ()
    by_name: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Step:
    """A task that is called once, or for each element of the list from before.

    ``output``: the key of its result, if that is not to be the node's name.
    """

    call: Call
    kind: Kind = "call"
    max_parallel: int | None = None
    output: str | None = None

    @property
    def calls(self) -> tuple[Call, ...]:
        """The calls of which the step consists."""
        return (self.call,)

    def add_to(self, dag: DAG, taken: Taken, before: DAGNode | None) -> DAGNode:
        """Add the nodes of the step to a graph. Returns the node that has its result."""
        inputs, given = self.call.bound(taken)
        mapped: dict[str, Any] = {}
        if self.kind != "call":
            mapped = {"map_over": self._mapped_key(taken), "filter": self.kind == "filter"}
        node = DAGNode(
            self.call.task,
            self.output,
            inputs,
            given=given,
            max_parallel=self.max_parallel,
            **mapped,
        )
        dag.add_node(node)
        _order(dag, before, node, self.call)
        return node

    def _mapped_key(self, taken: Taken) -> str:
        if len(taken.by_position) != 1:
            raise PipelineError(
                f"step {self.call.name!r} runs for each element of one list, and kiq() was given "
                f"{len(taken.by_position)} values by position; give it the list"
            )
        return taken.by_position[0]


@dataclass(frozen=True, slots=True)
class Group:
    """Tasks that are given the same, side by side. Its result is the list of theirs."""

    calls: tuple[Call, ...]

    def add_to(self, dag: DAG, taken: Taken, before: DAGNode | None) -> DAGNode:
        """Add the nodes of the step to a graph. Returns the node that has its result."""
        members = []
        for call in self.calls:
            inputs, given = call.bound(taken)
            node = DAGNode(call.task, None, inputs, given=given)
            dag.add_node(node)
            _order(dag, before, node, call)
            members.append(node)
        keys = [key for node in members for key in node.outputs]
        group = ComputedNode(as_list, name="group", inputs=keys, looks_into=False)
        dag.add_node(group)
        if before is not None and not members:
            dag.add_edge(before, group)
        return group


def _order(dag: DAG, before: DAGNode | None, node: DAGNode, call: Call) -> None:
    if before is not None and call.param_name == NOT_PASSED:
        dag.add_edge(before, node)


@dataclass(frozen=True, slots=True)
class Compiled:
    """A graph, the keys of its inputs by the arguments of ``kiq``, and the key of its result."""

    dag: DAG
    taken: Taken
    result: str

    def inputs(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """The inputs of a run."""
        return {
            **dict(zip(self.taken.by_position, args, strict=True)),
            **{key: kwargs[name] for name, key in self.taken.by_name.items()},
        }


def compiled(steps: Sequence[Step | Group], positional: int, names: Iterable[str]) -> Compiled:
    """The graph of a pipeline whose ``kiq`` is given so many values, and others by these names.

    Raises ``PipelineError`` for a pipeline without steps, ``BindingError`` for a step that cannot
    be called, and what ``DAG.validate`` raises.
    """
    if not steps:
        raise PipelineError("the pipeline has no steps; add one, as in pipeline.call_next(task)")
    by_position = ["input"] if positional == 1 else [f"input {i + 1}" for i in range(positional)]
    by_name = {name: name for name in names}
    while not by_name.keys().isdisjoint(by_position):  # a parameter has the name of such a key
        by_position = [f"{key}_" for key in by_position]
    while True:
        taken = Taken(tuple(by_position), by_name)
        dag, result = _graph(steps, taken)
        outputs = {key for node in dag.nodes for key in node.outputs}
        if outputs.isdisjoint((*by_position, *by_name.values())):
            break
        by_position = [f"{key}_" for key in by_position]  # a step has the name of an input
        by_name = {name: f"{key}_" for name, key in by_name.items()}
    dag.validate()
    unused = {*by_position, *by_name.values()}.difference(dag.external_inputs)
    if unused:
        raise PipelineError(
            f"kiq() was given {positional + len(by_name)} values, and the pipeline's first step is "
            "given none; leave them out, or add that step by call_next()"
        )
    return Compiled(dag, taken, result)


def _graph(steps: Sequence[Step | Group], taken: Taken) -> tuple[DAG, str]:
    """The nodes of all steps, and the key of the last one's result."""
    dag = DAG()
    dag.kind = "sequential"
    node: DAGNode | None = None
    for step in steps:
        node = step.add_to(dag, taken, node)
        taken = Taken(tuple(node.outputs))
    return dag, taken.by_position[0]
