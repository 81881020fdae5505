"""Reads a run's inputs from texts and from JSON, as the annotations of their parameters say.

The command line and the routes over HTTP read inputs here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from taskiq_flow.dataflow.inputs import refuse_unused
from taskiq_flow.dataflow.plan import Plan
from taskiq_flow.dataflow.type_check import annotations_of_inputs
from taskiq_flow.errors import InputError
from taskiq_flow.values.fitting import Fit, first_line, name_of

_LONGEST = 80


class InputReader:
    """Reads inputs of one graph by their keys. Inputs without an annotation are taken as given.

    All methods raise ``InputError`` for a value that the annotation does not allow.
    """

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._annotations = annotations_of_inputs(plan)

    def all_of_json(self, documents: Mapping[str, Any]) -> dict[str, Any]:
        """Inputs that came as JSON, each of which a node has to take."""
        refuse_unused(documents, self._plan)
        return {key: self.of_json(key, document) for key, document in documents.items()}

    def of_json(self, key: str, document: Any) -> Any:
        """An input that came as JSON, with all of its items checked."""
        fit = self._fit(key)
        if fit is None:
            return document
        try:
            return fit.convert_whole(document)
        except Exception as error:  # whatever the validators of the user's classes raise
            raise self._misfit(key, json.dumps(document), first_line(error)) from error

    def of_text(self, key: str, text: str) -> Any:
        """The text itself if it fits, else what it says as a scalar, or as JSON."""
        fit = self._fit(key)
        if fit is None:
            return text
        try:
            return fit.convert_whole(text)
        except Exception as error:  # likewise
            reason = first_line(error)
        try:
            document = json.loads(text)
        except ValueError:
            pass
        else:
            try:
                return fit.convert_whole(document)
            except Exception as error:  # likewise
                reason = first_line(error)
        hint = "; lists and objects are written as JSON"
        raise self._misfit(key, repr(text), f"{reason}{hint}")

    def _fit(self, key: str) -> Fit | None:
        return Fit.of(self._annotations.get(key, Any))

    def _misfit(self, key: str, shown: str, reason: str) -> InputError:
        shown = shown if len(shown) <= _LONGEST else f"{shown[:_LONGEST]}..."
        return InputError(
            f"the input {key!r} is {shown}, which cannot be read as "
            f"{name_of(self._annotations[key])}: {reason}",
            keys=[key],
        )
