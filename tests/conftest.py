"""What every test shares: no network, no thread pile-up, and the folder of real data where there is one."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# Before anything imports a library that reads them.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Figures are compared in float32 on a CPU, also where there is a GPU, whose default is bf16.
os.environ["CUDA_VISIBLE_DEVICES"] = ""
if "PYTEST_XDIST_WORKER" in os.environ:
    # One thread per worker, also in the processes that tests start: the workers already fill the cores.
    for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ.setdefault(variable, "1")


# A runner may be started with Ctrl-C ignored (nohup, a background job), which every process of the tests would inherit:
# those that press Ctrl-C would wait for an answer that never comes.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN and threading.current_thread() is threading.main_thread():
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_configure(config: pytest.Config) -> None:
    """Let no test depend on the machine's speed, and keep torch to one thread under xdist.

    Libraries that were loaded earlier may have fixed OpenMP's number of threads already.
    """
    from hypothesis import HealthCheck, settings

    settings.register_profile("lmrl", deadline=None, suppress_health_check=[HealthCheck.too_slow])
    settings.load_profile("lmrl")
    if "PYTEST_XDIST_WORKER" in os.environ:
        import torch

        torch.set_num_threads(1)


@pytest.fixture(scope="session")
def root() -> Path:
    """Return the root of the repository."""
    return ROOT


@pytest.fixture(scope="session")
def shared() -> Path:
    """Return the folder of real data: LMRL_SHARED, or `shared` beside the repository. Skips where there is none."""
    named = os.environ.get("LMRL_SHARED")
    folder = Path(named) if named else ROOT.parent / "shared"
    if not (folder / "data").is_dir():
        pytest.skip(f"no real data at {folder}/data; LMRL_SHARED names another folder")
    return folder
