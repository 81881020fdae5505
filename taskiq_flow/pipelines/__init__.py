"""Pipelines: another way to declare graphs. Each one compiles to a graph, which an engine runs."""
