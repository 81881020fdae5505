"""Annotations with names that are nowhere are told, as ``type_check`` says."""

# ruff: noqa: F821 - that is what these are about
# mypy: disable-error-code="name-defined, attr-defined"

import ast
import decimal
import subprocess
import sys
import warnings
import xml
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from taskiq import InMemoryBroker

from taskiq_flow import DAG, DAGBuilder, ExecutionEngine, TypeMismatchError, TypeMismatchWarning
from taskiq_flow.dataflow.unknown_names import _bound_by

if TYPE_CHECKING:
    from fractions import Fraction


this_one = sys.modules[__name__]


def misspelt(x: "lst[int]") -> None: ...


def misspelt_result(x: int) -> "strr":
    return x


def misspelt_attribute(x: "decimal.Decimel") -> None: ...


def within(x: list["Decimel"]) -> None: ...


def unfinished(x: "list[int") -> None: ...  # type: ignore[valid-type] # noqa: F722


def only_checked(x: "Fraction") -> "list[Fraction]":
    return [x]


def only_checked_too(x: "Fraction") -> "Fraction":
    return x


def graph(function: Callable[..., Any]) -> DAG:
    return DAGBuilder().node(function, name="it").build()


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (misspelt, r"'it' has its parameter 'x' as 'lst\[int\]', .* did you mean 'list'"),
        (misspelt_result, "'it' has its result as 'strr', which .* did you mean 'str'"),
        (misspelt_attribute, "as 'decimal.Decimel', .*: module 'decimal' has no attribute"),
        (within, "'Decimel' is not defined"),
        (unfinished, "as 'list.int', which cannot be evaluated"),
    ],
)
def test_a_name_that_is_nowhere_is_told(function: Callable[..., Any], message: str) -> None:
    dag = graph(function)
    with pytest.warns(TypeMismatchWarning, match=message) as told:
        ExecutionEngine(InMemoryBroker(), dag)
    assert told[0].filename == __file__
    with pytest.raises(TypeMismatchError, match=message) as error:
        ExecutionEngine(InMemoryBroker(), dag, type_check="error")
    assert error.value.consumer == "it"
    ExecutionEngine(InMemoryBroker(), dag, type_check="off")


def test_a_name_that_the_file_binds_somewhere_is_known() -> None:
    class Local: ...

    def of_local(x: "Local") -> "Local":
        return x

    namespace: dict[str, Any] = {}
    exec("def without_source(x: 'Nowhere'): ...", namespace)  # noqa: S102
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for function in (only_checked, of_local, namespace["without_source"]):
            ExecutionEngine(InMemoryBroker(), graph(function))


def test_a_parameter_of_the_function_around_is_known() -> None:
    def task_for(Model: type, *Others: type) -> Callable[..., Any]:  # noqa: N803
        def task(x: "Model") -> "Others": ...  # type: ignore[valid-type]

        return task

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ExecutionEngine(InMemoryBroker(), graph(task_for(int)))


def of_stubs(x: "subprocess._CMD") -> "this_one.Fraction": ...


def of_a_submodule(x: "xml.nowhere_else.Document") -> None: ...


def test_what_only_checkers_find_in_a_module_is_known(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "nowhere_else.py").touch()
    monkeypatch.setattr(xml, "__path__", [str(tmp_path)])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for function in (of_stubs, of_a_submodule):
            ExecutionEngine(InMemoryBroker(), graph(function))


def test_a_file_is_parsed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    parsed: list[str] = []
    parse = ast.parse

    def noted(source: str) -> ast.Module:
        parsed.append(source)
        return parse(source)

    monkeypatch.setattr(ast, "parse", noted)
    _bound_by.cache_clear()
    dag = DAGBuilder().node(only_checked, name="a").node(only_checked_too, name="b").build()
    for _ in range(2):
        ExecutionEngine(InMemoryBroker(), dag)
    assert len(parsed) == 1


def test_of_a_task_it_is_told_once() -> None:
    dag = DAGBuilder().node(misspelt, name="a").node(misspelt, name="b").build()
    with pytest.warns(TypeMismatchWarning) as told:
        ExecutionEngine(InMemoryBroker(), dag)
    assert len(told) == 1
    assert str(told[0].message).count("lst[int]") == 1
