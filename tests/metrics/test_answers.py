"""Texts that count as the same answer, and texts that do not."""

import pytest

from lke_lightning.metrics import digest, match, normalize


@pytest.mark.parametrize(
    ("said", "answer", "expected"),
    [
        (" Paris.", "Paris", (True, True)),
        ("the PARIS", "paris", (True, True)),
        ("Paris, in France", "Paris", (False, True)),
        ("Parisian", "Paris", (False, False)),
        ("not Paris", "Paris", (False, False)),
        ("“São Tomé”", "são tomé", (True, True)),
        ("\uff21\uff22\uff23", "abc", (True, True)),  # full width
        ("U.S.", "US", (True, True)),
        ("The", "the", (True, True)),
        ("", "Paris", (False, False)),
        ("anything", "...", (False, False)),
        ("New  York\tCity", "New York", (False, True)),
        ("C++", "C", (False, False)),
    ],
)
def test_what_counts_as_the_same(said, answer, expected):
    assert match(said, [answer]) == expected


def test_any_accepted_answer_will_do():
    assert match("Roma!", ["Rome", "Roma"]) == (True, True)
    assert match("Roma!", []) == (False, False)


def test_normalising_twice_changes_nothing():
    for text in (" The U.S.'s ", "a an the", "Ǆ-x", "ﬁne"):
        assert normalize(normalize(text)) == normalize(text)


def test_digests_tell_texts_apart_but_not_their_dress():
    assert digest("The Nile.") == digest("nile")
    assert digest("Nile") != digest("Nil")
    assert 0 <= digest("Nile") < 2**63
