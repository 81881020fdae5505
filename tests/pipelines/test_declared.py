"""What tasks say of themselves."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
from taskiq import InMemoryBroker

from taskiq_flow import (
    get_task_inputs,
    get_task_outputs,
    is_pipeline_task,
    pipeline_task,
    pipeline_task_multi_output,
)


def plain(text: str, at: str = " ") -> list[str]:
    return text.split(at)


def fresh() -> Any:
    def task(text: str, at: str = " ") -> list[str]:
        return text.split(at)

    return task


def test_a_task_without_a_declaration_has_its_names() -> None:
    assert not is_pipeline_task(plain)
    assert not is_pipeline_task("plain")
    assert (get_task_outputs(plain), get_task_inputs(plain)) == (["plain"], ["text"])


@pytest.mark.parametrize(
    ("declared", "outputs", "inputs"),
    [
        (pipeline_task(), ["task"], ["text"]),
        (pipeline_task("words"), ["words"], ["text"]),
        (pipeline_task(output="words", inputs=["line"]), ["words"], ["line"]),
        (pipeline_task(outputs=iter(["a", "b"]), inputs=iter(["line"])), ["a", "b"], ["line"]),
        (pipeline_task_multi_output(["a", "b"]), ["a", "b"], ["text"]),
        (pipeline_task_multi_output(("a", "b"), ["line", "at"]), ["a", "b"], ["line", "at"]),
    ],
)
def test_a_declaration_says_what_a_task_gives_and_takes(
    declared: Any, outputs: list[str], inputs: list[str]
) -> None:
    for task in (declared(fresh()), declared(partial(fresh(), at="-")), declared(fresh())):
        assert is_pipeline_task(task)
        assert (get_task_outputs(task), get_task_inputs(task)) == (outputs, inputs)


def test_the_function_stays_what_it_is() -> None:
    function = fresh()
    assert pipeline_task(output="x")(function) is function
    broker = InMemoryBroker()
    task = broker.register_task(fresh(), task_name="t")
    assert pipeline_task(output="x")(task) is task
    assert is_pipeline_task(task)
    assert get_task_outputs(task) == ["x"]


@pytest.mark.parametrize(
    ("declare", "error", "said"),
    [
        (lambda: pipeline_task(plain), TypeError, "with parentheses"),  # type: ignore[arg-type]
        (lambda: pipeline_task(outputs="ab")(plain), TypeError, "write output="),
        (lambda: pipeline_task_multi_output("ab")(plain), TypeError, "write output="),
        (lambda: pipeline_task(inputs="text")(plain), TypeError, "is the string 'text'"),
        (lambda: pipeline_task(outputs={"a", "b"})(plain), TypeError, "is a set"),
        (lambda: pipeline_task("a", ["b"])(plain), ValueError, "keep one"),
        (lambda: get_task_outputs("plain"), TypeError, "is no task"),  # type: ignore[arg-type]
    ],
)
def test_a_wrong_declaration_is_refused(declare: Any, error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        declare()
    assert not is_pipeline_task(plain)
