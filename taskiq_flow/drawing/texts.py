"""Texts in SVG documents: escaped, cut to the room that there is."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable
from html import escape

_JOINERS = "\u200d\ufe0f"
_HEAD_SHARE = 0.6
"""How much of what is left of a text stands before the ellipsis in its middle."""
_NARROW = frozenset("iIjlftr.,:;'`|!()[]{}/\\ -")
_BROAD = frozenset("mwMWO@%&#<>=+~—…→←⇉")


def columns(text: str) -> int:
    """How many columns of a terminal a text takes."""
    return sum(map(_columns_of, text))


def width(text: str, size: float) -> float:
    """How wide a text in a font of that size is in pixels, about: fonts differ."""
    return size * sum(map(_share_of, text))


def cut(text: str, columns: float) -> str:
    """The text, cut to so many columns. Letters that belong together are not parted.

    >>> from taskiq_flow.drawing.texts import cut
    >>> cut("reproject", 6)
    'repro…'
    """
    end = _fitting(text, columns, _columns_of)
    return text if end == len(text) else f"{text[:end]}…"


def shortened(text: str, room: float, size: float) -> str:
    """The text, cut in its middle to so many pixels in a font of that size.

    The end of a name often tells it from others.
    """
    if width(text, size) <= room:
        return text
    letters = room / size - _share_of("…")
    end = _fitting(text, letters * _HEAD_SHARE, _share_of)
    start = len(text)
    left = letters - sum(map(_share_of, text[:end]))
    while start > end and (left := left - _share_of(text[start - 1])) >= 0:
        start -= 1
    while start < len(text) and (_is_attached(text[start]) or text[start - 1] in _JOINERS):
        start += 1
    return f"{text[:end]}…{text[start:]}"


def _fitting(text: str, room: float, share: Callable[[str], float]) -> int:
    """Where a text is cut, so that it and an ellipsis fit; its end, if all of it fits."""
    used, end = 0.0, 0
    for place, letter in enumerate(text):
        if used + share("…") <= room:
            end = place
        used += share(letter)
        if used > room:
            break
    else:
        return len(text)
    while end and (text[end - 1] in _JOINERS or _is_attached(text[end])):
        end -= 1
    return end


def isolated(text: str) -> str:
    """The text, whose direction leaves that of what stands around it alone."""
    return f"\u2068{text}\u2069"


def text_element(x: float, y: float, text: str, kind: str = "", anchor: str = "") -> str:
    """A ``<text>``. ``kind``: its class; ``anchor``: what of it is at ``x``, if not its start."""
    about = f' class="{kind}"' if kind else ""
    about += f' text-anchor="{anchor}"' if anchor else ""
    return f'<text x="{x:g}" y="{y:g}"{about}>{escape(text)}</text>'


def title_element(text: str) -> str:
    """A ``<title>``: what is shown where the pointer rests."""
    return f"<title>{escape(text)}</title>"


def _is_attached(letter: str) -> bool:
    return letter in _JOINERS or bool(unicodedata.combining(letter))


def _columns_of(letter: str) -> int:
    if _is_attached(letter):
        return 0
    return 2 if unicodedata.east_asian_width(letter) in "WF" else 1


def _share_of(letter: str) -> float:
    """The width of a letter, as a part of the size of its font."""
    if letter in _NARROW:
        return 0.4
    if letter in _BROAD:
        return 0.95
    if _is_attached(letter):
        return 0.0
    if unicodedata.east_asian_width(letter) in "WF":
        return 1.3
    return 0.7 if letter.isupper() else 0.62
