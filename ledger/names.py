"""Who acts: what moves much money needs two people, and one person may write a name in many ways."""

import unicodedata

# Controls and formatting marks, such as a space of no width.
_INVISIBLE = frozenset({"Cc", "Cf"})


def person(name: str) -> str:
    """
    Return what identifies the person whom a name names: names that read alike are one person's.

    Case, width, composition, the space around and the number of spaces within do not tell people apart, nor
    does what can not be seen. Empty if the name shows nothing at all.
    """
    visible = "".join(
        " " if letter.isspace() else letter
        for letter in name
        if letter.isspace() or unicodedata.category(letter) not in _INVISIBLE
    )
    # Unicode's own rule (D146, compatibility caseless matching): each of the two can undo the other.
    once = _compatible(unicodedata.normalize("NFD", visible).casefold())
    return " ".join(_compatible(once.casefold()).split())


def _compatible(name: str) -> str:
    return unicodedata.normalize("NFKD", name)


def is_same_person(one: str, other: str) -> bool:
    return person(one) == person(other)
