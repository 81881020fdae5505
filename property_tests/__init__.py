"""Properties that hold for any graph: random examples held against plain sequential models."""
