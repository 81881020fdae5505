"""The signs and colours of states, and the style of SVG documents, light and dark."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from string import Template

from taskiq_flow.drawing.texts import title_element

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

_COLOURS = {
    "ink": ("#1f2328", "#e6edf3"),
    "quiet": ("#59636e", "#9aa5b1"),
    "paper": ("#ffffff", "#0d1117"),
    "raised": ("#f6f8fa", "#151b23"),
    "line": ("#d1d9e0", "#30363d"),
    "edge": ("#8c959f", "#6e7781"),
    "bad": ("#b3261e", "#ff8a80"),
    "waiting": ("#d3d9e0", "#3d444d"),
    "queued": ("#e0a82e", "#c08a17"),
    "running": ("#2f7fd6", "#4493f8"),
    "failed": ("#cf3b32", "#f2554a"),
    "completed": ("#2b9a4b", "#3fb950"),
    "cancelled": ("#a2670b", "#d29922"),
    "good": ("#1a7f37", "#56d364"),
    "busy": ("#0b62c1", "#79b8ff"),
    "halted": ("#8a5600", "#e3b341"),
}
"""Each colour in the light theme and in the dark one."""

_COMMON = """
$root text { font: 13px system-ui, sans-serif; fill: $ink; }
$root .title { font-size: 16px; font-weight: 600; }
$root .quiet { fill: $quiet; }
$root .bad { fill: $bad; font-weight: 600; }
$root .paper { fill: $paper; }
"""


def svg_document(
    root: str, rules: str, title: str, size: tuple[float, float], lines: Iterable[str]
) -> str:
    """An SVG document, which can be scaled, and which follows the reader's dark or light theme.

    ``rules``: its style, with ``$ink`` and so on in place of colours. Each begins with ``$root``,
    the class of the document, so that it leaves the page alone in which the document stands.
    """
    width, height = (f"{side:g}" for side in size)
    template = Template(_COMMON + rules)
    light, dark = (
        template.substitute({name: pair[theme] for name, pair in _COLOURS.items()}, root=f".{root}")
        for theme in (0, 1)
    )
    about = f'viewBox="0 0 {width} {height}" width="{width}" height="{height}"'
    about += ' style="max-width:100%;height:auto" role="img"'
    whole = [
        f'<svg xmlns="http://www.w3.org/2000/svg" class="{root}" {about}>',
        title_element(title),
        f"<style>{light}@media (prefers-color-scheme: dark) {{{dark}}}</style>",
        f'<rect class="paper" width="{width}" height="{height}"/>',
        *lines,
        "</svg>",
    ]
    return "\n".join(whole) + "\n"
