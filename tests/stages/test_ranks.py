"""Two ranks take the same step as one process: losses, whitening and metrics are global."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import json, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import torch
torch.set_num_threads(1)
import importlib.util
spec = importlib.util.spec_from_file_location("stage_fixtures", sys.argv[1] + "/conftest.py")
fixtures = importlib.util.module_from_spec(spec)
spec.loader.exec_module(fixtures)
from lmrl.algorithms.kl import KLSettings
from lmrl.models.text_policy import TextPolicy
from lmrl_ppo import PPO, PPOSettings
world = fixtures.Toy(Path(sys.argv[2]), kl=KLSettings(beta=0.1, placement=sys.argv[3]))
torch.nn.init.ones_(world.policy.value_head.weight)
rollout = world.rollout(rows=12)
accelerator = world.accelerator
share = 12 // accelerator.num_processes
first = accelerator.process_index * share
mine = rollout.select(torch.arange(first, first + share))
optimizer = PPO(PPOSettings(epochs=1, minibatches=1, loss_aggregation=sys.argv[4]))
updater = world.updater(optimizer, microbatch_tokens=40)
module = accelerator.prepare(world.policy)
updater.policy = TextPolicy(module, world.spec, True)
before = world.parameters()
metrics = updater.learn(mine, beta=0.1, update=1, seed=0)
if accelerator.is_main_process:
    change = (world.parameters() - before).tolist()
    print("RESULT" + json.dumps({"metrics": metrics, "change": change}))
if accelerator.num_processes > 1:
    torch.distributed.destroy_process_group()
"""


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def run_ranks(count, script, arguments):
    port = str(free_port())
    processes = []
    for rank in range(count):
        environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
        if count > 1:
            environment |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count)}
            environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        command = [sys.executable, str(script), *arguments]
        processes.append(
            subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        )
    outputs = [process.communicate(timeout=240) for process in processes]
    said = "\n".join(
        f"rank {rank} ended with {process.returncode}: {error[-2000:]}"
        for rank, (process, (_, error)) in enumerate(zip(processes, outputs, strict=True))
    )
    assert all(process.returncode == 0 for process in processes), said
    [line] = [line for line in outputs[0][0].splitlines() if line.startswith("RESULT")]
    return json.loads(line.removeprefix("RESULT"))


@pytest.mark.slow
@pytest.mark.parametrize(("placement", "aggregation"), [("reward", "token_mean"), ("loss", "sequence_mean")])
def test_two_ranks_equal_one(tiny_folder, tmp_path, placement, aggregation):
    script = tmp_path / "rank.py"
    script.write_text(SCRIPT)
    arguments = [str(Path(__file__).parent), str(tiny_folder), placement, aggregation]
    one, two = (run_ranks(count, script, arguments) for count in (1, 2))
    assert max(abs(x) for x in one["change"]) > 1e-4
    assert two["change"] == pytest.approx(one["change"], abs=2e-6)
    for name, value in one["metrics"].items():
        assert two["metrics"][name] == pytest.approx(value, abs=1e-5), name


RUN = """
import json, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from lmrl.config import build
from lmrl.plugins import PluginManager
from lmrl.stages.rl import RLConfig, rl
watch = Path(sys.argv[0]).with_name("watch.py")
plugins = PluginManager([watch])
config = build(RLConfig, json.loads(sys.argv[1]))

def cats(prompts, responses):
    return [float("cat" in response) for response in responses]

texts = ["the cat", "a", "the dog sat home", "a cat ran", "home", "far ."]
rl(config, reward=cats, prompts=texts, plugins=plugins, progress=False)
from accelerate import PartialState
state = PartialState()
if state.process_index == 0:
    print("RESULT" + json.dumps(state.num_processes))
if state.num_processes > 1:
    torch.distributed.barrier()  # no rank leaves while another one still talks to it
    torch.distributed.destroy_process_group()
"""


WATCH = """
import json
from pathlib import Path
from accelerate import PartialState
from lmrl import hookimpl

@hookimpl
def lmrl_rollout(run, rollout):
    state = PartialState()
    with Path(__file__).with_name(f"{state.num_processes}-{state.process_index}.jsonl").open("a") as file:
        file.write(json.dumps(rollout.inputs.action_rows()) + chr(10))
"""


@pytest.mark.slow
@pytest.mark.parametrize("dynamic", [False, True])
def test_two_processes_draw_the_tokens_of_one(tiny_folder, tmp_path, dynamic):
    """Seeds derive from the number of a group in the whole batch, also of those that are drawn anew."""
    script = tmp_path / "run.py"
    script.write_text(RUN)
    (tmp_path / "watch.py").write_text(WATCH)
    for count in (1, 2):
        config = {
            "model": str(tiny_folder),
            "run": {"folder": str(tmp_path / f"run{count}"), "device": "cpu", "precision": "no"},
            "sampling": {"max_new_tokens": 4},
            "train": {"updates": 3, "prompts_per_update": 4, "group_size": 3, "learning_rate": 0.003},
            "optimizer": {"name": "grpo", "grpo": {"dynamic_sampling": dynamic, "minibatches": 1}},
            "evaluation": {"prompts": 0},
            "trackers": [],
        }
        assert run_ranks(count, script, [json.dumps(config)]) == count

    def actions(name):
        return [json.loads(line) for line in (tmp_path / name).read_text().splitlines()]

    one, first, second = actions("1-0.jsonl"), actions("2-0.jsonl"), actions("2-1.jsonl")
    assert len(one) == 3 and one[0] != one[2]
    assert [a + b for a, b in zip(first, second, strict=True)] == one
