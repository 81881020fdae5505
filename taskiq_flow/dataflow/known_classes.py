"""The classes that a graph's tasks, or a broker's, deal with: those that may be restored."""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection

from taskiq_flow.dataflow.tasks import Task, original_function, signature_of
from taskiq_flow.errors import SerializationError
from taskiq_flow.events import Failure
from taskiq_flow.values.classes import Classes, classes_in, kind_of


class ClassesOfTasks(Classes):
    """The classes in the annotations of tasks, and in the modules that define these tasks.

    ``tasks``: called when a class is looked for, as tasks may be added at any time.
    """

    def __init__(self, tasks: Callable[[], Collection[Task]]) -> None:
        super().__init__([Failure])  # any task may take "NAME.failures"
        self._tasks = tasks
        self._seen = 0

    def find(self, module: str, qualname: str, kind: str) -> type:
        """The class of this module, name and kind. Raises ``SerializationError``."""
        try:
            return super().find(module, qualname, kind)
        except SerializationError:
            tasks = {id(task): task for task in self._tasks()}
            if len(tasks) != self._seen:
                self.add(found for task in tasks.values() for found in classes_of(task))
                # Last: large values are decoded in threads, and until now others look as well.
                self._seen = len(tasks)
        return super().find(module, qualname, kind)


def classes_of(task: Task) -> set[type]:
    """The classes in a task's annotations and its module, in their fields and within them."""
    function = original_function(task)
    try:
        signature = signature_of(function)
    except ValueError:  # of a builtin: it has no annotations
        return set()
    annotations = [p.annotation for p in signature.parameters.values()]
    module = sys.modules.get(getattr(function, "__module__", None) or "")
    in_module = [] if module is None else vars(module).values()
    carried = {c for c in list(in_module) if isinstance(c, type) and kind_of(c) is not None}
    return classes_in((*annotations, signature.return_annotation, *carried))
