"""Checking the inputs of a run against its graph."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from taskiq_flow.dataflow.dag import Plan
from taskiq_flow.errors import InputConflictError, MissingInputError, UnusedInputWarning, warn


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
        raise MissingInputError(
            "; ".join(
                f"node {plan.required[key].task_name!r} needs {key!r}, which no node produces and "
                f"the run was not given; pass it as an input, or add a node with output={key!r}"
                for key in missing
            ),
            keys=missing,
        )
    for key in values:
        if key not in whole.required and key not in whole.optional:
            warn(
                f"the run was given {key!r}, which no node takes; external inputs: "
                f"{', '.join(map(repr, (*whole.required, *whole.optional))) or 'none'}",
                UnusedInputWarning,
            )
