"""The signs and colours of states, and the style of SVG documents, light and dark."""

from __future__ import annotations

from collections.abc import Mapping
from string import Template

SIGNS: Mapping[str, str] = {
    "completed": "✓",
    "failed": "✗",
    "running": "●",
    "queued": "○",
    "cancelled": "⊘",
    "skipped": "–",  # noqa: RUF001 - a dash
    "interrupted": "!",
}
"""A sign for each state, so that none is told by its colour alone. A node that waits has none."""

STATES = (*SIGNS, "pending")
"""All states, in the order in which they are listed."""

_LIGHT = {
    "ink": "#1f2328",
    "quiet": "#59636e",
    "paper": "#ffffff",
    "raised": "#f6f8fa",
    "line": "#d1d9e0",
    "edge": "#8c959f",
    "bad": "#b3261e",
    "waiting": "#d3d9e0",
    "queued": "#e0a82e",
    "running": "#2f7fd6",
    "failed": "#cf3b32",
    "completed": "#2b9a4b",
    "cancelled": "#a2670b",
    "good": "#1a7f37",
    "busy": "#0b62c1",
    "halted": "#8a5600",
}
_DARK = {
    "ink": "#e6edf3",
    "quiet": "#9aa5b1",
    "paper": "#0d1117",
    "raised": "#151b23",
    "line": "#30363d",
    "edge": "#6e7781",
    "bad": "#ff8a80",
    "waiting": "#3d444d",
    "queued": "#c08a17",
    "running": "#4493f8",
    "failed": "#f2554a",
    "completed": "#3fb950",
    "cancelled": "#d29922",
    "good": "#56d364",
    "busy": "#79b8ff",
    "halted": "#e3b341",
}

_COMMON = """
$root text { font: 13px system-ui, sans-serif; fill: $ink; }
$root .title { font-size: 16px; font-weight: 600; }
$root .quiet { fill: $quiet; }
$root .bad { fill: $bad; font-weight: 600; }
$root .paper { fill: $paper; }
"""


def style_element(rules: str, root: str) -> str:
    """A ``<style>`` that follows the reader's dark or light theme.

    ``rules``: with ``$ink`` and so on in place of colours. Each begins with ``$root``, the class of
    the document, so that it leaves the page alone in which the document stands.
    """
    template = Template(_COMMON + rules)
    light, dark = (template.substitute(theme, root=f".{root}") for theme in (_LIGHT, _DARK))
    return f"<style>{light}@media (prefers-color-scheme: dark) {{{dark}}}</style>"
