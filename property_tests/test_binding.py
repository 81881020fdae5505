"""What ``bind`` accepts can be called by Python, and every key arrives where the rules say."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from property_tests.signatures import (
    INJECTED,
    RefusedError,
    SignatureSpec,
    arrivals,
    default_of,
)
from property_tests.strategies import INPUT_LISTS, INPUT_MAPPINGS, signatures
from taskiq_flow import BindingError
from taskiq_flow.dataflow.binding import Binding, bind


class Value:
    """The value of a key, unlike any other."""

    def __init__(self, key: str) -> None:
        self.key = key


def _call(signature: SignatureSpec, binding: Binding, keys: set[str]) -> dict[str, Any]:
    """Call the task as a worker does; returns its arguments, those that are values as keys."""
    values = {key: Value(key) for key in keys}
    args, kwargs = binding.arguments(values)
    _check_keys_behind(binding, args, kwargs)
    if any(parameter.name == INJECTED for parameter in signature.parameters):
        assert INJECTED not in kwargs
        kwargs[INJECTED] = "injected"
    got: dict[str, Any] = signature.function()(*args, **kwargs)
    assert got.pop(INJECTED, "injected") == "injected"
    return got


def _check_keys_behind(binding: Binding, args: list[Any], kwargs: dict[str, Any]) -> None:
    """The binding can tell which key each argument came under."""
    positional, by_name = binding.keys_of(len(args))
    for argument, key in zip(args, positional, strict=True):
        assert not isinstance(argument, Value) or argument.key == key
    assert all(_key(argument) == by_name[name] for name, argument in kwargs.items())


def _key(argument: object) -> object:
    if isinstance(argument, tuple):
        return [_key(one) for one in argument]
    if isinstance(argument, dict):
        return {name: _key(one) for name, one in argument.items()}
    return argument.key if isinstance(argument, Value) else argument


@settings(max_examples=4 * settings().max_examples)
@given(signatures(), INPUT_LISTS | INPUT_MAPPINGS)
def test_declared_inputs_arrive_by_the_rules_or_are_refused(
    signature: SignatureSpec, inputs: list[str] | dict[str, str]
) -> None:
    try:
        expected = arrivals(signature, inputs)
    except RefusedError:
        with pytest.raises(BindingError):
            bind("node", signature.function(), inputs)
        return
    binding = bind("node", signature.function(), inputs)
    assert not binding.optional_keys
    got = _call(signature, binding, binding.keys)
    assert _key(got.pop("args", ())) == expected.args
    assert _key(got.pop("kwargs", {})) == expected.kwargs
    for name in signature.bindable:
        assert _key(got.pop(name)) == expected.by_parameter.get(name, default_of(name))
    assert not got


@settings(max_examples=4 * settings().max_examples)
@given(signatures(), st.sets(st.sampled_from("abcdefgh")))
def test_undeclared_inputs_are_the_parameters_of_which_those_with_defaults_may_be_missing(
    signature: SignatureSpec, given_keys: set[str]
) -> None:
    binding = bind("node", signature.function(), None)
    parameters = signature.bindable.values()
    required = {parameter.name for parameter in parameters if not parameter.has_default}
    assert sorted(binding.required_keys) == sorted(required)
    assert sorted(binding.optional_keys) == sorted({*signature.bindable} - required)
    got = _call(signature, binding, given_keys | required)
    assert not got.pop("args", ())
    assert not got.pop("kwargs", {})
    for name in signature.bindable:
        is_given = name in given_keys | required
        assert _key(got.pop(name)) == (name if is_given else default_of(name))
    assert not got
