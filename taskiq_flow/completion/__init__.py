"""How the engine learns that a task has ended: pushed where possible, polled otherwise."""
