"""Values on their way to a reader, while later nodes still need them as they are."""

from __future__ import annotations

import copy
from typing import Any

NEVER_CHANGE = frozenset({type(None), bool, int, float, complex, str, bytes})
"""Types of values that nobody can change, so that everybody may have them."""


def copied(value: Any) -> Any:
    """A deep copy, or the value itself if it cannot be copied.

    What cannot be copied cannot be sent to another process either: it only ever reaches a later
    node through a formatter of the user's that hands objects on as they are, to be shared.
    """
    try:
        return copy.deepcopy(value)
    except Exception:  # whatever an object's own copying raises
        return value
