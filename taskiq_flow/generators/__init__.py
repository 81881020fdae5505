"""Tasks that are generators: how they are executed, and how their items reach the engine."""
