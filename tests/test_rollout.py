"""The pieces that batches are cut into."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from lmrl.algorithms.sequences import Sequences, lengths_to_mask, split_by_length
from lmrl.models.layouts.packed import PackedLayout


def test_split_by_length_by_hand():
    pieces = split_by_length(torch.tensor([5, 1, 2, 9, 2]), 6)
    assert [piece.tolist() for piece in pieces] == [[1, 2, 4], [0], [3]]


@given(st.lists(st.integers(1, 50), min_size=1, max_size=40), st.integers(1, 200))
def test_pieces_cover_every_row_once_within_the_budget(lengths, budget):
    pieces = split_by_length(torch.tensor(lengths), budget)
    assert sorted(torch.cat(pieces).tolist()) == list(range(len(lengths)))
    for piece in pieces:
        longest = max(lengths[row] for row in piece.tolist())
        assert len(piece) == 1 or len(piece) * longest <= budget


@given(st.lists(st.tuples(st.integers(1, 3), st.integers(1, 9)), min_size=1, max_size=30), st.integers(1, 60))
def test_pieces_by_prompt_count_a_prompt_once_and_keep_its_rows_together_where_they_fit(rows, budget):
    inputs = Sequences.of_pairs(([number] * number, [0] * length) for number, length in rows)
    pieces = [piece.tolist() for piece in PackedLayout().split(inputs, budget)]
    assert sorted(row for piece in pieces for row in piece) == list(range(len(rows)))
    for piece in pieces:
        tokens = sum({rows[row][0] for row in piece}) + sum(rows[row][1] for row in piece)
        assert len(piece) == 1 or tokens <= budget
    for number in {number for number, _ in rows}:
        members = {row for row, (own, _) in enumerate(rows) if own == number}
        if number + sum(rows[row][1] for row in members) <= budget:
            assert any(members <= set(piece) for piece in pieces)


def test_mask_of_lengths():
    assert lengths_to_mask(torch.tensor([0, 2]), 3).tolist() == [[False] * 3, [True, True, False]]
