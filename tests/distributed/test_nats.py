"""What workers over NATS do when the server has lost its streams, and with what is none of ours."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
from collections.abc import AsyncIterator, Iterable
from contextlib import aclosing
from functools import partial
from pathlib import Path
from typing import Any

import nats
import pytest
from nats.errors import ConnectionReconnectingError
from nats.js.api import ConsumerConfig, ObjectStoreConfig, RetentionPolicy, StreamConfig
from taskiq import AsyncBroker, BrokerMessage, TaskiqResult
from taskiq_nats import (
    NATSObjectStoreResultBackend,
    PullBasedJetStreamBroker,
    PushBasedJetStreamBroker,
)

from taskiq_flow import (
    ConfigurationError,
    DAGBuilder,
    ExecutionEngine,
    NodeFailedError,
)
from taskiq_flow.reconnect import retry_through_outage
from taskiq_flow.transport import nats_broker
from taskiq_flow.transport.deliveries import Deliveries
from taskiq_flow.transport.nats import GONE_AFTER, NatsNotifier
from taskiq_flow.transport.nats_acknowledged import remove_acknowledged
from taskiq_flow.transport.nats_broker import (
    JetStreamListener,
    backlog_of,
    inventory_of,
    is_outage,
    kick_of,
    notifier_of,
    steady,
    steady_reads,
    steady_results,
)
from taskiq_flow.values.references import handle_of
from tests.distributed import app
from tests.distributed.app import Settings, started, task
from tests.distributed.conftest import Farm
from tests.distributed.watching import Notes, check_cancelling, inputs, many, until_empty
from tests.servers.nats import NatsServer
from tests.waiting import LONGEST, until


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[NatsServer]:
    with NatsServer(tmp_path) as server:
        yield server


class Listening:
    """A broker that listens, and what has come."""

    def __init__(self, broker: AsyncBroker) -> None:
        self.broker = broker
        self.came: set[bytes] = set()
        self.times_forgotten = 0
        self.acknowledges = True
        self._listener = JetStreamListener(broker)
        self._listener.deliveries = Forgetful(broker, self)

    async def listen(self) -> None:
        async with aclosing(self._listener.listen()) as messages:
            async for message in messages:
                assert not isinstance(message, bytes)
                self.came.add(message.data)
                ack: Any = message.ack
                if self.acknowledges:
                    await ack()

    async def hear(self, *bodies: bytes) -> None:
        """Send messages, and return when they have come."""
        kick = kick_of(self.broker)
        for body in bodies:
            message = BrokerMessage(task_id="", task_name="", message=body, labels={})
            await retry_through_outage(partial(kick, message), is_outage, "sending")
        await until(lambda: self.came.issuperset(bodies), f"{bodies} came")


class Forgetful(Deliveries):
    """Counts how often all that was held is let go."""

    def __init__(self, broker: AsyncBroker, listening: Listening) -> None:
        super().__init__(broker)
        self._listening = listening

    def clear(self) -> None:
        self._listening.times_forgotten += 1


async def test_what_is_no_run_among_the_revoked_is_passed_over(server: NatsServer) -> None:
    heard: list[str] = []
    notifier = NatsNotifier(server.url, "taskiq_flow")
    await notifier.open()
    await notifier.subscribe_to_revocations(heard.append)
    async with await nats.connect(server.url) as client:
        bucket = await client.jetstream().key_value("taskiq_flow_revoked")
        await bucket.put("hello", b"")
    await notifier.revoke("channel run")
    await until(lambda: heard == ["channel run"], "it was heard of")
    await notifier.aclose()


async def test_whoever_hears_of_revocations_leaves_no_consumer(server: NatsServer) -> None:
    """One that is killed leaves it for a minute."""
    notifier = NatsNotifier(server.url, "taskiq_flow")
    await notifier.open()
    for _ in range(3):
        await notifier.subscribe_to_revocations(lambda _: None)
    async with await nats.connect(server.url) as client:
        context = client.jetstream()
        listening = await context.consumers_info("KV_taskiq_flow_revoked")
        assert [info.config.inactive_threshold for info in listening] == [GONE_AFTER] * 3
        await notifier.aclose()
        assert await context.consumers_info("KV_taskiq_flow_revoked") == []


async def test_whoever_subscribes_as_the_connection_breaks_is_told_at_once(
    server: NatsServer,
) -> None:
    """The client would wait for an answer that never comes, longer than a run waits to begin."""
    heard: list[bytes] = []
    notifier = NatsNotifier(server.url, "taskiq_flow")
    await notifier.open()
    server.suspend()
    subscribing = asyncio.ensure_future(notifier.subscribe("channel", heard.append))
    await until(lambda: notifier._client._pongs, "it waits for the server's answer")  # type: ignore[union-attr]
    await asyncio.to_thread(server.kill)
    with pytest.raises(ConnectionReconnectingError):
        await subscribing
    await asyncio.to_thread(server.start)
    await retry_through_outage(
        lambda: notifier.subscribe("channel", heard.append), is_outage, "it is starting"
    )
    await notifier.publish("channel", b"once")
    await notifier.publish("channel", b"more")
    await until(lambda: b"more" in heard, "it is heard")
    assert heard == [b"once", b"more"]
    await notifier.aclose()


@pytest.mark.parametrize("kind", [PullBasedJetStreamBroker, PushBasedJetStreamBroker])
@pytest.mark.parametrize("keep_data", [True, False])
async def test_a_broker_listens_on(kind: Any, keep_data: bool, server: NatsServer) -> None:
    """Also one that was to wait for a message for ever; and users' own callbacks are called."""
    reconnected = asyncio.Event()

    async def note() -> None:
        reconnected.set()

    name = {"subject": "a", "stream_name": "a", "durable": "a", "queue": "a"}
    consumer = ConsumerConfig(durable_name="a")
    broker = kind(server.url, **name, consumer_config=consumer, reconnected_cb=note)
    listening = Listening(broker)
    await broker.startup()
    task = asyncio.create_task(listening.listen())
    for number in range(3):
        await listening.hear(b"x%d" % number, b"y%d" % number)
        assert listening.times_forgotten == (0 if keep_data else number)
        reconnected.clear()
        server.kill()
        server.restart(keep_data=keep_data)
        await asyncio.wait_for(reconnected.wait(), LONGEST)
    task.cancel()
    await asyncio.wait([task])
    await broker.shutdown()


async def test_acknowledged_messages_with_which_a_server_comes_back_are_removed(
    server: NatsServer,
) -> None:
    """As one does that was killed when the consumer's state was written, and no deletion."""
    bodies = {b"%d" % number for number in range(50)}
    async with listening_to_a_work_queue(server, bodies) as listening:
        await until(lambda: listening.came == bodies, "all came")
        await until(partial(are_acknowledged, listening.broker), "all are acknowledged")
    server.stop()  # which writes all
    shutil.rmtree(server.data / MESSAGES)
    shutil.copytree(server.folder / "copy", server.data / MESSAGES)
    server.start()
    assert "Restored 50 messages for stream '$G > a'" in server.process.log_since_start()
    async with listening_to_a_work_queue(server) as listening:
        await listening.hear(b"another")
        await until(partial(has_messages, listening.broker, "a", 0), "the others are removed")
        assert listening.came == {b"another"}


async def test_a_message_with_the_number_of_one_that_is_held_is_another_one(
    server: NatsServer,
) -> None:
    """The server has lost its messages and not its consumer, and counts from 1 again."""
    async with listening_to_a_work_queue(server) as listening:
        await listening.hear(b"first")
        listening.acknowledges = False
        await listening.hear(b"held")
        server.stop()
        await until(lambda: not listening.broker.client.is_connected, "the server is missed")
        shutil.rmtree(server.data / MESSAGES)
        (server.data / MESSAGES).mkdir()
        server.start()
        await until(lambda: listening.broker.client.is_connected, "the server is back")
        await listening.hear(b"first of the new ones", b"second")
        assert listening.times_forgotten == 0


async def test_messages_that_the_server_has_given_up_are_left_to_the_user(
    server: NatsServer,
) -> None:
    broker = work_queue(server, ConsumerConfig(durable_name="a", max_deliver=1, ack_wait=0.1))
    await broker.startup()
    await broker.js.publish("a", b"given up")
    await broker.consumer.fetch()
    await until(partial(are_acknowledged, broker), "it is given up")
    await broker.js.publish("a", b"acknowledged")
    (message,) = await broker.consumer.fetch()
    await message.ack_sync()
    assert (await broker.consumer.consumer_info()).ack_floor.stream_seq == 2
    await remove_acknowledged(broker)
    assert (await broker.js.stream_info("a")).state.messages == 1
    await broker.shutdown()


async def test_messages_that_were_begun_in_vain_twice_are_taken_one_at_a_time(
    server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The others are given back, so that their deliveries are not counted if that one kills."""
    monkeypatch.setattr(nats_broker, "HELD_BACK", 0.05)
    broker = work_queue(server)
    await broker.startup()

    async def newest() -> int:
        return int((await broker.js.stream_info("a")).state.last_seq)

    bodies = [b"0", b"1", b"2"]
    for body in bodies:
        await broker.js.publish("a", body, headers={nats_broker._IN_VAIN: "2"})
    async with aclosing(JetStreamListener(broker).listen()) as messages:
        message: Any = await anext(messages)
        came = [message.data]
        for _ in bodies[1:]:
            before, following = await newest(), asyncio.ensure_future(anext(messages))
            while await newest() == before:  # which a copy is that was given back
                await asyncio.sleep(0.01)
            assert not following.done()
            await message.ack()
            message = await following
            came.append(message.data)
        await message.ack()
    assert sorted(came) == bodies
    await broker.shutdown()


async def are_acknowledged(broker: Any) -> bool:
    """Whether the server waits for no acknowledgement."""
    return not (await broker.consumer.consumer_info()).num_ack_pending


async def has_messages(broker: Any, stream: str, count: int) -> bool:
    state = (await broker.js.stream_info(stream)).state
    return bool(state.messages == count)


MESSAGES = "jetstream/$G/streams/a/msgs"


def work_queue(server: NatsServer, consumer: ConsumerConfig | None = None) -> Any:
    return PullBasedJetStreamBroker(
        server.url,
        subject="a",
        stream_name="a",
        durable="a",
        stream_config=StreamConfig(retention=RetentionPolicy.WORK_QUEUE),
        consumer_config=consumer,
        pull_consume_timeout=0.5,
        reconnect_time_wait=0.1,
    )


@contextlib.asynccontextmanager
async def listening_to_a_work_queue(
    server: NatsServer, bodies: Iterable[bytes] = ()
) -> AsyncIterator[Any]:
    """Publish messages, copy the server's file of them, and listen."""
    broker = work_queue(server)
    listening = Listening(broker)
    await broker.startup()
    for body in bodies:
        await broker.js.publish("a", body)
    if bodies:
        shutil.copytree(server.data / MESSAGES, server.folder / "copy")
    task = asyncio.create_task(listening.listen())
    yield listening
    task.cancel()
    await asyncio.wait([task])
    await broker.shutdown()


async def test_a_stream_that_is_full_is_waited_for(farm: Farm, tmp_path: Path) -> None:
    stream = json.dumps({"max_msgs": 5, "discard": "new"})
    settings = farm.settings("nats", queue="narrow", idle_timeout=20_000, stream=stream)
    notes = Notes(tmp_path)
    async with started(settings) as broker:
        engine = ExecutionEngine(broker, many(broker, app.noted, 30))
        run = asyncio.ensure_future(engine.execute(inputs(notes, 30, 0.0)))
        await until(partial(has_messages, broker, settings.queue, 5), "the stream is full")
        with farm.workers(settings):
            assert len(await run) == 30
    assert len(notes.of("begin")) == 30


async def test_a_message_above_the_servers_limit_is_an_error_at_once(farm: Farm) -> None:
    """No worker is needed for that."""
    async with started(farm.settings("nats", queue="large")) as broker:
        dag = DAGBuilder().node(task(broker, app.measure)).build()
        engine = ExecutionEngine(broker, dag, run_timeout=LONGEST)
        with pytest.raises(NodeFailedError, match=r"pass_by=65536\), or raise the .*max_payload"):
            await engine.execute({"blob": "x" * 2_000_000})


async def test_results_that_the_server_has_lost_are_begun_anew_with_their_time_to_live(
    server: NatsServer,
) -> None:
    async with await nats.connect(server.url) as client:
        config = ObjectStoreConfig(ttl=3600, description="of the shop")
        await client.jetstream().create_object_store("taskiq_results", config)
        backend: Any = NATSObjectStoreResultBackend(server.url)
        steady_results(backend)
        await backend.startup()
        result = TaskiqResult[int](is_err=False, return_value=1, execution_time=0.0)
        await backend.set_result("a", result)
        await client.jetstream().delete_object_store("taskiq_results")
        await backend.set_result("b", result)
        assert (await backend.get_result("b")).return_value == 1
        await backend.shutdown()
        found = (await client.jetstream().stream_info("OBJ_taskiq_results")).config
    assert (found.max_age, found.description) == (3600, "of the shop")


async def test_a_result_that_is_stored_anew_while_it_is_read_is_read(
    server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its worker may execute the task once more, or store again what it had no answer for."""
    monkeypatch.setattr(nats_broker, "READ_TIMEOUT", 2.0)
    backend: Any = NATSObjectStoreResultBackend(server.url)
    await backend.startup()
    result = TaskiqResult(is_err=False, return_value="tide", execution_time=0.0)
    await backend.set_result("t", result)
    look_up = backend.object_store.get_info

    async def look_up_and_store_anew(name: str, *others: Any) -> Any:
        monkeypatch.undo()
        found = await look_up(name, *others)
        await backend.set_result("t", result)
        return found

    for _ in range(2):  # as where a broker is started once more
        steady_reads(backend)
    monkeypatch.setattr(backend.object_store, "get_info", look_up_and_store_anew)
    assert (await backend.get_result("t")).return_value == "tide"
    await backend.shutdown()


async def test_more_results_are_read_than_the_server_has_consumers_for(server: NatsServer) -> None:
    subjects = ["$O.taskiq_results.C.>", "$O.taskiq_results.M.>"]
    config = StreamConfig("OBJ_taskiq_results", subjects=subjects, max_consumers=1)
    async with await nats.connect(server.url) as client:
        await client.jetstream().add_stream(config, allow_rollup_hdrs=True)
    backend: Any = NATSObjectStoreResultBackend(server.url)
    await backend.startup()
    steady_reads(backend)
    await backend.set_result(
        "t", TaskiqResult(is_err=False, return_value="tide", execution_time=0.0)
    )
    assert await backend.is_result_ready("t")
    assert not await backend.is_result_ready("u")
    handle = handle_of(backend, "t", None, None)
    assert [*await asyncio.gather(handle.get(), handle.get())] == ["tide", "tide"]
    await backend.shutdown()


async def test_a_read_without_an_answer_is_an_outage(
    server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nats_broker, "READ_TIMEOUT", 0.2)
    backend: Any = NATSObjectStoreResultBackend(server.url)
    await backend.startup()
    steady_reads(backend)
    server.suspend()
    with pytest.raises(TimeoutError) as caught:
        await backend.get_result("t")
    assert is_outage(caught.value)
    server.resume()
    await backend.shutdown()


async def test_nothing_of_tasks_is_left_in_a_work_queue(farm: Farm, tmp_path: Path) -> None:
    settings = farm.settings("nats", queue="nothing-left", idle_timeout=20_000)
    notes = Notes(tmp_path)
    with farm.workers(settings) as workers:
        async with started(settings) as broker:
            engine = ExecutionEngine(broker, many(broker, app.noted, 50))
            await engine.execute(inputs(notes, 50, 0.0))
            await until_empty(settings)
            left = {item.name: item for item in await inventory_of(broker, "taskiq_flow")}
        assert left[settings.queue].count == 0
        assert left[f"{settings.queue} {settings.queue}"].count == 0
        assert "results in bucket 'taskiq_results' never expire" in workers.log()


async def test_a_consumer_that_is_deleted_while_workers_wait_is_created_again(
    farm: Farm, tmp_path: Path
) -> None:
    settings = farm.settings("nats", queue="deleted", idle_timeout=20_000)
    notes = Notes(tmp_path)
    with farm.workers(settings, processes=2) as workers:
        pids = workers.pids
        async with started(settings) as broker:
            engine = ExecutionEngine(broker, many(broker, app.noted, 10))
            await engine.execute(inputs(notes, 10, 0.0))
            await until_empty(settings)  # what is not acknowledged would come again
            at_server: Any = broker
            await at_server.js.delete_consumer(settings.queue, settings.queue)
            assert len(await engine.execute(inputs(notes, 10, 0.0))) == 10
        assert workers.pids == pids
    assert len(notes.of("begin")) == 20


async def test_messages_of_other_subjects_do_not_hide_that_a_message_has_left_the_queue(
    server: NatsServer,
) -> None:
    broker = PullBasedJetStreamBroker(
        server.url,
        stream_name="shared",
        subject="shared.ours",
        durable="ours",
        stream_config=StreamConfig(subjects=["shared.*"], retention=RetentionPolicy.WORK_QUEUE),
        consumer_config=ConsumerConfig(durable_name="ours", filter_subject="shared.ours"),
    )
    broker.is_worker_process = True
    await broker.startup()
    try:
        await kick_of(broker)(BrokerMessage(task_id="", task_name="", message=b"{}", labels={}))
        newest, taken = await backlog_of(broker).position(None)
        assert taken < newest
        await broker.js.purge_stream("shared", subject="shared.ours")
        await broker.js.publish("shared.others", b"{}")
        newest, taken = await backlog_of(broker).position(None)
        assert taken >= newest
    finally:
        await broker.shutdown()


async def test_a_stream_that_keeps_its_messages_is_warned_of(
    server: NatsServer, caplog: pytest.LogCaptureFixture
) -> None:
    broker = PullBasedJetStreamBroker(server.url, subject="k", stream_name="k", durable="k")
    steady(broker)
    await broker.startup()
    listening = asyncio.ensure_future(anext(broker.listen()))
    await until(lambda: "stream 'k' keeps each message for ever" in caplog.text, "it was warned of")
    listening.cancel()
    await asyncio.wait([listening])
    await broker.shutdown()


def confined_server(folder: Path, *without: str) -> NatsServer:
    """A server for a user with the rights that docs/production.md lists, but for some of them."""
    page = (Path(__file__).parents[2] / "docs/production.md").read_text("utf-8")
    user = page[page.index("{user: shop") :].partition("```")[0]
    for right in without:
        assert f'"{right}"' in user
        user = user.replace(f'"{right}"', '"nothing"')
    return NatsServer(folder / "confined", f"authorization {{ users = [{user}] }}")


def confined_settings(server: NatsServer) -> Settings:
    return Settings(
        "nats",
        nats=server.url.replace("nats://", "nats://shop:PASSWORD@"),
        queue="shop_tasks",
        prefix="shop",
        result_prefix="shop_results",
        options=json.dumps({"inbox_prefix": "shop.inbox"}),
    )


async def test_a_user_confined_to_a_prefix_can_do_all(farm: Farm, tmp_path: Path) -> None:
    with confined_server(tmp_path) as server:
        settings = confined_settings(server)
        with farm.workers(settings):
            async with started(settings) as broker:
                notes = Notes(tmp_path)
                dag = DAGBuilder().node(task(broker, app.blob)).node(task(broker, app.measure))
                engine = ExecutionEngine(broker, dag.build(), pass_by=1_000)
                assert (await engine.execute({"size": 200_000}))["measure"] == 200_000
                engine = ExecutionEngine(broker, many(broker, app.noted, 2))
                await check_cancelling(engine, notes, 2)
                assert len(await inventory_of(broker, "shop")) == 4
        assert "violation" not in (server.folder / "log").read_text("utf-8").lower()


async def test_a_subject_that_a_user_may_not_use_is_named(tmp_path: Path) -> None:
    with confined_server(tmp_path, "shop_tasks") as server:
        settings = confined_settings(server)
        async with started(settings) as broker:
            engine = ExecutionEngine(broker, many(broker, app.noted, 1))
            with pytest.raises(NodeFailedError, match=r'publish to "shop_tasks"; give the user'):
                await engine.execute(inputs(Notes(tmp_path), 1, 0.0))
            notifier = notifier_of(broker, "shop")
            await notifier.open()
            for number in range(100):  # one in eight was missed when a ping overtook it
                with pytest.raises(ConfigurationError, match=f'subscription to "other{number}"'):
                    await notifier.subscribe(f"other{number}", lambda _: None)
            await notifier.aclose()


async def test_a_worker_that_may_not_fetch_tasks_says_so(tmp_path: Path) -> None:
    with confined_server(tmp_path, "$JS.API.CONSUMER.MSG.NEXT.shop_tasks.>") as server:
        async with (
            started(confined_settings(server)) as broker,
            aclosing(JetStreamListener(broker).listen()) as messages,
        ):
            with pytest.raises(ConfigurationError, match=r"consumer\.msg\.next\.shop_tasks"):
                await anext(messages)
