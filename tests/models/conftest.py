"""Checkpoints to break: each test runs on a folder and on the same files as a hub id in the local cache."""

from __future__ import annotations

import pytest
from checkpoint_files import cache_on_hub

from lmrl.testing import write_tiny_model


@pytest.fixture
def hub_cache(tmp_path, monkeypatch):
    """Return an empty cache of the hub, which every load of this process uses."""
    cache = tmp_path / "hub"
    cache.mkdir()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    return cache


@pytest.fixture(params=["folder", "hub"])
def named(request, hub_cache):
    """Return a function that names a folder: by its path, or as the hub id of the same files."""
    return (lambda folder: str(folder)) if request.param == "folder" else lambda folder: cache_on_hub(folder, hub_cache)


@pytest.fixture
def checkpoint(tmp_path):
    """Return the folder of a tiny checkpoint."""
    return write_tiny_model(tmp_path / "checkpoint")
