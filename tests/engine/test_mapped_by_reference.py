"""Elements by reference: they stay where they were stored, and each taker is given the values."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from types import FunctionType
from typing import Any

import pytest
from taskiq import BrokerMessage, InMemoryBroker

from taskiq_flow import (
    DAG,
    Cache,
    DAGBuilder,
    ExecutionEngine,
    GraphChangedError,
    Item,
    MapReduce,
    MemoryJournal,
    NodeFailure,
    NotCachedWarning,
    ResultHandle,
)
from taskiq_flow.testing import LocalBroker, LocalNotices, LocalResults
from taskiq_flow.values.handle import with_values
from taskiq_flow.worker import arguments
from tests.local_flow import with_flow

SIZE = 5_000
LIMIT = 1_000


def text(number: int) -> str:
    """A large value, which says where it comes from."""
    return f"{number} ".ljust(SIZE, ".")


def longer(text: str) -> str:
    return text + "!"


def length(text: str) -> int:
    return len(text)


def lengths(texts: list[str] = []) -> list[int]:  # noqa: B006 - nobody changes it
    return [len(text) for text in texts]


def texts(number: int) -> list[str]:
    return [text(number), text(number + 10)]


def is_even(text: str) -> bool:
    return int(text.split(maxsplit=1)[0]) % 2 == 0


class Site:
    """A broker with workers elsewhere, or embedded, and what it is sent."""

    def __init__(self, *, embedded: bool = False, **of_middleware: Any) -> None:
        self.store = LocalResults()
        self.sent: list[BrokerMessage] = []
        self.executed: list[str] = []
        self.broker: Any = InMemoryBroker()
        if not embedded:
            self.broker = LocalBroker(self.store)
            self.flow = with_flow(self.broker, LocalNotices(), **of_middleware)
        kick = self.broker.kick

        async def noting(message: BrokerMessage) -> None:
            self.sent.append(message)
            await kick(message)

        self.broker.kick = noting

    def task(self, function: Callable[..., Any]) -> Any:
        name = function.__name__
        if (known := self.broker.find_task(name)) is not None:
            return known
        own: Any = FunctionType(  # as taskiq renames the function
            function.__code__, globals(), name, function.__defaults__, function.__closure__
        )
        own.__annotations__ = function.__annotations__
        return self.broker.register_task(own, task_name=name)

    @contextlib.asynccontextmanager
    async def working(self) -> AsyncIterator[None]:
        if isinstance(self.broker, InMemoryBroker):
            yield
            return
        try:
            async with self.broker.worker():
                yield
        finally:
            await self.flow.shutdown()

    def largest_of(self, name: str) -> int:
        """The bytes of the largest message of a task."""
        return max(len(sent.message) for sent in self.sent if sent.task_name == name)

    def engine(self, dag: DAG, pass_by: Any = LIMIT, **options: Any) -> ExecutionEngine:
        return ExecutionEngine(self.broker, dag, pass_by=pass_by, **options)

    def mapped(self) -> DAGBuilder:
        """numbers → texts, each by itself."""
        return DAGBuilder().node(
            self.task(text), name="texts", inputs={"number": "numbers"}, map_over="numbers"
        )

    def chained(self) -> DAGBuilder:
        """numbers → texts → longer ones, each by itself."""
        return self.mapped().node(
            self.task(longer), name="longer", inputs={"text": "texts"}, map_over="texts"
        )


@pytest.fixture(params=["elsewhere", "embedded"])
def site(request: pytest.FixtureRequest) -> Site:
    return Site(embedded=request.param == "embedded")


NUMBERS = {"numbers": [0, 1, 2]}


async def test_elements_stay_where_they_are_and_the_reader_has_handles(site: Site) -> None:
    items: dict[str, dict[Any, Any]] = {}
    lists: dict[str, list[Any]] = {}
    async with site.working():
        stream = site.engine(site.chained().build()).execute_async(NUMBERS, items=True)
        async for name, value in stream:
            if isinstance(value, Item):
                items.setdefault(name, {})[value.index] = value.value
            else:
                lists[name] = value
        for name, tail in (("texts", ""), ("longer", "!")):
            assert all(isinstance(part, ResultHandle) for part in lists[name])
            assert [items[name][index] for index in range(3)] == lists[name]
            assert await with_values(lists[name]) == [text(n) + tail for n in range(3)]
    assert site.largest_of("longer") < LIMIT


async def test_what_is_small_goes_by_value(site: Site) -> None:
    async with site.working():
        results = await site.engine(site.chained().build(), 10 * SIZE).execute(NUMBERS)
    assert results["longer"] == [text(n) + "!" for n in range(3)]


async def test_a_node_that_takes_a_list_is_sent_references_in_it(site: Site) -> None:
    builder = site.mapped().node(site.task(lengths), inputs={"texts": "texts"})
    async with site.working():
        results = await site.engine(builder.build()).execute(NUMBERS)
        assert results["lengths"] == [SIZE] * 3
        assert await results["texts"][2].get() == text(2)
    assert site.largest_of("lengths") < LIMIT


async def test_lists_within_lists_have_references_too(site: Site) -> None:
    def lengths_of(rows: list[list[str]]) -> list[list[int]]:
        return [lengths(row) for row in rows]

    mapped = DAGBuilder().node(
        site.task(text), name="texts", inputs={"number": "rows"}, map_over={"rows": 2}
    )
    mapped.node(site.task(lengths), inputs={"texts": "texts"}, map_over="texts")  # of each row
    mapped.node(site.task(lengths_of), inputs={"rows": "texts"})
    async with site.working():
        results = await site.engine(mapped.build()).execute({"rows": [[1], [], [2, 3]]})
        assert results["lengths"] == results["lengths_of"] == [[SIZE], [], [SIZE, SIZE]]
        assert await with_values(results["texts"]) == [[text(1)], [], [text(2), text(3)]]
    assert max(map(site.largest_of, ("lengths", "lengths_of"))) < LIMIT


async def test_lists_that_are_mapped_over_are_values(site: Site) -> None:
    mapped = DAGBuilder().node(site.task(texts), inputs={"number": "number"})
    mapped.node(site.task(longer), inputs={"text": "texts"}, map_over="texts")
    async with site.working():
        results = await site.engine(mapped.build()).execute({"number": 1})
        assert results["texts"] == texts(1)
        assert [await handle.get() for handle in results["longer"]] == [t + "!" for t in texts(1)]


async def test_lists_of_elements_that_are_mapped_over_are_values(site: Site) -> None:
    mapped = DAGBuilder().node(site.task(texts), inputs={"number": "numbers"}, map_over="numbers")
    mapped.node(site.task(longer), inputs={"text": "texts"}, map_over={"texts": 2})
    async with site.working():
        results = await site.engine(mapped.build()).execute(NUMBERS)
        assert results["texts"] == [texts(n) for n in range(3)]
        assert await with_values(results["longer"]) == [
            [t + "!" for t in texts(n)] for n in range(3)
        ]


async def test_lists_that_are_joined_are_values(site: Site) -> None:
    mapped = DAGBuilder().node(
        site.task(texts), inputs={"number": "numbers"}, map_over="numbers", flatten=True
    )
    async with site.working():
        results = await site.engine(mapped.build()).execute(NUMBERS)
    assert results["texts"] == [part for n in range(3) for part in texts(n)]


@pytest.mark.parametrize("pass_by", [LIMIT, "reference"])
async def test_a_filter_answers_by_value_and_gives_what_it_was_given(
    site: Site, pass_by: Any
) -> None:
    mapped = site.mapped().node(
        site.task(is_even), name="even", inputs={"text": "texts"}, map_over="texts", filter=True
    )
    mapped.node(site.task(longer), inputs={"text": "even"}, map_over="even")
    async with site.working():
        results = await site.engine(mapped.build(), pass_by).execute(NUMBERS)
        assert all(isinstance(part, ResultHandle) for part in results["even"])
        assert await with_values(results["longer"]) == [text(0) + "!", text(2) + "!"]


async def test_lists_behind_a_filter_that_are_mapped_over_are_values(site: Site) -> None:
    def is_wanted(texts: list[str]) -> bool:
        return not texts[0].startswith("1")

    mapped = DAGBuilder().node(site.task(texts), inputs={"number": "numbers"}, map_over="numbers")
    mapped.node(
        site.task(is_wanted), name="some", inputs={"texts": "texts"}, map_over="texts", filter=True
    )
    mapped.node(site.task(longer), inputs={"text": "some"}, map_over={"some": 2})
    async with site.working():
        results = await site.engine(mapped.build()).execute(NUMBERS)
        assert results["some"] == [texts(0), texts(2)]
        assert await with_values(results["longer"]) == [[t + "!" for t in texts(n)] for n in (0, 2)]


async def test_what_a_condition_reads_is_a_value(site: Site) -> None:
    mapped = site.mapped().node(
        site.task(longer),
        inputs={"text": "texts"},
        map_over="texts",
        when=lambda texts: not is_even(texts),
    )
    plain = DAGBuilder().node(site.task(text), inputs={"number": "number"})
    plain.node(site.task(longer), inputs={"text": "text"}, when=lambda text: not is_even(text))
    async with site.working():
        results = await site.engine(mapped.build()).execute(NUMBERS)
        assert results["texts"] == [text(n) for n in range(3)]
        assert await with_values(results["longer"]) == [text(1) + "!"]
        results = await site.engine(plain.build()).execute({"number": 2})
        assert results == {"text": text(2)}


@pytest.mark.parametrize("pass_by", ["value", LIMIT])
async def test_what_a_condition_reads_of_another_run_is_a_value(site: Site, pass_by: Any) -> None:
    def is_odd(each: str) -> bool:
        return not is_even(each)

    async def is_long(texts: list[str]) -> bool:
        return sum(map(len, texts)) > SIZE

    each = DAGBuilder().node(
        site.task(longer), inputs={"text": "each"}, map_over="each", when=is_odd
    )
    whole = DAGBuilder().node(site.task(lengths), inputs={"texts": "texts"}, when=is_long)
    one = DAGBuilder().node(site.task(longer), inputs={"text": "each"}, when=is_odd)
    async with site.working():
        given = (await site.engine(site.mapped().build()).execute(NUMBERS))["texts"]
        results = await site.engine(each.build(), pass_by).execute({"each": given})
        assert await with_values(results["longer"]) == [text(1) + "!"]
        results = await site.engine(whole.build(), pass_by).execute({"texts": given})
        assert results == {"lengths": [SIZE] * 3}
        engine = site.engine(one.build(), pass_by)
        many = [number async for number, _, _ in engine.execute_many({"each": h} for h in given)]
        assert many == [1]


async def test_items_of_a_generator_are_values_and_what_is_made_of_them_is_not(site: Site) -> None:
    def texts() -> Iterator[str]:
        yield from map(text, range(3))

    mapped = DAGBuilder().node(site.task(texts))
    mapped.node(site.task(longer), inputs={"text": "texts"}, map_over="texts")
    async with site.working():
        results = await site.engine(mapped.build(), "reference").execute()
        assert results["texts"] == [text(n) for n in range(3)]
        assert await with_values(results["longer"]) == [text(n) + "!" for n in range(3)]
        assert isinstance(results["longer"][0], ResultHandle)


async def test_each_of_several_outputs_of_an_element_has_a_handle(site: Site) -> None:
    mapped = DAGBuilder().node(
        site.task(texts), outputs=["one", "other"], inputs={"number": "numbers"}, map_over="numbers"
    )
    mapped.node(site.task(longer), inputs={"text": "other"}, map_over="other")
    mapped.node(site.task(lengths), inputs={"texts": "one"})
    async with site.working():
        results = await site.engine(mapped.build()).execute(NUMBERS)
        assert await with_values(results["other"]) == [text(n + 10) for n in range(3)]
        assert await with_values(results["longer"]) == [text(n + 10) + "!" for n in range(3)]
        assert results["lengths"] == [SIZE] * 3


async def test_a_large_input_is_taken_whole_and_by_element(site: Site) -> None:
    """It is stored for who takes it whole. An element is given its own part of it."""
    mapped = DAGBuilder().node(site.task(longer), inputs={"text": "texts"}, map_over="texts")
    mapped.node(site.task(lengths), inputs={"texts": "texts"})
    async with site.working():
        results = await site.engine(mapped.build()).execute({"texts": texts(1)})
        assert await with_values(results["longer"]) == [t + "!" for t in texts(1)]
        assert results["lengths"] == [SIZE, SIZE]


async def test_an_input_of_which_only_elements_are_taken_is_not_stored() -> None:
    site = Site()
    dag = DAGBuilder().node(site.task(length), inputs={"text": "texts"}, map_over="texts").build()
    async with site.working():
        await site.engine(dag).execute({"texts": texts(1)})
    assert len(site.store.stored) == 2


async def test_elements_in_a_store_are_referred_to(tmp_path: Path) -> None:
    site, count = Site(store=str(tmp_path), store_above=LIMIT), 20
    dag = site.mapped().node(site.task(lengths), inputs={"texts": "texts"}).build()
    async with site.working():
        results = await site.engine(dag).execute({"numbers": list(range(count))})
        assert results["lengths"] == [SIZE] * count
        assert await results["texts"][3].get() == text(3)
    objects = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(objects) == count
    assert max(path.stat().st_size for path in objects) < 2 * SIZE


async def test_retries_and_fallbacks_are_given_the_values(site: Site) -> None:
    attempts: list[str] = []

    def fails_at_first(text: str) -> str:
        attempts.append(text)
        if len(attempts) == 1:
            raise ValueError("the first time")
        return text + "?"

    def fails(text: str) -> str:
        raise ValueError("always")

    mapped = site.mapped().node(
        site.task(fails_at_first), inputs={"text": "texts"}, map_over="texts", retry=2
    )
    mapped.node(
        site.task(fails), inputs={"text": "texts"}, map_over="texts", fallback=site.task(longer)
    )
    async with site.working():
        results = await site.engine(mapped.build()).execute({"numbers": [1]})
        assert await with_values(results["fails_at_first"]) == [text(1) + "?"]
        assert await with_values(results["fails"]) == [text(1) + "!"]
    assert attempts == [text(1)] * 2


async def test_failures_stand_beside_handles(site: Site) -> None:
    def fails_for_one(text: str) -> str:
        if text.startswith("1"):
            raise ValueError(text[:1])
        return text

    mapped = site.mapped().node(
        site.task(fails_for_one), name="some", inputs={"text": "texts"}, map_over="texts"
    )
    mapped.node(site.task(lengths), inputs={"texts": "some"}, join="ended")
    engine = site.engine(mapped.build(), on_error="collect", type_check="off")
    async with site.working():
        results = await engine.execute(NUMBERS)
        assert [type(part) for part in results["some"]] == [ResultHandle, NodeFailure, ResultHandle]
        assert results["lengths"] == [SIZE, SIZE]


async def test_many_inputs_are_passed_by_reference(site: Site) -> None:
    builder = DAGBuilder().node(site.task(text), inputs={"number": "number"})
    builder.node(site.task(longer), inputs={"text": "text"})
    engine = site.engine(builder.build())
    async with site.working():
        many = engine.execute_many([{"number": n} for n in range(3)], whole=True)
        given = {index: await results["longer"].get() async for index, results in many}
    assert given == {n: text(n) + "!" for n in range(3)}
    assert site.largest_of("longer") < LIMIT


async def test_a_graph_that_is_mapped_passes_its_values_by_reference(site: Site) -> None:
    inner = DAGBuilder().node(site.task(text), inputs={"number": "number"})
    inner.node(site.task(longer), inputs={"text": "text"})
    inner.node(
        site.task(length), inputs={"text": "longer"}, when=lambda longer: not is_even(longer)
    )
    builder = DAGBuilder().add_graph(
        inner.build(), "each", inputs={"number": "numbers"}, map_over="numbers"
    )
    async with site.working():
        results = await site.engine(builder.build()).execute(NUMBERS)
        assert isinstance(results["each/text"][0], ResultHandle)
        assert results["each/longer"] == [text(n) + "!" for n in range(3)]
        assert results["each/length"] == [SIZE + 1]
    assert site.largest_of("longer") < LIMIT


async def test_map_reduce_passes_elements_by_reference(site: Site) -> None:
    map_func, reduce_func = site.task(text), site.task(lengths)
    async with site.working():
        mapped = await MapReduce.map(site.broker, map_func, range(3), pass_by=LIMIT)
        values = (await mapped.wait_result()).return_value
        assert await with_values(values) == [text(n) for n in range(3)]
        reduced = await MapReduce.map_reduce(
            site.broker, map_func, range(3), reduce_func, pass_by=LIMIT
        )
        assert (await reduced.wait_result()).return_value == [SIZE] * 3
    assert site.largest_of("lengths") < LIMIT


@pytest.mark.parametrize("pass_by", ["value", LIMIT])
async def test_a_list_of_handles_is_an_input_of_another_run(site: Site, pass_by: Any) -> None:
    later = DAGBuilder().node(site.task(lengths), inputs={"texts": "texts"})
    later.node(site.task(longer), inputs={"text": "texts"}, map_over="texts")
    async with site.working():
        given = await site.engine(site.mapped().build()).execute(NUMBERS)
        results = await site.engine(later.build(), pass_by).execute(given)
        assert results["lengths"] == [SIZE] * 3
        assert await with_values(results["longer"]) == [text(n) + "!" for n in range(3)]
    assert max(map(site.largest_of, ("lengths", "longer"))) < LIMIT


async def test_what_is_cached_is_a_value(site: Site) -> None:
    mapped = DAGBuilder().node(
        site.task(longer), inputs={"text": "texts"}, map_over="texts", cache=Cache()
    )
    engine = site.engine(mapped.build())
    async with site.working():
        await site.engine(mapped.build()).execute({"texts": [""]})  # a worker wraps the function
        site.sent.clear()
        for _ in range(2):
            results = await engine.execute({"texts": texts(1)})
            assert results == {"longer": [text + "!" for text in texts(1)]}
    assert len(site.sent) == 2


async def test_a_node_whose_elements_are_given_handles_is_not_cached(site: Site) -> None:
    mapped = site.mapped().node(
        site.task(length), inputs={"text": "texts"}, map_over="texts", cache=Cache()
    )
    async with site.working():
        with pytest.warns(NotCachedWarning, match="node 'length' is not cached: .*ResultHandle"):
            results = await site.engine(mapped.build()).execute(NUMBERS)
    assert results["length"] == [SIZE] * 3


async def test_a_resumed_run_has_the_handles_of_the_first_one() -> None:
    site, journal = Site(), MemoryJournal()
    dag = site.chained().node(site.task(lengths), inputs={"texts": "longer"}).build()
    async with site.working():
        stream = site.engine(dag, journal=journal).execute_async(NUMBERS, run_id="r", items=True)
        async for name, item in stream:
            if name == "longer" and item.index == 0:
                break
        await stream.aclose()
        sent = {message.task_id.rpartition(":")[0] for message in site.sent}
        site.sent.clear()
        engine = site.engine(dag, journal=journal)
        results = {name: value async for name, value in engine.resume("r")}
        assert await with_values(results["longer"]) == [text(n) + "!" for n in range(3)]
        assert all(isinstance(part, ResultHandle) for part in results["longer"])
        assert results["lengths"] == [SIZE + 1] * 3
    assert "r:longer[0]" in sent
    assert "r:longer[0]" not in {message.task_id.rpartition(":")[0] for message in site.sent}


async def test_a_resumed_run_reads_what_it_now_looks_into() -> None:
    site, journal = Site(), MemoryJournal()
    before = DAGBuilder().node(site.task(texts), inputs={"number": "number"})
    after = DAGBuilder().node(site.task(texts), inputs={"number": "number"})
    after.node(site.task(longer), inputs={"text": "texts"}, map_over="texts")
    async with site.working():
        engine = site.engine(before.build(), journal=journal)
        assert isinstance((await engine.execute({"number": 1}, run_id="r"))["texts"], ResultHandle)
        engine = site.engine(after.build(), "value", journal=journal)
        with pytest.raises(GraphChangedError):
            _ = [pair async for pair in engine.resume("r")]
        results = {n: v async for n, v in engine.resume("r", allow_changed=True)}
    assert results == {"texts": texts(1), "longer": [t + "!" for t in texts(1)]}


async def test_a_worker_reads_a_bounded_number_of_results_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(arguments, "READ_AT_ONCE", 3)
    site = Site()
    reading, most = 0, 0
    get_result = site.store.get_result

    async def counted(task_id: str, with_logs: bool = False) -> Any:  # noqa: FBT002 - taskiq's signature
        nonlocal reading, most
        reading += 1
        most = max(most, reading)
        try:
            return await get_result(task_id, with_logs)
        finally:
            reading -= 1

    dag = site.mapped().node(site.task(lengths), inputs={"texts": "texts"}).build()
    async with site.working():
        site.store.get_result = counted  # type: ignore[method-assign]
        results = await site.engine(dag).execute({"numbers": list(range(20))})
    assert results["lengths"] == [SIZE] * 20
    assert most == 3
