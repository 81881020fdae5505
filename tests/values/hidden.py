"""A class that stands in no annotation and in no module of a task."""

from dataclasses import dataclass


@dataclass
class Hidden:
    x: int
