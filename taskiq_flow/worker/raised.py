"""Errors of tasks as they are sent: with arguments that JSON carries."""

from __future__ import annotations


def as_sent(error: BaseException) -> BaseException:
    """The error, in which a ``UnicodeDecodeError`` is a ``UnicodeError`` with the same text.

    Its arguments hold all of the bytes that were decoded, such as a file. JSON carries no bytes, so
    their ``repr`` would be sent, of which no ``UnicodeDecodeError`` can be made. The errors behind
    ``error``, its ``__cause__`` and its ``__context__``, are replaced in the same way.
    """
    return _as_sent(error, set())


def _as_sent(error: BaseException, seen: set[int]) -> BaseException:
    if id(error) in seen:  # a cause may be a context as well, and its own
        return error
    seen.add(id(error))
    sent = UnicodeError(str(error)) if isinstance(error, UnicodeDecodeError) else error
    cause, context = error.__cause__, error.__context__
    is_suppressed = error.__suppress_context__
    if cause is not None:
        sent.__cause__ = _as_sent(cause, seen)
    if context is not None:
        sent.__context__ = _as_sent(context, seen)
    sent.__suppress_context__ = is_suppressed  # it may be without a cause: ``from None``
    return sent
