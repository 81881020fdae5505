"""Pictures: of graphs, laid out by Graphviz, and what all SVG documents have in common."""
