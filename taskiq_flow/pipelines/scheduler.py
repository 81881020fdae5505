"""Scheduled pipelines. taskiq's scheduler sends them, and a schedule source of taskiq has them."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Iterable, Mapping
from contextvars import ContextVar
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from types import TracebackType
from typing import Any, Self
from uuid import uuid4

from taskiq import AsyncBroker, InMemoryBroker, ScheduledTask, ScheduleSource, TaskiqScheduler
from taskiq.utils import maybe_awaitable

from taskiq_flow.cleanup import to_the_end
from taskiq_flow.dataflow.options import Seconds, in_seconds, time_limit
from taskiq_flow.engine.arguments import checked_id
from taskiq_flow.engine.connection import check_broker
from taskiq_flow.engine.started import started
from taskiq_flow.errors import ConfigurationError, PipelineError
from taskiq_flow.pipelines.base import RunnablePipeline, pipeline_of
from taskiq_flow.pipelines.jobs import MemorySchedules, PipelineJob, ReadSchedules, as_stored
from taskiq_flow.pipelines.times import checked_cron, checked_interval, checked_time, checked_zone
from taskiq_flow.suggestions import did_you_mean, suggests_keywords

logger = logging.getLogger("taskiq_flow")

_sending: ContextVar[asyncio.Task[Any] | None] = ContextVar("sending", default=None)
"""The asyncio task that sends, or has sent, the job by which the present code runs."""


@suggests_keywords(source="store=", sources="store=", tz="timezone=")
class PipelineScheduler(TaskiqScheduler):
    """Runs pipelines at times, as a ``TaskiqScheduler`` whose jobs a schedule source has.

    ``store``: a ``ScheduleSource`` of taskiq, such as a ``ListRedisScheduleSource``, which keeps
    the jobs beyond this process; ``"memory"``: in this process. ``timezone``: a name such as
    ``"Europe/Berlin"``, for jobs that name none.

    ``start`` sends jobs from this process; ``taskiq scheduler module:scheduler`` does so from
    another, with the same object. One process should do either. A job is a message to the broker
    like any other: a worker executes the task that ``Pipeline.as_task`` has registered, and runs
    the pipeline. On an ``InMemoryBroker`` a pipeline without such a task is given one.

    Raises ``ConfigurationError`` for another ``store``, ``ValueError`` for an unknown ``timezone``.

    >>> from datetime import UTC, datetime
    >>> broker = InMemoryBroker()
    >>> done = asyncio.Event()
    >>> async def greet(name):
    ...     print("hello", name)
    ...     done.set()
    >>> async def main():
    ...     async with PipelineScheduler(broker) as scheduler:
    ...         now = datetime.now(UTC)
    ...         await scheduler.schedule_at(Pipeline(broker).call_next(greet), now, args=("ebb",))
    ...         await done.wait()
    >>> asyncio.run(main())
    hello ebb
    """

    def __init__(
        self,
        broker: AsyncBroker,
        store: ScheduleSource | str = "memory",
        store_path: str | None = None,
        timezone: str | None = None,
    ) -> None:
        check_broker(broker)
        source = _source(store, store_path)
        super().__init__(broker, [ReadSchedules(source)])
        self._source = source
        self._timezone = checked_zone("UTC" if timezone is None else timezone)
        self._loop: asyncio.Task[None] | None = None
        self._is_run_by_taskiq = False
        self._sending: set[asyncio.Task[Any]] = set()

    # Adding jobs

    async def schedule(
        self,
        pipeline: RunnablePipeline,
        cron: str,
        args: Iterable[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        timezone: str | None = None,
        misfire_grace_time: Seconds | None = 300,
        jitter: Seconds | None = None,
        job_id: str | None = None,
        pipeline_id: str | None = None,
    ) -> str:
        """Run a pipeline at the times of a cron expression, and return the job's id.

        ``args`` and ``kwargs``: those of ``pipeline.kiq``, as far as the source and the broker can
        carry them. ``timezone``: of the expression. ``misfire_grace_time``: how late a run may be
        sent, in seconds or as a ``timedelta``; ``None``: at any time. Times that pass while no
        scheduler runs are not made up. ``jitter``: each run waits up to so long before it is sent.
        ``job_id``: replaces the job that has it. ``pipeline_id``: of the runs, one at a time then.

        Raises ``ConfigurationError`` for a pipeline whose workers do not know it and for a source
        that takes no schedules, ``ValueError`` for a cron expression or a timezone that is none,
        and what ``pipeline.kiq`` raises for the arguments. Logs a warning for a pipeline that was
        changed after ``as_task``, as by ``with_hooks``: workers do not have such a change.
        """
        zone = self._timezone if timezone is None else checked_zone(timezone)
        job = PipelineJob("", "", cron=checked_cron(cron), timezone=zone)
        about = args, kwargs, misfire_grace_time, jitter, job_id, pipeline_id
        return await self._add(pipeline, job, *about)

    async def schedule_interval(
        self,
        pipeline: RunnablePipeline,
        hours: float = 0,
        minutes: float = 0,
        seconds: float = 0,
        args: Iterable[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        misfire_grace_time: Seconds | None = 300,
        jitter: Seconds | None = None,
        job_id: str | None = None,
        pipeline_id: str | None = None,
    ) -> str:
        """Run a pipeline again and again, for the first time as soon as a scheduler has the job.

        The interval is a number of whole seconds. The other arguments are those of ``schedule``.
        """
        job = PipelineJob("", "", interval=checked_interval(hours, minutes, seconds))
        about = args, kwargs, misfire_grace_time, jitter, job_id, pipeline_id
        return await self._add(pipeline, job, *about)

    async def schedule_at(
        self,
        pipeline: RunnablePipeline,
        run_at: datetime,
        args: Iterable[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        timezone: str | None = None,
        misfire_grace_time: Seconds | None = 300,
        jitter: Seconds | None = None,
        job_id: str | None = None,
        pipeline_id: str | None = None,
    ) -> str:
        """Run a pipeline once. The job is gone when it was sent.

        ``timezone``: of a ``run_at`` without one. If no scheduler runs at that time, the next one
        sends the job, unless it is later then than ``misfire_grace_time`` allows. The other
        arguments are those of ``schedule``.
        """
        zone = self._timezone if timezone is None else checked_zone(timezone)
        job = PipelineJob("", "", run_at=checked_time(run_at, zone), timezone=zone)
        about = args, kwargs, misfire_grace_time, jitter, job_id, pipeline_id
        return await self._add(pipeline, job, *about)

    async def _add(
        self,
        pipeline: RunnablePipeline,
        job: PipelineJob,
        args: Iterable[Any],
        kwargs: Mapping[str, Any] | None,
        misfire_grace_time: Seconds | None,
        jitter: Seconds | None,
        job_id: str | None,
        pipeline_id: str | None,
    ) -> str:
        name = uuid4().hex if job_id is None else checked_id("job_id", job_id)
        self._check_pipeline(pipeline)
        positional, by_name = tuple(args), dict(kwargs or {})
        pipeline.check_call(positional, by_name)
        task = pipeline.task or pipeline.as_task(f"pipeline:{uuid4().hex}")
        job = replace(
            job,
            id=name,
            task_name=task.task_name,
            args=positional,
            kwargs=by_name,
            pipeline_id=None if pipeline_id is None else checked_id("pipeline_id", pipeline_id),
            misfire_grace_time=time_limit("misfire_grace_time", misfire_grace_time),
            jitter=time_limit("jitter", jitter),
        )
        if pipeline.late_changes and not isinstance(self.broker, InMemoryBroker):
            logger.warning(
                "pipeline %r was changed after as_task(): %s; workers run it as the module that "
                "they import makes it, so make these changes there, before as_task()",
                task.task_name,
                ", ".join(pipeline.late_changes),
            )
        await self._store(job, None if job_id is None else await self.get_job(job_id))
        return name

    def _check_pipeline(self, pipeline: RunnablePipeline) -> None:
        if not isinstance(pipeline, RunnablePipeline):
            raise TypeError(f"{pipeline!r} is no pipeline; give a Pipeline or a DataflowPipeline")
        if pipeline.broker is not self.broker:
            raise ConfigurationError(
                "the pipeline and the scheduler have different brokers; give both the same one"
            )
        if pipeline.task is None and not isinstance(self.broker, InMemoryBroker):
            raise ConfigurationError(
                "the pipeline is no task that the workers know; call pipeline.as_task('name') in a "
                "module that they import"
            )

    # Jobs

    async def list_jobs(self) -> list[PipelineJob]:
        """The jobs that the source tells of. Some sources tell of a single moment only when due."""
        found = map(PipelineJob.of, await self._source.get_schedules())
        return [job for job in found if job is not None]

    async def get_job(self, job_id: str) -> PipelineJob | None:
        """A job of the source; ``None`` if it does not tell of such a one."""
        return next((job for job in await self.list_jobs() if job.id == job_id), None)

    async def remove_job(self, job_id: str) -> bool:
        """Remove a job. Returns whether the source told of it.

        It is removed in either case: some sources tell of a single moment only when it is due.
        """
        was_there = await self.get_job(job_id) is not None
        try:
            await self._source.delete_schedule(job_id)
        except NotImplementedError:
            raise self._fixed("removed") from None
        return was_there

    async def pause_job(self, job_id: str) -> None:
        """Keep a job, and do not run it until ``resume_job``. Raises ``PipelineError``."""
        job = await self._known(job_id)
        await self._store(replace(job, is_paused=True), job)

    async def resume_job(self, job_id: str) -> None:
        """Run a paused job again, from the next time on. Raises ``PipelineError``."""
        job = await self._known(job_id)
        await self._store(replace(job, is_paused=False), job)

    async def reschedule_job(
        self,
        job_id: str,
        cron: str | None = None,
        *,
        hours: float = 0,
        minutes: float = 0,
        seconds: float = 0,
        run_at: datetime | None = None,
        timezone: str | None = None,
    ) -> None:
        """Give a job another time: a cron expression, an interval, or a moment.

        Raises ``PipelineError`` for a job that is not there, ``ValueError`` unless it is given one
        of the three.
        """
        has_interval = bool(hours or minutes or seconds)
        if (cron is not None) + has_interval + (run_at is not None) != 1:
            raise ValueError("give a job one new time: cron, hours/minutes/seconds, or run_at")
        job = await self._known(job_id)
        zone = (job.timezone or self._timezone) if timezone is None else checked_zone(timezone)
        interval = checked_interval(hours, minutes, seconds) if has_interval else None
        await self._store(
            replace(
                job,
                cron=None if cron is None else checked_cron(cron),
                interval=interval,
                run_at=None if run_at is None else checked_time(run_at, zone),
                timezone=None if has_interval else zone,
            ),
            job,
        )

    async def modify_job(self, job_id: str, **changes: Any) -> None:
        """Change the ``args``, ``kwargs``, ``pipeline_id`` and such of a job; not its time.

        Raises ``PipelineError`` for a job that is not there, ``TypeError`` for another change, and
        what ``pipeline.kiq`` raises for the arguments, if this process has the pipeline.
        """
        known = ("args", "kwargs", "pipeline_id", "misfire_grace_time", "jitter")
        if unknown := [name for name in changes if name not in known]:
            raise TypeError(
                f"modify_job changes {', '.join(known)}, and not {unknown[0]!r}; for another time "
                "there is reschedule_job"
            )
        if "args" in changes:
            changes["args"] = tuple(changes["args"])
        if changes.get("pipeline_id") is not None:
            checked_id("pipeline_id", changes["pipeline_id"])
        for name in ("misfire_grace_time", "jitter"):
            if name in changes:
                changes[name] = time_limit(name, changes[name])
        job = await self._known(job_id)
        changed = replace(job, **changes)
        pipeline = pipeline_of(self.broker.find_task(job.task_name))
        if pipeline is not None and ("args" in changes or "kwargs" in changes):
            pipeline.check_call(changed.args, changed.kwargs or {})
        await self._store(changed, job)

    async def _known(self, job_id: str) -> PipelineJob:
        jobs = {job.id: job for job in await self.list_jobs()}
        if job_id not in jobs:
            meant = did_you_mean(job_id, jobs)
            raise PipelineError(
                f"{type(self._source).__name__} tells of no job {job_id!r}{meant}; list_jobs() has "
                "those that it tells of"
            )
        return jobs[job_id]

    async def _store(self, job: PipelineJob, earlier: PipelineJob | None) -> None:
        """Write a job to the source, in place of the one of its id, which stays if that fails."""
        task = job.as_task()
        try:
            await self._source.delete_schedule(job.id)
            await self._source.add_schedule(task)
        except NotImplementedError:
            raise self._fixed("added") from None
        except BaseException:  # a cancellation too
            if earlier is not None:
                await to_the_end(self._put_back(earlier))
            raise

    async def _put_back(self, job: PipelineJob) -> None:
        try:
            await self._source.delete_schedule(job.id)
            await self._source.add_schedule(job.as_task())
        except Exception:  # whatever a source raises
            logger.exception(
                "the source does not take job %s back; schedule it again: %r", job.id, job
            )

    def _fixed(self, what: str) -> ConfigurationError:
        return ConfigurationError(
            f"jobs cannot be {what} while {type(self._source).__name__} is their source; give "
            "store= a source whose schedules change, such as a ListRedisScheduleSource"
        )

    # Sending them

    async def start(self, update_interval: Seconds = 1.0) -> None:
        """Send jobs from now on. ``update_interval``: how often the source is asked for them.

        The broker is started, unless it is. Raises ``PipelineError`` for a scheduler that runs.
        """
        if self._loop is not None:
            raise PipelineError("the scheduler has been started already; shut it down before")
        interval = timedelta(seconds=in_seconds("update_interval", update_interval))
        await self._source.startup()
        has_begun = asyncio.get_running_loop().create_future()
        self._loop = asyncio.create_task(self._run(interval, has_begun))
        try:
            await asyncio.wait([self._loop, has_begun], return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            await to_the_end(self.shutdown(wait=False))
            raise
        if not has_begun.done():
            loop, self._loop = self._loop, None
            await loop

    async def _run(self, interval: timedelta, has_begun: asyncio.Future[None]) -> None:
        from taskiq.cli.scheduler.run import SchedulerLoop  # noqa: PLC0415 - it loads much

        async with started(self.broker):
            has_begun.set_result(None)
            await SchedulerLoop(self).run(update_interval=interval)

    async def startup(self) -> None:
        """Start the broker; ``taskiq scheduler`` calls this, which has a loop of its own."""
        self._is_run_by_taskiq = True
        await super().startup()

    async def shutdown(self, wait: bool = True) -> None:
        """Send no more jobs. ``wait``: until those have been sent that are being sent.

        Runs of pipelines go on, also one that calls this. The broker is shut down if ``start`` or
        ``taskiq scheduler`` has started it.
        """
        loop, self._loop = self._loop, None
        if loop is None:
            if self._is_run_by_taskiq:
                await super().shutdown()
            return
        calling = _sending.get()  # which ends after this if a broker runs the job's task in place
        try:
            if wait and (others := self._sending - {calling}):
                await asyncio.wait(others)
        finally:  # also for one who does not wait so long
            tasks = (loop, *(self._sending - {calling}))
            for task in tasks:
                task.cancel()
            await to_the_end(asyncio.wait(tasks))
        await self._source.shutdown()
        if not loop.cancelled() and (error := loop.exception()) is not None:
            raise error

    async def on_ready(self, source: ScheduleSource, task: ScheduledTask) -> None:
        """Send a job that is due; taskiq's scheduler calls this."""
        current = asyncio.current_task()
        if current is not None:
            self._sending.add(current)
            current.add_done_callback(self._sending.discard)
            _sending.set(current)
        task = as_stored(task)
        job = PipelineJob.of(task)
        if job is not None and not _is_in_time(job):
            logger.warning(
                "job %s was due at %s and is left out, as its misfire_grace_time is over",
                job.id,
                job.run_at,
            )
            await maybe_awaitable(source.post_send(task))
            return
        if job is not None and job.jitter is not None:
            await asyncio.sleep(random.uniform(0, job.jitter))  # noqa: S311 - guards nothing
            if not await self._is_wanted(job):
                return
        await super().on_ready(source, task)

    async def _is_wanted(self, job: PipelineJob) -> bool:
        """Whether a job has been neither paused nor removed since it was due."""
        present = await self.get_job(job.id)
        if present is None:  # some sources tell of a single moment only in its minute
            return job.run_at is not None
        return not present.is_paused

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.shutdown()


def _source(store: ScheduleSource | str, store_path: str | None) -> ScheduleSource:
    if isinstance(store, ScheduleSource) and store_path is None:
        return store
    if store == "memory" and store_path is None:
        return MemorySchedules()
    given = f"store={store!r}" if store_path is None else f"store_path={store_path!r}"
    raise ConfigurationError(
        f"a PipelineScheduler was given {given}; give store='memory', or a schedule source of "
        "taskiq, such as store=ListRedisScheduleSource('redis://localhost')"
    )


def _is_in_time(job: PipelineJob) -> bool:
    """Whether a job for a single moment may still be sent. Others are due when they are sent."""
    if job.run_at is None or job.misfire_grace_time is None:
        return True
    return datetime.now(UTC) - job.run_at <= timedelta(seconds=job.misfire_grace_time)
