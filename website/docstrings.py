"""Examples in docstrings, as mkdocstrings shows them. ``zensical.toml`` names this extension."""

from __future__ import annotations

from typing import Any

from griffe import Extension, Object

from website.reference import fenced


class Examples(Extension):
    """Puts examples into blocks of code when an object has been read."""

    def on_object(self, *, obj: Object, **_: Any) -> None:
        """Called by griffe for each module, class, function and attribute."""
        if obj.docstring is not None:
            obj.docstring.value = fenced(obj.docstring.value)
