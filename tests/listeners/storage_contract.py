"""What every storage of statuses does."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from taskiq_flow import PipelineStatus, StepStatus, TrackingStorage

NOW = datetime.now(UTC)


def status(name: str, hours: float = 0.0, state: Any = "COMPLETED") -> PipelineStatus:
    """The status of a run that started so many hours ago."""
    step = StepStatus(
        step_name="load", status="FAILED", started_at=NOW, duration_ms=2.5, error="OSError: no"
    )
    return PipelineStatus(
        pipeline_id=name,
        status=state,
        started_at=NOW - timedelta(hours=hours),
        duration_ms=7.5,
        steps=[step],
        result={"kind": "int", "size": 1, "text": "7", "cut": False},
    )


def names(statuses: list[PipelineStatus]) -> list[str]:
    return [one.pipeline_id for one in statuses]


class StorageContract:
    """To be derived from, with a fixture ``storage``."""

    @pytest.fixture
    def storage(self) -> TrackingStorage:
        raise NotImplementedError

    async def test_what_was_saved_last_is_given_back(self, storage: TrackingStorage) -> None:
        assert await storage.get_status("a") is None
        await storage.save_status(status("a", state="RUNNING"))
        await storage.save_status(status("a"))
        assert await storage.get_status("a") == status("a")
        assert await storage.list_pipelines() == [status("a")]

    async def test_the_newest_are_listed_first(self, storage: TrackingStorage) -> None:
        for name, hours in (("b", 2), ("a", 1), ("c", 3)):
            await storage.save_status(status(name, hours))
        assert names(await storage.list_pipelines()) == ["a", "b", "c"]
        assert names(await storage.list_pipelines(limit=2)) == ["a", "b"]

    async def test_those_of_one_status_are_listed_however_many_others_there_are(
        self, storage: TrackingStorage
    ) -> None:
        for number in range(250):
            state = "FAILED" if number in (5, 240) else "COMPLETED"
            await storage.save_status(status(f"{number}", number, state))
        assert names(await storage.list_pipelines("FAILED")) == ["5", "240"]
        assert names(await storage.list_pipelines("FAILED", 1)) == ["5"]
        assert len(await storage.list_pipelines(limit=1000)) == 250

    async def test_what_is_deleted_is_gone(self, storage: TrackingStorage) -> None:
        await storage.save_status(status("a"))
        await storage.save_status(status("b"))
        assert await storage.delete_pipeline("a")
        assert not await storage.delete_pipeline("a")
        assert await storage.get_status("a") is None
        assert names(await storage.list_pipelines()) == ["b"]

    async def test_the_old_are_removed(self, storage: TrackingStorage) -> None:
        for number in range(150):
            await storage.save_status(status(f"{number}", 24 * (number % 3)))
        assert await storage.cleanup_older_than(1.5) == 50
        assert await storage.cleanup_older_than(1.5) == 0
        assert len(await storage.list_pipelines(limit=1000)) == 100
        assert await storage.cleanup_older_than() == 0
