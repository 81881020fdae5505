"""Moments and periods as users write them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from taskiq_flow.journal.moments import moment_of, period_of


@pytest.mark.parametrize(
    ("text", "period"),
    [
        ("90s", timedelta(seconds=90)),
        ("1.5m", timedelta(seconds=90)),
        ("2h", timedelta(hours=2)),
        (" 30d", timedelta(days=30)),
        ("4w", timedelta(weeks=4)),
    ],
)
def test_a_period_is_a_number_with_a_unit(text: str, period: timedelta) -> None:
    assert period_of(text) == period
    before = datetime.now(UTC) - period
    assert before <= moment_of(text) <= datetime.now(UTC) - period


def test_a_date_is_one_of_iso_8601() -> None:
    assert moment_of("2026-11-26T12:00:00+02:00") == datetime(2026, 11, 26, 10, tzinfo=UTC)
    assert moment_of("2026-11-26") == datetime(2026, 11, 26).astimezone()


@pytest.mark.parametrize("text", ["", "soon", "2", "-2h", "1y", "9" * 400 + "d", "9999999w"])
def test_other_texts_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is no time; write 2h for two hours ago, or a date"):
        moment_of(text)
