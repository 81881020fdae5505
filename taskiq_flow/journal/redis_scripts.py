"""The scripts of the journal on Redis, each of which is one step of the server.

Their keys are those of ``RedisJournal._keys``. A script returns ``DONE`` with what it was asked
for, ``NOT_FOUND`` or ``REFUSED``. After ``REFUSED`` there may follow the owner of the lease and the
milliseconds until it expires.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Sequence
from typing import Any

from taskiq_flow.journal.protocol import EventBatch
from taskiq_flow.journal.summary import RunSummary

DONE, NOT_FOUND, REFUSED = 0, 1, 2

_WRITTEN = [
    *("status", "name", "started", "ended", "seq", "total", "completed", "failed", "skipped"),
    *("host", "pid", "parent", "is_resumable"),
]

# A call that appends something stores its id in the log's state. If its answer is lost in an
# outage, the call is repeated, and the script recognises it by the id.
_APPEND = """
local function append()
    if ARGV[5] == '1' then redis.call('RPUSH', KEYS[1], ARGV[6]) end
    if ARGV[7] ~= '' then
        redis.call('HSET', KEYS[3], 'summary', ARGV[7])
        redis.call('ZADD', KEYS[8], ARGV[8], ARGV[3])
    end
    if ARGV[11] ~= '' then redis.call('HSET', KEYS[3], 'tags', ARGV[11]) end
    if ARGV[10] ~= '' then redis.call('XADD', KEYS[7], ARGV[9], 'lines', ARGV[10]) end
    redis.call('HSET', KEYS[3], 'call', ARGV[4])
    redis.call('HINCRBY', KEYS[3], 'changes', 1)
end
"""
CREATE = f"""{_APPEND}
if redis.call('HGET', KEYS[3], 'call') == ARGV[4] then return {{0}} end
if redis.call('EXISTS', KEYS[3]) == 1 then return {{2}} end
redis.call('SET', KEYS[2], ARGV[1], 'PX', ARGV[2])
redis.call('HSET', KEYS[3], 'owner', ARGV[1])
redis.call('ZADD', KEYS[4], redis.call('INCR', KEYS[5]), ARGV[3])
append()
return {{0}}
"""
ACQUIRE = """
if redis.call('EXISTS', KEYS[3]) == 0 then return {1} end
local owner = redis.call('GET', KEYS[2])
if owner and owner ~= ARGV[1] then return {2, owner, redis.call('PTTL', KEYS[2])} end
redis.call('SET', KEYS[2], ARGV[1], 'PX', ARGV[2])
redis.call('HSET', KEYS[3], 'owner', ARGV[1])
redis.call('HDEL', KEYS[3], 'request')
redis.call('HINCRBY', KEYS[3], 'changes', 1)
return {0}
"""
# The owner in the state has no expiry: an expired lease stays its owner's until another takes it.
_RENEW = """
if redis.call('EXISTS', KEYS[3]) == 0 then return {1} end
if redis.call('HGET', KEYS[3], 'owner') ~= ARGV[1] then return {2} end
redis.call('SET', KEYS[2], ARGV[1], 'PX', ARGV[2])
"""
RENEW = f"{_RENEW}\nreturn {{0}}"
APPEND = f"""{_APPEND}{_RENEW}
if redis.call('HGET', KEYS[3], 'call') ~= ARGV[4] then append() end
return {{0}}
"""
RELEASE = """
if redis.call('HGET', KEYS[3], 'owner') == ARGV[1] then
    redis.call('DEL', KEYS[2])
    redis.call('HDEL', KEYS[3], 'owner')
    redis.call('HINCRBY', KEYS[3], 'changes', 1)
end
return {0}
"""
# A deletion stores its call's id for two minutes, so that the call may be repeated.
DELETE = """
if redis.call('EXISTS', KEYS[3]) == 0 then
    if redis.call('GET', KEYS[6]) == ARGV[2] then return {0} end
    return {1}
end
local owner = redis.call('GET', KEYS[2])
if owner then return {2, owner, redis.call('PTTL', KEYS[2])} end
redis.call('DEL', KEYS[1], KEYS[3], KEYS[7])
redis.call('SET', KEYS[6], ARGV[2], 'PX', 120000)
redis.call('ZREM', KEYS[4], ARGV[1])
redis.call('ZREM', KEYS[8], ARGV[1])
return {0}
"""
REQUEST = """
if redis.call('EXISTS', KEYS[3]) == 0 then return {1} end
redis.call('HSET', KEYS[3], 'request', ARGV[1])
redis.call('HINCRBY', KEYS[3], 'changes', 1)
return {0}
"""
SUMMARY = """
if redis.call('EXISTS', KEYS[3]) == 0 then return {1} end
local state = redis.call('HMGET', KEYS[3], 'summary', 'owner', 'tags')
return {0, redis.call('PTTL', KEYS[2]), state[1] or '', state[2] or '', state[3] or ''}
"""


def call_id() -> bytes:
    """A new id of a call."""
    return secrets.token_bytes(8)


def written(run_id: str, chunk: bytes | None, batch: EventBatch | None) -> list[Any]:
    """The arguments of ``CREATE`` and ``APPEND`` after the lease's: what is to be written."""
    about = [run_id, call_id(), "0" if chunk is None else "1", chunk or b""]
    if batch is None:
        return [*about, "", "", "", "", ""]
    summary = batch.summary
    told = json.dumps({name: getattr(summary, name) for name in _WRITTEN})
    # They are a field of their own, as earlier versions refuse a summary with more than they know.
    tags = json.dumps(summary.tags) if summary.tags else ""
    return [*about, told, repr(summary.started), f"{summary.seq}-0", batch.lines, tags]


def summary(run_id: str, answer: Sequence[Any]) -> RunSummary:
    """The summary in the answer of ``SUMMARY``."""
    _, left, told, owner, tags = answer
    columns: dict[str, Any] = json.loads(told) if told else {"status": "running"}
    columns = {name: columns[name] for name in _WRITTEN if name in columns}  # a later one has more
    return RunSummary(
        run_id,
        owner=owner.decode() or None,
        lease_left=max(left, 0) / 1000,
        tags=json.loads(tags or "[]"),
        **columns,
    )
