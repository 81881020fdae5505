"""What a user who makes a mistake is told, and when."""

from __future__ import annotations

import asyncio
import copy
import pickle
import re
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import pytest
from pydantic import BaseModel, SecretStr
from taskiq import InMemoryBroker

from taskiq_flow import (
    DAG,
    NO_FALLBACK,
    BindingError,
    Cache,
    CycleError,
    DAGBuilder,
    DAGNode,
    DataflowRegistry,
    ExecutionEngine,
    FlowMiddleware,
    MapReduce,
    MemoryJournal,
    MissingInputError,
    NodeFailedError,
    Pipeline,
    PipelineScheduler,
    Progress,
    RedisJournal,
    Retry,
    RunReader,
    SqliteJournal,
    UnusedInputWarning,
    broker_for,
    in_process,
)
from taskiq_flow.engine.call_text import MOST_CHARACTERS, shortened
from taskiq_flow.web import runs_app
from tests.virtual_clock import run_virtually


def loose(thing: object) -> Any:
    """A thing whose arguments no type checker knows."""
    return thing


def load(page: str) -> str:
    return page


def fail(page: Any) -> str:
    raise LookupError(page)


class Silent:
    def on_event(self, event: object) -> None:
        """Take an event."""


# As they are for somebody without a type checker.
node: Any = DAGNode
builder: Any = DAGBuilder()
retry: Any = Retry
cache: Any = Cache


def graph() -> DAG:
    return DAGBuilder().node(load, output="text").build()


def engine(**options: Any) -> ExecutionEngine:
    return ExecutionEngine(InMemoryBroker(), graph(), **options)


# Options of nodes and engines


@pytest.mark.parametrize(
    ("given", "taken"),
    [
        ({"retry": 4}, {"retry": Retry(attempts=4)}),  # other than by default
        ({"retry": Retry(2)}, {"retry": Retry(2)}),
        ({"cache": True}, {"cache": Cache()}),
        ({"cache": False}, {"cache": None, "has_policy": False}),
        ({"timeout": timedelta(minutes=1)}, {"timeout": 60.0}),
        ({"queue_timeout": timedelta(seconds=2)}, {"queue_timeout": 2.0}),
        ({"expected_seconds": timedelta(seconds=2)}, {"expected_seconds": 2.0}),
    ],
)
def test_short_forms_of_options_are_taken(given: dict[str, Any], taken: dict[str, Any]) -> None:
    node = DAGNode(load, **given)
    assert {name: getattr(node, name) for name in taken} == taken


def test_a_whole_number_of_any_type_is_taken() -> None:
    two = pytest.importorskip("numpy").int64(2)
    assert DAGNode(load, retry=two).retry == Retry(attempts=two) == Retry(attempts=2)
    assert type(Retry(attempts=two).attempts) is int
    assert DAGNode(load, map_over="page", max_parallel=two).max_parallel == 2
    DAGNode(load, map_over={"page": two})
    assert engine(max_parallel=two, retry=two).execute_sync({"page": "a"}) == {"text": "a"}
    engine(pass_by=two)
    FlowMiddleware("redis://localhost", max_deliveries=two, inline_limit=two, store_above=two)
    in_process(limit=two)


def test_a_retry_waits_for_a_timedelta() -> None:
    retry = Retry(wait=timedelta(minutes=1), max_wait=timedelta(minutes=3), jitter=0)
    assert [retry.delay(failures, 0.0) for failures in (1, 2, 3)] == [60.0, 120.0, 180.0]


def test_a_cache_expires_after_a_timedelta() -> None:
    assert Cache(ttl=timedelta(minutes=1)).seconds == Cache(ttl=60).seconds == 60


def test_retry_as_a_number_tries_so_often() -> None:
    def attempts(**options: Any) -> int:
        dag = DAGBuilder().node(fail).build()
        with pytest.raises(NodeFailedError) as caught:
            run_virtually(ExecutionEngine(InMemoryBroker(), dag, **options).execute({"page": 1}))
        return caught.value.attempts

    assert attempts(retry=2) == 2
    assert attempts(retry=4) == 4
    assert attempts() == 1


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: node(load, retry="3"), r"retry of node 'load' is '3'; give Retry\(attempts"),
        (lambda: node(load, retry=True), "retry of node 'load' is True; give"),
        (lambda: node(load, cache=60), r"cache of node 'load' is 60; give Cache\(ttl=seconds\)"),
        (lambda: node(load, timeout="3s"), "timeout of node 'load' is '3s'; give .* seconds"),
        (lambda: node(load, timeout=True), "timeout of node 'load' is True"),
        (lambda: node(load, queue_timeout="1"), "queue_timeout of node 'load' is '1'; .*second"),
        (lambda: node(load, expected_seconds="1"), "expected_seconds of node 'load'"),
        (lambda: cache(ttl="1h"), "ttl is '1h'; give a number of seconds, or a timedelta"),
        (lambda: retry(wait="1"), "wait is '1'; give a number"),
        (lambda: retry(factor=timedelta(2)), "factor is datetime.*; give a number"),
        (lambda: retry(on=3), "on is 3; give classes of exceptions"),
        (lambda: retry(on="ValueError"), "on is 'ValueError'; give classes of exceptions"),
        (lambda: node(load, given=["page"]), r"given of node 'load' is \['page'\]; give a mapping"),
        (lambda: node(load, given={1: 2}), "given of node 'load' holds 1; parameters are strings"),
        (lambda: node(load, name=3), "name is 3; give a string"),
        (
            lambda: engine().execute_sync(cast("Any", {1: "a"})),
            "inputs holds the key 1; keys are strings",
        ),
        (lambda: engine(retry="3"), "retry is '3'; give Retry"),
        (lambda: engine(timeout="3s"), "timeout is '3s'; give a number of seconds"),
        (lambda: engine(run_timeout="3s"), "run_timeout is '3s'; give a number of seconds"),
        (lambda: engine(lost_after="3s"), "lost_after is '3s'; give a number of seconds"),
    ],
)
def test_a_wrong_option_is_told_when_it_is_given(make: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        make()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: retry(3, backoff=2), "Retry has no argument 'backoff'; write factor="),
        (lambda: retry(max_retries=2), "'max_retries'; write attempts="),
        (lambda: builder.node(load, retries=3), "'retries'; write retry=3"),
        (lambda: node(load, depends_on=["a"]), "'depends_on'; write inputs="),
        (lambda: node(load, ouput="x"), "'ouput'; did you mean 'output'"),
        (lambda: node(load, xyzzy=1), "no argument 'xyzzy'; it takes task, output"),
        (lambda: engine(concurrency=3), "'concurrency'; write max_parallel="),
        (lambda: cache(expire=3), "'expire'; write ttl="),
        (
            lambda: loose(engine()).execute_sync(output="x"),
            "Engine.execute_sync .* mean 'outputs'",
        ),
        (
            lambda: loose(engine()).start(resum=True),
            "start .* 'resum'; did you mean 'resume'",
        ),
        (lambda: loose(builder).add_graph(DAG(), "g", input={}), "'input'; did you mean 'inputs'"),
        (lambda: loose(FlowMiddleware)(prefixx="a"), "'prefixx'; did you mean 'prefix'"),
        (
            lambda: loose(Progress)(jurnal="runs.db"),
            "Progress has no argument 'jurnal'; did you mean",
        ),
        (
            lambda: loose(RunReader)("runs.db").events("r1", folow=True),
            "'folow'; did you mean 'follow'",
        ),
        (lambda: loose(runs_app)("runs.db", contol=True), "runs_app .* mean 'control'"),
        (
            lambda: loose(Pipeline(InMemoryBroker())).with_retry(max_attempt=3),
            "Pipeline.with_retry .* 'max_attempts'",
        ),
        (
            lambda: loose(Pipeline(InMemoryBroker())).group([], param_name=["a"]),
            "Pipeline.group .* 'param_names'",
        ),
        (
            lambda: asyncio.run(loose(PipelineScheduler).schedule(None, corn="* * *")),
            "PipelineScheduler.schedule .* mean 'cron'",
        ),
        (
            lambda: asyncio.run(loose(MapReduce).map(InMemoryBroker(), len, [], max_paralel=3)),
            "max_parallel'",
        ),
        (
            lambda: asyncio.run(loose(MapReduce).map(InMemoryBroker(), len, [], jurnal="a.db")),
            "'journal'",
        ),
        (lambda: broker_for("redis://host", idle_timout=3), "broker_for .* mean 'idle_timeout'"),
        (lambda: broker_for("amqp://host", result="redis://host"), "'result'; did you mean"),
        (lambda: broker_for("memory://", pool=3), "no argument 'pool'; it takes results, store, "),
        (lambda: loose(in_process)(len, limt=3), "in_process .* mean 'limit'"),
    ],
)
def test_an_unknown_keyword_is_answered_with_the_right_one(make: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        make()


def test_an_option_of_a_brokers_connections_is_passed_on() -> None:
    made = broker_for("redis://host", timeout=2, socket_timeout=3, health_check_interval=5)
    assert "timeout=2, socket_timeout=3, health_check_interval=5" in repr(made)


@pytest.mark.parametrize("keys", [{"mean", "most"}, frozenset({"mean", "most"})])
@pytest.mark.parametrize("argument", ["inputs", "outputs"])
def test_a_set_of_keys_is_refused(argument: str, keys: Any) -> None:
    with pytest.raises(TypeError, match=rf"{argument} of node .* no order; .*=\['mean', 'most'\]"):
        DAGNode(lambda a, b: (a, b), **{argument: keys})


def test_a_mapping_as_outputs_stands_for_its_keys() -> None:
    assert DAGNode(load, outputs={"mean": 1, "most": 2}).outputs == ["mean", "most"]
    assert DAGNode(load, outputs={"mean": 1, "most": 2}.keys()).outputs == ["mean", "most"]


# Engines


@pytest.mark.parametrize(
    ("broker", "dag", "message"),
    [
        (InMemoryBroker(), DAGBuilder(), r"dag is .*; give the graph, .*builder.build\(\)"),
        (InMemoryBroker(), DataflowRegistry(), r"give the graph, .*registry.build_dag\(\)"),
        (InMemoryBroker(), DAG, "dag is the class DAG; give the graph"),
        (InMemoryBroker(), DAGBuilder().build, "dag is .*; give the graph"),
        (InMemoryBroker, DAG(), "broker is the class InMemoryBroker; give a taskiq broker"),
        (DAG(), InMemoryBroker(), "broker is <DAG"),
    ],
)
def test_what_is_no_broker_or_no_graph_is_told_when_the_engine_is_made(
    broker: Any, dag: Any, message: str
) -> None:
    with pytest.raises(TypeError, match=message):
        ExecutionEngine(broker, dag)


async def test_what_is_no_broker_is_told_to_a_map() -> None:
    with pytest.raises(TypeError, match="broker is the class InMemoryBroker"):
        await MapReduce.map(InMemoryBroker, load, ["a"])  # type: ignore[call-overload]


@pytest.mark.parametrize(
    ("listeners", "message"),
    [
        (Silent(), "a single listener; give a list"),
        (3, "listeners is 3; give a list"),
        ([print], r"print.*has no method on_event\(event\)"),
        ([Silent], "holds the class Silent; give an instance"),
    ],
)
def test_wrong_listeners_are_told_when_the_engine_is_made(listeners: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        engine(listeners=listeners)


@pytest.mark.parametrize("inputs", [["a.html"], "a.html", [("page", "a")], 3, []])
def test_inputs_that_are_no_mapping_are_told_at_the_call(inputs: Any) -> None:
    with pytest.raises(TypeError, match=r"inputs is a .*; it is a mapping of keys to values"):
        engine().execute_async(inputs)


@pytest.mark.parametrize(
    "call",
    [
        lambda e: e.execute_async(run_id=5),
        lambda e: e.resume(5),
        lambda e: e.rerun(5, ["load"]),
        lambda e: e.rerun("a", ["load"], new_run_id=5),
    ],
)
def test_a_run_id_that_is_no_string_is_told_at_the_call(call: Any) -> None:
    with pytest.raises(TypeError, match="run_id is 5; give a string"):
        call(engine(journal=MemoryJournal()))


def test_a_function_of_steps_that_is_none_is_told_when_the_engine_is_made() -> None:
    with pytest.raises(TypeError, match="on_step_complete is 3; give a function"):
        engine(on_step_complete=3)


# Journals


async def test_a_path_is_taken_as_a_sqlite_journal_of_that_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    made = engine(journal="runs.db")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    await made.execute({"page": "a"}, run_id="first")
    assert [path.name for path in tmp_path.glob("*.db")] == ["runs.db"]
    journal = SqliteJournal(tmp_path / "runs.db")
    assert await journal.run_ids() == ["first"]
    await journal.aclose()
    await made.journal.aclose()


def test_an_address_is_taken_as_a_redis_journal() -> None:
    assert isinstance(engine(journal="redis://localhost/3").journal, RedisJournal)


@pytest.mark.parametrize(
    ("journal", "error", "message"),
    [
        (SqliteJournal, TypeError, "journal is the class SqliteJournal; give an instance"),
        (3, TypeError, "journal is 3, which has no 'create'; give a path"),
        ({}, TypeError, "which has no 'create'"),
        ("", ValueError, "journal is an empty path"),
        ("postgres://u:secret@host/db", ValueError, "journal is a postgres:// address; give"),
    ],
)
def test_what_is_no_journal_is_told_when_the_engine_is_made(
    journal: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message) as caught:
        engine(journal=journal)
    assert "secret" not in str(caught.value)


# Keys


def test_a_misspelled_input_is_told_with_the_key_that_was_meant() -> None:
    with pytest.raises(MissingInputError) as caught:
        run_virtually(engine().execute({"pgae": "a"}))
    assert str(caught.value) == (
        "node 'load' needs 'page', which no node produces and the run was not given; it was given "
        "'pgae', which no node takes; did you mean 'page'?"
    )
    with pytest.raises(MissingInputError, match=r"mean 'page'\?; no node takes the given 'x'"):
        run_virtually(engine().execute({"pgae": "a", "x": 1}))


def test_a_misspelled_key_of_a_node_is_told_with_the_output_that_was_meant() -> None:
    dag = DAGBuilder().node(load, output="text").node(lambda txet: txet, name="use").build()
    with pytest.raises(MissingInputError, match=r"node 'use' needs 'txet'.* did you mean 'text'"):
        run_virtually(ExecutionEngine(InMemoryBroker(), dag).execute({"page": "a"}))


@pytest.mark.parametrize(
    ("inputs", "key"), [(["page", "path"], "path"), ({"page": "page", "path": "file"}, "file")]
)
def test_a_key_of_a_parameter_with_a_default_may_be_left_out_of_inputs(
    inputs: Any, key: str
) -> None:
    dag = DAGBuilder().node(lambda page, path="x": page, name="save", inputs=inputs).build()
    with pytest.raises(MissingInputError) as caught:
        run_virtually(ExecutionEngine(InMemoryBroker(), dag).execute({"page": "a"}))
    assert str(caught.value).endswith(
        f"pass it as an input, or add a node with output='{key}', or leave it out of inputs=: "
        "parameter 'path' has a default"
    )


async def pages(page: str) -> list[Any]:
    return [page]


EACH_PAGE = re.escape('; write inputs={"page": "pages"}, map_over="pages"') + "$"


def test_a_map_over_the_output_of_a_node_is_told_how_its_parameter_takes_an_item() -> None:
    builder = DAGBuilder().node(pages, given={"page": "a"}).node(load, map_over="pages")
    with pytest.raises(BindingError, match=EACH_PAGE):
        builder.build()

    dag = DAGBuilder().node(pages, given={"page": "a"}).node(load, map_over="page").build()
    with pytest.raises(MissingInputError, match=EACH_PAGE):
        run_virtually(ExecutionEngine(InMemoryBroker(), dag).execute())


def test_a_map_over_an_input_is_told_how_its_parameter_takes_an_item() -> None:
    count: Any = DAGBuilder().node(len, name="count", inputs=["pages"])
    with pytest.raises(BindingError, match=EACH_PAGE):
        count.node(load, map_over="pages").build()

    count = DAGBuilder().node(len, name="count", inputs=["pages"])
    dag = count.node(load, map_over="page").build()
    with pytest.raises(MissingInputError, match=EACH_PAGE):
        run_virtually(ExecutionEngine(InMemoryBroker(), dag).execute({"pages": ["a"]}))


def test_what_is_told_of_a_map_keeps_what_was_declared() -> None:
    def both(page: str, number: int, *, size: int = 0) -> None: ...

    builder = DAGBuilder().node(pages).node(both, inputs={"size": "n"}, map_over="pages")
    expected = '; write inputs={"size": "n", "page": "pages"}, map_over="pages"'
    with pytest.raises(BindingError, match=re.escape(expected)):
        builder.build()


def test_a_parameter_is_not_guessed_for_a_key_that_is_like_none_of_several() -> None:
    def both(first: str, second: str) -> None: ...

    with pytest.raises(BindingError, match=r"none of 'first', 'second'$"):
        DAGBuilder().node(pages).node(both, map_over="pages").build()


@pytest.mark.parametrize("value", [["a"], ("a", "b")])
def test_a_list_for_a_parameter_that_takes_one_item_is_told_of_map_over(value: Any) -> None:
    dag = DAGBuilder().node(load, inputs=["pages"], retry=Retry(2, wait=0)).build()
    with pytest.raises(NodeFailedError) as caught:
        run_virtually(ExecutionEngine(InMemoryBroker(), dag).execute({"pages": value}))
    told = '; to have it called for each item, write inputs={"page": "pages"}, map_over="pages"'
    assert str(caught.value).count(told) == 1
    assert str(caught.value.__cause__).endswith(told)


@pytest.mark.parametrize("value", [[], [["a"]], {"a": 1}])
def test_what_is_no_list_of_items_is_not_told_of_map_over(value: Any) -> None:
    dag = DAGBuilder().node(load, inputs=["pages"]).build()
    with pytest.raises(NodeFailedError) as caught:
        run_virtually(ExecutionEngine(InMemoryBroker(), dag).execute({"pages": value}))
    assert "map_over" not in str(caught.value)


def test_a_condition_on_a_parameter_in_place_of_a_key_names_the_condition_and_the_key() -> None:
    dag = DAGBuilder().node(load, inputs=["pages"], map_over="pages", when=lambda page: page != "b")
    with pytest.raises(
        MissingInputError,
        match=r"^the condition of node 'load' takes 'page', .* did you mean 'pages'",
    ):
        run_virtually(ExecutionEngine(InMemoryBroker(), dag.build()).execute({"pages": ["a"]}))


def test_an_unused_input_is_told_in_the_users_file_with_the_key_that_was_meant() -> None:
    def load(page: str = "") -> str:
        return page

    dag = DAGBuilder().node(load).build()
    with pytest.warns(UnusedInputWarning, match="no node takes; did you mean 'page'") as caught:
        asyncio.run(ExecutionEngine(InMemoryBroker(), dag).execute({"pgae": "a"}))
    assert [warning.filename for warning in caught] == [__file__]


# Failed nodes


def test_the_error_of_a_failed_node_has_its_arguments() -> None:
    dag = DAGBuilder().node(fail).build()
    with pytest.raises(NodeFailedError, match=r"it was called with page='a\.html'"):
        run_virtually(ExecutionEngine(InMemoryBroker(), dag).execute({"page": "a.html"}))


class Account(BaseModel):
    name: str
    password: SecretStr


@dataclass
class Batch:
    rows: list[int]
    secret: str = field(default="", repr=False)


class Table:
    shape = (3, 4)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("text", "'text'"),
        ("x" * 1000, f"'{'x' * (MOST_CHARACTERS - 4)}..."),
        (list(range(10)), "[0, 1, 2, 3, ...]"),
        ((1, 2), "(1, 2)"),
        ({"a": [1], "b": [[2]]}, "dict(a=[1], b=[[...]])"),
        (Table(), "<Table of shape (3, 4)>"),
        (Silent(), "<Silent>"),
        (Batch([1], "x"), "Batch(rows=[1])"),
        (Account(name="a", password=SecretStr("x")), "Account(name='a', password=<SecretStr>)"),
        (None, "None"),
    ],
)
def test_arguments_are_shortened(value: Any, text: str) -> None:
    assert shortened(value) == text


# Copies


def pickled(value: Any) -> Any:
    return pickle.loads(pickle.dumps(value))  # noqa: S301 - our own


@pytest.mark.parametrize("again", [copy.deepcopy, copy.copy, pickled])
def test_a_copied_graph_has_no_fallback_that_the_original_has_not(again: Any) -> None:
    assert again(NO_FALLBACK) is NO_FALLBACK
    dag = again(DAGBuilder().node(fail, timeout=5.0).build())
    with pytest.raises(NodeFailedError):
        run_virtually(ExecutionEngine(InMemoryBroker(), dag).execute({"page": "a"}))


@dataclass
class Adder:
    """Equal to every other one with this number, and not hashable."""

    number: int
    calls: list[str] = field(default_factory=list, compare=False)

    def __call__(self, page: str) -> int:
        self.calls.append(page)
        return len(self.calls)


def test_equal_callables_are_nodes_of_their_own() -> None:
    first, second = Adder(1), Adder(1)
    builder = DAGBuilder().node(first, name="a").node(second, name="b")
    results = run_virtually(
        ExecutionEngine(InMemoryBroker(), builder.build()).execute({"page": "p"})
    )
    assert (results, first.calls, second.calls) == ({"a": 1, "b": 1}, ["p"], ["p"])


async def test_each_run_and_each_node_has_a_fallback_of_its_own() -> None:
    fallback: list[str] = []

    def append(fail: Any) -> Any:
        fail.append("of a node")
        return fail

    dag = DAGBuilder().node(fail, fallback=fallback).node(append).build()
    made = ExecutionEngine(InMemoryBroker(), dag)
    for _ in range(2):
        async for name, value in made.execute_async({"page": "a"}):
            if name == "fail":
                value.append("of the reader")
            else:
                assert value == ["of a node"]
    assert fallback == []


# What things are


def test_a_repr_says_what_a_thing_is(tmp_path: Path) -> None:
    builder = DAGBuilder().node(load, output="text").node(fail, inputs=["text"])
    registry = DataflowRegistry()
    registry.register_task(load)
    mapped = [DAGNode(load, name=f"n{number}") for number in range(6)]
    wide = DAG()
    for each in mapped:
        wide.add_node(each)
    assert repr(builder) == "<DAGBuilder of 2 nodes: load, fail>"
    assert repr(builder.build()) == "<DAG of 2 nodes: load, fail>"
    assert repr(registry) == "<DataflowRegistry of 1 node: load>"
    assert repr(wide) == "<DAG of 6 nodes: n0, n1, n2, ...>"
    assert repr(DAG()) == "<DAG of 0 nodes>"
    assert repr(engine()) == (
        "<ExecutionEngine of <DAG of 1 node: load> on InMemoryBroker, 0 runs in progress>"
    )
    assert repr(MemoryJournal()) == "<MemoryJournal of 0 runs>"
    assert repr(SqliteJournal(tmp_path / "a.db")) == f"<SqliteJournal at {tmp_path / 'a.db'}>"
    assert repr(DAGNode(load, inputs=["url"], name="page")) == (
        "<DAGNode page of task load: ['url'] -> ['page']>"
    )
    assert repr(DAGNode(load, output="text")) == "<DAGNode load: its parameters -> ['text']>"


def test_a_repr_shows_no_secret() -> None:
    journal = RedisJournal("redis://user:secret@localhost/3")
    assert repr(journal) == (
        "<RedisJournal at redis://user:***@localhost/3, prefix 'taskiq_flow:journal'>"
    )
    middleware = FlowMiddleware("nats://token@localhost", prefix="mine")
    assert repr(middleware) == (
        "<FlowMiddleware of no broker yet, notices over nats://***@localhost, prefix 'mine'>"
    )
    InMemoryBroker().add_middlewares(middleware)
    assert repr(middleware).startswith("<FlowMiddleware of InMemoryBroker, notices")


async def test_a_repr_of_a_map_says_how_far_it_is() -> None:
    mapped = await MapReduce.map(InMemoryBroker(), load, ["a"], run_id="m")
    assert repr(mapped) == "<MapReduceResult 'm', output 'mapped', in progress>"
    await mapped.wait_result()
    assert repr(mapped) == "<MapReduceResult 'm', output 'mapped', done>"


# Graphs


def test_a_node_that_takes_what_it_gives_is_told_so() -> None:
    def page(page: str) -> str:
        return page

    with pytest.raises(CycleError, match=r"'page' takes and gives 'page'.*another output=") as e:
        DAGBuilder().node(page).build()
    assert e.value.cycle == ["page"]


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (
            {"pgae": "url"},
            "gives 'url' to parameter 'pgae', which the task does not have; did",
        ),
        (["page", "url"], "inputs= has 'url', and the task has no parameter left for it; its"),
    ],
)
def test_a_binding_error_is_a_sentence_with_the_place_of_the_task(
    inputs: Any, message: str
) -> None:
    line = load.__code__.co_firstlineno
    with pytest.raises(BindingError) as caught:
        DAGBuilder().node(load, inputs=inputs).build()
    assert message in str(caught.value)
    assert str(caught.value).endswith(f"; its task takes (page), at {__file__}:{line}")


def test_an_empty_run_id_is_refused() -> None:
    with pytest.raises(ValueError, match="run_id is empty; give a name, or leave it out"):
        engine().execute_sync({"page": "a"}, run_id="")
