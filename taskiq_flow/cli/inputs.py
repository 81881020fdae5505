"""Reads the inputs of a run from the command line."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from taskiq_flow.cli.exits import CommandError
from taskiq_flow.dataflow.dag import DAG
from taskiq_flow.dataflow.inputs import refuse_unused
from taskiq_flow.dataflow.reading import InputReader


def read_inputs(
    dag: DAG, texts: Sequence[str], documents: Sequence[str], file: str | None
) -> dict[str, Any]:
    """The inputs by key. Those of ``texts`` and ``documents`` replace those of ``file``.

    All are read as the annotation of the parameter that takes the key says. ``texts``:
    ``key=text``. ``documents``: ``key=JSON``. ``file``: a JSON object, ``-`` for standard input.
    Raises ``CommandError`` for what is not written so, and ``InputError`` for what does not fit,
    or is named by an option and taken by no node.
    """
    plan = dag.plan()
    reader = InputReader(plan)
    found = {} if file is None else _of_file(file)
    named: dict[str, Any] = {}
    for option, given in (("--input", texts), ("--input-json", documents)):
        for key, text in _pairs(option, given):
            if key in named:
                raise CommandError(f"the input {key!r} is given twice; give it once")
            named[key] = (
                reader.of_json(key, _of_json(f"{option} {key}", text))
                if option == "--input-json"
                else reader.of_text(key, text)
            )
    refuse_unused(named, plan)  # a file may be for several graphs
    return {key: reader.of_json(key, found[key]) for key in found if key not in named} | named


def _pairs(option: str, given: Iterable[str]) -> Iterator[tuple[str, str]]:
    for pair in given:
        key, equals, text = pair.partition("=")
        if not (key and equals):
            raise CommandError(f"{option} {pair!r} has no '='; write {option} key=value")
        yield key, text


def _of_json(what: str, text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise CommandError(f"{what} is no JSON: {error}") from None


def _of_file(file: str) -> dict[str, Any]:
    if file == "-" and sys.stdin is None:
        raise CommandError("--input-file - cannot be read: standard input is closed; give a file")
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
