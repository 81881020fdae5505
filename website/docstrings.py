"""Examples in docstrings, as mkdocstrings shows them. ``zensical.toml`` names this extension."""

from __future__ import annotations

import re
from typing import Any

from griffe import Extension, Object

EXAMPLE = re.compile(r"^>>> .*(?:\n(?!\n).+)*", re.MULTILINE)
"""From the first prompt to the next empty line."""


def fenced(docstring: str) -> str:
    """A docstring with its examples as code blocks. Markdown would take ``>>>`` for quotations."""
    return EXAMPLE.sub(lambda example: f"```pycon\n{example[0]}\n```", docstring)


class Examples(Extension):
    """Puts examples into code blocks when an object has been read."""

    def on_object(self, *, obj: Object, **_: Any) -> None:
        """Called by griffe for each module, class, function and attribute."""
        if obj.docstring is not None:
            obj.docstring.value = fenced(obj.docstring.value)
