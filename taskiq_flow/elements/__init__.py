"""The elements of a run's mapped nodes: which of them exist, what they take, and how lists end.

How nodes map is said by ``dataflow/element_plan.py``, once for all runs of a graph. Nothing here
has an event loop or a clock.
"""
