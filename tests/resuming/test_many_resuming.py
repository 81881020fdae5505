"""Runs of many inputs that are gone on with, given their source once more."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterable
from contextlib import aclosing
from typing import Any

import pytest
from taskiq import InMemoryBroker

from taskiq_flow import (
    DAGBuilder,
    ExecutionEngine,
    GraphChangedError,
    InputConflictError,
    Item,
    JournalError,
    MemoryJournal,
    NodeFailedError,
    RunFailedError,
    RunLockedError,
)
from taskiq_flow.journal.history import restore_run
from tests.virtual_clock import virtually

TEXTS = ["ebb and flow", "", "tide", "neap tide", "slack water"]


class Library:
    """A journal, a graph, and the texts that its nodes worked on."""

    def __init__(self) -> None:
        self.journal = MemoryJournal()
        self.done: list[tuple[str, str]] = []
        self.broken: set[str] = set()

    async def words(self, text: str) -> list[str]:
        await asyncio.sleep(1)
        self.done.append(("words", text))
        return text.split()

    async def size(self, word: str) -> int:
        await asyncio.sleep(1)
        self.done.append(("size", word))
        if word in self.broken:
            raise ValueError(word)
        return len(word)

    def total(self, sizes: list[int]) -> int:
        return sum(sizes)

    def is_wanted(self, sizes: list[int]) -> bool:
        return bool(sizes)

    def count(self, words: list[str]) -> int:
        return len(words)

    def engine(self, *, counts: bool = False, **options: Any) -> ExecutionEngine:
        builder = DAGBuilder().node(self.words)
        builder.node(self.size, inputs={"word": "words"}, map_over="words", output="sizes")
        if counts:
            builder.node(self.count)
        dag = builder.node(self.total, when=self.is_wanted).build()
        options = {"max_parallel": 1, "journal": self.journal, **options}
        return ExecutionEngine(InMemoryBroker(), dag, **options)

    def many(
        self, texts: Iterable[str] = TEXTS, on_error: Any = "raise", **options: Any
    ) -> AsyncGenerator[Any, None]:
        source = ({"text": text} for text in texts)
        return self.engine(on_error=on_error).execute_many(source, run_id="m", **options)

    async def kept(self) -> list[str]:
        """What the journal has the results of."""
        return [*(await restore_run(self.journal, "m")).results]

    async def stop_after(self, count: int, **options: Any) -> list[Any]:
        """Begin the run and leave it behind so much of it."""
        found: list[Any] = []
        async with aclosing(self.many(**options)) as stream:
            async for each in stream:
                found.append(each)
                if len(found) == count:
                    break
        return found


async def all_of(stream: AsyncGenerator[Any, None]) -> list[Any]:
    return [each async for each in stream]


NO_OPTIONS: dict[str, Any] = {}

WHOLE = [
    {"words": text.split(), "sizes": sizes, **({"total": sum(sizes)} if sizes else {})}
    for text, sizes in zip(TEXTS, [[3, 3, 4], [], [4], [4, 4], [5, 5]], strict=True)
]


@pytest.mark.parametrize("count", range(1, 6))
@pytest.mark.parametrize("replay", [True, False])
@virtually
async def test_what_was_finished_is_not_run_again(count: int, replay: bool) -> None:
    library = Library()
    first = await library.stop_after(count, whole=True, task_limit=2)
    before = {*library.done}
    library.done.clear()
    second = await all_of(library.many(whole=True, resume=True, replay=replay))
    assert sorted(second if replay else first + second) == list(enumerate(WHOLE))
    finished = {text for index, _ in first for text in [TEXTS[index], *TEXTS[index].split()]}
    assert {text for _, text in library.done}.isdisjoint(finished - {"tide"})
    assert len(before & {*library.done}) <= 1  # what was in flight


@virtually
async def test_results_come_again_with_the_lists_of_maps_unless_that_is_not_wanted() -> None:
    library = Library()
    expected = {(name, index): value for index, name, value in await all_of(Library().many())}
    await library.stop_after(3)
    again = await all_of(library.many(resume=True))
    assert {(name, index): value for index, name, value in again} == expected
    library = Library()
    await library.stop_after(3)
    kept = {*await library.kept()}
    assert {"size[0,0]", "size[0,1]", "size[0,2]"} <= kept
    kept.add("size[0]")
    rest = await all_of(library.many(resume=True, replay=False))
    assert {(name, index): value for index, name, value in rest} == {
        pair: value for pair, value in expected.items() if f"{pair[0]}[{pair[1]}]" not in kept
    }
    assert await all_of(library.many(resume=True, replay=False)) == []
    assert library.done.count(("words", TEXTS[0])) == 1


@virtually
async def test_elements_are_items_again() -> None:
    library = Library()
    expected = sorted(map(repr, await all_of(Library().many(items=True))))
    await library.stop_after(6, items=True)
    again = await all_of(library.many(items=True, resume=True))
    assert sorted(map(repr, again)) == expected
    assert (0, "size", Item(1, 3)) in again


@virtually
async def test_a_source_that_gives_other_inputs_is_told_by_number() -> None:
    library = Library()
    await library.stop_after(3, whole=True)
    others = [*TEXTS[:1], "another", *TEXTS[2:]]
    with pytest.raises(GraphChangedError, match=r"item 1 of node 'inputs' is not the one") as error:
        await all_of(library.many(others, resume=True))
    assert error.value.changed == ["inputs[1]"]
    with pytest.raises(GraphChangedError, match=r"'inputs' maps over fewer items than the [345]"):
        await all_of(library.many(TEXTS[:2], resume=True))
    more = await all_of(library.many([*TEXTS, "spring"], resume=True, whole=True))
    assert max(more) == (5, {"words": ["spring"], "sizes": [6], "total": 6})


@virtually
async def test_what_had_failed_is_tried_again_and_its_input_is_given_again() -> None:
    library = Library()
    library.broken = {"neap"}
    with pytest.raises(NodeFailedError, match=r"'size\[3,0\]'"):
        await all_of(library.many(whole=True))
    library.broken = set()
    library.done.clear()
    rest = await all_of(library.many(whole=True, resume=True, replay=False))
    assert [index for index, _ in rest][-2:] == [3, 4]
    assert dict(rest)[3] == WHOLE[3]
    assert ("words", TEXTS[3]) not in library.done
    library = Library()
    library.broken = {"neap"}
    with pytest.raises(RunFailedError, match=r"'size\[3,0\]'"):
        await all_of(library.many(whole=True, on_error="continue"))
    library.broken = set()
    assert await all_of(library.many(whole=True, resume=True, replay=False)) == [(3, WHOLE[3])]


@virtually
async def test_a_run_of_many_inputs_is_told_from_a_run_of_one() -> None:
    library = Library()
    engine = library.engine()
    await library.stop_after(1)
    with pytest.raises(InputConflictError, match=r"execute_many\(source, run_id='m', resume"):
        await all_of(engine.resume("m"))
    with pytest.raises(InputConflictError, match="begun with execute_many"):
        await all_of(engine.rerun("m", ["words"]))
    await engine.execute({"text": "tide"}, run_id="one")
    with pytest.raises(InputConflictError, match=r"engine.resume\('one'\)"):
        await all_of(engine.execute_many([], run_id="one", resume=True))
    with pytest.raises(InputConflictError, match="other outputs"):
        await all_of(library.many(resume=True, outputs=["words"]))
    with pytest.raises(JournalError, match=r"execute_many\(..., run_id='m', resume=True\)"):
        await all_of(library.many())
    with pytest.raises(ValueError, match="resume=True continues a run by its run_id"):
        engine.execute_many([], resume=True)


@virtually
async def test_resume_begins_a_run_that_the_journal_does_not_have() -> None:
    library = Library()
    part: dict[str, Any] = {"outputs": ["words"], "whole": True}
    found = await all_of(library.many(resume=True, **part))
    assert sorted(found) == [(n, {"words": text.split()}) for n, text in enumerate(TEXTS)]
    assert sorted(await all_of(library.many(resume=True, **part))) == sorted(found)
    assert len(library.done) == len(TEXTS)


@virtually
async def test_another_graph_goes_on_with_what_is_as_it_was_if_that_is_allowed() -> None:
    library = Library()
    await library.stop_after(2, whole=True)
    kept = {*await library.kept()}
    library.done.clear()
    engine = library.engine(counts=True)

    def many(**options: Any) -> AsyncGenerator[Any, None]:
        return engine.execute_many(
            ({"text": text} for text in TEXTS), run_id="m", resume=True, whole=True, **options
        )

    with pytest.raises(GraphChangedError, match="added: count"):
        await all_of(many())
    assert library.done == []
    found = dict(await all_of(many(allow_changed=True, replay=False)))
    assert found == {
        n: {**each, "count": len(text.split())}
        for n, (text, each) in enumerate(zip(TEXTS, WHOLE, strict=True))
    }
    again = {TEXTS[int(name[6:-1])] for name in kept if name.startswith("words[")}
    assert again.isdisjoint({text for name, text in library.done if name == "words"})
    assert await all_of(many(replay=False)) == []
    for option in ({"allow_changed": True}, {"replay": False}):
        with pytest.raises(ValueError, match="give resume=True as well"):
            engine.execute_many([], **option)  # type: ignore[arg-type]


@virtually
async def test_how_long_many_inputs_wait_for_an_engine_that_has_them() -> None:
    library, loop = Library(), asyncio.get_running_loop()
    async with aclosing(library.many()) as first:
        await anext(first)
        for options, seconds in (({"wait": 3}, 3), (NO_OPTIONS, 11)):
            begin = loop.time()
            with pytest.raises(RunLockedError):
                await all_of(library.many(["never"] * 3, resume=True, **options))
            assert loop.time() - begin == pytest.approx(seconds)
    with pytest.raises(TypeError, match="wait is 'soon'; give a number of seconds"):
        library.many(resume=True, wait="soon")
