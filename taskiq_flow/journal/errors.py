"""What every journal says when it refuses."""

from __future__ import annotations

from taskiq_flow.errors import JournalError, RunLockedError, RunNotFoundError


def exists(run_id: str) -> JournalError:
    """The error of a run that is begun a second time."""
    return JournalError(
        f"run {run_id!r} is in the journal already; go on with it by engine.resume({run_id!r}), or "
        "give the new run another run_id"
    )


def not_found(run_id: str) -> RunNotFoundError:
    """The error of a run that the journal does not know."""
    return RunNotFoundError(
        f"the journal has no run {run_id!r}; its run_ids() are those it has", run_id=run_id
    )


def locked(run_id: str, owner: str, seconds: float) -> RunLockedError:
    """The error of whoever comes second. ``seconds``: until the first one's lease is over."""
    return RunLockedError(
        f"run {run_id!r} is in the hands of {owner}, whose lease ends in {max(seconds, 0.0):.1f} s "
        "unless it is renewed; wait until it has ended, or resume another run"
    )


def taken_over(run_id: str) -> RunLockedError:
    """The error of whoever has lost the lease."""
    return RunLockedError(
        f"run {run_id!r} was taken over by another engine, as its lease had not been renewed in "
        "time: this process was stopped, or its event loop blocked, for longer than that"
    )
