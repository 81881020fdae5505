"""The worker's side of a ``FlowMiddleware``: it executes tasks and tells engines how they end."""
