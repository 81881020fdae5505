"""Reads the inputs of a run from the command line."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from taskiq_flow.cli.exits import CommandError
from taskiq_flow.dataflow.dag import DAG
from taskiq_flow.dataflow.type_check import annotations_of_inputs
from taskiq_flow.errors import InputError
from taskiq_flow.values.fitting import Fit, first_line, name_of


def read_inputs(
    dag: DAG, texts: Sequence[str], documents: Sequence[str], file: str | None
) -> dict[str, Any]:
    """The inputs by key. Those of ``texts`` and ``documents`` replace those of ``file``.

    ``texts``: ``key=text``, read as the annotation of the parameter that takes the key says.
    ``documents``: ``key=JSON``. ``file``: a JSON object, ``-`` for standard input. Raises
    ``CommandError`` for what is not written so, and ``InputError`` for a text that does not fit.
    """
    inputs = {} if file is None else _of_file(file)
    annotations = annotations_of_inputs(dag.plan())
    named = set()
    for option, given in (("--input", texts), ("--input-json", documents)):
        for key, text in _pairs(option, given):
            if key in named:
                raise CommandError(f"the input {key!r} is given twice; give it once")
            named.add(key)
            inputs[key] = (
                _of_json(f"{option} {key}", text)
                if option == "--input-json"
                else _of_text(key, text, annotations.get(key, Any))
            )
    return inputs


def _pairs(option: str, given: Iterable[str]) -> Iterator[tuple[str, str]]:
    for pair in given:
        key, equals, text = pair.partition("=")
        if not (key and equals):
            raise CommandError(f"{option} {pair!r} has no '='; write {option} key=value")
        yield key, text


def _of_text(key: str, text: str, annotation: Any) -> Any:
    """The text itself if it fits, else what it says as a scalar, or as JSON."""
    fit = Fit.of(annotation)
    if fit is None:
        return text
    try:
        return fit.convert(text)
    except Exception as error:  # whatever the validators of the user's classes raise
        reason = first_line(error)
    try:
        document = json.loads(text)
    except ValueError:
        pass
    else:
        try:
            return fit.convert(document)
        except Exception as error:  # likewise
            reason = first_line(error)
    raise InputError(
        f"the input {key!r} is {text!r}, which cannot be read as {name_of(annotation)}: {reason}; "
        "lists and objects are written as JSON",
        keys=[key],
    )


def _of_json(what: str, text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise CommandError(f"{what} is no JSON: {error}") from None


def _of_file(file: str) -> dict[str, Any]:
    try:
        text = sys.stdin.read() if file == "-" else Path(file).read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CommandError(f"--input-file {file} cannot be read: {error}") from None
    found = _of_json(f"--input-file {file}", text)
    if not isinstance(found, dict):
        raise CommandError(
            f"--input-file {file} holds a {type(found).__name__}; write a JSON object, as in "
            '{"key": "value"}'
        )
    return found
