"""Values on their way to workers elsewhere and back: the codec of the middleware carries them."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from email.message import Message
from io import BytesIO
from typing import Annotated, Any
from urllib.error import HTTPError

import pytest
from taskiq import (
    BrokerMessage,
    Context,
    SimpleRetryMiddleware,
    TaskiqDepends,
    TaskiqMessage,
    TaskiqMiddleware,
    TaskiqResult,
)
from taskiq.formatters.proxy_formatter import ProxyFormatter
from taskiq.serializers import JSONSerializer, MSGPackSerializer, ORJSONSerializer, PickleSerializer

from taskiq_flow import (
    AnnotationError,
    Cache,
    DAGBuilder,
    ExecutionEngine,
    FormatterWarning,
    MemoryJournal,
    NodeFailedError,
    Retry,
    SerializationError,
)
from taskiq_flow.testing import LocalBroker, LocalFlowMiddleware, LocalNotices, LocalResults
from taskiq_flow.values.classes import Classes
from taskiq_flow.values.codec import ValueCodec
from taskiq_flow.values.results import failed
from taskiq_flow.values.wire import VALUES, Wire
from tests.local_flow import with_flow
from tests.values import hidden
from tests.values.kinds import (
    CodedError,
    FrozenError,
    Money,
    Pair,
    Point,
    SlottedError,
)  # what the tasks of this module deal with

made: list[int] = []

VALUE = [(1, {2}), Point(Pair(1, 2)), float("inf")]


class Site:
    """An engine's broker and a worker's, over one queue and one store."""

    def __init__(self, *, results: LocalResults | None = None, **options: Any) -> None:
        board = LocalNotices()
        self.broker = LocalBroker(results)
        self.flow: LocalFlowMiddleware = with_flow(self.broker, board, **options)
        self.sent: list[dict[str, Any]] = []
        kick = self.broker.kick

        async def watched(message: BrokerMessage) -> None:
            self.sent.append(self.broker.serializer.loadb(message.message))
            await kick(message)

        self.broker.kick = watched  # type: ignore[method-assign]

    @contextlib.asynccontextmanager
    async def working(self) -> AsyncIterator[None]:
        try:
            async with self.broker.worker():
                yield
        finally:
            await self.flow.shutdown()

    async def run(self, *tasks: Any, given: dict[str, Any], **options: Any) -> dict[str, Any]:
        builder = DAGBuilder()
        for task in tasks:
            builder.node(task)
        async with self.working():
            return await ExecutionEngine(self.broker, builder.build(), **options).execute(given)


async def test_plain_data_stands_in_the_message_as_taskiq_writes_it() -> None:
    site = Site()

    @site.broker.task
    async def keep(value: Any) -> Any:
        return value

    plain = {"a": [1, 2.5, None, True, "x"]}
    assert await site.run(keep, given={"value": plain}) == {"keep": plain}
    assert site.sent[0]["kwargs"] == {"value": plain}


async def test_other_values_stand_in_one_argument_of_the_codec() -> None:
    site = Site()

    @site.broker.task
    async def keep(value: Any) -> Any:
        return value

    assert await site.run(keep, given={"value": VALUE}) == {"keep": VALUE}
    assert site.sent[0]["args"] == []
    assert site.sent[0]["kwargs"].keys() == {VALUES}


@pytest.mark.parametrize("serializer", [ORJSONSerializer, MSGPackSerializer, PickleSerializer])
async def test_each_serializer_carries_what_the_codec_makes(serializer: Any) -> None:
    site = Site()
    site.broker.with_serializer(serializer())

    @site.broker.task
    async def keep(value: Any) -> Any:
        return value

    for value in (VALUE, 2**70, "\ud800", {"a": [2**70, "\ud800"]}):
        assert await site.run(keep, given={"value": value}) == {"keep": value}


class JsonResults(LocalResults):
    """A result backend that stores JSON, as that of Redis does."""

    serializer = JSONSerializer()

    async def set_result(self, task_id: str, result: TaskiqResult[Any]) -> None:
        self.stored[task_id] = self.serializer.dumpb(result.model_dump())

    async def get_result(
        self,
        task_id: str,
        with_logs: bool = False,  # noqa: FBT002 - as taskiq declares it
    ) -> TaskiqResult[Any]:
        return TaskiqResult.model_validate(self.serializer.loadb(self.stored[task_id]))


async def test_integers_of_any_size_are_carried_also_within_plain_data() -> None:
    site = Site(results=JsonResults())

    @site.broker.task
    async def keep(value: Any) -> Any:
        return value

    @site.broker.task
    async def first(keep: Any) -> Any:
        return keep[0]

    results = await site.run(keep, first, given={"value": [10**5000, "a"]}, run_timeout=5.0)
    assert results == {"keep": [10**5000, "a"], "first": 10**5000}


async def test_a_type_that_is_registered_is_carried() -> None:
    codec = ValueCodec()
    codec.register(Money, lambda money: money.cents, Money, name="money")
    site = Site(codec=codec)

    @site.broker.task
    async def double(value: Money) -> Money:
        return Money(2 * value.cents)

    journal = MemoryJournal()
    assert await site.run(double, given={"value": Money(1)}, journal=journal) == {
        "double": Money(2)
    }


async def test_a_class_of_no_task_is_restored_only_where_that_is_asked_for() -> None:
    async def sent_over(site: Site) -> dict[str, Any]:
        @site.broker.task
        async def keep(value: Any) -> bool:
            return bool(value.x)

        return await site.run(keep, given={"value": hidden.Hidden(1)})

    with pytest.raises(NodeFailedError, match="not among the classes that may be restored"):
        await sent_over(Site())
    assert await sent_over(Site(classes="imported")) == {"keep": True}


async def test_what_another_secret_has_sealed_is_not_decoded() -> None:
    site = Site(secret="ours")

    @site.broker.task
    async def keep(value: Any) -> Any:
        return value

    assert await site.run(keep, given={"value": VALUE}) == {"keep": VALUE}
    other = LocalFlowMiddleware(LocalNotices(), secret="theirs")
    sealed = site.sent[0]
    with pytest.raises(SerializationError, match="not sealed with this process's secret"):
        other.wire.decode_call(sealed["task_id"], sealed["kwargs"])
    with pytest.raises(SerializationError, match="not sealed"):  # for another task
        site.flow.wire.decode_call("another", sealed["kwargs"])


async def test_data_that_looks_like_a_tag_is_data() -> None:
    site = Site()

    @site.broker.task
    async def keep(value: Any) -> Any:
        return value

    for value in (
        {"$tf": 1, "v": {"$tf": ["b", "AA=="]}},
        {VALUES: {"value": 1}},
        [{"$tf": ["d"]}],
    ):
        assert await site.run(keep, given={"value": value}) == {"keep": value}


@pytest.mark.parametrize(
    "payload",
    [
        *({"value": {"$tf": 1, "v": {"$tf": ["zz"]}}}, {"value": 3}, {"value": [1]}, {"other": 1}),
        *({"value": {"$tf": 9, "v": 1}}, "text", [1], 1),
    ],
)
async def test_a_call_that_is_damaged_executes_nothing(payload: Any) -> None:
    site, executed = Site(), []

    @site.broker.task
    async def keep(value: Any) -> Any:
        executed.append(value)

    kick = site.broker.kick

    async def damaged(message: BrokerMessage) -> None:
        content = json.loads(message.message)
        content["kwargs"] = {VALUES: payload}
        await kick(message.model_copy(update={"message": json.dumps(content).encode()}))

    site.broker.kick = damaged  # type: ignore[method-assign]
    with pytest.raises(NodeFailedError) as caught:
        await site.run(keep, given={"value": VALUE})
    assert isinstance(caught.value.__cause__, SerializationError)
    assert executed == []


async def test_generator_functions_give_lists_and_other_iterators_are_refused() -> None:
    site = Site()

    @site.broker.task
    def rows(n: int) -> Iterator[int]:
        yield from range(n)

    @site.broker.task
    async def arows(n: int) -> AsyncIterator[int]:
        for number in range(n):
            yield number

    @site.broker.task
    def lazy(n: int) -> Any:
        return map(str, range(n))

    assert await site.run(rows, arows, given={"n": 2}) == {"rows": [0, 1], "arows": [0, 1]}
    with pytest.raises(NodeFailedError, match="read once only"):
        await site.run(lazy, given={"n": 2})


async def test_what_cannot_be_carried_back_is_the_tasks_failure() -> None:
    site = Site()

    @site.broker.task
    async def make(n: int) -> Any:
        return [object()]

    with pytest.raises(NodeFailedError, match=r"the result of node 'make' .* at \[0\]") as caught:
        await site.run(make, given={"n": 1})
    assert isinstance(caught.value.__cause__, SerializationError)


async def test_each_kind_of_parameter_is_converted_alike() -> None:
    site = Site()

    @site.broker.task
    async def total(first: Point, *rest: Point, last: Point) -> int:
        return int(sum(point.x for point in (first, *rest, last)))

    @site.broker.task
    async def wrong(n: int) -> Point:
        return "no point"  # type: ignore[return-value]

    builder = DAGBuilder().node(total, inputs=["a", "b", "c"])
    async with site.working():
        engine = ExecutionEngine(site.broker, builder.build())
        given = {"a": {"x": 1}, "b": {"x": 2}, "c": {"x": 3}, "last": {"x": 4}}
        assert await engine.execute(given) == {"total": 10}
        engine = ExecutionEngine(site.broker, DAGBuilder().node(wrong).build())
        with pytest.raises(NodeFailedError) as caught:
            await engine.execute({"n": 1})
    assert isinstance(caught.value.__cause__, AnnotationError)


async def test_a_task_that_requeues_itself_is_given_the_same_again() -> None:
    site, seen = Site(), []

    @site.broker.task
    async def again(value: Any, context: Annotated[Context, TaskiqDepends()]) -> int:
        seen.append(value)
        if len(seen) < 3:
            await context.requeue()
        return len(seen)

    for value in (VALUE, [1]):
        seen.clear()
        assert await site.run(again, given={"value": value}) == {"again": 3}
        assert seen == [value] * 3


async def test_a_middleware_that_tries_again_sends_the_same_again() -> None:
    site, seen = Site(), []
    site.broker.add_middlewares(SimpleRetryMiddleware())

    @site.broker.task(retry_on_error=True, max_retries=3)
    async def flaky(value: Any) -> int:
        seen.append(list(value))
        value.clear()
        if len(seen) < 3:
            raise OSError
        return len(seen)

    for value in (VALUE, [1]):
        seen.clear()
        assert await site.run(flaky, given={"value": value}) == {"flaky": 3}
        assert seen == [value] * 3


async def test_middlewares_of_the_engine_see_the_objects() -> None:
    class Sees(TaskiqMiddleware):
        before: list[Any] = []  # noqa: RUF012
        after: list[Any] = []  # noqa: RUF012

        def pre_send(self, message: TaskiqMessage) -> TaskiqMessage:
            self.before.append(message.kwargs["value"])
            return message

        def post_send(self, message: TaskiqMessage) -> None:
            self.after.append(message.kwargs["value"])

    site = Site()
    site.broker.add_middlewares(Sees())

    @site.broker.task
    async def keep(value: Any) -> Any:
        return value

    assert await site.run(keep, given={"value": VALUE}) == {"keep": VALUE}
    assert Sees.before == Sees.after == [VALUE]


async def test_a_cached_result_is_what_it_was() -> None:
    site = Site()
    made.clear()

    @site.broker.task
    async def make(n: int) -> Any:
        made.append(n)
        return VALUE

    dag = DAGBuilder().node(make, cache=Cache()).build()
    async with site.working():
        engine = ExecutionEngine(site.broker, dag)
        assert [await engine.execute({"n": 1}) for _ in range(2)] == [{"make": VALUE}] * 2
    assert made == [1]


class OwnFormatter(ProxyFormatter):
    pass


async def test_a_formatter_of_the_users_own_is_warned_of() -> None:
    site = Site()
    site.broker.with_formatter(OwnFormatter(site.broker))

    @site.broker.task
    async def one() -> int:
        return 1

    async with site.working():
        engine = ExecutionEngine(site.broker, DAGBuilder().node(one).build())
        with pytest.warns(FormatterWarning, match="has a OwnFormatter as its formatter: values"):
            assert await engine.execute() == {"one": 1}


FAULTS: dict[str, Callable[[], Any]] = {
    "other arguments": lambda: CodedError(3, "no"),
    "slots": lambda: SlottedError((1,)),
    "arguments that JSON has not": lambda: ValueError({1, (2,)}),
    "of Python": lambda: FileNotFoundError(2, "none", "f"),
}


@pytest.mark.parametrize("serializer", [None, ORJSONSerializer, MSGPackSerializer])
@pytest.mark.parametrize("fault", FAULTS)
async def test_an_error_arrives_as_it_was_raised(fault: str, serializer: Any) -> None:
    site = Site()
    if serializer is not None:
        site.broker.results.serializer = serializer()  # type: ignore[attr-defined]

    @site.broker.task
    async def fail() -> None:
        error = FAULTS[fault]()
        error.place = Point(1)
        raise error from CodedError(4, "below")

    with pytest.raises(NodeFailedError) as caught:
        await site.run(fail, given={})
    error, raised = caught.value.__cause__, FAULTS[fault]()
    assert error is not None
    assert (type(error), error.args, str(error)) == (type(raised), raised.args, str(raised))
    attributes = {name: value for name, value in vars(error).items() if name != "__notes__"}
    assert attributes == vars(raised) | ({} if fault == "slots" else {"place": Point(1)})
    assert (type(error.__cause__), vars(error.__cause__)) == (CodedError, {"code": 4})


async def test_a_node_is_tried_again_after_an_error_of_a_class_with_other_arguments() -> None:
    site, attempts = Site(), []

    @site.broker.task
    async def fail_once() -> int:
        attempts.append(1)
        if len(attempts) == 1:
            raise CodedError(3, "no")
        return 5

    given = Retry(attempts=2, wait=0.0, on=(CodedError,))
    assert await site.run(fail_once, given={}, retry=given) == {"fail_once": 5}


@pytest.mark.parametrize("attribute", [lambda: 1, "x" * 2_000_000])
async def test_an_error_that_the_codec_does_not_carry_arrives_as_taskiq_sends_it(
    attribute: object,
) -> None:
    site = Site()

    @site.broker.task
    async def fail() -> None:
        error = ValueError("none")
        error.attribute = attribute  # type: ignore[attr-defined]
        raise error

    with pytest.raises(NodeFailedError) as caught:
        await site.run(fail, given={})
    error = caught.value.__cause__
    assert (type(error), error and error.args) == (ValueError, ("none",))
    assert not hasattr(error, "attribute")


async def test_an_error_arrives_without_what_cannot_be_carried_of_its_attributes() -> None:
    site = Site()

    @site.broker.task
    async def fetch() -> None:
        raise HTTPError("http://a", 404, "Not Found", Message(), BytesIO(b"page"))

    with pytest.raises(NodeFailedError, match="HTTPError: HTTP Error 404: Not Found") as caught:
        await site.run(fetch, given={}, run_timeout=5.0)
    error = caught.value.__cause__
    assert isinstance(error, HTTPError)
    assert (error.code, error.filename) == (404, "http://a")


async def test_an_error_that_allows_no_changes_arrives() -> None:
    site = Site()

    @site.broker.task
    async def fail() -> None:
        raise FrozenError(3) from CodedError(4, "below")

    with pytest.raises(NodeFailedError) as caught:
        await site.run(fail, given={}, run_timeout=5.0)
    error = caught.value.__cause__
    assert error == FrozenError(3)
    assert (error.args, type(error.__cause__)) == ((3,), CodedError)


class Elsewhere:
    """As a proxy of a web framework that is used without a request."""

    def __getattr__(self, name: str) -> Any:
        raise RuntimeError("no request")


def _with_proxy() -> Exception:
    error = ValueError("no request")
    error.request = Elsewhere()  # type: ignore[attr-defined]
    return error


def _after_many_others() -> Exception:
    error = ValueError("first")
    for number in range(2 * sys.getrecursionlimit()):
        after = ValueError(number)
        after.__context__, error = error, after
    return error


@pytest.mark.parametrize("fault", [_with_proxy, _after_many_others])
async def test_an_error_that_cannot_be_looked_at_arrives_nevertheless(
    fault: Callable[[], Exception],
) -> None:
    site = Site()

    @site.broker.task
    async def fail() -> None:
        raise fault()

    with pytest.raises(NodeFailedError) as caught:
        await site.run(fail, given={}, run_timeout=5.0)
    assert repr(caught.value.__cause__) == repr(fault())


class ErrorsError(Exception):
    """Counts what it is made of, and so is false."""

    def __len__(self) -> int:
        return 0


async def test_an_error_that_is_false_is_carried() -> None:
    site = Site()

    @site.broker.task
    async def fail() -> None:
        raise ErrorsError("none")

    with pytest.raises(NodeFailedError) as caught:
        await site.run(fail, given={}, run_timeout=5.0)
    assert repr(caught.value.__cause__) == "ErrorsError('none')"


async def test_a_value_whose_encoder_raises_fails_its_node() -> None:
    codec = ValueCodec()
    codec.register(Elsewhere, lambda value: value.content, lambda _content: Elsewhere(), name="e")
    site = Site(codec=codec)

    @site.broker.task
    async def make() -> Any:
        return Elsewhere()

    with pytest.raises(NodeFailedError, match="is not carried: RuntimeError: no request"):
        await site.run(make, given={}, run_timeout=5.0)


def test_a_group_with_a_large_error_is_sent_as_taskiq_does() -> None:
    group = ExceptionGroup(
        "some", [ValueError(1), ExceptionGroup("more", [ValueError("x" * 10**7)])]
    )
    result = failed(group)
    assert Wire(ValueCodec(), Classes()).encode_result("t", result, strict=False) is result
    result = failed(ExceptionGroup("some", [ValueError(1)]))
    assert Wire(ValueCodec(), Classes()).encode_result("t", result, strict=False) is not result
