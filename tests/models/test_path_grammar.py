"""The automaton as tensors agrees with that of the vocabulary, token by token."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vlseg.masks.tokens import Vocabulary
from vlseg.models.grammar import PathGrammar, path_grammar

KINDS = [(joint, curves) for joint in (True, False) for curves in (True, False)]


@pytest.mark.parametrize(("joint", "curves"), KINDS)
def test_every_state_allows_what_the_vocabulary_allows(joint, curves):
    vocabulary = Vocabulary(4, 6, joint, curves)
    grammar = PathGrammar(vocabulary)
    states = torch.arange(len(vocabulary.states))
    allowed = grammar.masked(torch.zeros(len(states), len(grammar)), states).isfinite().numpy()
    for state in states.tolist():
        assert np.array_equal(allowed[state], vocabulary.valid_next(state)[vocabulary.token_class])
        for token in np.flatnonzero(allowed[state]).tolist():
            want = vocabulary.transitions[state, vocabulary.token_class[token]]
            assert grammar.advance(torch.tensor(state), torch.tensor(token)) == want
    assert not allowed[grammar.stop].any()


@settings(max_examples=60)
@given(st.sampled_from(KINDS), st.integers(1, 30), st.integers(0, 2**32 - 1))
def test_any_choice_within_the_limit_is_a_path(kind, limit, seed):
    """Random tokens among those allowed, many paths in different states at once: all end in time, all are paths."""
    vocabulary = Vocabulary(4, 6, *kind)
    grammar = path_grammar(4, 6, *kind)
    noise = torch.Generator().manual_seed(seed)
    state = torch.full((8,), grammar.start)
    paths = [[] for _ in range(8)]
    for number in range(limit):
        logits = torch.rand(8, len(grammar), generator=noise)
        left = torch.full((8,), limit - number) if number % 2 else limit - number
        live = state != grammar.stop
        token = grammar.masked(logits, state, left).argmax(-1)
        for path, value, alive in zip(paths, token.tolist(), live.tolist(), strict=True):
            path += [value] * alive
        state = torch.where(live, grammar.advance(state, token), state)
    for path in paths:
        assert vocabulary.accepts(path)


def test_a_limit_forbids_nothing_while_there_is_room():
    grammar = path_grammar(4, 6, True, True)
    states = torch.arange(grammar.stop)
    logits = torch.zeros(len(states), len(grammar))
    assert torch.equal(grammar.masked(logits, states, 20), grammar.masked(logits, states))
    assert not torch.equal(grammar.masked(logits, states, 3), grammar.masked(logits, states))
