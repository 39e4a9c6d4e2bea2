"""The RL stage as a whole: it learns, resumes bit for bit, refuses bad settings before any sampling."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from importlib import metadata

import pytest
import torch

from lmrl.config import build, read_toml
from lmrl.errors import NonFiniteError, PromptError, ResumeError, RewardError, SettingsError
from lmrl.reporting.metrics import read_metrics
from lmrl.stages.rl import RLConfig, rl
from lmrl.training.checkpoint import list_checkpoints
from lmrl.training.schedule import schedule_factor

PROMPTS = ["the cat", "a dog", "the dog sat", "a cat ran", "the", "a", "home", "far ."]


def likes_cats(prompts, responses):
    return [response.count("cat") - 0.05 * len(response.split()) for response in responses]


def config_of(model, folder, **sections):
    mapping = {
        "model": str(model),
        "run": {"folder": str(folder), "device": "cpu"},
        "sampling": {"max_new_tokens": 8},
        "train": {"updates": 4, "prompts_per_update": 8, "learning_rate": 0.01},
        "optimizer": {"name": "ppo", "ppo": {"epochs": 2, "minibatches": 2}},
        "evaluation": {"every": 2, "prompts": 2},
        "checkpoint": {"every": 1, "keep": 10},
    }
    for name, section in sections.items():
        mapping[name] = {**mapping[name], **section} if isinstance(mapping.get(name), dict) else section
    return build(RLConfig, mapping)


def run(config, **kwargs):
    return rl(config, reward=likes_cats, prompts=PROMPTS, progress=False, **kwargs)


def without_times(records):
    return [{name: value for name, value in record.items() if not name.startswith("time/")} for record in records]


def weights(folder):
    from safetensors.torch import load_file

    newest = list_checkpoints(folder)[-1]
    return {file.name: load_file(file) for file in sorted(newest.glob("*.safetensors"))}


@pytest.mark.parametrize("optimizer", ["ppo", "reinforce"])
def test_a_run_leaves_everything_that_the_next_person_needs(tiny_folder, tmp_path, optimizer):
    folder = tmp_path / "run"
    result = run(config_of(tiny_folder, folder, optimizer={"name": optimizer}))
    assert result.updates == 4 and not result.interrupted
    records = read_metrics(folder)
    assert [record["update"] for record in records] == [0, 1, 2, 3, 4]
    assert [r["update"] for r in records if "evaluation/reward" in r] == [0, 2, 4]
    for name in ("rollout/reward", "rollout/kl", "rollout/length", "optimizer/loss", "time/tokens_per_second"):
        assert all(isinstance(record[name], float) for record in records[1:]), name
    assert records[1]["rollout/kl"] == pytest.approx(0, abs=1e-5), "the policy starts as its reference"
    assert records[0]["evaluation/kl"] == pytest.approx(0, abs=1e-5)
    assert list((folder / "tensorboard").glob("events*"))
    assert (folder / "samples" / "evaluation-000004.txt").read_text().startswith(tuple(PROMPTS))
    versions = json.loads((folder / "versions.json").read_text())
    # The distribution's version: that of the module also names its build, as in 2.13.0+cu130.
    assert versions["libraries"]["torch"] == metadata.version("torch")
    assert [path.name for path in list_checkpoints(folder)] == [f"checkpoint-{n:06d}" for n in (1, 2, 3, 4)]
    again = build(RLConfig, read_toml(folder / "config.toml"))
    assert again.optimizer.name == optimizer and again.optimizer.tables[optimizer]["minibatches"] >= 1


def test_a_checkpoint_is_a_plain_transformers_model(tiny_folder, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    run(config_of(tiny_folder, tmp_path / "run"))
    checkpoint = list_checkpoints(tmp_path / "run")[-1]
    model, tokenizer = AutoModelForCausalLM.from_pretrained(checkpoint), AutoTokenizer.from_pretrained(checkpoint)
    assert model(**tokenizer("the cat", return_tensors="pt", return_token_type_ids=False)).logits.shape == (1, 2, 15)
    start = AutoModelForCausalLM.from_pretrained(tiny_folder)
    assert any(not torch.equal(a, b) for a, b in zip(model.parameters(), start.parameters(), strict=True))


@pytest.mark.parametrize("optimizer", ["ppo", "reinforce"])
def test_resumed_equals_undisturbed_bit_for_bit(tiny_folder, tmp_path, optimizer):
    adaptive = {"beta": 0.1, "controller": "adaptive", "target": 0.5, "horizon": 100}
    whole = config_of(tiny_folder, tmp_path / "whole", optimizer={"name": optimizer}, kl=adaptive)
    run(whole)
    parts = replace(whole, run=replace(whole.run, folder=str(tmp_path / "parts")))
    run(replace(parts, train=replace(parts.train, updates=2)))
    run(parts, resume=True)
    assert without_times(read_metrics(tmp_path / "parts")) == without_times(read_metrics(tmp_path / "whole"))
    expected, found = weights(tmp_path / "whole"), weights(tmp_path / "parts")
    assert expected.keys() == found.keys()
    for file, tensors in expected.items():
        assert all(torch.equal(tensor, found[file][name]) for name, tensor in tensors.items())


SCRIPT = """
import sys
sys.path.insert(0, {tests!r})
from test_rl import *
torch.set_num_threads(1)
config = config_of({model!r}, {folder!r}, train={{"updates": 6, "prompts_per_update": 8, "learning_rate": 0.01}})
result = run(config, resume={resume})
print("interrupted", result.interrupted)
"""


def start(tmp_path, model, folder, resume):
    script = SCRIPT.format(tests=os.path.dirname(__file__), model=str(model), folder=str(folder), resume=resume)
    return subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def wait_for_update(process, folder, update):
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        if (folder / f"checkpoint-{update:06d}").exists():
            return
        time.sleep(0.01)
    raise AssertionError(f"no checkpoint {update}: {process.communicate(timeout=10)[0][-2000:]}")


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_run_resumes_as_if_nothing_had_happened(tiny_folder, tmp_path, how):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert start(tmp_path, tiny_folder, whole, False).wait(timeout=240) == 0
    process = start(tmp_path, tiny_folder, killed, False)
    wait_for_update(process, killed, 2)
    process.send_signal(how)
    output = process.communicate(timeout=120)[0]
    done = read_metrics(killed)[-1]["update"]
    assert done >= 2
    if how == signal.SIGINT:
        assert process.returncode == 0, output[-2000:]
        assert list_checkpoints(killed)[-1].name == f"checkpoint-{done:06d}", "Ctrl-C saves before it leaves"
    resumed = start(tmp_path, tiny_folder, killed, True)
    output = resumed.communicate(timeout=240)[0]
    assert resumed.returncode == 0, output[-2000:]
    assert without_times(read_metrics(killed)) == without_times(read_metrics(whole))


def test_training_raises_the_reward_and_a_larger_beta_keeps_the_kl_smaller(tiny_folder, tmp_path):
    finals = {}
    for beta in (0.01, 1.0):
        folder = tmp_path / str(beta)
        train = {"updates": 25, "prompts_per_update": 64, "learning_rate": 0.01}
        run(config_of(tiny_folder, folder, kl={"beta": beta}, train=train, checkpoint={"every": 0}))
        records = read_metrics(folder)
        finals[beta] = records[-1]["rollout/kl"]
        if beta == 0.01:
            assert records[-1]["rollout/reward"] > records[1]["rollout/reward"] + 0.5
    assert finals[1.0] < finals[0.01] / 2


def test_a_reward_that_is_always_at_its_bound_has_an_interval_within_it(tiny_folder, tmp_path):
    """Student's t would have no width here, and pass the bound where one answer differs."""

    class Always:
        bounds = (-1.0, 1.0)

        def __call__(self, prompts, responses):
            return [1.0] * len(responses)

    config = config_of(tiny_folder, tmp_path / "run", train={"updates": 1}, evaluation={"prompts": 4})
    found = rl(config, reward=Always(), prompts=PROMPTS * 2, progress=False).after
    assert found.reward.mean == found.reward.high == 1 and found.reward.low == pytest.approx(1 - 2 * (1 - 0.025**0.25))
    unknown = rl(
        replace(config, run=replace(config.run, folder=str(tmp_path / "unknown"))),
        reward=lambda prompts, responses: [1.0] * len(responses),
        prompts=PROMPTS * 2,
        progress=False,
    ).after
    assert "evaluation/reward" in unknown.metrics() and "evaluation/reward_low" not in unknown.metrics()
    assert str(unknown.reward) == "1.000", "nothing is known of other values, and nothing is claimed"


def test_evaluation_changes_no_training_state(tiny_folder, tmp_path):
    results = []
    for every in (1, 0):
        folder = tmp_path / str(every)
        run(config_of(tiny_folder, folder, evaluation={"every": every, "prompts": 2}))
        records = without_times(read_metrics(folder))[1:]
        results.append([{k: v for k, v in r.items() if not k.startswith("evaluation/")} for r in records])
    assert results[0] == results[1]


def test_an_existing_run_is_not_written_to(tiny_folder, tmp_path):
    config = config_of(tiny_folder, tmp_path / "run")
    run(config)
    before = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    with pytest.raises(SettingsError, match=r"already holds a run.*--resume"):
        run(config)
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == before


def test_changed_prompts_are_noticed_on_resume(tiny_folder, tmp_path):
    config = config_of(tiny_folder, tmp_path / "run")
    run(config)
    with pytest.raises(ResumeError, match="prompts or the data have changed"):
        rl(config, reward=likes_cats, prompts=[*PROMPTS, "cat"], progress=False, resume=True)
    with pytest.raises(ResumeError, match="holds no run"):
        run(config_of(tiny_folder, tmp_path / "empty"), resume=True)


def test_a_run_that_goes_on_is_not_taken_up_by_another_process(tiny_folder, tmp_path):
    """Locks are of open files, so a second session in this process stands for another one."""
    config, said = config_of(tiny_folder, tmp_path / "run"), []

    def meddling(prompts, responses):
        if (tmp_path / "run" / "checkpoint").exists() and not said:
            with pytest.raises(ResumeError, match=f"process {os.getpid()} on .* is at work on .*run; wait") as caught:
                rl(config, reward=likes_cats, prompts=PROMPTS, progress=False, resume=True)
            said.append(caught)
        return likes_cats(prompts, responses)

    rl(config, reward=meddling, prompts=PROMPTS, progress=False)
    assert len(said) == 1
    updates = [record["update"] for record in read_metrics(tmp_path / "run")]
    assert updates == list(range(config.train.updates + 1)), "and nothing of it was cut off"
    rl(config, reward=likes_cats, prompts=PROMPTS, progress=False, resume=True)


def test_a_run_killed_before_its_first_checkpoint_starts_again(tiny_folder, tmp_path):
    folder = tmp_path / "run"
    run(config_of(tiny_folder, folder))
    records = without_times(read_metrics(folder))
    for checkpoint in list_checkpoints(folder):
        shutil.rmtree(checkpoint)
    resumed = run(config_of(tiny_folder, folder), resume=True)
    assert without_times(read_metrics(folder)) == records and resumed.before is not None


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"sampling": {"top_k": 5}}, "top_k"),
        ({"sampling": {"temperature": 0.0}}, "greedy"),
        ({"sampling": {"forbidden_ids": [99]}}, "99"),
        ({"optimizer": {"name": "pop"}}, "ppo"),
        ({"optimizer": {"ppo": {"minibatches": 9}}}, "minibatches"),
        ({"evaluation": {"prompts": 8}}, "evaluation.prompts"),
        ({"optimizer": {"ppo": {"minibatches": 0}}}, "minibatches"),
        ({"optimizer": {"ppo": {"epochs": 0}}}, "epochs"),
        ({"trackers": ["tensorbord"]}, "tensorbord"),
        ({"train": {"updates": 0}}, "train.updates"),
        ({"kl": {"beta": -1.0}}, "kl.beta"),
        ({"checkpoint": {"keep": 0}}, "checkpoint.keep"),
        ({"evaluation": {"every": -1}}, "evaluation.every"),
        ({"run": {"device": "gpu"}}, "run.device"),
    ],
)
def test_refused_before_any_sampling(tiny_folder, tmp_path, sections, message):
    with pytest.raises(SettingsError, match=message):
        run(config_of(tiny_folder, tmp_path / "run", **sections))
    assert not (tmp_path / "run").exists()


def test_a_prompt_without_room_is_left_out_and_said(tiny_folder, tmp_path, caplog):
    whole = run(config_of(tiny_folder, tmp_path / "whole"))
    long = rl(
        config_of(tiny_folder, tmp_path / "long"), reward=likes_cats, prompts=[*PROMPTS, "cat " * 60], progress=False
    )
    assert "1 of 9 prompts were left out" in caplog.text and "the longest has 60" in caplog.text
    assert without_times(read_metrics(long.folder)) == without_times(read_metrics(whole.folder))


def test_bad_prompts_and_rewards(tiny_folder, tmp_path):
    config = config_of(tiny_folder, tmp_path / "run")
    with pytest.raises(PromptError, match="none of the 2 prompts"):
        rl(config, reward=likes_cats, prompts=["cat " * 60, "dog " * 60], progress=False)
    with pytest.raises(RewardError, match="nan"):
        rl(config, reward=lambda prompts, responses: [float("nan")] * len(prompts), prompts=PROMPTS, progress=False)


def test_a_diverged_policy_stops_the_run_and_keeps_the_last_checkpoint(tiny_folder, tmp_path):
    config = config_of(tiny_folder, tmp_path / "run", train={"learning_rate": 1e30, "max_gradient_norm": 0.0})
    with pytest.raises(NonFiniteError, match="update"):
        run(config)
    for checkpoint in list_checkpoints(tmp_path / "run"):
        for file in checkpoint.glob("*.safetensors"):
            from safetensors.torch import load_file

            assert all(torch.isfinite(tensor).all() for tensor in load_file(file).values())


def test_truncated_rows_are_not_scored(tiny_folder, tmp_path):
    seen = []

    def reward(prompts, responses):
        seen.extend(responses)
        return [1.0] * len(responses)

    config = config_of(tiny_folder, tmp_path / "run", sampling={"max_new_tokens": 8, "on_length": "truncate"})
    config = replace(config, evaluation=replace(config.evaluation, prompts=0))
    rl(config, reward=reward, prompts=PROMPTS, progress=False)
    records = read_metrics(tmp_path / "run")
    ended = sum(record["rollout/terminated"] * 8 for record in records[1:])
    assert len(seen) == round(ended) < 4 * 8


def test_a_resumed_schedule_goes_on_from_its_peak(tiny_folder, tmp_path):
    train = {"updates": 4, "prompts_per_update": 8, "learning_rate": 0.01, "schedule": "linear"}
    config = config_of(tiny_folder, tmp_path / "run", train=train)
    run(config)
    whole = without_times(read_metrics(tmp_path / "run"))
    shutil.rmtree(list_checkpoints(tmp_path / "run")[-1])
    run(config, resume=True)  # from update 3, whose checkpoint holds half the peak learning rate
    assert without_times(read_metrics(tmp_path / "run")) == whole


@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant"])
def test_an_extended_run_reports_the_learning_rate_and_keeps_its_new_length(tiny_folder, tmp_path, caplog, schedule):
    train = {"updates": 2, "prompts_per_update": 8, "learning_rate": 0.01, "schedule": schedule}
    config = config_of(tiny_folder, tmp_path / "run", train=train)
    run(config)
    run(replace(config, train=replace(config.train, updates=4)), resume=True)
    rates = [record["optimizer/learning_rate"] for record in read_metrics(tmp_path / "run")[1:]]
    expected = [0.01 * schedule_factor(done, total, 0, schedule) for done, total in enumerate((2, 2, 4, 4))]
    assert rates == pytest.approx(expected)
    noted = f"was {rates[1]:.3g} in update 2 and is {rates[2]:.3g} in update 3"
    assert (noted in caplog.text) == (schedule != "constant")
    kept = build(RLConfig, read_toml(tmp_path / "run" / "config.toml"))
    assert kept.train.updates == 4
    run(kept, resume=True)
    assert "nothing is left to do" in caplog.text and len(read_metrics(tmp_path / "run")) == 5


def test_a_free_folder_is_chosen_anew_for_every_run(tiny_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = config_of(tiny_folder, "", train={"updates": 1})
    assert [run(config).folder.name for _ in range(2)] == ["ppo-1", "ppo-2"]


def test_a_reward_that_fails_in_mid_run_names_the_update_and_keeps_the_checkpoint(tiny_folder, tmp_path):
    calls = []

    def reward(prompts, responses):
        calls.append(len(responses))
        return [float("nan") if len(calls) == 3 else 1.0] * len(responses)

    config = config_of(tiny_folder, tmp_path / "run", evaluation={"prompts": 0})
    with pytest.raises(RewardError, match=r"update 3: .*nan"):
        rl(config, reward=reward, prompts=PROMPTS, progress=False)
    assert list_checkpoints(tmp_path / "run")[-1].name == "checkpoint-000002"
