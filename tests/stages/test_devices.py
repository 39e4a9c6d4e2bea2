"""Accelerate keeps one state per process; stages after each other may want different ones all the same."""

from types import SimpleNamespace

import pytest
import torch
from accelerate.state import AcceleratorState, PartialState

from lmrl.errors import SettingsError
from lmrl.training import devices
from lmrl.training.devices import make_accelerator
from lmrl.training.settings import RunSettings


@pytest.fixture(autouse=True)
def fresh_accelerate():
    """The tests after these find nothing of theirs."""
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def test_each_stage_of_a_process_has_its_own_precision():
    for precision in ("no", "bf16", "bf16", "no"):
        accelerator = make_accelerator(RunSettings(device="cpu", precision=precision))
        assert accelerator.mixed_precision == precision
        with accelerator.autocast():
            found = torch.nn.Linear(2, 2)(torch.zeros(1, 2)).dtype
        assert found == (torch.bfloat16 if precision == "bf16" else torch.float32)


def test_a_stage_after_one_on_the_cpu_takes_the_gpu_again(monkeypatch):
    make_accelerator(RunSettings(device="cpu"))
    monkeypatch.setattr(devices.torch.cuda, "is_available", lambda: True)
    devices._release_state("no", cpu=True)
    assert PartialState._shared_state
    devices._release_state("no", cpu=False)
    assert not PartialState._shared_state


def test_processes_of_a_launch_keep_their_device(monkeypatch):
    make_accelerator(RunSettings(device="cpu"))
    monkeypatch.setattr(devices.torch.cuda, "is_available", lambda: True)
    state = SimpleNamespace(device=torch.device("cuda"), num_processes=2)
    several = type("Several", (), {"_shared_state": {"x": 1}, "__new__": lambda cls: state})
    monkeypatch.setattr("accelerate.state.PartialState", several)
    with pytest.raises(SettingsError, match=r"run\.device is cpu, and the 2 processes were started on cuda"):
        devices._release_state("no", cpu=True)
