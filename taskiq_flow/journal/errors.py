"""The errors that all journals raise."""

from __future__ import annotations

from taskiq_flow.errors import JournalError, RunLockedError, RunNotFoundError
from taskiq_flow.journal.lease import is_own, readable

HOW_TO_LIST = "list its runs with run_ids()"


def exists(run_id: str) -> JournalError:
    """The error of creating a run that exists."""
    return JournalError(
        f"run {run_id!r} is in the journal already; continue it with engine.resume({run_id!r}), a "
        f"map with MapReduce.map(..., run_id={run_id!r}, resume=True), one of many inputs with "
        f"engine.execute_many(..., run_id={run_id!r}, resume=True), or give the new run another "
        "run_id"
    )


def not_found(run_id: str) -> RunNotFoundError:
    """The error of a run that is not in the journal."""
    return RunNotFoundError(f"the journal has no run {run_id!r}; {HOW_TO_LIST}", run_id=run_id)


def replaced(run_id: str) -> RunNotFoundError:
    """The error of a run that was deleted while it was read, and whose id another run has now."""
    return RunNotFoundError(
        f"run {run_id!r} was deleted while it was read, and another run has its id now; read that "
        "one from its beginning",
        run_id=run_id,
    )


def locked(run_id: str, owner: str, seconds: float) -> RunLockedError:
    """The error of a run whose lease another engine holds, for ``seconds`` more."""
    if is_own(owner):
        return RunLockedError(
            f"run {run_id!r} is locked by this process, which has not closed it: await the run, "
            "cancel it, or read it within contextlib.aclosing(...), as a loop that is left by "
            "break goes on to hold its run"
        )
    return RunLockedError(
        f"run {run_id!r} is locked by {readable(owner)}, whose lease expires in "
        f"{max(seconds, 0.0):.1f} s unless it is renewed; wait until that engine has ended the "
        f"run, or cancel it there; if it was killed, engine.resume({run_id!r}, wait=15) and "
        "taskiq-flow resume --wait 15 wait for the lease"
    )


def in_progress(run_id: str) -> RunLockedError:
    """The error of running a run again while an engine still has it."""
    return RunLockedError(
        f"run {run_id!r} is in progress, and what it has yet to do would be done twice; wait until "
        "it has ended, or cancel it, then run it again"
    )


def taken_over(run_id: str) -> RunLockedError:
    """The error of an engine that has lost its lease."""
    return RunLockedError(
        f"run {run_id!r} was taken over by another engine, as its lease had not been renewed in "
        "time: this process was suspended, or its event loop blocked, for longer than the lease"
    )


def damaged(run_id: str, error: object) -> JournalError:
    """The error of a log that does not read as it was written."""
    return JournalError(
        f"the log of run {run_id!r} is damaged ({error}) and was left unchanged; restore the "
        "journal from a copy, or start the run again under another run_id"
    )
