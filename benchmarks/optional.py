"""Peers in modules of their own, each of which needs a system that may not be installed."""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from typing import Any


def installed_of(package: str, names: Iterable[str]) -> tuple[list[Any], list[str]]:
    """The peers of a package that can be imported, and the names of those that cannot."""
    present: list[Any] = []
    absent: list[str] = []
    for name in names:
        try:
            peer = importlib.import_module(f"{package}.{name}_peer").Peer
        except ImportError:
            absent.append(name)
        else:
            present.append(peer())
    return present, absent
