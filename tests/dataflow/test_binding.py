"""How input keys reach parameters: by name, in order, spelled out, or undeclared."""

from __future__ import annotations  # so that every annotation below is a string

import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Annotated, Any, get_type_hints

import pytest
from taskiq import AsyncTaskiqDecoratedTask, Context, InMemoryBroker, TaskiqDepends

from taskiq_flow import DAG, BindingError, DAGNode
from taskiq_flow.dataflow.binding import Inputs, bind
from taskiq_flow.dataflow.tasks import Task, original_function, parameters_of

Values = dict[str, Any]


def nothing() -> Values:
    return locals()


def two(a: Any, b: Any) -> Values:
    return locals()


def defaults(a: Any, b: Any = 2, c: Any = 3) -> Values:
    return locals()


def rest(a: Any, *more: Any) -> Values:
    return locals()


def rest_then_k(a: Any, *more: Any, k: Any) -> Values:
    return locals()


def rest_then_default(*more: Any, k: Any = 9) -> Values:
    return locals()


def named(a: Any, **others: Any) -> Values:
    return locals()


def rest_and_named(*more: Any, **others: Any) -> Values:
    return locals()


def keyword_only(a: Any, *, k: Any) -> Values:
    return locals()


def positional_only(a: Any, b: Any, /) -> Values:
    return locals()


def positional_defaults(a: Any = 1, b: Any = 2, /, c: Any = 3) -> Values:
    return locals()


def positional_and_named(a: Any, /, **others: Any) -> Values:
    return locals()


def call(task: Task, inputs: Inputs, *provided: str) -> Values:
    """What the task sees: under each key lies the key's name in capitals."""
    binding = bind("train", task, inputs)
    keys = {*binding.required_keys, *provided}
    args, kwargs = binding.arguments({key: key.upper() for key in keys})
    seen: Values = original_function(task)(*args, **kwargs)
    return seen


LISTED: list[tuple[Task, list[str], Values]] = [
    (two, ["b", "a"], {"a": "A", "b": "B"}),
    (two, ["x", "y"], {"a": "X", "b": "Y"}),
    (two, ["b", "x"], {"a": "X", "b": "B"}),
    (two, ["x", "a"], {"a": "A", "b": "X"}),
    (defaults, ["c", "x"], {"a": "X", "b": 2, "c": "C"}),
    (rest, ["x", "y", "z"], {"a": "X", "more": ("Y", "Z")}),
    (rest, ["y", "a"], {"a": "A", "more": ("Y",)}),
    (rest_then_k, ["x", "k", "y"], {"a": "X", "more": ("Y",), "k": "K"}),
    (rest_then_default, ["x", "k"], {"more": ("X",), "k": "K"}),
    (named, ["a", "my key"], {"a": "A", "others": {"my key": "MY KEY"}}),
    (rest_and_named, ["x", "y"], {"more": ("X", "Y"), "others": {}}),
    (keyword_only, ["x", "y"], {"a": "X", "k": "Y"}),
    (positional_only, ["b", "x"], {"a": "X", "b": "B"}),
    (positional_defaults, ["a", "c"], {"a": "A", "b": 2, "c": "C"}),
    (positional_and_named, ["x", "a"], {"a": "A", "others": {"x": "X"}}),
]


@pytest.mark.parametrize(("task", "keys", "seen"), LISTED)
def test_listed_keys_go_by_name_and_then_from_left_to_right(
    task: Task, keys: list[str], seen: Values
) -> None:
    assert call(task, keys) == seen


SPELLED_OUT: list[tuple[Task, dict[str, str], Values]] = [
    (two, {"b": "y", "a": "x"}, {"a": "X", "b": "Y"}),
    (two, {"a": "b", "b": "a"}, {"a": "B", "b": "A"}),
    (defaults, {"a": "x", "c": "z"}, {"a": "X", "b": 2, "c": "Z"}),
    (named, {"a": "x", "other": "y"}, {"a": "X", "others": {"other": "Y"}}),
    (positional_only, {"b": "y", "a": "x"}, {"a": "X", "b": "Y"}),
    (positional_defaults, {"b": "y"}, {"a": 1, "b": "Y", "c": 3}),
]


@pytest.mark.parametrize(("task", "inputs", "seen"), SPELLED_OUT)
def test_a_mapping_spells_out_which_parameter_takes_which_key(
    task: Task, inputs: dict[str, str], seen: Values
) -> None:
    assert call(task, inputs) == seen


UNDECLARED: list[tuple[Task, list[str], Values]] = [
    (nothing, [], {}),
    (two, [], {"a": "A", "b": "B"}),
    (defaults, [], {"a": "A", "b": 2, "c": 3}),
    (defaults, ["c"], {"a": "A", "b": 2, "c": "C"}),
    (rest_then_k, ["more"], {"a": "A", "more": (), "k": "K"}),
    (named, ["others", "x"], {"a": "A", "others": {}}),
    (positional_only, [], {"a": "A", "b": "B"}),
    (positional_defaults, ["a"], {"a": "A", "b": 2, "c": 3}),
    (positional_defaults, ["b", "c"], {"a": 1, "b": "B", "c": "C"}),
]


@pytest.mark.parametrize(("task", "provided", "seen"), UNDECLARED)
def test_undeclared_parameters_take_the_key_of_their_name_if_there_is_one(
    task: Task, provided: list[str], seen: Values
) -> None:
    assert call(task, None, *provided) == seen


NOT_BOUND: list[tuple[Task, Inputs, Values]] = [
    (two, [], {"a": "A", "b": "B"}),
    (two, {}, {"a": "A", "b": "B"}),
    (two, ["x"], {"a": "X", "b": "B"}),
    (two, {"b": "x"}, {"a": "A", "b": "X"}),
    (defaults, [], {"a": "A", "b": 2, "c": 3}),
    (rest_then_k, ["x", "y"], {"a": "X", "more": ("Y",), "k": "K"}),
    (positional_only, ["x"], {"a": "X", "b": "B"}),
]


@pytest.mark.parametrize(("task", "inputs", "seen"), NOT_BOUND)
def test_a_required_parameter_without_a_key_takes_its_own_name(
    task: Task, inputs: Inputs, seen: Values
) -> None:
    assert call(task, inputs) == seen


def test_a_declared_default_is_left_alone_even_if_its_name_has_a_value() -> None:
    assert call(defaults, ["a"], "b", "c") == {"a": "A", "b": 2, "c": 3}


@pytest.mark.parametrize(
    ("task", "inputs", "required", "optional"),
    [
        (defaults, None, ["a"], ["b", "c"]),
        (defaults, ["x", "y"], ["x", "y"], []),
        (two, ["x", "x"], ["x"], []),
        (two, {"b": "x"}, ["x", "a"], []),
        (positional_defaults, None, [], ["a", "b", "c"]),
        (rest, ["x", "y", "z"], ["x", "y", "z"], []),
    ],
)
def test_a_binding_says_which_keys_it_needs_and_which_it_can_do_without(
    task: Task, inputs: Inputs, required: list[str], optional: list[str]
) -> None:
    binding = bind("train", task, inputs)
    assert sorted(binding.required_keys) == sorted(required)
    assert binding.optional_keys == optional
    assert binding.keys == {*required, *optional}


def test_a_binding_knows_the_keys_behind_the_arguments_of_a_call() -> None:
    assert bind("train", positional_defaults, None).keys_of(1) == (["a"], {"c": "c"})
    assert bind("train", positional_defaults, ["b"]).keys_of(2)[0][1] == "b"
    assert bind("train", rest, ["x", "y"]).keys_of(2) == (["x", "y"], {})
    assert bind("train", two, {"a": "x"}).keys_of(0) == ([], {"a": "x", "b": "b"})


# What taskiq injects

INJECTION: Any = TaskiqDepends()


def injected_by_default(a: Any, context: Any = INJECTION) -> None: ...


def injected_by_annotation(context: Annotated[Context, TaskiqDepends()], a: Any) -> None: ...


def injected_by_type(context: Context, a: Any) -> None: ...


def injected_dependency(a: Any, *, size: Annotated[int, TaskiqDepends(nothing)]) -> None: ...


def annotated_otherwise(a: Annotated[int, "in seconds"]) -> None: ...


def injected_beside_named(a: Any, context: Context = INJECTION, **others: Any) -> None: ...


class Job:
    def __init__(self, a: Any, context: Annotated[Context, TaskiqDepends()]) -> None: ...


class Service:
    def __call__(self, a: Any, context: Annotated[Context, TaskiqDepends()]) -> None: ...

    def method(self, a: Any, context: Annotated[Context, TaskiqDepends()]) -> None: ...


def injected_behind_partial(
    z: Any, a: Any, context: Annotated[Context, TaskiqDepends()]
) -> None: ...


INJECTED: list[tuple[str, Task]] = [
    ("default", injected_by_default),
    ("annotation", injected_by_annotation),
    ("type", injected_by_type),
    ("dependency", injected_dependency),
    ("annotated otherwise", annotated_otherwise),
    ("class", Job),
    ("callable object", Service()),
    ("method", Service().method),
    ("partial", functools.partial(injected_behind_partial, 1)),
]


@pytest.mark.parametrize("task", [task for _, task in INJECTED], ids=[name for name, _ in INJECTED])
def test_what_taskiq_injects_is_no_parameter_of_the_graph(task: Task) -> None:
    assert [parameter.name for parameter in parameters_of(task)[0]] == ["a"]


@pytest.mark.parametrize(
    "function", [injected_by_default, injected_by_annotation, injected_by_type, injected_dependency]
)
def test_annotations_count_whether_they_are_strings_or_not(
    function: Callable[..., None],
) -> None:
    def evaluated(*args: Any, **kwargs: Any) -> None: ...

    functools.update_wrapper(evaluated, function)
    evaluated.__annotations__ = get_type_hints(function, include_extras=True)
    assert [parameter.name for parameter in parameters_of(evaluated)[0]] == ["a"]


@pytest.mark.parametrize("inputs", [["a", "context"], {"context": "x"}])
@pytest.mark.parametrize("task", [injected_by_default, injected_beside_named])
def test_no_key_reaches_an_injected_parameter(task: Task, inputs: Inputs) -> None:
    with pytest.raises(BindingError, match="context"):
        bind("train", task, inputs)


# Kinds of tasks


def twice(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    return wrapper


async def asynchronous(a: Any, b: Any = 2) -> None: ...


class Model:
    def __init__(self, a: Any, b: Any = 2) -> None: ...

    def __call__(self, x: Any, y: Any) -> None: ...

    def method(self, x: Any, y: Any) -> None: ...

    @classmethod
    def of_class(cls, x: Any, y: Any) -> None: ...

    @staticmethod
    def static(x: Any, y: Any) -> None: ...


class Unhashable:
    __hash__ = None  # type: ignore[assignment]

    def __call__(self, x: Any, y: Any) -> None: ...


def decorated(function: Callable[..., Any]) -> AsyncTaskiqDecoratedTask[..., Any]:
    return InMemoryBroker().register_task(function, task_name="decorated")


@pytest.mark.parametrize(
    ("task", "names"),
    [
        (asynchronous, ["a", "b"]),
        (decorated(lambda x, y: [x, y]), ["x", "y"]),
        (decorated(asynchronous), ["a", "b"]),
        (lambda x, y=1: [x, y], ["x", "y"]),
        (functools.partial(defaults, 1), ["b", "c"]),
        (functools.partial(defaults, c=1), ["a", "b"]),
        (Model, ["a", "b"]),
        (Model(1), ["x", "y"]),
        (Model(1).method, ["x", "y"]),
        (Model.of_class, ["x", "y"]),
        (Model.static, ["x", "y"]),
        (Unhashable(), ["x", "y"]),
        (twice(two), ["a", "b"]),
        (len, ["obj"]),
        (sorted, ["iterable", "key", "reverse"]),
    ],
)
def test_every_kind_of_callable_shows_its_parameters(task: Task, names: Iterable[str]) -> None:
    assert [parameter.name for parameter in parameters_of(task)[0]] == names


def test_builtins_are_called_by_position_where_they_must() -> None:
    args, kwargs = bind("count", len, ["words"]).arguments({"words": "abc"})
    assert len(*args, **kwargs) == 3


# What cannot be bound

MISTAKES: list[tuple[Task, Inputs, str | None, str]] = [
    (nothing, ["x"], None, "x"),
    (two, ["x", "y", "z"], None, "z"),
    (two, ["a", "b", "z"], None, "z"),
    (two, ["a", "a"], "a", "a"),
    (named, ["x", "y", "y"], "y", "y"),
    (two, {"c": "x"}, "c", "x"),
    (rest, {"more": "x"}, "more", "x"),
    (injected_by_default, ["a", "x"], None, "x"),
]


@pytest.mark.parametrize(("task", "inputs", "parameter", "key"), MISTAKES)
def test_a_key_without_a_parameter_is_a_binding_error(
    task: Task, inputs: Inputs, parameter: str | None, key: str
) -> None:
    with pytest.raises(BindingError) as caught:
        bind("train", task, inputs)
    error = caught.value
    assert (error.task_name, error.parameter, error.key) == ("train", parameter, key)
    assert all(repr(part) in str(error) for part in ("train", key, parameter) if part)


def test_a_binding_error_shows_what_the_task_takes() -> None:
    with pytest.raises(BindingError, match=r"takes \(a, \*more, k\)"):
        bind("train", rest_then_k, {"x": "y"})
    with pytest.raises(BindingError, match=r"takes \(a, b=\.\.\., c=\.\.\.\)"):
        bind("train", defaults, ["p", "q", "r", "s"])


@pytest.mark.parametrize("task", [max, int])
def test_a_task_whose_parameters_cannot_be_read_is_a_binding_error(task: Task) -> None:
    with pytest.raises(BindingError, match=r"'train'.* wrap it") as caught:
        bind("train", task, ["x"])
    assert caught.value.task_name == "train"


@pytest.mark.parametrize(("inputs", "key"), [(["x", "y", "z"], "z"), ({"c": "x"}, "x")])
def test_what_cannot_be_bound_is_told_when_the_graph_is_built(
    inputs: list[str] | Mapping[str, str], key: str
) -> None:
    dag = DAG()
    dag.add_node(DAGNode(two, inputs=inputs))
    with pytest.raises(BindingError, match="'two'") as caught:
        dag.validate()
    assert caught.value.key == key
