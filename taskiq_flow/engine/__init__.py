"""One run of one graph, from its first node to its end. Only this folder starts nodes."""
