"""Checking the inputs of a run against its graph."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from taskiq_flow.dataflow.dag import Plan
from taskiq_flow.errors import InputConflictError, MissingInputError, UnusedInputWarning, warn
from taskiq_flow.suggestions import did_you_mean


def as_inputs(inputs: Any) -> dict[str, Any]:
    """A run's inputs by key. Raises ``TypeError`` for anything but a mapping or ``None``."""
    if inputs is None:
        return {}
    if not isinstance(inputs, Mapping):
        raise TypeError(
            f"inputs is a {type(inputs).__name__}; it is a mapping of keys to values, as in "
            "{'source': 'data.csv'}"
        )
    return dict(inputs)


def check_inputs(values: Mapping[str, Any], whole: Plan, plan: Plan) -> None:
    """Check a run's inputs. ``whole``: the graph; ``plan``: the part of it that is to run.

    Raises ``InputConflictError`` or ``MissingInputError``; issues ``UnusedInputWarning``.
    """
    if conflicts := [key for key in values if key in whole.producers]:
        listed = ", ".join(
            f"{key!r} (node {whole.producers[key].task_name!r})" for key in conflicts
        )
        raise InputConflictError(
            f"the run was given {listed}, which its own nodes produce; leave them out, or rename "
            "the nodes' outputs",
            keys=conflicts,
        )
    if missing := [key for key in plan.required if key not in values]:
        unused = [key for key in values if key not in whole.required and key not in whole.optional]
        known = [*unused, *whole.producers]
        raise MissingInputError(
            "; ".join(
                f"node {plan.required[key].task_name!r} needs {key!r}, which no node produces and "
                f"the run was not given{did_you_mean(key, known) or _how_to_give(key)}"
                for key in missing
            )
            + (f"; no node takes the given {_listed(unused)}" if unused else ""),
            keys=missing,
        )
    for key in values:
        if key not in whole.required and key not in whole.optional:
            external = dict.fromkeys((*whole.required, *whole.optional))
            warn(
                f"the run was given {key!r}, which no node takes{did_you_mean(key, external)}"
                f"; external inputs: {_listed(external)}",
                UnusedInputWarning,
            )


def _how_to_give(key: str) -> str:
    return f"; pass it as an input, or add a node with output={key!r}"


def _listed(keys: Iterable[str]) -> str:
    return ", ".join(map(repr, keys)) or "none"
