"""When a job runs: cron expressions, intervals, moments and timezones, checked when given."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

_MOMENTS = (
    [datetime(2024, 1, 1, 0, minute, tzinfo=UTC) for minute in range(60)],
    [datetime(2024, 1, 1, hour, tzinfo=UTC) for hour in range(24)],
    [datetime(2024, 1, day, tzinfo=UTC) for day in range(1, 32)],
    [datetime(2024, month, 1, tzinfo=UTC) for month in range(1, 13)],
    [datetime(2024, 1, day, tzinfo=UTC) for day in range(1, 8)],
)
"""By field of a cron expression, a moment of each value that it may have."""


def checked_zone(timezone: str) -> str:
    """The key of a timezone. Raises ``ValueError`` for one that this system does not know."""
    try:
        return ZoneInfo(timezone).key
    except (OSError, ValueError, TypeError, LookupError):
        raise ValueError(
            f"timezone is {timezone!r}; give a name that this system knows, such as 'Europe/Berlin'"
        ) from None


def checked_cron(cron: str) -> str:
    """A cron expression of five fields, each of which some moment meets; else ``ValueError``."""
    from taskiq.cli.scheduler.run import CronValueError, is_cron_task_now  # noqa: PLC0415

    fields = cron.split() if isinstance(cron, str) else []
    is_right = len(fields) == len(_MOMENTS)
    for place, (field, moments) in enumerate(zip(fields, _MOMENTS, strict=False)):
        alone = " ".join(field if i == place else "*" for i in range(len(_MOMENTS)))
        try:
            times = [moment for moment in moments if is_cron_task_now(alone, moment)]
        except CronValueError:
            times = []
        is_right = is_right and bool(times)
    if not is_right:
        raise ValueError(
            f"cron is {cron!r}; give five fields: minute, hour, day, month and weekday, as in "
            "'0 3 * * *'"
        )
    return cron


def checked_interval(hours: float, minutes: float, seconds: float) -> timedelta:
    """An interval of whole seconds, one or more; else ``ValueError``."""
    interval = timedelta(hours=hours, minutes=minutes, seconds=seconds)
    if interval < timedelta(seconds=1) or interval.microseconds:
        raise ValueError(
            f"the interval is {interval.total_seconds():g} s; give whole seconds, one or more"
        )
    return interval


def checked_time(run_at: datetime, zone: str) -> datetime:
    """A moment, in ``zone`` unless it has a timezone. Raises ``TypeError`` for another type."""
    if not isinstance(run_at, datetime):
        raise TypeError(f"run_at is {run_at!r}; give a datetime")
    return run_at if run_at.tzinfo is not None else run_at.replace(tzinfo=ZoneInfo(zone))
