"""Errors of tasks as they are sent: with arguments that JSON carries."""

from __future__ import annotations


def as_sent(error: BaseException) -> BaseException:
    """The error, in which a ``UnicodeDecodeError`` is a ``UnicodeError`` with the same text.

    Its arguments hold all of the bytes that were decoded, such as a file. JSON carries no bytes, so
    their ``repr`` would be sent, of which no ``UnicodeDecodeError`` can be made. The errors behind
    ``error``, its ``__cause__`` and its ``__context__``, are replaced in the same way.
    """
    pending, found = [error], {id(error): error}  # a cause may be a context as well, and its own
    while pending:
        behind = pending.pop()
        for other in (behind.__cause__, behind.__context__):
            if other is not None and id(other) not in found:
                found[id(other)] = other
                pending.append(other)
    sent = {
        key: UnicodeError(str(other))
        for key, other in found.items()
        if isinstance(other, UnicodeDecodeError)
    }
    if not sent:
        return error
    for key, other in found.items():
        is_suppressed = other.__suppress_context__  # it may be without a cause: ``from None``
        for name in ("__cause__", "__context__"):
            behind_it = getattr(other, name)
            # Not by ``setattr``: the class may allow no changes, as a frozen dataclass.
            BaseException.__setattr__(
                sent.get(key, other), name, sent.get(id(behind_it), behind_it)
            )
        BaseException.__setattr__(sent.get(key, other), "__suppress_context__", is_suppressed)
    return sent.get(id(error), error)
