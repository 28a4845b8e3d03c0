"""The text of a position: parsed as it was spelled, sorted as the numbers are, and refused if it is malformed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headwater.eventstore.epoch import Epoch, Place, parse_place

EPOCH = Epoch(2, "1f0c9a2b", 40)

EDGES = [0, *sorted({10**digits + step for digits in range(18) for step in (-1, 0, 1)} - {0}), 10**18 - 1]
"""The numbers around each change of the number of digits, from 1 to 18 digits."""

positions = st.sampled_from(EDGES) | st.integers(0, 10**18 - 1)
tags = st.text("0123456789abcdef", min_size=8, max_size=8)


def spelled(position: int) -> str:
    return EPOCH.place(position).spell()


@pytest.mark.parametrize(
    ("position", "expected"),
    [
        (0, "0"),
        (1, "1f0c9a2b-a1"),
        (9, "1f0c9a2b-a9"),
        (10, "1f0c9a2b-b10"),
        (42, "1f0c9a2b-b42"),
        (10**17, "1f0c9a2b-r100000000000000000"),
    ],
)
def test_a_position_is_spelled_with_its_tag_and_the_letter_of_its_length(position: int, expected: str) -> None:
    assert spelled(position) == expected


@pytest.mark.parametrize("position", EDGES)
def test_each_length_of_a_position_is_parsed_as_it_was_spelled(position: int) -> None:
    assert parse_place(spelled(position)) == Place("1f0c9a2b" if position else None, position)
    assert parse_place(str(position)) == Place(None, position)


@given(tags, positions)
def test_a_position_of_any_epoch_is_parsed_as_it_was_spelled(tag: str, position: int) -> None:
    text = Place(tag, position).spell()
    assert parse_place(text) == Place(tag if position else None, position)
    assert text.startswith(f"{tag}-" if position else "0")


@given(positions)
def test_a_number_alone_is_a_position_without_an_epoch(position: int) -> None:
    assert parse_place(str(position)) == Place(None, position)
    assert Place(None, position).spell() == str(position)


def test_the_start_of_the_log_is_the_same_text_in_every_epoch() -> None:
    assert {Place(tag, 0).spell() for tag in (None, "", "00000000", "1f0c9a2b", "ffffffff")} == {"0"}


@pytest.mark.parametrize("tag", ["00000000", "1f0c9a2b", "ffffffff"])
def test_the_texts_of_all_lengths_sort_as_their_numbers(tag: str) -> None:
    texts = [Place(tag, position).spell() for position in EDGES]
    assert texts == sorted(texts)
    assert len(set(texts)) == len(EDGES)


@given(tags, st.lists(positions, min_size=2))
def test_the_texts_of_an_epoch_sort_as_their_numbers(tag: str, numbers: list[int]) -> None:
    texts = [Place(tag, position).spell() for position in numbers]
    assert sorted(texts) == [Place(tag, position).spell() for position in sorted(numbers)]


MALFORMED = {
    "empty": "",
    "a hyphen": "-",
    "a negative number": "-1",
    "a sign": "+1",
    "a fraction": "1.0",
    "an underscore": "1_000",
    "hexadecimal": "0x1",
    "a word": "nowhere",
    "a tag alone": "1f0c9a2b",
    "no number": "1f0c9a2b-",
    "no digits": "1f0c9a2b-b",
    "fewer digits than the letter says": "1f0c9a2b-b4",
    "more digits than the letter says": "1f0c9a2b-b423",
    "the letter of no digits": "1f0c9a2b-`4",
    "no letter": "1f0c9a2b-42",
    "two letters": "1f0c9a2b-bb42",
    "no tag": "-b42",
    "a letter without a tag": "b42",
    "no hyphen": "1f0c9a2bb42",
    "two hyphens": "1f0c9a2b--b42",
    "a tag that is too short": "1f0c9a2-b42",
    "a tag that is too long": "1f0c9a2b0-b42",
    "a tag that is not hexadecimal": "1f0c9a2g-b42",
    "a tag in upper case": "1F0C9A2B-b42",
    "a letter in upper case": "1f0c9a2b-B42",
    "a negative number of an epoch": "1f0c9a2b-b-4",
    "Arabic digits": "\u0664\u0662",
    "Arabic digits of an epoch": "1f0c9a2b-b\u0664\u0662",
    "full-width digits": "\uff14\uff12",
    "a superscript digit": "\u00b2",
    "full-width digits in the tag": "\uff11f0c9a2b-b42",
    "19 digits": "1" * 19,
    "19 digits of an epoch": f"1f0c9a2b-s{'1' * 19}",
    "19 digits with the letter of 18": f"1f0c9a2b-r{'1' * 19}",
    "a space": " ",
    "a space before": " 42",
    "a space after": "42 ",
    "a space before the tag": " 1f0c9a2b-b42",
    "a space after the number": "1f0c9a2b-b42 ",
    "a space inside": "1f0c9a2b- b42",
    "a line break after": "42\n",
    "a line break after the number": "1f0c9a2b-b42\n",
    "a NUL": "42\0",
    "two positions": "1f0c9a2b-b42,1f0c9a2b-b43",
}


@pytest.mark.parametrize("text", MALFORMED.values(), ids=MALFORMED)
def test_a_malformed_text_names_no_position(text: str) -> None:
    assert parse_place(text) is None
