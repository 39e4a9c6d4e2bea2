"""The pieces that batches are cut into."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from lmrl.rollout import lengths_to_mask, split_by_length


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


def test_mask_of_lengths():
    assert lengths_to_mask(torch.tensor([0, 2]), 3).tolist() == [[False] * 3, [True, True, False]]
