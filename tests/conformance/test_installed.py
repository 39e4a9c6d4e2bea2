"""Every optimizer that is installed keeps the contract: whoever wrote it, the same kit."""

import time

import pytest

from lmrl.plugins import PluginManager
from lmrl.testing import check_optimizer
from lmrl.testing.toy_experience import EXPERIENCES

OPTIMIZERS = PluginManager().optimizers()


@pytest.mark.parametrize("name", sorted(OPTIMIZERS))
def test_an_installed_optimizer_keeps_the_contract(name):
    spec = OPTIMIZERS[name]
    if spec.needs.experience not in EXPERIENCES:
        pytest.skip(f"the kit makes no toy examples of {spec.needs.experience} yet")
    check_optimizer(spec)


def test_the_kit_takes_seconds():
    start = time.process_time()
    check_optimizer(OPTIMIZERS["ppo"])
    assert time.process_time() - start < 5
