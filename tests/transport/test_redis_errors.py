"""Which errors of Redis pass, and which are for good."""

from __future__ import annotations

import pytest
from redis import exceptions

from taskiq_flow.transport.redis_errors import is_full, is_outage, is_without_group


def caused(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


NO_NODE = "Redis Cluster cannot be connected. Please provide at least one reachable node"

PASS = [
    exceptions.ConnectionError("Connection closed by server."),
    exceptions.TimeoutError("Timeout reading from 127.0.0.1:6379"),
    exceptions.MaxConnectionsError("Too many connections"),
    exceptions.BusyLoadingError("Redis is loading the dataset in memory"),
    exceptions.ReadOnlyError("You can't write against a read only replica."),
    exceptions.ClusterDownError("Hash slot not served"),
    exceptions.MasterDownError("Link with MASTER is down"),
    exceptions.TryAgainError("Multiple keys request during rehashing of slot"),
    exceptions.ClusterError("TTL exhausted."),
    exceptions.SlotNotCoveredError('Slot "1" not covered by the cluster.'),
    exceptions.RedisClusterException("All slots are not covered after query all startup_nodes."),
    caused(exceptions.RedisClusterException(NO_NODE), exceptions.ConnectionError("refused")),
    exceptions.ResponseError("NOREPLICAS Not enough good replicas to write."),
    exceptions.ResponseError("MISCONF Redis is configured to save RDB snapshots"),
    exceptions.ResponseError("BUSY Redis is busy running a script. You can only call SCRIPT KILL"),
    exceptions.ResponseError("UNBLOCKED force unblock from blocking operation"),
    exceptions.ResponseError("Error running script (call to f_1): @user_script:2: -READONLY You"),
    ConnectionRefusedError(),
    TimeoutError(),
]

STAY = [
    exceptions.AuthenticationError("invalid username-password pair or user is disabled."),
    exceptions.NoPermissionError("this user has no permissions to run the 'publish' command"),
    exceptions.ResponseError("WRONGTYPE Operation against a key holding the wrong kind of value"),
    exceptions.ResponseError("BUSYGROUP Consumer Group name already exists"),
    exceptions.DataError("Invalid input of type"),
    caused(exceptions.RedisClusterException(NO_NODE), exceptions.AuthenticationError("invalid")),
    exceptions.RedisClusterException("Cluster mode is not enabled on this node"),
    ValueError("LOADING"),
]


@pytest.mark.parametrize("error", PASS, ids=repr)
def test_what_passes_is_an_outage(error: Exception) -> None:
    assert is_outage(error)
    assert not is_full(error)


@pytest.mark.parametrize("error", STAY, ids=repr)
def test_what_stays_is_an_error_at_once(error: Exception) -> None:
    assert not is_outage(error)
    assert not is_full(error)


def test_a_server_without_room_is_full() -> None:
    error = exceptions.OutOfMemoryError("command not allowed when used memory > 'maxmemory'.")
    assert is_full(error)
    assert not is_outage(error)


@pytest.mark.parametrize(
    "text",
    [
        "NOGROUP No such key 'a' or consumer group 'b'",
        "UNBLOCKED the stream key no longer exists",
    ],
)
def test_a_stream_that_is_gone_is_recognised(text: str) -> None:
    assert is_without_group(exceptions.ResponseError(text))
