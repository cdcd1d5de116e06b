"""The grammar of path tokens: what the automaton accepts decodes, and what decodes is accepted."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlseg.masks.grid import GridRing
from vlseg.masks.tokens import Vocabulary
from vlseg.types import VLSegError

VOCABULARIES = [Vocabulary(5, 7, joint, curves) for joint in (True, False) for curves in (True, False)]
SMALL = Vocabulary(5, 7, True, True)


def ids(vocabulary: Vocabulary, text: str) -> list[int]:
    return [vocabulary.names.index(name) for name in text.split()]


@st.composite
def strings(draw: st.DrawFn) -> tuple[Vocabulary, list[int]]:
    """A vocabulary and a whole path, made by walking the table blindly."""
    vocabulary = draw(st.sampled_from(VOCABULARIES))
    tokens: list[int] = []
    state = vocabulary.start
    for _ in range(40):
        if state == vocabulary.stop:
            break
        kind = draw(st.sampled_from(np.flatnonzero(vocabulary.valid_next(state)).tolist()))
        tokens.append(draw(st.sampled_from(np.flatnonzero(vocabulary.token_class == kind).tolist())))
        state = int(vocabulary.transitions[state, kind])
    return vocabulary, vocabulary.finish(tokens)


def matches(vocabulary: Vocabulary, tokens: list[int]) -> bool:
    """The grammar once more, as a regular expression over the names."""
    vertex = r"<xy_\d_\d>" if vocabulary.joint else r"<x_\d><y_\d>"
    edge = rf"(?:{vertex}|<cubic>(?:{vertex}){{3}})" if vocabulary.curves else vertex
    close = rf"(?:<cubic>(?:{vertex}){{2}})?" if vocabulary.curves else ""
    ring = rf"{vertex}(?:{edge})*{close}"
    text = "".join(vocabulary.names[token] for token in tokens)
    return re.fullmatch(rf"(?:(?:<box_\d>){{4}}(?:{ring}(?:<ring>{ring})*)?)?<path_end>", text) is not None


@given(strings())
def test_what_the_table_makes_is_a_path(case: tuple[Vocabulary, list[int]]):
    vocabulary, tokens = case
    assert vocabulary.accepts(tokens)
    assert matches(vocabulary, tokens)
    box, rings = vocabulary.read(tokens)
    assert (box is None) == (len(tokens) == 1)
    assert vocabulary.write(box, rings) == tokens, "reading and writing are no inverses"
    assert 1 + 4 * (box is not None) + sum(map(vocabulary.cost, rings)) + max(0, len(rings) - 1) == len(tokens)


@given(st.sampled_from(VOCABULARIES), st.lists(st.integers(0, 60), max_size=14))
def test_any_tokens_are_accepted_as_the_grammar_says(vocabulary: Vocabulary, tokens: list[int]):
    tokens = [token % len(vocabulary) for token in tokens]
    assert vocabulary.accepts(tokens) == matches(vocabulary, tokens)
    if not vocabulary.accepts(tokens):
        with pytest.raises(VLSegError):
            vocabulary.read(tokens)


@given(strings(), st.integers(0, 40))
def test_a_path_that_is_cut_off_can_be_finished(case: tuple[Vocabulary, list[int]], length: int):
    vocabulary, tokens = case
    done = vocabulary.finish(tokens[:length])
    assert vocabulary.accepts(done)
    assert done[:-1] == tokens[: len(done) - 1]
    if length >= len(tokens):
        assert done == tokens


@pytest.mark.parametrize("vocabulary", VOCABULARIES)
def test_the_table(vocabulary: Vocabulary):
    states, classes = vocabulary.transitions.shape
    assert states == len(vocabulary.states)
    assert classes == len(vocabulary.classes)
    assert vocabulary.transitions.max() < states
    assert not vocabulary.valid_next(vocabulary.stop).any()
    assert all(vocabulary.valid_next(s).any() for s in range(states) if s != vocabulary.stop), "a dead end"
    seen, new = {vocabulary.start}, [vocabulary.start]
    while new:
        reached = set(vocabulary.transitions[new.pop()].tolist()) - seen - {-1}
        seen |= reached
        new += reached
    assert seen == set(range(states)), "states that nothing leads to"
    steps = vocabulary.steps_to_stop
    assert steps[vocabulary.stop] == 0
    for state in range(states - 1):
        ways = vocabulary.transitions[state][vocabulary.valid_next(state)]
        assert steps[state] == 1 + min(steps[ways])


@pytest.mark.parametrize("vocabulary", VOCABULARIES)
def test_names(vocabulary: Vocabulary):
    assert len(vocabulary.names) == len(vocabulary) == len(set(vocabulary.names))
    assert all(re.fullmatch(r"<[a-z_0-9]+>", name) for name in vocabulary.names)
    for name, first in vocabulary.first.items():
        if name in vocabulary.classes:
            prefix = {"end": "<path_end>", "ring": "<ring>", "cubic": "<cubic>"}.get(name, f"<{name}_0")
            assert vocabulary.names[first].startswith(prefix)


def test_a_known_path():
    curved = "<xy_0_1> <cubic> <xy_1_2> <xy_4_2> <xy_3_3> <xy_2_0>"
    box, rings = SMALL.read(ids(SMALL, f"<box_1> <box_0> <box_6> <box_3> {curved} <ring> <xy_1_1> <path_end>"))
    assert box == (1, 0, 6, 3)
    assert [ring.nodes.tolist() for ring in rings] == [[[0, 1], [1, 2], [4, 2], [3, 3], [2, 0]], [[1, 1]]]
    assert rings[0].control.tolist() == [False, True, True, False, False]


def test_split_names_read_as_x_then_y():
    vocabulary = Vocabulary(5, 7, False, False)
    _, (ring,) = vocabulary.read(ids(vocabulary, "<box_0> <box_0> <box_1> <box_1> <x_4> <y_2> <x_0> <y_3> <path_end>"))
    assert ring.nodes.tolist() == [[4, 2], [0, 3]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "breaks off after 0 tokens"),
        ("<box_0> <box_0>", "breaks off after 2 tokens"),
        ("<box_0> <path_end>", "path token 1, <path_end>, stands where box may follow"),
        ("<path_end> <path_end>", "path token 1, <path_end>, stands where nothing may follow"),
        ("<box_0> <box_0> <box_0> <box_0> <cubic>", "path token 4, <cubic>"),
        ("<box_0> <box_0> <box_0> <box_0> <xy_0_0> <ring> <path_end>", "state: new ring"),
        ("<box_0> <box_0> <box_0> <box_0> <xy_0_0> <cubic> <xy_0_0> <ring>", "state: second control"),
    ],
)
def test_what_is_no_path(text: str, message: str):
    with pytest.raises(VLSegError, match=message) as caught:
        SMALL.read(ids(SMALL, text))
    assert "\n" not in str(caught.value)
    assert not SMALL.accepts(ids(SMALL, text))


def test_tokens_of_no_vocabulary():
    with pytest.raises(VLSegError, match=f"path token 0 is {len(SMALL)}; the vocabulary has {len(SMALL)}"):
        SMALL.read([len(SMALL)])
    assert not SMALL.accepts([-1])


def test_no_curves_without_their_token():
    plain = Vocabulary(5, 7, True, False)
    curve = GridRing.of([(0, 0), (4, 0), (4, 4)], [0, 1, 1])
    with pytest.raises(VLSegError, match="curves=True"):
        plain.write((0, 0, 1, 1), [curve])
    assert "<cubic>" not in plain.names
