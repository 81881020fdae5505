"""Texts are cut to the room that there is, and letters that belong together are not parted."""

import pytest

from taskiq_flow.drawing.texts import columns, cut, shortened, text_element, width

FAMILY = "👩‍👩‍👧"


@pytest.mark.parametrize(
    "text", ["reproject", "数据数据数据", "e\u0301" * 12, FAMILY * 5, "שלום עולם", "a" * 200]
)
def test_a_text_that_is_cut_fits_and_ends_with_whole_letters(text: str) -> None:
    for room in range(2, 30):
        check(text, room)


def check(text: str, room: int) -> None:
    for shown, is_short in (
        (cut(text, room), columns(text) <= room),
        (shortened(text, 8 * room, 13), width(text, 13) <= 8 * room),
    ):
        assert (shown == text) == is_short
        if not is_short:
            head, _, tail = shown.partition("…")
            assert text.startswith(head)
            assert text.endswith(tail)
            assert not head.endswith("\u200d")
            assert not text[len(head)].startswith(("\u0301", "\u200d"))
            assert not tail.startswith(("\u0301", "\u200d"))
    assert columns(cut(text, room)) <= room
    assert width(shortened(text, 8 * room, 13), 13) <= 8 * room + 0.001


def test_a_letter_takes_its_columns_and_its_accents_none() -> None:
    assert [*map(columns, ("abc", "数据", "e\u0301a\u0300", "שלום"))] == [3, 4, 2, 4]


def test_the_end_of_a_name_is_shown() -> None:
    shown = shortened("stage_out_local_condorpool_of_the_first_site_17", 150, 13)
    assert shown.startswith("stage_")
    assert shown.endswith("_17")


def test_a_text_is_escaped() -> None:
    element = text_element(1, 2.5, '<b>&"', "name", anchor="end")
    assert (
        element == '<text x="1" y="2.5" class="name" text-anchor="end">&lt;b&gt;&amp;&quot;</text>'
    )
