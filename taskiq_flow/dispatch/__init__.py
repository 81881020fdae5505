"""How the call of a task becomes a message of the broker."""
