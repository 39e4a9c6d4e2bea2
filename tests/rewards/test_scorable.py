"""Rows whose answer a reward cannot read: skipped, counted and named before anything is sampled, in every stage."""

import json

import gymnasium as gym
import pytest

import lmrl  # noqa: F401 - registers the environment
from lmrl.cli.main import main
from lmrl.errors import RewardError
from lmrl.rewards import resolve
from lmrl.rewards.scorable import scorable_rows
from lmrl.testing import write_tiny_model

TEXTS = ["the cat", "a dog", "the", "a", "cat", "dog", "ran", "home", "the dog", "sat"]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return write_tiny_model(tmp_path_factory.mktemp("base") / "model")


@pytest.fixture
def data(tmp_path):
    """Ten prompts, of which the fourth and the eighth have no number for an answer."""
    path = tmp_path / "sums.jsonl"
    answers = [str(place) if place % 4 != 3 else "unknown" for place in range(len(TEXTS))]
    rows = [{"prompt": text, "answer": answer} for text, answer in zip(TEXTS, answers, strict=True)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def own(prompts, responses, **columns):
    assert None not in columns["answer"]
    return [0.0] * len(responses)


own.unreadable = lambda row: "" if row["answer"] else "no answer"


def test_rows_are_skipped_counted_and_named(caplog):
    columns = {"answer": ["1", None, "x", "2"]}
    kept = scorable_rows([resolve("numeric_answer"), resolve(own)], columns, [f"f.csv, row {i}" for i in range(1, 5)])
    assert kept == [0, 3]
    assert "2 of 4 rows have no answer that the reward can read: f.csv, row 2: reward " in caplog.text
    assert "f.csv, row 3" in caplog.text and "skipped" in caplog.text


def test_errors_on_request_and_where_nothing_is_left():
    for settings, columns in ((("error",), {"answer": ["1", None]}), ((), {"answer": [None, "?"]})):
        with pytest.raises(RewardError, match=r"rows have no answer .*two: .*Correct or remove these rows"):
            scorable_rows([resolve("numeric_answer")], columns, ["one", "two"], *settings)
    assert scorable_rows([resolve("happy_end")], {}, ["one"]) == [0]


@pytest.mark.parametrize("reward", ["numeric_answer", f"{__name__}:own"])
def test_rl(base, data, tmp_path, caplog, reward, monkeypatch):
    monkeypatch.syspath_prepend(str(data.parent))
    module = tmp_path / "own_rewards.py"
    module.write_text("def own(prompts, responses, answer):\n    return [float(one) for one in answer]\n"
                      "own.unreadable = lambda row: '' if row['answer'].isdigit() else 'no digits'\n")  # fmt: skip
    reward = "own_rewards:own" if ":" in reward else reward
    settings = [f"model={base}", "prompts.name=file", f"prompts.file.path={data}", f"reward.name={reward}"]
    settings += ["train.updates=3", "train.prompts_per_update=4", "evaluation.prompts=2", "sampling.max_new_tokens=3"]
    assert main(["rl", "--quiet", *settings, f"run.folder={tmp_path / 'run'}"]) == 0
    assert "2 of 10 rows have no answer" in caplog.text
    assert f"{data}, row 4" in caplog.text and f"{data}, row 8" in caplog.text
    assert main(["rl", "--quiet", *settings, f"run.folder={tmp_path / 'other'}", "scoring.on_unreadable=error"]) != 0
    assert not (tmp_path / "other").exists()


def test_rl_checks_columns_before_the_run(base, data, tmp_path, capsys):
    settings = [f"model={base}", "prompts.name=file", f"prompts.file.path={data}", "reward.name=exact_match"]
    folder = tmp_path / "run"
    assert main(["rl", *settings, "reward.exact_match.column=answr", f"run.folder={folder}"]) != 0
    assert "did you mean 'answer'" in capsys.readouterr().err and not folder.exists()


def test_eval(base, data, tmp_path, caplog):
    settings = ["prompts.name=file", f"prompts.file.path={data}", 'rewards=["numeric_answer"]', "held_out.prompts=0"]
    folder = tmp_path / "run"
    assert main(["eval", f"models=['{base}']", *settings, "sampling.max_new_tokens=3", f"run.folder={folder}"]) == 0
    assert json.loads((folder / "results.json").read_text())["prompts"] == 8
    assert f"{data}, row 4" in caplog.text


def test_prefer(base, data, tmp_path, caplog):
    settings = [f"model={base}", "prompts.name=file", f"prompts.file.path={data}"]
    settings += ["annotators.reward.reward=numeric_answer", "sampling.max_new_tokens=3", "samples.per_prompt=2"]
    assert main(["prefer", *settings, f"run.folder={tmp_path / 'run'}"]) == 0
    assert len((tmp_path / "run" / "samples.jsonl").read_text().splitlines()) == 8
    assert f"{data}, row 8" in caplog.text


def test_prefer_from_a_file(tmp_path, caplog):
    path = tmp_path / "answers.jsonl"
    rows = [{"prompt": "p", "completions": ["1", "2"], "answer": answer} for answer in ("1", "none", "2")]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = [f"completions_from.path={path}", "annotators.reward.reward=numeric_answer"]
    assert main(["prefer", *settings, f"run.folder={tmp_path / 'run'}"]) == 0
    assert len((tmp_path / "run" / "samples.jsonl").read_text().splitlines()) == 2
    assert f"{path}, prompt 2" in caplog.text


@pytest.mark.parametrize("make", [gym.make, gym.make_vec])
def test_the_environment(base, make, caplog):
    rows = [{"prompt": "the", "answer": "1"}, {"prompt": "a", "answer": "?"}, {"prompt": "cat", "answer": "3"}]
    keywords = {"model": str(base), "prompts": rows, "reward": "numeric_answer", "max_new_tokens": 3}
    env = make("lmrl:TextGen-v0", **keywords)
    env.close()
    assert "1 of 3 rows" in caplog.text and "prompt 1" in caplog.text
    with pytest.raises(RewardError, match="prompt 1"):
        make("lmrl:TextGen-v0", **keywords, on_unreadable="error")
    with pytest.raises(RewardError, match="needs the column 'answer'"):
        make("lmrl:TextGen-v0", **{**keywords, "prompts": ["the"]})
