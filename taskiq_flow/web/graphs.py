"""Where the boxes of a run's graph lie, computed once for each graph."""

from __future__ import annotations

import asyncio
import hashlib
from collections import OrderedDict
from collections.abc import Mapping

from taskiq_flow.dataflow.dag import DAG
from taskiq_flow.drawing.diagram import Diagram, diagram_of_run
from taskiq_flow.drawing.layout import lay_out
from taskiq_flow.giving_way import in_thread
from taskiq_flow.journal.summary import RunSummary
from taskiq_flow.previews import printable
from taskiq_flow.views.run_view import RunView
from taskiq_flow.web.frames import encoded

_MOST_LAYOUTS = 64


class Graphs:
    """Lays graphs out. ``dags``: the graphs that are known, by their names."""

    def __init__(self, dags: Mapping[str, DAG]) -> None:
        self.dags = dags
        self._layouts: OrderedDict[str, bytes] = OrderedDict()
        self._turn = asyncio.Lock()

    async def layout(
        self, view: RunView, run: RunSummary, *, fold: bool | None, unfolded: tuple[str, ...]
    ) -> tuple[bytes, str]:
        """The layout of a run's graph as JSON, and a tag that changes with it.

        It is made in a thread, one after the other, while other requests are answered. Raises
        ``ConfigurationError`` without pygraphviz, ``ValueError`` for too large a drawing.
        """
        diagram = self._diagram(view, run)
        about = f"{diagram!r} {fold} {sorted(unfolded)}"
        tag = hashlib.sha256(about.encode("utf-8", "surrogatepass")).hexdigest()[:32]
        if (found := self._layouts.get(tag)) is None:
            async with self._turn:
                found = self._layouts.get(tag)  # somebody who has waited as well, perhaps
                if found is None:
                    found = await in_thread(_laid_out, diagram, fold, unfolded)
        self._layouts[tag] = found
        self._layouts.move_to_end(tag)
        if len(self._layouts) > _MOST_LAYOUTS:
            self._layouts.popitem(last=False)
        return found, tag

    def _diagram(self, view: RunView, run: RunSummary) -> Diagram:
        """That of the known graph of this name, if the run has its nodes; else as events tell."""
        dag = None if run.name is None else self.dags.get(run.name)
        if dag is not None:
            diagram = dag.diagram()
            if {box.name for box in diagram.boxes} == view.nodes.keys():
                return diagram
        return diagram_of_run(view)


def _laid_out(diagram: Diagram, fold: bool | None, unfolded: tuple[str, ...]) -> bytes:  # noqa: FBT001 - of a thread
    layout = lay_out(diagram, fold=fold, unfolded=unfolded, shows_states=True, apart=True)
    content = layout.to_dict()
    for box in content["boxes"]:
        box["members"] = [printable(name) for name in box["members"]]
    return encoded(content).encode()
