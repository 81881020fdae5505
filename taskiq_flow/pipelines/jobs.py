"""Jobs: what a schedule source has of scheduled pipelines."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final, Self

from taskiq import ScheduledTask, ScheduleSource
from taskiq.utils import maybe_awaitable

from taskiq_flow.pipelines.base import PIPELINE_ID

JOB: Final = "taskiq_flow_job"
"""The label of a job that has, as JSON, what taskiq's schedules have no field for."""

NEVER: Final = "0 0 31 2 *"
"""A cron expression of a day that does not exist: no scheduler sends a job that has it."""


@dataclass(frozen=True, slots=True)
class PipelineJob:
    """A scheduled pipeline, as a schedule source has it.

    ``task_name``: of the pipeline's task. One of ``cron``, ``interval`` and ``run_at`` says when it
    runs, ``timezone`` in which zone ``cron`` is meant. ``misfire_grace_time``: seconds after which
    a run that was not sent in time is left out. ``jitter``: up to so many seconds are waited before
    each run.

    >>> broker = InMemoryBroker()
    >>> pipeline = Pipeline(broker).call_next(abs)
    >>> async def main():
    ...     scheduler = PipelineScheduler(broker)
    ...     job_id = await scheduler.schedule(pipeline, "0 3 * * *", args=(-7,), job_id="nightly")
    ...     job = await scheduler.get_job(job_id)
    ...     return job.id, job.cron, job.timezone, job.args, job.is_paused
    >>> asyncio.run(main())
    ('nightly', '0 3 * * *', 'UTC', (-7,), False)
    """

    id: str
    task_name: str
    cron: str | None = None
    interval: timedelta | None = None
    run_at: datetime | None = None
    timezone: str | None = None
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] | None = None
    pipeline_id: str | None = None
    misfire_grace_time: float | None = None
    jitter: float | None = None
    is_paused: bool = False

    @classmethod
    def of(cls, task: ScheduledTask) -> Self | None:
        """The job that a schedule is; ``None`` for a schedule of something else."""
        text = task.labels.get(JOB)
        if text is None:
            return None
        told = json.loads(text)
        paused = told.get("paused")
        due = paused or {"cron": task.cron, "interval": task.interval, "run_at": task.time}
        interval, run_at = _in_seconds(due["interval"]), due["run_at"]
        return cls(
            id=task.schedule_id,
            task_name=task.task_name,
            cron=due["cron"],
            interval=None if interval is None else timedelta(seconds=interval),
            run_at=datetime.fromisoformat(run_at) if isinstance(run_at, str) else run_at,
            timezone=told["timezone"],
            args=tuple(task.args),
            kwargs=dict(task.kwargs),
            pipeline_id=task.labels.get(PIPELINE_ID),
            misfire_grace_time=told["grace"],
            jitter=told["jitter"],
            is_paused=paused is not None,
        )

    def as_task(self) -> ScheduledTask:
        """The job as a schedule. One that is paused is due never."""
        interval = _in_seconds(self.interval)
        run_at = None if self.run_at is None else self.run_at.isoformat()
        paused = {"cron": self.cron, "interval": interval, "run_at": run_at}
        told = {
            "timezone": self.timezone,
            "grace": self.misfire_grace_time,
            "jitter": self.jitter,
            "paused": paused if self.is_paused else None,
        }
        labels = {JOB: json.dumps(told)}
        if self.pipeline_id is not None:
            labels[PIPELINE_ID] = self.pipeline_id
        due: dict[str, Any] = {"cron": NEVER}
        if not self.is_paused:
            is_cron = self.cron is not None
            due = {
                "cron": self.cron,
                "cron_offset": self.timezone if is_cron else None,
                "interval": interval,
                "time": self.run_at,
            }
        return ScheduledTask(
            task_name=self.task_name,
            labels=labels,
            args=list(self.args),
            kwargs=dict(self.kwargs or {}),
            schedule_id=self.id,
            **due,
        )


def _in_seconds(interval: timedelta | int | None) -> int | None:
    if interval is None or isinstance(interval, int):
        return interval
    return int(interval.total_seconds())


class MemorySchedules(ScheduleSource):
    """A schedule source in the memory of one process."""

    def __init__(self) -> None:
        self._schedules: dict[str, ScheduledTask] = {}

    async def get_schedules(self) -> list[ScheduledTask]:
        """All schedules."""
        return list(self._schedules.values())

    async def add_schedule(self, schedule: ScheduledTask) -> None:
        """Add a schedule, or replace the one of its id."""
        self._schedules[schedule.schedule_id] = schedule

    async def delete_schedule(self, schedule_id: str) -> None:
        """Remove a schedule, if it is there."""
        self._schedules.pop(schedule_id, None)

    def post_send(self, task: ScheduledTask) -> None:
        """A schedule for one moment is over when it was sent."""
        if task.time is not None:
            self._schedules.pop(task.schedule_id, None)


class ReadSchedules(ScheduleSource):
    """A schedule source as the loop of taskiq's scheduler reads it.

    The loop sends one schedule of an id for a single moment, and no later one of the same id until
    it has seen the source without it. Here the id of a job for a moment has this moment in it.
    """

    def __init__(self, source: ScheduleSource) -> None:
        self._source = source

    async def startup(self) -> None:
        """Start the source."""
        await self._source.startup()

    async def shutdown(self) -> None:
        """Shut the source down."""
        await self._source.shutdown()

    async def get_schedules(self) -> list[ScheduledTask]:
        """The schedules of the source, those of moments with these in their ids."""
        return [_with_moment(task) for task in await self._source.get_schedules()]

    async def pre_send(self, task: ScheduledTask) -> None:
        """Tell the source."""
        await maybe_awaitable(self._source.pre_send(task))

    async def post_send(self, task: ScheduledTask) -> None:
        """Tell the source, unless another job has taken the id of this one while it was sent.

        The source would remove that one.
        """
        if _suffix(task):
            present = {one.schedule_id for one in await self.get_schedules()}
            if _with_moment(task).schedule_id not in present:
                return
        await maybe_awaitable(self._source.post_send(task))


def as_stored(task: ScheduledTask) -> ScheduledTask:
    """A schedule that ``ReadSchedules`` has given, with the id that its source knows."""
    return task.model_copy(update={"schedule_id": task.schedule_id.removesuffix(_suffix(task))})


def _with_moment(task: ScheduledTask) -> ScheduledTask:
    return task.model_copy(update={"schedule_id": task.schedule_id + _suffix(task)})


def _suffix(task: ScheduledTask) -> str:
    """What the id of a job for a moment has at its end for the loop; empty for other schedules."""
    if task.time is None or JOB not in task.labels:
        return ""
    return f" at {task.time.isoformat()}"
