"""Commands of many tasks to Redis: sent together, each answered for itself."""

from __future__ import annotations

import asyncio
import gc
import warnings
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import DataError, ReadOnlyError, ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

from taskiq_flow.transport.redis_batches import MOST_BYTES, Batches
from taskiq_flow.transport.redis_connection import OwnConnection
from tests.servers.redis import RedisServer, newest_program
from tests.waiting import until

pytestmark = pytest.mark.skipif(not RedisServer.is_available(), reason="no redis-server")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    with RedisServer(tmp_path, appendonly=False) as server:
        yield server


@pytest.fixture
async def client(server: RedisServer) -> AsyncIterator[Any]:
    async with asyncio.timeout(30), Redis.from_url(server.url) as client:
        yield client


@pytest.fixture
async def batches(client: Any) -> AsyncIterator[Batches]:
    async with aclosing(Batches(client)) as batches:
        yield batches


KILL_ALL = ("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "no")
"""Closes all connections, also that on which it comes."""


async def connections(client: Any) -> int:
    """How many connections the server has accepted so far."""
    info = await client.info("stats")
    return int(info["total_connections_received"])


def pushes(batches: Batches, numbers: range) -> list[asyncio.Task[Any]]:
    return [
        asyncio.create_task(batches.execute("RPUSH", "list", number, size=1)) for number in numbers
    ]


async def test_commands_of_many_tasks_take_one_connection_and_stay_in_order(
    client: Any, batches: Batches
) -> None:
    before = await connections(client)
    assert await asyncio.gather(*pushes(batches, range(200))) == [*range(1, 201)]
    assert await asyncio.gather(*pushes(batches, range(200, 210))) == [*range(201, 211)]
    assert [int(item) for item in await client.lrange("list", 0, -1)] == [*range(210)]
    assert await connections(client) == before + 1


async def test_an_error_is_that_of_its_own_command_only(client: Any, batches: Batches) -> None:
    await client.set("text", "")
    commands = [("RPUSH", "list", 1), ("RPUSH", "text", 1), ("RPUSH", "list", 2)]
    answers = await asyncio.gather(
        *(batches.execute(*command, size=1) for command in (commands[0], *commands)),
        return_exceptions=True,
    )
    assert [answers[0], answers[1], answers[3]] == [1, 2, 3]
    assert isinstance(answers[2], ResponseError)


@pytest.mark.parametrize("encoding", ["utf-8", "latin-1"])
async def test_arguments_are_written_as_the_client_writes_them(
    server: RedisServer, encoding: str
) -> None:
    client: Any = Redis.from_url(server.url, encoding=encoding)
    async with client, aclosing(Batches(client)) as batches:
        values = ["\u00e9", b"\0\r\n", bytearray(b"x"), memoryview(b"y"), 3, 0.1, 1e300]
        for value in values:
            await batches.execute("RPUSH", "own", value, size=1)
            await client.rpush("client's", value)
        assert await client.lrange("own", 0, -1) == await client.lrange("client's", 0, -1)
        with pytest.raises(DataError, match="NoneType"):
            await batches.execute("RPUSH", "own", None, size=1)
        assert await batches.execute("LLEN", "own", size=0) == len(values)


async def test_a_command_whose_task_was_cancelled_before_is_not_sent(
    client: Any, batches: Batches
) -> None:
    sending = pushes(batches, range(4))
    await asyncio.sleep(0)
    sending[2].cancel()
    answers = await asyncio.gather(*sending, return_exceptions=True)
    assert isinstance(answers[2], asyncio.CancelledError)
    assert await client.lrange("list", 0, -1) == [b"0", b"1", b"3"]


async def test_others_are_sent_if_the_first_task_is_cancelled(
    client: Any, batches: Batches
) -> None:
    sending = pushes(batches, range(3))
    await asyncio.sleep(0)
    sending[0].cancel()
    answers = await asyncio.gather(*sending, return_exceptions=True)
    assert isinstance(answers[0], asyncio.CancelledError)
    assert not isinstance(answers[1], BaseException)
    assert (await client.lrange("list", 0, -1))[-2:] == [b"1", b"2"]
    assert await batches.execute("LLEN", "list", size=0) >= 2


async def test_all_commands_of_a_batch_fail_with_its_connection(
    client: Any, batches: Batches
) -> None:
    commands = [("RPUSH", "list", 0), KILL_ALL, ("RPUSH", "list", 1)]
    answers = await asyncio.gather(
        *(batches.execute(*command, size=1) for command in commands), return_exceptions=True
    )
    assert answers[0] == 1
    assert [type(answer) for answer in answers[1:]] == [RedisConnectionError] * 2
    assert await batches.execute("RPUSH", "list", 2, size=1) == 2


async def test_a_large_command_does_not_take_part(batches: Batches) -> None:
    value = b"x" * (MOST_BYTES + 1)
    blocked = asyncio.create_task(batches.execute("BLPOP", "nothing", 0, size=0))
    await asyncio.sleep(0)
    assert await batches.execute("SET", "large", value, size=len(value))
    blocked.cancel()


async def test_a_batch_has_at_most_so_many_bytes(batches: Batches) -> None:
    half = b"x" * (MOST_BYTES // 2)
    answers = await asyncio.gather(
        *(batches.execute("RPUSH", "list", half, size=len(half)) for _ in range(6))
    )
    assert answers == [1, 2, 3, 4, 5, 6]


async def test_a_connection_that_the_server_has_closed_is_made_anew(
    client: Any, batches: Batches
) -> None:
    """As a server does whose ``timeout`` is over, before the next command comes."""
    assert await batches.execute("RPUSH", "list", 0, size=1) == 1
    ids = {int(connection["id"]) for connection in await client.client_list()}
    own = ids - {await client.client_id()}
    for number in own:
        await client.client_kill_filter(_id=number)
    await asyncio.sleep(0.05)  # until the end of the connection has come
    assert await batches.execute("RPUSH", "list", 1, size=1) == 2


async def test_a_connection_that_was_idle_for_long_is_made_anew(
    server: RedisServer, client: Any
) -> None:
    """As it may be dead without a sign: the client's ``health_check_interval`` says when."""
    before = await connections(client)
    careful = Redis.from_url(server.url, health_check_interval=0.3)
    async with careful, aclosing(Batches(careful)) as batches:
        assert await batches.execute("BLPOP", "nothing", 0.4, size=0) is None
        assert await batches.execute("PING", size=0)  # an answer has come just now
        assert await connections(client) == before + 1
        await asyncio.sleep(0.4)
        assert await batches.execute("PING", size=0)
    assert await connections(client) == before + 2


def test_another_event_loop_gets_a_connection_of_its_own(server: RedisServer) -> None:
    """As where a program calls ``asyncio.run`` twice with one broker that it does not shut down."""
    batches = Batches(Redis.from_url(server.url))

    async def leaving_one_unanswered(batches: Batches, number: int) -> Any:
        answer = await batches.execute("RPUSH", "list", number, size=1)
        batches.submit("BLPOP", "nothing", 0, size=0)
        batches.submit("RPUSH", "list", "behind it", size=1)
        return answer

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # it is not shut down, indeed
        assert [asyncio.run(leaving_one_unanswered(batches, n)) for n in range(2)] == [1, 2]
        del batches
        gc.collect()


async def test_commands_that_wait_when_it_is_closed_fail_and_open_no_connection(
    client: Any, batches: Batches
) -> None:
    answers = [batches.submit("BLPOP", "nothing", 0, size=0) for _ in range(2)]
    answers.append(batches.submit("RPUSH", "list", 0, size=1))
    await batches.aclose()
    assert [type(answer.exception()) for answer in answers] == [RedisConnectionError] * 3
    before = await connections(client)
    assert await batches.execute("RPUSH", "list", 1, size=1) == 1
    assert await connections(client) == before + 1


@pytest.mark.filterwarnings("ignore:unclosed", "ignore:loop is closed")
def test_it_can_be_closed_when_its_event_loop_has_ended(server: RedisServer) -> None:
    batches = Batches(Redis.from_url(server.url))
    for _ in range(2):
        assert asyncio.run(batches.execute("ECHO", "here", size=0)) == b"here"
        asyncio.run(batches.aclose())
        gc.collect()


async def test_a_server_that_may_not_be_written_to_any_more_is_looked_for_again(
    client: Any, batches: Batches
) -> None:
    """As after a failover, where sentinels or a name lead to another server then."""
    await batches.execute("RPUSH", "list", 0, size=1)
    before = await connections(client)
    await client.replicaof("127.0.0.1", 1)
    refused = await asyncio.gather(*pushes(batches, range(3)), return_exceptions=True)
    assert [type(answer) for answer in refused] == [ReadOnlyError] * 3
    await client.replicaof("NO", "ONE")
    assert await batches.execute("RPUSH", "list", 1, size=1) == 2
    assert await connections(client) > before


@pytest.mark.parametrize("program", [None, newest_program()], ids=["environment", "newest"])
async def test_such_a_server_is_left_if_it_refuses_the_command_of_a_script(
    tmp_path: Path, program: str | None
) -> None:
    """Redis 6 says so within a longer text, for which the client has no error of its own."""
    with RedisServer(tmp_path, appendonly=False, program=program) as server:
        client: Any = Redis.from_url(server.url)
        async with client, aclosing(Batches(client)) as batches:
            await client.replicaof("127.0.0.1", 1)
            script = "return redis.call('SET', KEYS[1], 'value')"
            number = await batches.execute("CLIENT", "ID", size=0)
            with pytest.raises(ResponseError, match="read only replica"):
                await batches.execute("EVAL", script, 1, "key", size=1)
            assert await batches.execute("CLIENT", "ID", size=0) != number


async def test_a_command_is_written_before_the_event_loop_has_its_turn(
    server: RedisServer, batches: Batches
) -> None:
    await batches.execute("PING", size=0)
    answer = batches.submit("RPUSH", "list", 1, size=1)
    with server.client() as other:  # which blocks the event loop
        assert other.blpop(["list"], timeout=5) == ("list", "1")
    assert await answer == 1


async def test_what_the_server_says_unasked_is_no_answer(server: RedisServer, client: Any) -> None:
    newer = Redis.from_url(server.url, protocol=3)
    async with newer, aclosing(Batches(newer)) as batches:
        await batches.execute("CLIENT", "TRACKING", "ON", "BCAST", size=0)
        before = await connections(client)
        for number in range(1, 4):
            await client.set("watched", number)
            assert await batches.execute("RPUSH", "list", number, size=1) == number
        assert await connections(client) == before


async def test_answers_are_decoded_where_the_client_decodes(server: RedisServer) -> None:
    decoding = Redis.from_url(server.url, decode_responses=True)
    async with decoding, aclosing(Batches(decoding)) as batches:
        await batches.execute("SET", "text", "\u00e9", size=2)
        assert await batches.execute("GET", "text", size=0) == "\u00e9"
        await batches.execute("SET", "bytes", b"\xff", size=1)
        with pytest.raises(UnicodeDecodeError):  # which is no outage
            await batches.execute("GET", "bytes", size=0)
        assert await batches.execute("GET", "text", size=0) == "\u00e9"


async def test_a_server_at_a_unix_socket_is_spoken_to(tmp_path: Path) -> None:
    socket = tmp_path / "socket"
    with RedisServer(tmp_path, appendonly=False, arguments=("--unixsocket", str(socket))):
        client = Redis.from_url(f"unix://{socket}")
        async with client, aclosing(Batches(client)) as batches:
            assert await batches.execute("RPUSH", "list", 0, size=1) == 1


@pytest.mark.parametrize("turns", [1, 3, 8])
async def test_a_caller_may_give_up_while_the_connection_is_made(client: Any, turns: int) -> None:
    await client.ping()
    async with aclosing(OwnConnection(client)) as connection:
        asking = asyncio.create_task(connection.execute_command("ECHO", "first"))
        for _ in range(turns):
            await asyncio.sleep(0)
        asking.cancel()
        await asyncio.wait([asking])
        assert asking.cancelled()
        assert await connection.execute_command("ECHO", "second") == b"second"

        async def are_two() -> bool:
            return len(await client.client_list()) == 2

        await until(are_two, "there are the client's connection and the second one")


async def test_an_answer_that_does_not_come_is_not_taken_for_the_next(server: RedisServer) -> None:
    hasty = Redis.from_url(server.url, socket_timeout=0.5)
    async with hasty, aclosing(Batches(hasty)) as batches:
        with pytest.raises(RedisTimeoutError, match=r"not answered within 0\.5 s"):
            await batches.execute("BLPOP", "later", 0, size=0)
        assert await batches.execute("RPUSH", "later", 1, size=1) == 1
        cancelled = asyncio.create_task(batches.execute("BLPOP", "nothing", 0, size=0))
        await asyncio.sleep(0.05)  # it waits for the answer
        cancelled.cancel()
        await asyncio.wait([cancelled])
        assert await batches.execute("LLEN", "later", size=0) == 1


async def test_a_server_that_is_not_there_is_an_error_at_once(tmp_path: Path) -> None:
    client = Redis.from_url(f"unix://{tmp_path / 'nothing'}")
    async with client, aclosing(Batches(client)) as batches, asyncio.timeout(20):
        for _ in range(2):
            with pytest.raises(RedisConnectionError):
                await batches.execute("PING", size=0)
