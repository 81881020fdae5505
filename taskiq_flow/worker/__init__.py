"""The worker's side of a ``FlowMiddleware``: it watches executions and reports to engines."""
