"""``FlowMiddleware`` under the name that it has for those who come from pipelines."""

from __future__ import annotations

from taskiq_flow.middleware import FlowMiddleware


class PipelineMiddleware(FlowMiddleware):
    """A ``FlowMiddleware``: pipelines need no other. One of the two is enough for a broker.

    >>> InMemoryBroker().with_middlewares(PipelineMiddleware()).middlewares
    [<PipelineMiddleware of InMemoryBroker, prefix 'taskiq_flow'>]
    """
