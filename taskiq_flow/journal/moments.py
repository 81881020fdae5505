"""Moments and periods as users write them, on the command line and over HTTP."""

from __future__ import annotations

import re
from datetime import datetime, timedelta

_UNITS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400, "w": 7 * 86_400}


def period_of(text: str) -> timedelta:
    """A time such as ``90s``, ``15m``, ``2h``, ``30d`` or ``4w``. Raises ``ValueError``."""
    found = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)([smhdw])", text.strip())
    try:
        if found is not None:
            return timedelta(seconds=float(found[1]) * _UNITS[found[2]])
    except OverflowError:
        pass
    raise ValueError(f"{text!r} is no period; write 90s, 15m, 2h, 30d or 4w")


def moment_of(text: str) -> datetime:
    """A date of ISO 8601, by default in local time, or a period before now: ``2h``.

    Raises ``ValueError``.
    """
    try:
        return datetime.fromisoformat(text).astimezone()
    except (ValueError, OverflowError, OSError):
        pass
    try:
        return datetime.now().astimezone() - period_of(text)
    except (ValueError, OverflowError):
        raise ValueError(
            f"{text!r} is no time; write 2h for two hours ago, or a date such as 2026-11-26"
        ) from None
