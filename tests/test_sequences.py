"""Sequences of trajectories: by hand, and what selecting and joining may not change."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lmrl.algorithms.experience import Responses
from lmrl.algorithms.sequences import Sequences, join_records
from lmrl.models.layouts import LAYOUTS

BY_HAND = [
    [[([3, 4], False), ([5], True), ([6, 7], False), ([8, 9], True)]],  # a tool spoke between two turns
    [[([3], False), ([4], True)], [([5, 6], False), ([7, 8], True), ([9], False)]],  # a context that was rewritten
    [[([3, 4, 5], False)]],  # ended before any action
]


def test_by_hand():
    rows = Sequences.of(BY_HAND)
    assert rows.count == 3 and rows.trajectory.tolist() == [0, 1, 1, 2]
    assert rows.action_counts.tolist() == [3, 3, 0] and rows.width == 3
    assert rows.action_ids.tolist() == [[5, 8, 9], [4, 7, 8], [0, 0, 0]]
    assert rows.action_rows() == [[5, 8, 9], [4, 7, 8], []]
    assert rows.action_mask(4).tolist() == [[True, True, True, False]] * 2 + [[False] * 4]
    assert rows.context_lengths.tolist() == [2, 1, 2, 3]
    assert rows.ends_trajectory.tolist() == [True, False, True, True]
    assert rows.row_lengths.tolist() == [7, 7, 3] and rows.sequence_counts.tolist() == [1, 2, 1]
    assert rows.columns(torch.arange(1.0, 7), 4).tolist() == [[1, 2, 3, 0], [4, 5, 6, 0], [0, 0, 0, 0]]


def test_what_has_no_state_before_it_is_refused():
    with pytest.raises(ValueError, match="trajectory 1 has no sequence"):
        Sequences.of([BY_HAND[0], []])
    with pytest.raises(ValueError, match="first token of sequence 1 is sampled"):
        Sequences.of([BY_HAND[2], [[([3], True)]]])


part = st.tuples(st.lists(st.integers(1, 4), min_size=1, max_size=3), st.booleans())
sequence = st.lists(part, min_size=0, max_size=4).map(lambda parts: [([9], False), *parts])
trajectories = st.lists(st.lists(sequence, min_size=1, max_size=3), min_size=1, max_size=6)


def parts_of(rows):
    """Return ids and flags of each trajectory's sequences, as lists."""
    found = [[] for _ in range(rows.count)]
    for ids, length, sampled, number in zip(
        rows.ids.tolist(), rows.lengths.tolist(), rows.sampled.tolist(), rows.trajectory.tolist(), strict=True
    ):
        assert not any(sampled[length:])
        found[number].append((ids[:length], sampled[:length]))
    return found


@given(trajectories, st.data())
def test_select_takes_trajectories_with_all_their_sequences(given_rows, data):
    rows = Sequences.of(given_rows)
    chosen = data.draw(st.lists(st.integers(0, rows.count - 1), min_size=1, max_size=8))
    part = rows.select(torch.tensor(chosen))
    assert part.count == len(chosen) == int(part.trajectory[-1]) + 1
    assert parts_of(part) == [parts_of(rows)[row] for row in chosen]
    assert torch.equal(part.action_counts, rows.action_counts[chosen])
    assert torch.equal(part.row_lengths, rows.row_lengths[chosen])


@given(trajectories, trajectories)
def test_joined_rows_are_those_of_both(one, other):
    first, second = Sequences.of(one), Sequences.of(other)
    assert parts_of(Sequences.join([first, second])) == parts_of(first) + parts_of(second)
    joined = join_records([Responses(rows, rows.action_mask()) for rows in (first, second)])
    assert parts_of(joined.inputs) == parts_of(first) + parts_of(second)
    assert torch.equal(joined.action_mask, joined.inputs.action_mask())


@given(trajectories, st.integers(1, 40))
def test_pieces_hold_every_trajectory_once_within_the_budget(given_rows, budget):
    rows = Sequences.of(given_rows)
    for layout in LAYOUTS:
        pieces = layout.split(rows, budget)
        assert sorted(torch.cat(pieces).tolist()) == list(range(rows.count))
        for piece in pieces:
            part = rows.select(piece)
            padded = len(part.lengths) * int(part.lengths.max())
            tokens = packed_tokens(part) if layout.name == "packed" else padded
            assert layout.cost(part) == tokens
            assert len(piece) == 1 or tokens <= budget


def packed_tokens(rows):
    """Tokens where the contexts of first sequences count once, and further sequences in full."""
    contexts, tokens = set(), 0
    for sequences in parts_of(rows):
        ids, sampled = sequences[0]
        context = sampled.index(True) if True in sampled else len(ids)
        contexts.add(tuple(ids[:context]))
        tokens += len(ids) - context + sum(len(more) for more, _ in sequences[1:])
    return tokens + sum(map(len, contexts))
