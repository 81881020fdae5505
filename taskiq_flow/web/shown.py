"""Only this file decides what of a run's values and errors leaves the process."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from taskiq_flow.previews import printable

logger = logging.getLogger("taskiq_flow")

Redact = Callable[[str, str], str]
"""Given the name of a node and a text that shows its value or its error: the text to show."""

HIDDEN = "(hidden)"
"""Stands for a text that is not shown."""


class Shown:
    """Shows previews and errors, redacted or not. ``values``: whether values are shown at all."""

    def __init__(self, redact: Redact | None = None, *, values: bool = True) -> None:
        self._redact = redact
        self._values = values

    @property
    def whole_values(self) -> bool:
        """Whether a value may be given as a whole. ``redact`` sees previews only."""
        return self._values and self._redact is None

    def event(self, content: dict[str, Any]) -> dict[str, Any]:
        """What is shown of an event, given what its ``to_dict`` returned."""
        name = content.get("node", "")
        if "value" in content:
            content["value"] = self.value(name, content["value"])
        if "item" in content:
            content["item"] = self.item(name, content["item"])
        if "error" in content:
            content["error"] = self.error(name, content["error"])
        return content

    def value(self, name: str, preview: dict[str, Any] | None) -> dict[str, Any] | None:
        """What is shown of a value, given its preview."""
        if preview is None:
            return None
        if not self._values:
            return {"kind": preview["kind"], "size": None, "text": HIDDEN, "cut": True}
        return {**preview, "text": self._text(name, preview["text"])}

    def item(self, name: str, text: str | None) -> str | None:
        """What is shown of the item that a failed element is of."""
        if text is None or not self._values:
            return None
        return self._text(name, printable(text))

    def error(self, name: str, error: dict[str, str] | None) -> dict[str, str] | None:
        """What is shown of an error."""
        if error is None:
            return None
        texts = {key: self._text(name, error.get(key, "")) for key in ("message", "traceback")}
        return {"type": error["type"], **texts}

    def _text(self, name: str, text: str) -> str:
        if self._redact is None or not text:
            return text
        try:
            return printable(self._redact(name, text))
        except Exception:
            logger.exception("redact= failed for node %r; its text is hidden", name)
            return HIDDEN
