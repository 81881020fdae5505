"""The classes that the codec may restore, and how it finds them."""

from __future__ import annotations

import dataclasses
import os
import sys
import types
import typing
from collections.abc import Iterable
from enum import Enum
from typing import Any, Self

from pydantic import BaseModel
from taskiq import AsyncTaskiqDecoratedTask

from taskiq_flow.errors import SerializationError

MAIN = "__main__"
"""The module of the main script, in the process that runs it."""


def kind_of(cls: type) -> str | None:
    """How the codec carries objects of a class: the kind, or ``None`` for no way."""
    if issubclass(cls, Enum):
        return "enum"
    if issubclass(cls, BaseException):
        return "exception"
    if issubclass(cls, BaseModel):
        return "model"
    if issubclass(cls, tuple):
        return "named tuple" if isinstance(getattr(cls, "_fields", None), tuple) else None
    if dataclasses.is_dataclass(cls):
        return "dataclass"
    return "attrs class" if "__attrs_attrs__" in vars(cls) else None


def script_name() -> str:
    """The main script's name as taskiq makes it of its path: the names of its tasks begin so."""
    return os.path.normpath(sys.argv[0]).removesuffix(".py").replace(os.sep, ".")


def script() -> str | None:
    """The name by which workers import the main script; ``None`` if it is no module with tasks."""
    name = script_name()
    contents = tuple(vars(sys.modules[MAIN]).values())
    tasks = [task for task in contents if isinstance(task, AsyncTaskiqDecoratedTask)]
    has_tasks = any(task.task_name.startswith(f"{name}:") for task in tasks)
    return name if has_tasks and all(map(str.isidentifier, name.split("."))) else None


def imported(module: str, qualname: str) -> type | None:
    """The class of a module that was imported. Calls nothing of the module's."""
    content: Any = sys.modules.get(module)
    for name in qualname.split("."):
        content = (
            content.__dict__.get(name) if isinstance(content, (types.ModuleType, type)) else None
        )
    if not isinstance(content, type):
        return None
    exact = content.__module__ == module and content.__qualname__ == qualname
    return content if exact else None


class Classes:
    """The classes that may be restored. Exceptions may be restored wherever they are defined."""

    def __init__(self, classes: Iterable[type] = ()) -> None:
        self._known: dict[tuple[str, str], type] = {}
        self._is_open = False
        self.add(classes)

    @classmethod
    def imported(cls) -> Self:
        """All classes of the modules that this process has imported, now and later."""
        classes = cls()
        classes._is_open = True
        return classes

    def add(self, classes: Iterable[type]) -> None:
        """Let these classes be restored too."""
        self._known.update({(cls.__module__, cls.__qualname__): cls for cls in classes})

    def find(self, module: str, qualname: str, kind: str) -> type:
        """The class of this module, name and kind. Raises ``SerializationError``.

        One of a module that was not imported may be the main script's own.
        """
        if module not in sys.modules and module == script():
            module = MAIN
        known = self._known.get((module, qualname))
        found = known or imported(module, qualname)
        name = f"{module}.{qualname}"[:200]
        if found is None:
            raise SerializationError(
                f"class {name} is not imported in this process; import its module "
                "here, or on workers in the module of the task"
            )
        if kind_of(found) != kind:
            raise SerializationError(f"class {name} is no {kind} in this process")
        if known is None and not self._is_open and kind != "exception":
            raise SerializationError(
                f"class {name} is not among the classes that may be restored here; name it in an "
                "annotation of a task, register it with the codec, or use classes='imported'"
            )
        return found


def classes_in(annotation: Any) -> set[type]:
    """The classes in an annotation, in their fields and within them, that the codec carries."""
    found: set[type] = set()
    seen: set[int] = set()
    pending = [annotation]
    while pending:
        part = pending.pop()
        if id(part) in seen:
            continue
        seen.add(id(part))
        pending.extend(_parts(part))
        if isinstance(part, type) and not isinstance(part, types.GenericAlias) and kind_of(part):
            found.add(part)
            pending.extend(_annotations(part))
            pending.extend(_nested(part))
    return found


def _parts(annotation: Any) -> list[Any]:
    """The parts of an annotation, such as the ``int`` of ``list[int]``."""
    if isinstance(annotation, (list, tuple)):
        return list(annotation)
    if isinstance(annotation, Enum):
        return [type(annotation)]  # a member in a Literal
    if isinstance(annotation, typing.TypeVar):
        return [annotation.__bound__, *annotation.__constraints__]
    parts = [*typing.get_args(annotation), typing.get_origin(annotation)]
    parts.append(getattr(annotation, "__supertype__", None))  # NewType
    if type(annotation).__name__ == "TypeAliasType":
        parts.append(annotation.__value__)
    if isinstance(annotation, type) and typing.is_typeddict(annotation):
        parts.extend(_annotations(annotation))
    return parts


def _nested(cls: type) -> list[type]:
    """The classes that are defined within a class."""
    within = f"{cls.__qualname__}."
    parts = [part for part in vars(cls).values() if isinstance(part, type)]
    return [part for part in parts if part.__qualname__.startswith(within)]


def _annotations(cls: type) -> list[Any]:
    """The types of a class's fields. One that cannot be evaluated hides none of the others."""
    if cls is BaseModel:
        return []
    if issubclass(cls, BaseModel):
        generic = cls.__pydantic_generic_metadata__
        return [
            *(field.annotation for field in cls.model_fields.values()),
            *generic["args"],
            generic["origin"],
        ]
    try:
        return list(typing.get_type_hints(cls, include_extras=True).values())
    except Exception:  # whatever evaluating the user's annotations raises
        return [_evaluated(base, text) for base in cls.__mro__ for text in _own(base).values()]


def _own(cls: type) -> dict[str, Any]:
    return dict(getattr(cls, "__annotations__", {})) if cls is not object else {}


def _evaluated(cls: type, annotation: Any) -> Any:
    if not isinstance(annotation, str):
        return annotation
    names = vars(sys.modules.get(cls.__module__, types))
    try:
        return eval(annotation, dict(names), dict(vars(cls)))  # noqa: S307 - the user's own code
    except Exception:  # a name that only a type checker imports
        return None
