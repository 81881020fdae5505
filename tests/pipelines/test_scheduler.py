"""Scheduled pipelines: jobs in a schedule source of taskiq, sent by taskiq's scheduler."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any, ClassVar
from zoneinfo import ZoneInfo

import pytest
from taskiq import InMemoryBroker, ScheduledTask, TaskiqScheduler
from taskiq.cli.scheduler.run import is_cron_task_now
from taskiq.schedule_sources import LabelScheduleSource

from taskiq_flow import (
    AnnotationError,
    BindingError,
    ConfigurationError,
    DataflowPipeline,
    HookManager,
    MissingInputError,
    NodeFailedError,
    Pipeline,
    PipelineError,
    PipelineJob,
    PipelineScheduler,
    PipelineTrackingManager,
)
from taskiq_flow.pipelines.jobs import NEVER, MemorySchedules
from taskiq_flow.testing import LocalBroker, run_virtually
from tests.waiting import until

MOMENT = datetime(2030, 1, 2, 3, 4, tzinfo=UTC)

ran: list[Any] = []


def note(*args: Any, c: Any = None) -> None:
    ran.append((args, {} if c is None else {"c": c}))


@pytest.fixture(autouse=True)
def _nothing_has_run() -> None:
    ran.clear()


@pytest.fixture
def scheduler(broker: InMemoryBroker) -> PipelineScheduler:
    return PipelineScheduler(broker)


@pytest.fixture
def pipeline(broker: InMemoryBroker) -> Pipeline[Any]:
    return Pipeline(broker).call_next(note)


Add = Callable[[PipelineScheduler, Pipeline[Any]], Any]

KINDS: dict[str, tuple[Add, dict[str, Any]]] = {
    "cron": (
        lambda s, p: s.schedule(p, "5 3 * * 1", job_id="j", timezone="Europe/Berlin"),
        {"cron": "5 3 * * 1", "timezone": "Europe/Berlin"},
    ),
    "interval": (
        lambda s, p: s.schedule_interval(p, hours=1, minutes=2, seconds=3, job_id="j"),
        {"interval": timedelta(hours=1, minutes=2, seconds=3), "timezone": None},
    ),
    "time": (
        lambda s, p: s.schedule_at(p, MOMENT, job_id="j"),
        {"run_at": MOMENT, "timezone": "UTC"},
    ),
}


def described(job: PipelineJob | None) -> dict[str, Any]:
    assert job is not None
    names = ("cron", "interval", "run_at", "timezone")
    return {name: getattr(job, name) for name in names}


async def sent(scheduler: PipelineScheduler, job_id: str) -> None:
    """The job is due, as taskiq's scheduler says it is."""
    source = scheduler.sources[0]
    task = next(s for s in await source.get_schedules() if s.schedule_id.startswith(job_id))
    await scheduler.on_ready(source, task)


@pytest.mark.parametrize("kind", KINDS)
async def test_a_job_is_kept_as_it_was_scheduled(
    scheduler: PipelineScheduler, pipeline: Pipeline[Any], kind: str
) -> None:
    add, expected = KINDS[kind]
    assert await add(scheduler, pipeline) == "j"
    job = await scheduler.get_job("j")
    when = {"cron": None, "interval": None, "run_at": None, **expected}
    assert described(job) == when
    assert await scheduler.list_jobs() == [job]
    await scheduler.pause_job("j")
    paused = await scheduler.get_job("j")
    assert described(paused) == when
    assert paused is not None
    assert paused.is_paused
    (stored,) = await scheduler.sources[0].get_schedules()
    assert (stored.cron, stored.interval, stored.time) == (NEVER, None, None)
    await scheduler.resume_job("j")
    assert await scheduler.get_job("j") == job
    assert await scheduler.remove_job("j") is True
    assert await scheduler.remove_job("j") is False
    assert await scheduler.list_jobs() == []


def test_a_paused_job_is_due_on_no_day() -> None:
    day = datetime(2027, 1, 1, tzinfo=UTC)
    while day.year < 2029:
        assert not is_cron_task_now(NEVER, day)
        day += timedelta(days=1)


async def test_a_job_that_is_sent_runs_the_pipeline_with_its_arguments(
    scheduler: PipelineScheduler, pipeline: Pipeline[Any]
) -> None:
    about: dict[str, Any] = {"args": [1, "b"], "kwargs": {"c": [3]}}
    job_id = await scheduler.schedule(pipeline, "* * * * *", **about)
    await sent(scheduler, job_id)
    await until(lambda: ran == [((1, "b"), {"c": [3]})], "the jobs ran")
    await scheduler.modify_job(job_id, args=(2,), kwargs={})
    await sent(scheduler, job_id)
    await until(lambda: len(ran) == 2, "the jobs ran")
    assert ran[1] == ((2,), {})


async def test_the_run_has_the_pipeline_id_of_the_job(
    broker: InMemoryBroker, scheduler: PipelineScheduler
) -> None:
    ids: list[str] = []

    class Ids:
        def on_event(self, event: Any) -> None:
            ids.append(event.run_id)

    pipeline = Pipeline(broker, pipeline_id="own", listeners=[Ids()]).call_next(note)
    job_id = await scheduler.schedule(pipeline, "* * * * *", args=(1,), pipeline_id="nightly")
    await sent(scheduler, job_id)
    await until(lambda: len(ids) == 5, "the jobs ran")
    await scheduler.modify_job(job_id, pipeline_id=None)
    await sent(scheduler, job_id)
    await until(lambda: len(ids) == 10, "the jobs ran")
    assert ids == ["nightly"] * 5 + ["own"] * 5


async def test_another_scheduler_with_the_source_has_the_jobs(
    broker: InMemoryBroker, pipeline: Pipeline[Any]
) -> None:
    source = MemorySchedules()
    await PipelineScheduler(broker, store=source).schedule(pipeline, "0 3 * * *", job_id="j")
    other = PipelineScheduler(broker, store=source)
    assert [job.id for job in await other.list_jobs()] == ["j"]
    assert isinstance(other, TaskiqScheduler)


async def test_schedules_of_other_tasks_are_no_jobs(
    broker: InMemoryBroker, pipeline: Pipeline[Any]
) -> None:
    source = MemorySchedules()
    foreign = ScheduledTask(task_name="t", labels={}, args=[], kwargs={}, cron="* * * * *")
    await source.add_schedule(foreign)
    scheduler = PipelineScheduler(broker, store=source)
    await scheduler.schedule(pipeline, "0 3 * * *", job_id="j")
    assert [job.id for job in await scheduler.list_jobs()] == ["j"]
    assert len(await source.get_schedules()) == 2


async def test_a_job_id_that_is_there_is_replaced(
    scheduler: PipelineScheduler, pipeline: Pipeline[Any]
) -> None:
    for cron in ("0 3 * * *", "0 4 * * *"):
        await scheduler.schedule(pipeline, cron, job_id="j")
    assert [job.cron for job in await scheduler.list_jobs()] == ["0 4 * * *"]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"cron": "1 * * * *"}, {"cron": "1 * * * *", "timezone": "Europe/Berlin"}),
        ({"cron": "1 * * * *", "timezone": "UTC"}, {"cron": "1 * * * *", "timezone": "UTC"}),
        ({"minutes": 5}, {"interval": timedelta(minutes=5), "timezone": None}),
        (
            {"run_at": datetime(2030, 7, 1, 12)},  # noqa: DTZ001 - that is what is tested
            {
                "run_at": datetime(2030, 7, 1, 12, tzinfo=ZoneInfo("Europe/Berlin")),
                "timezone": "Europe/Berlin",
            },
        ),
    ],
)
async def test_a_job_is_given_another_time(
    scheduler: PipelineScheduler, pipeline: Pipeline[Any], change: Any, expected: Any
) -> None:
    await KINDS["cron"][0](scheduler, pipeline)
    await scheduler.reschedule_job("j", **change)
    when = {"cron": None, "interval": None, "run_at": None, **expected}
    assert described(await scheduler.get_job("j")) == when


class Full(MemorySchedules):
    """A source that takes no schedule any more, from some moment on."""

    is_full = False

    async def add_schedule(self, schedule: ScheduledTask) -> None:
        was_full, self.is_full = self.is_full, False
        if was_full:
            raise ConnectionError("full")
        await super().add_schedule(schedule)


async def test_a_job_stays_if_its_change_cannot_be_stored(
    broker: InMemoryBroker, pipeline: Pipeline[Any]
) -> None:
    source = Full()
    scheduler = PipelineScheduler(broker, store=source)
    await scheduler.schedule(pipeline, "0 3 * * *", args=(1,), job_id="job")
    job = await scheduler.get_job("job")
    changes = (
        lambda: scheduler.pause_job("job"),
        lambda: scheduler.reschedule_job("job", minutes=5),
        lambda: scheduler.modify_job("job", args=(2,)),
        lambda: scheduler.schedule(pipeline, "0 4 * * *", job_id="job"),
    )
    for change in changes:
        source.is_full = True
        with pytest.raises(ConnectionError, match="full"):
            await change()
        assert await scheduler.list_jobs() == [job]


async def test_a_start_that_is_cancelled_leaves_nothing_running(pipeline: Pipeline[Any]) -> None:
    class Slow(InMemoryBroker):
        begins = asyncio.Event()

        async def startup(self) -> None:
            self.begins.set()
            await asyncio.Event().wait()

    broker = Slow()
    scheduler = PipelineScheduler(broker)
    before = asyncio.all_tasks()
    starting = asyncio.create_task(scheduler.start())
    await broker.begins.wait()
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    assert asyncio.all_tasks() - before == set()


async def test_a_time_without_a_zone_is_one_of_the_scheduler_s(
    broker: InMemoryBroker, pipeline: Pipeline[Any]
) -> None:
    scheduler = PipelineScheduler(broker, timezone="Asia/Tokyo")
    noon = datetime(2030, 7, 1, 12)  # noqa: DTZ001 - that is what is tested
    await scheduler.schedule_at(pipeline, noon, job_id="j")
    await scheduler.schedule(pipeline, "0 12 * * *", job_id="k")
    (stored, cron) = await scheduler.sources[0].get_schedules()
    assert stored.time == datetime(2030, 7, 1, 3, tzinfo=UTC)
    assert is_cron_task_now("0 12 * * *", stored.time.astimezone(UTC), cron.cron_offset)
    await scheduler.schedule_at(pipeline, noon, job_id="j", timezone="UTC")
    job = await scheduler.get_job("j")
    assert job is not None
    assert job.run_at == datetime(2030, 7, 1, 12, tzinfo=UTC)


def report(day: int, title: str = "") -> None:
    ran.append((day, title))


BAD_CALLS: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "too few": ({}, BindingError, "step 'report' lacks 'day'"),
    "too many": ({"args": (1, "b", 3)}, BindingError, "more values than it takes"),
    "misspelt": ({"args": (1,), "kwargs": {"titel": "b"}}, BindingError, "did you mean 'title'"),
    "another type": ({"args": ("soon",)}, AnnotationError, "takes int as 'input', and was given"),
}


@pytest.mark.parametrize("case", BAD_CALLS)
async def test_arguments_that_kiq_refuses_are_refused_when_they_are_scheduled(
    broker: InMemoryBroker, scheduler: PipelineScheduler, case: str
) -> None:
    call, error, said = BAD_CALLS[case]
    pipeline = Pipeline(broker).call_next(report)
    adds: tuple[Callable[..., Any], ...] = (
        lambda **call: scheduler.schedule(pipeline, "0 3 * * *", **call),
        lambda **call: scheduler.schedule_interval(pipeline, hours=1, **call),
        lambda **call: scheduler.schedule_at(pipeline, MOMENT, **call),
    )
    for add in adds:
        with pytest.raises(error, match=said):
            await add(**call)
    with pytest.raises(error, match=said):
        pipeline.as_task("labelled", schedule=[{"cron": "0 3 * * *", **call}])
    assert await scheduler.list_jobs() == []
    assert pipeline.task is None
    await scheduler.schedule(pipeline, "0 3 * * *", args=(1,), job_id="j")
    with pytest.raises(error, match=said):
        await scheduler.modify_job("j", **{"args": (), **call})
    assert [job.args for job in await scheduler.list_jobs()] == [(1,)]


async def test_items_of_a_list_that_is_mapped_over_are_checked_when_it_is_scheduled(
    broker: InMemoryBroker, scheduler: PipelineScheduler
) -> None:
    pipeline = Pipeline(broker).map(report)
    with pytest.raises(AnnotationError, match=r"takes list\[int\] as 'input'.*: 1: "):
        await scheduler.schedule(pipeline, "0 3 * * *", args=([1, "soon"],))
    await scheduler.schedule(pipeline, "0 3 * * *", args=([1, 2],))


async def test_keys_that_a_dataflow_pipeline_lacks_are_told_when_it_is_scheduled(
    broker: InMemoryBroker, scheduler: PipelineScheduler
) -> None:
    pipeline = DataflowPipeline(broker, [report])
    with pytest.raises(MissingInputError, match="'day'"):
        await scheduler.schedule(pipeline, "0 3 * * *", kwargs={"title": "b"})
    with pytest.raises(PipelineError, match="by position"):
        await scheduler.schedule(pipeline, "0 3 * * *", args=(1,))
    await scheduler.schedule(pipeline, "0 3 * * *", kwargs={"day": 1})


async def test_changes_that_workers_do_not_have_are_told_when_the_pipeline_is_scheduled(
    caplog: pytest.LogCaptureFixture,
) -> None:
    broker = LocalBroker()
    scheduler = PipelineScheduler(broker)
    pipeline = Pipeline(broker).call_next(note).with_tracking(PipelineTrackingManager())
    pipeline.as_task("nightly")
    await scheduler.schedule(pipeline, "0 3 * * *")
    assert caplog.text == ""
    pipeline.with_tracking(PipelineTrackingManager()).with_hooks(HookManager()).with_timeout(9)
    pipeline.with_hooks(HookManager()).call_next(note).pipeline_id = "tonight"
    await scheduler.schedule(pipeline, "0 3 * * *")
    (record,) = caplog.records
    assert record.getMessage() == (
        "pipeline 'nightly' was changed after as_task(): with_tracking, with_hooks, with_timeout, "
        "a step, pipeline_id; workers run it as the module that they import makes it, so make "
        "these changes there, before as_task()"
    )


async def test_a_pipeline_that_this_process_runs_may_be_changed_at_any_time(
    broker: InMemoryBroker, scheduler: PipelineScheduler, caplog: pytest.LogCaptureFixture
) -> None:
    pipeline = Pipeline(broker).call_next(note)
    pipeline.as_task("nightly")
    pipeline.with_hooks(HookManager())
    await scheduler.schedule(pipeline, "0 3 * * *")
    assert caplog.text == ""


async def test_a_job_that_is_not_there_is_told_with_the_one_that_may_be_meant(
    scheduler: PipelineScheduler, pipeline: Pipeline[Any]
) -> None:
    await scheduler.schedule(pipeline, "0 3 * * *", job_id="often")
    with pytest.raises(PipelineError, match=r"no job 'oftn'; did you mean 'often'\?; list_jobs"):
        await scheduler.pause_job("oftn")


async def test_a_job_that_is_too_late_is_left_out(
    scheduler: PipelineScheduler, pipeline: Pipeline[Any], caplog: pytest.LogCaptureFixture
) -> None:
    past = datetime.now(UTC) - timedelta(minutes=6)
    await scheduler.schedule_at(pipeline, past, job_id="late")
    await sent(scheduler, "late")
    assert "job late was due at" in caplog.text
    assert await scheduler.list_jobs() == []
    await scheduler.schedule_at(pipeline, past, job_id="in time", misfire_grace_time=600)
    await scheduler.schedule_at(pipeline, past, job_id="any", misfire_grace_time=None)
    for job_id in ("in time", "any"):
        await sent(scheduler, job_id)
    await until(lambda: len(ran) == 2, "the jobs ran")
    assert await scheduler.list_jobs() == []


async def test_jitter_waits_before_a_job_is_sent(
    scheduler: PipelineScheduler, pipeline: Pipeline[Any]
) -> None:
    job_id = await scheduler.schedule(pipeline, "* * * * *", jitter=3600)
    sending = asyncio.create_task(sent(scheduler, job_id))
    await asyncio.sleep(0.01)
    assert not sending.done()
    sending.cancel()
    await asyncio.wait([sending])
    await scheduler.modify_job(job_id, jitter=0.001)
    await sent(scheduler, job_id)
    await until(lambda: len(ran) == 1, "the jobs ran")


@pytest.mark.parametrize("method", ["pause_job", "remove_job"])
async def test_a_job_that_is_paused_or_removed_while_jitter_waits_is_not_sent(
    scheduler: PipelineScheduler, pipeline: Pipeline[Any], broker: InMemoryBroker, method: str
) -> None:
    job_id = await scheduler.schedule(pipeline, "* * * * *", jitter=0.01)
    sending = asyncio.create_task(sent(scheduler, job_id))
    await asyncio.sleep(0)
    await getattr(scheduler, method)(job_id)
    await sending
    await broker.wait_all()
    assert ran == []


# The scheduler's loop


async def test_a_scheduler_that_is_started_sends_what_is_due(
    broker: InMemoryBroker, pipeline: Pipeline[Any]
) -> None:
    async with PipelineScheduler(broker) as scheduler:
        await scheduler.schedule_interval(pipeline, seconds=3600, args=("again",))
        await scheduler.schedule_at(pipeline, datetime.now(UTC), args=("once",), job_id="once")
        await scheduler.schedule(pipeline, "* * * * *", args=("paused",), job_id="paused")
        await scheduler.pause_job("paused")
        with pytest.raises(PipelineError, match="has been started already"):
            await scheduler.start()
        await until(lambda: len(ran) == 2, "the jobs ran")
        assert sorted(args for args, _ in ran) == [("again",), ("once",)]
        assert await scheduler.get_job("once") is None
    await scheduler.start()
    await scheduler.shutdown(wait=False)


async def test_the_broker_is_shut_down_by_who_started_it() -> None:
    class Watched(InMemoryBroker):
        calls: ClassVar[list[str]] = []

        async def startup(self) -> None:
            self.calls.append("startup")
            await super().startup()

        async def shutdown(self) -> None:
            self.calls.append("shutdown")
            await super().shutdown()

    scheduler = PipelineScheduler(Watched())
    await scheduler.shutdown()
    assert Watched.calls == []
    async with scheduler:
        assert Watched.calls == ["startup"]
    assert Watched.calls == ["startup", "shutdown"]
    await scheduler.startup()  # as taskiq's own command does
    await scheduler.shutdown()
    assert Watched.calls == ["startup", "shutdown"] * 2


@pytest.mark.parametrize("waits", [True, False])
async def test_shutting_down_waits_for_what_is_being_sent(
    broker: InMemoryBroker, pipeline: Pipeline[Any], waits: bool
) -> None:
    may_send = asyncio.Event()

    class Slow(MemorySchedules):
        async def pre_send(self, task: ScheduledTask) -> None:
            await may_send.wait()

    scheduler = PipelineScheduler(broker, store=Slow())
    await scheduler.start()
    job_id = await scheduler.schedule(pipeline, "* * * * *", args=(1,))
    sending = asyncio.create_task(sent(scheduler, job_id))
    await asyncio.sleep(0)
    shutting = asyncio.create_task(scheduler.shutdown(wait=waits))
    if waits:
        await asyncio.sleep(0.01)
        assert not shutting.done()
        may_send.set()
    await shutting
    await asyncio.wait([sending])
    assert sending.cancelled() is not waits


async def test_shutting_down_that_is_given_up_sends_no_more_either(
    broker: InMemoryBroker, pipeline: Pipeline[Any]
) -> None:
    scheduler, before = PipelineScheduler(broker), asyncio.all_tasks()
    await scheduler.start()
    job_id = await scheduler.schedule(pipeline, "* * * * *", args=(1,), jitter=3600)
    sending = asyncio.create_task(sent(scheduler, job_id))
    await asyncio.sleep(0)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(scheduler.shutdown(), 0.01)
    assert sending.cancelled()
    assert asyncio.all_tasks() - before == set()


@pytest.mark.parametrize("in_place", [True, False])
@pytest.mark.parametrize("waits", [True, False])
async def test_a_pipeline_may_shut_its_scheduler_down(in_place: bool, waits: bool) -> None:
    broker, may_send = InMemoryBroker(await_inplace=in_place), asyncio.Event()
    may_send.set()

    class Slow(MemorySchedules):
        async def pre_send(self, task: ScheduledTask) -> None:
            await may_send.wait()

    scheduler = PipelineScheduler(broker, store=Slow())

    async def stop(name: str) -> str:
        may_send.clear()
        other = asyncio.create_task(sent(scheduler, "other"))
        await asyncio.sleep(0)
        asyncio.get_running_loop().call_later(0.01, may_send.set)
        await scheduler.shutdown(wait=waits)
        assert other.done()
        assert other.cancelled() is not waits
        return name

    stopping = Pipeline(broker).call_next(stop).call_next(note)
    await scheduler.start()
    await scheduler.schedule(Pipeline(broker).call_next(note), "* * * * *", job_id="other")
    job_id = await scheduler.schedule(stopping, "* * * * *", args=("it",))
    await asyncio.wait_for(asyncio.create_task(sent(scheduler, job_id)), 5)
    await until(lambda: ran[-1:] == [(("it",), {})], "the jobs ran")
    await broker.wait_all()


@pytest.mark.parametrize("in_place", [True, False])
def test_a_pipeline_may_schedule_itself_under_the_id_of_its_job(in_place: bool) -> None:
    """apscheduler 7 and 803: jobs that were scheduled from within their runs were lost."""

    async def main() -> None:
        broker, done = InMemoryBroker(await_inplace=in_place), asyncio.Event()

        async def again(number: int) -> None:
            ran.append(number)
            if number == 3:
                done.set()
            else:
                await schedule(number + 1)

        pipeline = Pipeline(broker).call_next(again)

        async def schedule(number: int) -> None:
            await scheduler.schedule_at(pipeline, datetime.now(UTC), args=(number,), job_id="it")

        scheduler = PipelineScheduler(broker)
        await schedule(1)
        await scheduler.start(update_interval=0.001)
        await asyncio.wait_for(done.wait(), 1000)
        await scheduler.shutdown()
        assert await scheduler.list_jobs() == []

    run_virtually(main())
    assert ran == [1, 2, 3]


async def test_a_source_that_cannot_start_is_told_at_once(broker: InMemoryBroker) -> None:
    class Broken(MemorySchedules):
        async def startup(self) -> None:
            raise ConnectionError("away")

    scheduler = PipelineScheduler(broker, store=Broken())
    for _ in range(2):
        with pytest.raises(ConnectionError, match="away"):
            await scheduler.start()


async def test_a_broker_that_cannot_start_is_told_at_once(pipeline: Pipeline[Any]) -> None:
    class Broken(InMemoryBroker):
        async def startup(self) -> None:
            raise ConnectionError("away")

    scheduler = PipelineScheduler(Broken())
    for _ in range(2):
        with pytest.raises(ConnectionError, match="away"):
            await scheduler.start()


# Pipelines as tasks


async def test_a_pipeline_is_a_task_that_labels_can_schedule(broker: InMemoryBroker) -> None:
    pipeline = Pipeline(broker).call_next(note)
    task = pipeline.as_task("nightly", schedule=[{"cron": "0 3 * * *", "args": [7]}])
    assert pipeline.task is task is broker.find_task("nightly")
    source = LabelScheduleSource(broker)
    await source.startup()
    (stored,) = await source.get_schedules()
    await TaskiqScheduler(broker, [source]).on_ready(source, stored)
    await until(lambda: ran == [((7,), {})], "the jobs ran")


async def test_the_task_of_a_pipeline_is_given_what_its_first_step_is_annotated_with(
    broker: InMemoryBroker,
) -> None:
    def named(names: dict[int, list[tuple[int, str]]]) -> None:
        ran.append(names)

    names = {1: [(2, "ebb")]}
    pipeline, dataflow = Pipeline(broker).call_next(named), DataflowPipeline(broker, [named])
    steps, keys = pipeline.as_task("steps"), dataflow.as_task("keys")
    await (await steps.kiq(names)).wait_result()
    await (await keys.kiq(names=names)).wait_result()
    assert ran == [names, names]
    wrong = await (await steps.kiq("ebb")).wait_result()
    assert isinstance(wrong.error, NodeFailedError)  # of the step, as listeners are told it


async def test_the_task_of_a_pipeline_has_its_error(broker: InMemoryBroker) -> None:
    def fails(value: int) -> int:
        raise LookupError(value)

    task = Pipeline(broker).call_next(fails).as_task("fails")
    done = await (await task.kiq(1)).wait_result()
    assert "LookupError" in str(done.error)


async def test_a_pipeline_has_one_task_and_a_task_one_name(broker: InMemoryBroker) -> None:
    pipeline = Pipeline(broker).call_next(note)
    pipeline.as_task("nightly")
    with pytest.raises(ConfigurationError, match="is the task 'nightly' already"):
        pipeline.as_task("daily")
    with pytest.raises(ConfigurationError, match="has a task 'nightly' already"):
        Pipeline(broker).as_task("nightly")


# Mistakes


@pytest.mark.parametrize(
    ("call", "error", "said"),
    [
        (lambda s, p: s.schedule(p, "0 3 * *"), ValueError, "give five fields"),
        (lambda s, p: s.schedule(p, "x 3 * * *"), ValueError, "give five fields"),
        (lambda s, p: s.schedule(p, "0 25 * * *"), ValueError, "give five fields"),
        (lambda s, p: s.schedule(p, 7), ValueError, "give five fields"),
        (lambda s, p: s.schedule(p, "0 3 * * *", timezone="Mars"), ValueError, "'Mars'"),
        (lambda s, p: s.schedule_interval(p), ValueError, "the interval is 0 s"),
        (lambda s, p: s.schedule_interval(p, seconds=1.5), ValueError, "the interval is 1.5 s"),
        (lambda s, p: s.schedule_at(p, "noon"), TypeError, "give a datetime"),
        (lambda s, p: s.schedule(len, "0 3 * * *"), TypeError, "is no pipeline"),
        (lambda s, p: s.schedule(p, "0 3 * * *", jitter=-1), ValueError, "jitter is -1"),
        (lambda s, p: s.schedule(p, "0 3 * * *", job_id=""), ValueError, "job_id is empty"),
        (lambda s, p: s.pause_job("x"), PipelineError, "MemorySchedules tells of no job 'x'"),
        (lambda s, p: s.resume_job("x"), PipelineError, "no job 'x'"),
        (lambda s, p: s.modify_job("x", args=[1]), PipelineError, "no job 'x'"),
        (lambda s, p: s.reschedule_job("x", "0 3 * * *"), PipelineError, "no job 'x'"),
        (lambda s, p: s.reschedule_job("x"), ValueError, "one new time"),
        (lambda s, p: s.modify_job("x", cron="0 3 * * *"), TypeError, "there is reschedule_job"),
        (
            lambda s, p: s.schedule(Pipeline(InMemoryBroker()).call_next(note), "0 3 * * *"),
            ConfigurationError,
            "different brokers",
        ),
    ],
)
async def test_what_cannot_be_scheduled_is_refused(
    scheduler: PipelineScheduler, pipeline: Pipeline[Any], call: Any, error: Any, said: str
) -> None:
    with pytest.raises(error, match=said):
        await call(scheduler, pipeline)
    assert await scheduler.list_jobs() == []


async def test_a_source_that_takes_no_schedules_is_told(
    broker: InMemoryBroker, pipeline: Pipeline[Any]
) -> None:
    scheduler = PipelineScheduler(broker, store=LabelScheduleSource(broker))
    with pytest.raises(ConfigurationError, match="cannot be added while LabelScheduleSource"):
        await scheduler.schedule(pipeline, "0 3 * * *")
    with pytest.raises(ConfigurationError, match="cannot be removed"):
        await scheduler.remove_job("j")


@pytest.mark.parametrize(
    ("arguments", "error", "said"),
    [
        ({"store": "sqlite"}, ConfigurationError, "store='sqlite'; give store='memory'"),
        ({"store_path": "jobs.db"}, ConfigurationError, "store_path='jobs.db'"),
        ({"timezone": "Mars"}, ValueError, "timezone is 'Mars'"),
        ({"tz": "UTC"}, TypeError, "write timezone="),
    ],
)
def test_a_scheduler_that_cannot_be_is_refused(arguments: Any, error: Any, said: str) -> None:
    with pytest.raises(error, match=said):
        PipelineScheduler(InMemoryBroker(), **arguments)
