"""The reward stage: what a step computes, what a run writes, that it resumes bit for bit, and that it learns."""

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
import torch

from lmrl.cli.main import main
from lmrl.config import build
from lmrl.data import Ranking, load_rankings
from lmrl.errors import DataError, ModelError, NonFiniteError, ResumeError, SettingsError
from lmrl.models.reward_model import load_reward_model, start_reward_model
from lmrl.reporting.metrics import read_metrics
from lmrl.rewards import resolve
from lmrl.stages.reward import RewardConfig, reward
from lmrl.stages.reward.data import collate, encode_rankings, split_by_tokens
from lmrl.stages.reward.task import RewardTask
from lmrl.testing import write_tiny_model
from lmrl.text.reward_card import load_reward_card

WORDS = ("happy", "sad", "cat", "dog", "ran")


def word_rankings(count, seed=0, answers=4):
    """Rows whose gold score is the number of "happy" minus that of "sad"."""
    chance = random.Random(seed)
    rows = []
    for _ in range(count):
        drawn = dict.fromkeys(
            " ".join(chance.choices(WORDS, k=chance.randint(2, 7))) for _ in range(chance.randint(2, answers))
        )
        scores = [text.split().count("happy") - text.split().count("sad") for text in drawn]
        if len(set(scores)) > 1:
            asked = " ".join(chance.choices(("the", "a", "home", "far", "."), k=4))
            rows.append({"prompt": asked, "completions": list(drawn), "scores": scores})
    return rows


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return write_tiny_model(tmp_path_factory.mktemp("base") / "model")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    file = tmp_path_factory.mktemp("data") / "rankings.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in word_rankings(120)))
    return file


def config_of(base, source, folder, **sections):
    train = {"steps": 6, "learning_rate": 0.01, "rankings_per_step": 8, "warmup_steps": 2, "evaluate_every": 3}
    table = {"model": str(base), "run": {"folder": str(folder)}, "data": {"path": str(source)}, "trackers": []}
    table |= {"train": train | sections.pop("train", {}), "checkpoint": {"every": 2}}
    for name, value in sections.items():
        table[name] = table.get(name, {}) | value
    return build(RewardConfig, table)


def task_of(base, items, **sections):
    config = config_of(base, "-", "-", **sections)
    return RewardTask(start_reward_model(base, seed=0), items, [], config)


@pytest.fixture(scope="module")
def items(base):
    rankings = load_rankings(word_rankings(30)).rankings
    return encode_rankings(rankings, start_reward_model(base, seed=0).card, "skip").items


def test_an_answer_that_does_not_fit_is_out_of_the_ranking_too(base):
    ranking = Ranking("cat", ("happy " * 400, "sad", "happy"), (0, 2, 1), (9.0, -1.0, 1.0))
    [item] = encode_rankings([ranking], start_reward_model(base, seed=0).card, "skip").items
    assert item.ranking == Ranking("cat", ("sad", "happy"), (1, 0), (-1.0, 1.0))
    assert (item.ranks, item.scores, len(item.rows)) == ((1, 0), (-1.0, 1.0), 2)


class TestSteps:
    def gradient(self, base, items, double=False, **sections):
        task = task_of(base, items, **sections)
        if double:  # so that what is left of a difference is the formula's, and not the order of additions
            task.model.double()
        parts = task.microbatches(1, 0, 1)
        losses = [task.loss(task.module, part)[0] for part in parts]
        torch.stack(losses).sum().backward()
        return len(parts), torch.cat([p.grad.flatten() for p in task.model.parameters() if p.grad is not None])

    @pytest.mark.parametrize("loss", ["plackett_luce", "bradley_terry"])
    def test_trap_28_microbatches_and_pieces_change_no_gradient(self, base, items, loss):
        objective = {"loss": loss, "centring": 0.1}
        one, whole = self.gradient(base, items, objective=objective, train={"microbatch_tokens": 100_000})
        many, parts = self.gradient(base, items, objective=objective, train={"microbatch_tokens": 60})
        assert one == 1 and many > 3
        torch.testing.assert_close(parts, whole, rtol=1e-4, atol=1e-6)

    def test_trap_28_ranks_share_a_step(self, base, items):
        task = task_of(base, items)
        everything = sorted(row for part in task.microbatches(3, 0, 1) for row in rows_of(part))
        shared = sorted(row for rank in range(3) for part in task.microbatches(3, rank, 3) for row in rows_of(part))
        assert shared == everything
        assert sum(map(task.count, task.microbatches(3, 0, 1))) == 8

    def test_every_distinct_answer_is_computed_once(self, items):
        batch = collate([items[0], items[0], items[1]], 10)
        assert len(batch.ids) == len({*items[0].rows, *items[1].rows})
        assert torch.equal(batch.index[0], batch.index[1])
        rows = [tuple(batch.ids[i, : batch.lengths[i]].tolist()) for i in batch.index[2, : len(items[1].rows)]]
        assert rows == list(items[1].rows)

    def test_rankings_stay_whole(self, items):
        groups = split_by_tokens(items, 50)
        assert sorted(id(item) for group in groups for item in group) == sorted(map(id, items))
        assert all(len(group) == 1 or sum(sum(map(len, i.rows)) for i in group) <= 50 for group in groups)

    def test_trap_37_pairs_give_both_losses_the_same_gradient(self, base):
        rankings = load_rankings(word_rankings(40, answers=2)).rankings
        pairs = encode_rankings(rankings, start_reward_model(base, seed=0).card, "skip").items
        losses = ("plackett_luce", "bradley_terry")
        both = [self.gradient(base, pairs, double=True, objective={"loss": loss})[1] for loss in losses]
        assert both[0].dtype == torch.float64
        torch.testing.assert_close(*both, rtol=1e-5, atol=1e-7)

    def test_a_margin_from_the_datas_scores(self, base, items):
        plain, wide = (
            task_of(base, items, objective={"loss": "bradley_terry", "score_margin": margin}) for margin in (0.0, 2.0)
        )
        [part] = plain.microbatches(1, 0, 1)
        scores = plain.module(part.ids, part.lengths)[part.index]
        gaps = (scores[:, :, None] - scores[:, None, :]) - 2.0 * (part.gold[:, :, None] - part.gold[:, None, :])
        ordered = (part.ranks[:, :, None] < part.ranks[:, None, :]) & part.mask[:, :, None] & part.mask[:, None, :]
        expected = sum(torch.nn.functional.softplus(-gaps[row][ordered[row]]).mean() for row in range(len(part.index)))
        torch.testing.assert_close(wide.loss(wide.module, part)[0], expected)


def rows_of(batch):
    return [tuple(batch.ids[i, : batch.lengths[i]].tolist()) for i in batch.index[batch.mask].tolist()]


@pytest.fixture(scope="module")
def run(base, data, tmp_path_factory):
    config = config_of(base, data, tmp_path_factory.mktemp("runs") / "reward", train={"steps": 60})
    return reward(config, progress=False)


class TestRuns:
    def test_a_known_utility_is_learned(self, run):
        assert run.report.accuracy.low > 0.75 and run.report.kendall_tau.low > 0
        assert run.report.top_1.mean > run.report.top_1_chance + 0.3
        assert run.report.log_loss < 0.5

    def test_the_run_folder(self, run):
        records = read_metrics(run.folder)
        assert records[0]["evaluation/accuracy_low"] <= records[0]["evaluation/accuracy"]
        assert records[-1]["evaluation/accuracy"] == pytest.approx(run.report.accuracy.mean)
        assert records[5]["train/rankings"] == 8 and "train/accuracy" in records[5] and "train/centring" in records[5]
        for name in ("config.toml", "versions.json", "curves.png", "reward.png", "report.json"):
            assert (run.folder / name).exists()
        report = json.loads((run.folder / "report.json").read_text())
        assert report["accuracy"]["low"] == pytest.approx(run.report.accuracy.low)
        assert "rank 0, score" in (run.folder / "samples" / "samples-000060.txt").read_text()

    def test_trap_33_scores_are_centred_on_reference_samples(self, run):
        model = load_reward_model(run.folder)
        assert model.normalisation.reference == "answers of the training data" and model.normalisation.count > 50
        rows = [
            row
            for item in encode_rankings(load_rankings(word_rankings(120)).rankings, model.card, "skip").items
            for row in item.rows
        ]
        scores = model.score_rows(rows)
        assert abs(float(scores.mean())) < 0.2 and abs(float(scores.std()) - 1) < 0.2

    def test_plain_transformers_loads_it(self, run):
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        plain = AutoModelForSequenceClassification.from_pretrained(run.checkpoints[-1]).eval()
        tokenizer = AutoTokenizer.from_pretrained(run.checkpoints[-1])
        ids = [*tokenizer("the a happy cat")["input_ids"], 1]
        raw = resolve(str(run.folder))(["the a"], ["happy cat"]).parts["raw"][0]
        assert plain(torch.tensor([ids])).logits.item() == pytest.approx(raw, abs=1e-5)

    def test_it_is_trained_further(self, run, data, tmp_path):
        config = config_of(run.folder, data, tmp_path / "more", train={"steps": 1, "learning_rate": 0.0})
        again = reward(config, progress=False)
        assert again.report.accuracy == run.report.accuracy

    def test_an_ensemble(self, base, data, tmp_path):
        config = config_of(base, data, tmp_path / "run", ensemble={"members": 2}, train={"steps": 3})
        result = reward(config, progress=False)
        assert [path.parent.name for path in result.checkpoints] == ["member-1", "member-2"]
        assert len(result.report.members) == 2
        first, second = (load_reward_model(result.folder / f"member-{i}").model.score.weight for i in (1, 2))
        assert not torch.equal(first, second)
        with pytest.raises(ModelError, match=r"holds an ensemble; name one of its members .*member-1"):
            start_reward_model(result.folder, seed=0)
        assert set(resolve(str(result.folder))(["the"], ["cat"]).parts) == {"member_1", "member_2", "std", "cut"}

    def test_normalised_on_samples_of_the_policy(self, base, data, tmp_path):
        settings = {"on": "samples", "count": 20, "sampling": {"max_new_tokens": 5}}
        config = config_of(base, data, tmp_path / "run", normalise=settings, train={"steps": 1})
        result = reward(config, progress=False)
        found = load_reward_card(result.folder).normalisation
        assert found.count == 20 and found.reference == f"samples of {base}" and found.std != 1

    def test_without_held_out_data(self, base, data, tmp_path):
        config = config_of(base, data, tmp_path / "run", data={"held_out": 0}, train={"steps": 1})
        assert reward(config, progress=False).report is None


class TestResume:
    def weights(self, result):
        return [(path / "model.safetensors").read_bytes() for path in result.checkpoints]

    def numbers(self, folder):
        return [{k: v for k, v in line.items() if not k.startswith("time/")} for line in read_metrics(folder)]

    @pytest.mark.parametrize("members", [1, 2])
    def test_trap_38_a_killed_run_continues_bit_for_bit(self, base, data, tmp_path, monkeypatch, members):
        """Killed at the last member's fifth step, after its checkpoint at step 4."""
        whole = reward(config_of(base, data, tmp_path / "whole", ensemble={"members": members}), progress=False)
        config = config_of(base, data, tmp_path / "cut", ensemble={"members": members})
        real, begun = RewardTask.microbatches, []

        def killed(self, step, rank, ranks):
            begun.append(step)
            if begun.count(5) == members and step == 5:
                raise KeyboardInterrupt
            return real(self, step, rank, ranks)

        monkeypatch.setattr(RewardTask, "microbatches", killed)
        with pytest.raises(KeyboardInterrupt):
            reward(config, progress=False)
        monkeypatch.undo()
        resumed = reward(config, resume=True, progress=False)
        assert self.weights(resumed) == self.weights(whole)
        assert resumed.report == whole.report
        assert (
            load_reward_card(resumed.checkpoints[-1]).normalisation
            == load_reward_card(whole.checkpoints[-1]).normalisation
        )
        for one, other in zip(resumed.checkpoints, whole.checkpoints, strict=True):
            assert self.numbers(one.parent) == self.numbers(other.parent)
        done = reward(config, resume=True, progress=False)  # nothing left to do
        assert self.weights(done) == self.weights(whole) and done.report == whole.report

    def test_ctrl_c_saves_and_the_command_says_how_to_go_on(self, base, data, tmp_path):
        folder = tmp_path / "run"
        settings = [f"model={base}", f"data.path={data}", f"run.folder={folder}", "trackers=[]", "train.steps=100000"]
        command = [sys.executable, "-m", "lmrl", "reward", "--quiet", *settings, "checkpoint.every=0"]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        deadline = time.monotonic() + 120
        while len(read_metrics(folder)) < 3 and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=60)
        assert process.returncode == 130, errors
        assert f"lmrl reward --resume {folder}" in output
        assert load_reward_model(folder).normalisation.count == 0

    def test_other_data_are_refused(self, base, data, tmp_path):
        config = config_of(base, data, tmp_path / "run")
        reward(config, progress=False)
        other = tmp_path / "other.jsonl"
        other.write_text("".join(json.dumps(row) + "\n" for row in word_rankings(100, seed=5)))
        with pytest.raises(ResumeError, match="the data have changed"):
            reward(replace(config, data=replace(config.data, path=str(other))), resume=True, progress=False)


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return str(listener.getsockname()[1])


@pytest.mark.slow
def test_trap_28_two_processes_train_as_one(base, data, tmp_path):
    settings = [f"model={base}", f"data.path={data}", "run.device=cpu", "trackers=[]", "train.learning_rate=0.01"]
    settings += ["train.steps=3", "train.rankings_per_step=6", "train.microbatch_tokens=80", "ensemble.members=2"]
    processes = []
    port = free_port()
    for ranks in (1, 2):
        for rank in range(ranks):
            environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
            if ranks > 1:
                environment |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks)}
                environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
            command = [
                sys.executable,
                "-m",
                "lmrl",
                "reward",
                "--quiet",
                *settings,
                f"run.folder={tmp_path / str(ranks)}",
            ]
            processes.append(subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True))
    errors = [process.communicate(timeout=240)[1] for process in processes]
    assert all(process.returncode == 0 for process in processes), errors
    for member in ("member-1", "member-2"):
        one, two = (read_metrics(tmp_path / ranks / member) for ranks in ("1", "2"))
        for name in ("train/loss", "train/accuracy", "train/gradient_norm", "evaluation/loss"):
            expected = [record[name] for record in one if name in record]
            assert [record[name] for record in two if name in record] == pytest.approx(expected, abs=1e-4), name


class TestBadInput:
    def refused(self, base, source, tmp_path, error, message, **sections):
        with pytest.raises(error, match=message):
            reward(config_of(base, source, tmp_path / "run", **sections), progress=False)
        assert not (tmp_path / "run").exists(), "a refused run left a folder behind"

    @pytest.mark.parametrize(
        ("sections", "error", "message"),
        [
            ({"objective": {"margin": 0.5}}, SettingsError, r"margin is 0.5, but objective.loss is 'plackett_luce'"),
            ({"objective": {"centring": -1}}, SettingsError, "objective.centring is -1"),
            ({"objective": {"loss": "plackett_lucy"}}, SettingsError, 'did you mean "plackett_luce"'),
            ({"train": {"rankings_per_step": 0}}, SettingsError, "train.rankings_per_step is 0"),
            ({"ensemble": {"members": 0}}, SettingsError, "ensemble.members is 0"),
            (
                {"data": {"held_out": 1000}},
                SettingsError,
                r"data.held_out=1000 .*Set data.held_out = 0 .*111 rankings of",
            ),
            ({"data": {"path": ""}}, DataError, "no rankings were named; set data.path: lmrl reward data.path="),
        ],
    )
    def test_settings(self, base, data, tmp_path, sections, error, message):
        self.refused(base, data, tmp_path, error, message, **sections)

    def test_a_margin_without_scores(self, base, tmp_path):
        data = tmp_path / "pairs.jsonl"
        rows = [{"prompt": f"{w} cat", "chosen": "happy", "rejected": "sad"} for w in WORDS]
        data.write_text("".join(json.dumps(row) + "\n" for row in rows))
        objective = {"loss": "bradley_terry", "score_margin": 1.0}
        self.refused(base, data, tmp_path, SettingsError, "5 of 5 rankings come without scores", objective=objective)

    def test_reference_samples_need_room(self, base, tmp_path):
        data = tmp_path / "long.jsonl"
        rows = [{"prompt": "the " * 60 + w, "chosen": "happy", "rejected": "sad"} for w in WORDS]
        data.write_text("".join(json.dumps(row) + "\n" for row in rows))
        message = "every prompt of the training data fills the context of .*48 tokens; set normalise.on"
        sections = {"normalise": {"on": "samples"}, "data": {"too_long": "truncate", "held_out": 1}}
        self.refused(base, data, tmp_path, DataError, message, **sections)

    def test_unknown_columns(self, base, tmp_path):
        data = tmp_path / "x.jsonl"
        data.write_text('{"question": "a", "good": "b", "bad": "c"}\n')
        self.refused(base, data, tmp_path, DataError, "question")

    def test_a_model_that_is_not_there(self, data, tmp_path):
        self.refused(tmp_path / "nowhere", data, tmp_path, Exception, "there is no model folder")

    def test_messages_for_a_model_without_a_template(self, base, data, tmp_path):
        rows = [
            {"prompt": [{"role": "user", "content": f"the {w}"}], "chosen": "happy", "rejected": "sad"} for w in WORDS
        ]
        pairs = tmp_path / "chat.jsonl"
        pairs.write_text("".join(json.dumps(row) + "\n" for row in rows))
        message = 'chat template.*data.template = "plain"'
        self.refused(base, pairs, tmp_path, DataError, message, data={"held_out": 2})
        config = config_of(base, pairs, tmp_path / "run", data={"template": "plain", "held_out": 2}, train={"steps": 1})
        result = reward(config, progress=False)
        assert load_reward_card(result.folder).card.codec.chat_template
        columns = {"prompt_messages": [rows[0]["prompt"]]}
        assert resolve(str(result.folder))(["the happy"], ["cat"], columns).scores.shape == (1,)

    def test_a_role_that_the_template_cannot_render_is_counted(self, base, tmp_path):
        card = start_reward_model(base, seed=0).card
        from lmrl.models.reward_rows import with_template

        asked = ({"role": "user", "content": "the"}, {"role": "tool", "content": "far"})
        good = Ranking(({"role": "user", "content": "the"},), ("cat", "dog"), (0, 1))
        found = encode_rankings([good, Ranking(asked, ("cat", "dog"), (0, 1))], with_template(card), "skip")
        assert len(found.items) == 1 and found.skipped == {"rankings that the chat template cannot render": 1}

    def test_answers_too_long_are_counted_or_their_prompt_is_cut(self, base):
        card = start_reward_model(base, seed=0).card  # context of 48
        rankings = [
            Ranking("the " * 30, ("cat " * 20, "cat", "dog dog"), (0, 1, 2)),
            Ranking("the", ("cat " * 60, "dog"), (0, 1)),
        ]
        skipped = encode_rankings(rankings, card, "skip")
        assert [item.ranks for item in skipped.items] == [(0, 1)]
        assert skipped.skipped == {
            "answers too long for the context": 2,
            "rankings without two answers of different rank that fit": 1,
        }
        cut = encode_rankings(rankings, card, "truncate")
        assert [item.ranks for item in cut.items] == [(0, 1, 2), (0, 1)]
        assert cut.items[0].rows[0][-21:] == (5,) * 20 + (1,) and cut.items[1].rows[0] == (5,) * 47 + (1,)
        assert all(len(item.rows[0]) == 48 for item in cut.items)
        assert cut.skipped == {"prompts cut at their beginning": 1, "answers cut at their beginning": 1}
        assert len(encode_rankings(rankings, card, "truncate", 30).items[0].rows[0]) == 30
        assert [item.answer_lengths[0] for item in cut.items] == [21, 61], "lengths are those of the whole answer"
        with pytest.raises(DataError, match=r"none of 1 rankings can be read .* context is 48 .*too_long = truncate"):
            encode_rankings(rankings[1:], card, "skip")

    def test_a_model_that_learned_nothing_is_not_normalised(self, base, data, tmp_path, monkeypatch):
        def flat(*arguments, **named):
            model = start_reward_model(*arguments, **named)
            torch.nn.init.zeros_(model.model.score.weight)
            return model

        monkeypatch.setattr("lmrl.stages.reward.stage.start_reward_model", flat)
        with pytest.raises(NonFiniteError, match="cannot be normalised"):
            reward(config_of(base, data, tmp_path / "run", train={"steps": 1, "learning_rate": 0.0}), progress=False)


def test_the_command_prints_the_table(base, data, tmp_path, capsys):
    settings = [f"model={base}", f"data.path={data}", f"run.folder={tmp_path / 'run'}", "train.steps=2", "trackers=[]"]
    assert main(["reward", "--quiet", *settings]) == 0
    output = capsys.readouterr().out
    for text in ("accuracy on pairs", "the longer one", "calibration error", "reward.learned.path=", "rankings of"):
        assert text in output
    assert main(["reward", "--resume", str(tmp_path / "run"), "train.learning_rate=9"]) == 2, "not in a resumed run"
    assert main(["reward", *settings]) == 2, "the folder already holds a run"


def test_stories_by_a_known_utility(tmp_path):
    """Rankings with ties over real texts of the embedded world: held-out accuracy far above chance."""
    from lmrl.stories import is_happy, openings, story

    chance = random.Random(0)
    rows = []
    for opening in openings(0, 160):
        told = list(dict.fromkeys(" " + story(chance).text for _ in range(3)))
        rows.append({"prompt": opening, "completions": told, "scores": [int(bool(is_happy(text))) for text in told]})
    train = {"steps": 40, "learning_rate": 3e-3, "rankings_per_step": 8, "warmup_steps": 4, "evaluate_every": 0}
    table = {"run": {"folder": str(tmp_path / "run")}, "train": train, "data": {"held_out": 0.3}, "trackers": []}
    report = reward(build(RewardConfig, table), rankings=load_rankings(rows), progress=False).report
    assert report.accuracy.low > 0.8, report.accuracy
    assert report.by_gold_margin and report.n_way > 20


@pytest.mark.parametrize(
    ("file", "name"), [("hh_harmless_base_test.jsonl.gz", "hh"), ("oasst_en_100_tree.jsonl", "oasst")]
)
def test_real_preferences(shared, tmp_path, file, name):
    folder = shared / "data"
    data = {"path": str(folder / "preference" / file), "limit": 40, "template": "plain", "held_out": 0.25}
    data |= {"too_long": "truncate", "max_tokens": 100} if name == "oasst" else {"max_tokens": 250}
    config = config_of(folder / "models" / "stories260K-llama", "-", tmp_path / "run", data=data, train={"steps": 2})
    result = reward(config, progress=False)
    assert result.report.pairs >= 4 and np.isfinite(result.report.log_loss)
    assert name == "hh" or any("cut at their beginning" in note for note in result.notes)
