"""Joins the error of a fallback to that of the task, so that a traceback shows both."""

from __future__ import annotations

from taskiq_flow.errors import describe

_LONGEST = 100
"""Errors of a chain that are looked at: one that a module keeps may be raised for many nodes."""


def follows(error: BaseException, origin: BaseException) -> bool:
    """Make ``origin`` the context of ``error``, unless ``error`` shows it already.

    Returns whether they are different errors, and not one that was raised again. From a worker,
    that is a copy.
    """
    if _is_same(error, origin):
        return False
    known = {id(other) for other in _shown(origin)}
    last = None
    for other in _shown(error):
        if _is_same(other, origin):
            return True
        if id(other) in known:  # both were raised while it was handled
            break
        last = other
    if last is not None and last.__cause__ is None:
        last.__context__ = origin
        last.__suppress_context__ = False
    return True


def _shown(error: BaseException) -> list[BaseException]:
    """An error, and those that its traceback shows with it."""
    chain = [error]
    while len(chain) < _LONGEST:
        last = chain[-1]
        before = last.__cause__
        if before is None and not last.__suppress_context__:
            before = last.__context__
        if before is None or any(before is other for other in chain):
            break
        chain.append(before)
    return chain


def _is_same(error: BaseException, other: BaseException) -> bool:
    return error is other or (type(error) is type(other) and describe(error) == describe(other))
