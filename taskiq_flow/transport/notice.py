"""The notices that workers and engines send each other, and the labels that engines add to tasks.

A task's message carries a label that says whom to tell; a worker answers with notices. Each is
sealed with a key that only that label contains (keyed BLAKE2; RFC 7693), so that an engine ignores
what anybody else publishes on its channel. An engine sends notices only to workers that execute a
generator, sealed with the same key.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from functools import lru_cache
from typing import Self

LABEL = "taskiq_flow"
"""The label of every task that an engine with a ``FlowMiddleware`` sends."""

BEGIN_LABEL = "taskiq_flow_begin"
"""The label of tasks whose worker reports that it has begun them: by one of these words."""

TELL_AT_ONCE = "1"
"""It reports that when a task begins, and with each heartbeat."""

TELL_IN_TIME = "2"
"""It reports that with each heartbeat. A task that has ended by then costs no notice more."""

REQUEUE_COUNT = "X-Taskiq-requeue"
"""The label in which taskiq's ``Context.requeue`` counts its calls."""

KEEP_LABEL = "taskiq_flow_keep"
"""The label of tasks whose results somebody may read when the engine that sent them is gone."""


def workers_channel(prefix: str) -> str:
    """The channel on which workers say that they are there. What they say has no content."""
    return f"{prefix}.workers"


def receipts_channel(prefix: str) -> str:
    """A new channel for one worker, on which it hears what engines have of generators' items."""
    return f"{prefix}.receipts.{secrets.token_hex(8)}"


ALWAYS = -1
"""A limit on the size of values that no value meets: all are passed by reference."""

_SEAL = 16  # bytes
_LENGTH = 4  # bytes of the number in front of a task's id


@dataclass(frozen=True, slots=True)
class ReplyTo:
    """Where a worker reports about a task, and how it passes the result on.

    ``channel``: the engine's; ``key``: seals the notices; ``limit``: bytes above which a result
    stays in the result backend and is passed by reference, ``None`` for no such limit;
    ``session``: differs each time that the run is resumed.
    """

    channel: str
    key: bytes
    run_id: str
    limit: int | None = None
    session: str = ""

    @property
    def run(self) -> str:
        """The name of this session of the run, unique among all engines and servers.

        A resumed run is another session: what was revoked of an earlier one stays revoked.
        """
        return f"{self.channel} {self.session} {self.run_id}"

    def task(self, task_id: str) -> str:
        """The name of one task of this session, likewise unique."""
        return f"{self.run} task {task_id}"

    def label(self) -> str:
        """The value of ``LABEL``: plain text, as some brokers carry labels as headers."""
        limit = "" if self.limit is None else str(self.limit)
        run_id = self.run_id.encode().hex()
        return f"{self.channel} {self.key.hex()} {limit} {run_id} {self.session}"

    @classmethod
    @lru_cache(maxsize=1024)
    def of(cls, label: str) -> Self:
        """Read a label. Raises ``ValueError`` if it is invalid."""
        channel, key, limit, run_id, session = label.split(" ")
        return cls(
            channel=channel,
            key=bytes.fromhex(key),
            run_id=bytes.fromhex(run_id).decode(),
            limit=int(limit) if limit else None,
            session=session,
        )


class Kind(Enum):
    """The kinds of notices about a task."""

    RESULT = b"="
    """It has ended with the result in the body, JSON as of ``TaskiqResult``."""

    SAVED = b"s"
    """It has ended, and its result can be read from the result backend."""

    REFERENCE = b"r"
    """It has ended. Its result stays in the result backend, and is passed by reference."""

    NO_RESULT = b"-"
    """It has raised taskiq's ``NoResultError``, which cannot travel as others do."""

    AGAIN = b"+"
    """Another than the engine, such as a retry middleware, has sent it again or will."""

    HERE = b"."
    """The tasks named in the body, a JSON list, are executed by a worker or wait there for it."""

    BEGUN = b"b"
    """The tasks named in the body, a JSON list, are executed by the worker named before it."""

    WAITING = b"w"
    """The tasks named in the body, a JSON list, wait for tasks that no worker takes."""

    ITEMS = b"i"
    """The body has items of the task, a generator, as of ``Batch``."""

    RECEIPT = b"g"
    """From an engine: which items of the task it has and grants, as of ``Receipt``."""

    UNWANTED = b"u"
    """From an engine: nobody wants the items of the task, a generator, any more."""


@dataclass(frozen=True, slots=True)
class Notice:
    """A notice about a task, or about several. ``task_id``: empty for several.

    There, ``BEGUN`` has the name of the worker, which earlier versions left empty.
    """

    kind: Kind
    task_id: str = ""
    body: bytes = b""

    @classmethod
    def of_tasks(cls, kind: Kind, task_ids: Iterable[str], worker: str = "") -> Self:
        """A notice of a kind that names several tasks. ``worker``: of ``BEGUN``."""
        return cls(kind, worker, json.dumps(list(task_ids)).encode())

    @property
    def worker(self) -> str | None:
        """Who executes the tasks, if the notice says that they have begun."""
        return self.task_id if self.kind is Kind.BEGUN else None

    def task_ids(self) -> list[str]:
        """The tasks of a notice of several."""
        task_ids: list[str] = json.loads(self.body)
        return task_ids

    def sealed(self, key: bytes) -> bytes:
        """The notice as bytes, sealed with a key."""
        task_id = self.task_id.encode()
        content = self.kind.value + len(task_id).to_bytes(_LENGTH, "big") + task_id + self.body
        return _seal(content, key) + content

    @staticmethod
    def task_named_in(data: bytes) -> str:
        """The task that a notice is about, if it is one. Says nothing of who has sealed it."""
        start = _SEAL + 1 + _LENGTH
        length = int.from_bytes(data[_SEAL + 1 : start], "big")
        return data[start : start + length].decode()

    @classmethod
    def opened(cls, data: bytes, key: bytes) -> Self | None:
        """The notice in ``data``, or ``None`` if it was not sealed with this key."""
        content = data[_SEAL:]
        if not hmac.compare_digest(_seal(content, key), data[:_SEAL]):
            return None
        kind, length, rest = content[:1], content[1 : 1 + _LENGTH], content[1 + _LENGTH :]
        end = int.from_bytes(length, "big")
        return cls(Kind(kind), rest[:end].decode(), rest[end:])


def _seal(content: bytes, key: bytes) -> bytes:
    return hashlib.blake2b(content, key=key, digest_size=_SEAL).digest()
