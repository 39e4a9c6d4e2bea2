import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def shared_data():
    """The folder of real data, where there is one: LMRL_SHARED, or a folder named shared beside the checkout."""
    default = Path(__file__).resolve().parents[3] / "shared"
    folder = Path(os.environ.get("LMRL_SHARED", default)) / "data"
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder}; set LMRL_SHARED to the folder that holds data/MANIFEST.md")
    return folder
