"""The toy policy of the stages' tests, and a language model whose logits are a table."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from lmrl.testing import write_tiny_model

_spec = importlib.util.spec_from_file_location("stage_fixtures", Path(__file__).parents[1] / "stages" / "conftest.py")
stage_fixtures = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(stage_fixtures)


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory):
    return write_tiny_model(tmp_path_factory.mktemp("traps") / "model")


@pytest.fixture(scope="session")
def pad_is_eos_folder(tmp_path_factory):
    return write_tiny_model(tmp_path_factory.mktemp("traps") / "pad-is-eos", pad_is_eos=True)


@pytest.fixture
def toy(tiny_folder):
    return lambda folder=tiny_folder, **kwargs: stage_fixtures.Toy(folder, **kwargs)


class TableModel(nn.Module):
    """A causal language model whose next-token logits are the row of a table for the last token."""

    def __init__(self, table):
        super().__init__()
        self.table = nn.Parameter(table)

    @property
    def device(self):
        return self.table.device

    def get_output_embeddings(self):
        return None

    def forward(self, input_ids, **kwargs):
        return SimpleNamespace(logits=self.table[input_ids])


@pytest.fixture
def table_model():
    generator = torch.Generator().manual_seed(0)
    return TableModel(torch.randn(6, 6, generator=generator))
