"""One person may write a name in many ways, and is still one person."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ledger.names import is_same_person, person

ANNA = [
    "Anna",
    " anna ",
    "ANNA",
    "anna\n",
    "\uff21\uff4e\uff4e\uff41",
    "an\u200bna",
    "\ufeffanna",
    "anna\u00a0",
    "\tanna\u2003",
]


@pytest.mark.parametrize("name", ANNA)
def test_however_anna_writes_her_name_she_is_one_person(name: str) -> None:
    assert is_same_person("anna", name)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Zoë", "ZOE\u0308"),
        ("Groß", "GROSS"),
        ("ΣΊΣΥΦΟΣ", "σίσυφος"),
        ("Mary  Ann", "mary\u00a0ann"),
        ("ﬁona", "Fiona"),
        ("\u0345\u0301", "\u0301\u0345"),  # case folding undoes the order of marks
    ],
)
def test_composition_case_and_spaces_tell_nobody_apart(one: str, other: str) -> None:
    assert is_same_person(one, other)


@pytest.mark.parametrize(("one", "other"), [("anna", "hanna"), ("anna", "ann a"), ("zoë", "zoe"), ("a", "á")])
def test_other_letters_are_another_person(one: str, other: str) -> None:
    assert not is_same_person(one, other)


@pytest.mark.parametrize("name", ["", " ", "\n\t", "\u200b", "\u00a0\ufeff", "\x00\x1b"])
def test_a_name_that_shows_nothing_names_nobody(name: str) -> None:
    assert person(name) == ""


@given(st.text(max_size=20))
def test_what_identifies_a_person_identifies_it_again(name: str) -> None:
    assert person(person(name)) == person(name)
    assert person(f" {name.swapcase().swapcase()}\u200b") == person(name.swapcase().swapcase())
    assert person(unicodedata.normalize("NFD", name)) == person(name)
