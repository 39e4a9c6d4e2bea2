"""The order of prompts: stateless, every prompt once per epoch."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmrl.errors import SettingsError
from lmrl.seeds import PromptOrder


@given(count=st.integers(1, 40), batch=st.integers(1, 60), seed=st.integers(-5, 5))
def test_every_prompt_comes_once_per_epoch(count, batch, seed):
    order = PromptOrder(count, batch, seed)
    drawn = [index for update in range(count) for index in order.indices(update)]
    assert len(drawn) == count * batch
    for epoch in range(batch):
        assert sorted(drawn[epoch * count : (epoch + 1) * count]) == list(range(count))


def test_an_update_is_a_function_of_the_seed_and_its_number():
    assert PromptOrder(100, 8, 1).indices(57) == PromptOrder(100, 8, 1).indices(57)
    assert PromptOrder(100, 8, 1).indices(57) != PromptOrder(100, 8, 2).indices(57)
    epochs = [PromptOrder(50, 50, 0).indices(epoch) for epoch in range(3)]
    assert len({tuple(epoch) for epoch in epochs}) == 3
    assert PromptOrder(100, 25).epoch(6) == 1.5


def test_the_order_is_the_same_in_every_version():
    assert PromptOrder(6, 6, 0).indices(0) == [3, 2, 1, 0, 5, 4]


def test_wrong_numbers_are_refused():
    with pytest.raises(SettingsError, match="count is 0"):
        PromptOrder(0, 1)
    with pytest.raises(SettingsError, match="batch is 0"):
        PromptOrder(1, 0)
    with pytest.raises(SettingsError, match="updates count from 0"):
        PromptOrder(1, 1).indices(-1)
