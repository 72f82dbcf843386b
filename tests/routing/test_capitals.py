"""Words in capitals are read in small letters, and phrases given back as they were typed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from visionllm.routing.capitals import as_typed, lowered


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("DETECT ALL CARS", "detect all cars"),
        ("FIND DOGS", "find dogs"),
        ("FIND A DOG, AND 2 TVS!", "find a dog, and 2 tvs!"),
        ("please OUTLINE A DOG, thanks", "please outline a dog, thanks"),
        ("detect GREEN CARS and the Kestrel", "detect green cars and the Kestrel"),
        ("DON'T MISS the DOGS' BOWLS", "don't miss the dogs' bowls"),
        ("detect RBC, WBC and Platelets", "detect RBC, WBC and Platelets"),
        ("RBC", "RBC"),
        ("a TV and an SUV", "a TV and an SUV"),
        ("FIRE HYDRANT", "fire hydrant"),
        ("Detect an iPhone, YOLOv8 and I", "Detect an iPhone, YOLOv8 and I"),
        ("I", "I"),
        ("A 1 B", "A 1 B"),
        ("ÄPFEL UND NÜSSE", "äpfel und nüsse"),
        ("\u0130STANBUL", "\u0130stanbul"),
        ("検出 TRUCK", "検出 truck"),
        ("", ""),
    ],
)
def test_words_in_capitals_are_read_in_small_letters(text: str, read: str) -> None:
    assert lowered(text) == read


@given(st.text())
def test_places_stay_and_twice_is_once(text: str) -> None:
    read = lowered(text)
    assert len(read) == len(text)
    assert lowered(read) == read
    if not any(letter.isupper() for letter in text):
        assert read == text


@pytest.mark.parametrize(
    ("phrase", "texts", "typed"),
    [
        ("cars", ["DETECT ALL CARS"], "CARS"),
        ("car", ["FIND SCARF, CAR AND CARD"], "CAR"),
        ("car", ["a car, or a CAR"], "car"),  # the user's own letters
        ("car", ["FIND THE CAR", "AND THE Car"], "Car"),  # the last said
        ("car", ["find a car", "OUTLINE THE CAR", "AND THE DOG"], "CAR"),
        ("tv", ["what is on?"], "tv"),
        ("c++", ["FIND C++ BOOKS"], "C++"),
        ("", ["FIND CARS"], ""),
    ],
)
def test_a_phrase_is_given_back_as_typed(phrase: str, texts: list[str], typed: str) -> None:
    assert as_typed(phrase, texts) == typed
