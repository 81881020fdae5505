"""Results of nodes that are kept, and used again for the same call."""
