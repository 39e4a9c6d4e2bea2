"""The preference stage: from prompts or files to rankings and pairs that other programs load."""

import dataclasses
import gzip
import json
import math
import subprocess
import sys

import pytest
from datasets import load_dataset

from lmrl.annotators import AnnotatorSettings, Judgement
from lmrl.annotators.ranks import ranked_pairs
from lmrl.annotators.writing import write_rows
from lmrl.config import apply_overrides, build, read_toml
from lmrl.data import load_rankings
from lmrl.data.layouts.shapes import SHAPES
from lmrl.errors import DataError, ResumeError, SettingsError
from lmrl.stages.prefer import PreferConfig, prefer
from lmrl.stories import is_happy
from lmrl.testing import write_tiny_model
from lmrl.training.run import stage_of


def config_of(folder, *overrides):
    return build(PreferConfig, apply_overrides({"run": {"folder": str(folder), "device": "cpu"}}, overrides))


def lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def write_lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def stories(tmp_path_factory):
    """A small run on the embedded model."""
    folder = tmp_path_factory.mktemp("runs") / "stories"
    overrides = ("prompts.stories.count=24", "samples.per_prompt=3", "gold.reward=repetition")
    return prefer(config_of(folder, *overrides), progress=False)


def test_stories_are_ranked_by_their_ends(stories):
    rows = lines(stories.rankings)
    assert len(rows) == 24 and stage_of(stories.folder) == "prefer" and not stories.interrupted
    for row in rows:
        happy = [{True: 1, False: -1, None: 0}[is_happy(text)] for text in row["completions"]]
        assert row["scores"] == happy and row["annotator"] == "reward"
        order = sorted(set(happy), reverse=True)
        assert row["ranks"] == [order.index(score) for score in happy]
    report = json.loads((stories.folder / "report.json").read_text())
    tied = sum(len(set(row["ranks"])) == 1 for row in rows)
    assert report["annotators"]["reward"]["all_tied"] == tied and report["samples"]["prompts"] == 24
    assert report["agreement"][0]["second"] == "gold"
    assert (stories.folder / "preferences.png").stat().st_size > 1000


def test_pairs_follow_from_the_rankings(stories):
    expected = [
        (row["prompt"], row["completions"][better], row["completions"][worse])
        for row in lines(stories.rankings)
        for better, worse in ranked_pairs(row["ranks"])
    ]
    rows = lines(stories.pairs)
    assert [(row["prompt"], row["chosen"], row["rejected"]) for row in rows] == expected
    assert all(row["margin"] == row["score_chosen"] - row["score_rejected"] > 0 for row in rows)


def test_other_programs_load_what_is_written(stories):
    rankings = load_dataset("json", data_files=str(stories.rankings), split="train")
    assert set(rankings.column_names) == {"prompt", "completions", "ranks", "scores", "annotator"}
    pairs = load_dataset("json", data_files=str(stories.pairs), split="train")
    assert set(pairs.column_names) == {"prompt", "chosen", "rejected", "score_chosen", "score_rejected", "margin"}
    assert rankings[0]["completions"] == lines(stories.rankings)[0]["completions"]


def test_lmrl_reads_back_what_it_writes(stories):
    back = load_rankings(stories.rankings)
    kept = [row for row in lines(stories.rankings) if len(set(row["ranks"])) > 1]
    assert back.shape == "N-way ranked" and len(back) == len(kept)
    for ranking, row in zip(back.rankings, kept, strict=True):
        assert ranking.prompt == row["prompt"] and list(ranking.completions) == row["completions"]
        assert list(ranking.ranks) == row["ranks"] and list(ranking.scores) == row["scores"]
    pairs = load_rankings(stories.pairs)
    assert len(pairs) == sum(len(ranking.pairs()) for ranking in back.rankings)
    assert all(ranking.scores[0] > ranking.scores[1] for ranking in pairs.rankings)


def test_the_same_seed_draws_the_same_samples_and_a_cut_run_goes_on(stories, tmp_path):
    """What a kill leaves of the sampling, whole lines and a torn one, is continued to the same samples."""
    whole = (stories.folder / "samples.jsonl").read_bytes()
    config = config_of(tmp_path / "again", "prompts.stories.count=24", "samples.per_prompt=3", "gold.reward=repetition")
    again = prefer(config, progress=False)
    assert (again.folder / "samples.jsonl").read_bytes() == whole
    (again.folder / "samples.jsonl").unlink()
    (again.folder / "samples.jsonl.partial").write_bytes(whole[: len(whole) // 2])
    (again.folder / "answers" / "reward.jsonl").unlink()
    (again.folder / "answers" / "gold.jsonl").unlink()
    resumed = prefer(config, resume=True, progress=False)
    assert (resumed.folder / "samples.jsonl").read_bytes() == whole
    assert resumed.rankings.read_bytes() == stories.rankings.read_bytes()


def test_changed_prompts_are_noticed_while_sampling_is_not_done(tmp_path):
    config = config_of(tmp_path / "run", "samples.per_prompt=2", "sampling.max_new_tokens=2")
    prefer(config, prompts=["Once upon a time", "One day"], progress=False)
    (tmp_path / "run" / "samples.jsonl").unlink()
    with pytest.raises(ResumeError, match="the prompts have changed"):
        prefer(config, prompts=["Once upon a time", "Two days"], resume=True, progress=False)


def test_a_chat_model_answers_messages_and_pairs_are_conversations(tmp_path):
    model = write_tiny_model(tmp_path / "model")
    (model / "chat_template.jinja").write_text(
        "{% for m in messages %}{{ 'the ' + m['content'] + ' ' }}{% endfor %}{% if add_generation_prompt %}a{% endif %}"
    )
    rows = [{"prompt": "cat ran", "answer": 1}, {"prompt": "dog sat", "answer": 2}]
    overrides = (
        f"model={model}",
        "chat=on",
        "annotators.a.reward=length",
        "annotators.a.settings.maximum=5",
        "run.seed=1",
    )
    result = prefer(config_of(tmp_path / "run", *overrides, "samples.per_prompt=6"), prompts=rows, progress=False)
    ranked, pairs = lines(result.rankings), lines(result.pairs)
    assert ranked[0]["prompt"] == [{"role": "user", "content": "cat ran"}] and ranked[0]["answer"] == 1
    assert pairs[0]["prompt"] == ranked[0]["prompt"]
    assert pairs[0]["chosen"][0]["role"] == "assistant" and pairs[0]["chosen"] != pairs[0]["rejected"]
    back = load_rankings(result.pairs)
    assert back.rankings[0].prompt == ({"role": "user", "content": "cat ran"},)
    assert isinstance(back.rankings[0].completions[0], str)
    assert load_rankings(result.rankings).rankings[0].columns["answer"] == 1
    loaded = load_dataset("json", data_files=str(result.pairs), split="train")[0]
    assert loaded["chosen"] == pairs[0]["chosen"], "TRL's conversational preference format"


def test_repeated_completions_are_counted_and_prompts_with_one_left_out(tmp_path):
    model = write_tiny_model(tmp_path / "model")
    overrides = (f"model={model}", "sampling.temperature=0", "sampling.max_new_tokens=3")
    result = prefer(config_of(tmp_path / "run", *overrides), prompts=["the cat", "a"], progress=False)
    assert result.report.nothing_to_compare == 2 and result.report.repeated == 6
    assert result.rankings is None and result.pairs is None


ANSWERS = [
    {"prompt": "p1", "completions": ["good", " good ", "bad", "fair"], "gold_scores": [3, 3, 0, 2], "topic": "x"},
    {"prompt": "p2", "completions": ["bad", "good"], "gold_scores": [0, 1], "topic": 7},
    {"prompt": "p3", "completions": ["good"], "gold_scores": [1], "topic": None},
    {"prompt": "", "completions": ["good", "bad"], "gold_scores": [1, 0], "topic": None},
]


class Taste:
    """Likes what is good; an annotator of one's own."""

    name = "taste"

    def judge(self, comparisons):
        liked = {"good": 0, "fair": 1, "bad": 2}
        return [Judgement(tuple(liked[text.strip()] for text in one.completions)) for one in comparisons]


class Scorer:
    """Says by a number what Taste says by ranks."""

    name = "scorer"

    def judge(self, comparisons):
        found = Taste().judge(comparisons)
        return [Judgement(one.ranks, tuple(-float(rank) for rank in one.ranks)) for one in found]


def test_completions_that_are_there_are_ranked_and_measured_by_gold(tmp_path):
    source = write_lines(tmp_path / "answers.jsonl", ANSWERS)
    config = config_of(tmp_path / "run", f"completions_from.path={source}", "output.pairs=best_worst")
    result = prefer(config, annotators={"taste": Taste()}, progress=False)
    assert result.report.skipped and result.report.nothing_to_compare == 1 and result.report.repeated == 1
    rows = lines(result.rankings)
    assert [row["completions"] for row in rows] == [["good", "bad", "fair"], ["bad", "good"]]
    assert [row["topic"] for row in rows] == ['"x"', "7"], "no table holds a text and a number in one column"
    assert [(row["chosen"], row["rejected"]) for row in lines(result.pairs)] == [("good", "bad"), ("good", "bad")]
    (agreement,) = result.report.agreements
    assert agreement.second == "gold" and agreement.strict_pairs == 4 and agreement.agreement.mean == 1
    load_dataset("json", data_files=str(result.rankings), split="train")


def test_parquet_is_written_and_read(tmp_path):
    source = write_lines(tmp_path / "answers.jsonl", ANSWERS)
    overrides = (f"completions_from.path={source}", "output.format=parquet")
    result = prefer(config_of(tmp_path / "run", *overrides), annotators={"taste": Taste()}, progress=False)
    assert result.rankings.suffix == ".parquet"
    assert load_dataset("parquet", data_files=str(result.pairs), split="train").num_rows == 4
    assert len(load_rankings(result.rankings)) == 2 and len(load_rankings(result.pairs)) == 4


def test_human_pairs_are_ranked_again(shared, tmp_path):
    """Real HH pairs: the people's choice is gold, and a reward of length agrees with it about as often as not."""
    source = shared / "data" / "preference" / "hh_harmless_base_test.jsonl.gz"
    overrides = (
        f"completions_from.path={source}",
        "completions_from.limit=400",
        "annotators.length.reward=length",
        "annotators.length.settings.mode=linear",
        "annotators.length.settings.cost=-1.0",
    )
    result = prefer(config_of(tmp_path / "run", *overrides), progress=False)
    (agreement,) = result.report.agreements
    assert 380 <= agreement.comparisons <= 400 and 0.3 < agreement.agreement.mean < 0.7
    assert agreement.agreement.low < agreement.agreement.mean < agreement.agreement.high
    pair = lines(result.pairs)[0]
    assert pair["prompt"][-1]["role"] == "user" and pair["chosen"][0]["role"] == "assistant"
    assert len(load_rankings(result.pairs)) == len(lines(result.pairs))
    assert load_dataset("json", data_files=str(result.rankings), split="train").num_rows == agreement.comparisons


def test_trees_are_ranked_again(shared, tmp_path):
    source = shared / "data" / "preference" / "oasst_en_100_tree.jsonl"
    overrides = (f"completions_from.path={source}", "annotators.a.reward=repetition", "output.pairs=adjacent")
    result = prefer(config_of(tmp_path / "run", *overrides), progress=False)
    assert result.report.prompts == 212 and len(load_rankings(result.rankings)) > 100
    assert -1 <= result.report.agreements[0].tau.mean <= 1


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.name)
def test_no_column_of_the_prompts_misleads_a_reader(shape, tmp_path):
    """Whatever the prompts' rows hold beside the prompt, the rankings are read as rankings."""
    columns = {name: ["x"] for name in shape.columns if name not in ("prompt", "completions", "prompt.replies")}
    source = write_lines(tmp_path / "a.jsonl", [{"prompt": "p", "completions": ["good", "bad"]}])
    taste = Taste()

    class WithColumns:
        name = "taste"

        def judge(self, comparisons):
            for one in comparisons:
                one.columns.update(columns)
            return taste.judge(comparisons)

    config = config_of(tmp_path / "run", f"completions_from.path={source}")
    result = prefer(config, annotators={"taste": WithColumns()}, progress=False)
    assert load_rankings(result.rankings).shape == "N-way ranked"
    assert load_rankings(result.rankings).rankings[0].completions == ("good", "bad")


def test_several_annotators_write_rows_of_their_own(tmp_path):
    source = write_lines(tmp_path / "answers.jsonl", ANSWERS)
    overrides = ("annotators.a.reward=repetition", "annotators.b.tolerance=9.0", "annotators.c.tolerance=9.0")
    config = config_of(tmp_path / "run", f"completions_from.path={source}", *overrides, 'output.annotators=["b", "a"]')
    result = prefer(config, progress=False)
    assert [row["annotator"] for row in lines(result.rankings)] == ["b", "b", "a", "a"]
    assert len(result.report.agreements) == 6 and result.report.alpha is not None
    report = json.loads((result.folder / "report.json").read_text(), parse_constant=pytest.fail)
    assert len(report["agreement"]) == 6


def test_a_run_takes_another_annotator_in_later_but_not_other_settings(tmp_path):
    source = write_lines(tmp_path / "answers.jsonl", ANSWERS)
    config = config_of(tmp_path / "run", f"completions_from.path={source}")
    first = prefer(config, progress=False)
    before = first.rankings.read_bytes()
    stored = build(PreferConfig, read_toml(first.folder / "config.toml"))
    more = {**stored.annotators, "more": AnnotatorSettings(reward="repetition")}
    second = prefer(dataclasses.replace(stored, annotators=more), resume=True, progress=False)
    assert second.rankings.read_bytes() == before and {a.name for a in second.report.annotators} >= {"reward", "more"}
    assert "more" in build(PreferConfig, read_toml(first.folder / "config.toml")).annotators
    other = {"reward": AnnotatorSettings(tolerance=1.0)}
    with pytest.raises(ResumeError, match=r"annotators\.reward\.tolerance has changed"):
        prefer(dataclasses.replace(stored, annotators=other), resume=True, progress=False)
    with pytest.raises(SettingsError, match="already holds a run"):
        prefer(config, progress=False)


def test_samples_changed_by_hand_are_refused(tmp_path):
    source = write_lines(tmp_path / "answers.jsonl", ANSWERS)
    config = config_of(tmp_path / "run", f"completions_from.path={source}")
    prefer(config, progress=False)
    samples = tmp_path / "run" / "samples.jsonl"
    text = samples.read_text()
    samples.write_text(text.replace("bad", "worse"))
    with pytest.raises(ResumeError, match=r"another run\.folder"):
        prefer(config, resume=True, progress=False)
    samples.write_text(text[: len(text) // 2])
    with pytest.raises(ResumeError, match="changed by hand"):
        prefer(config, resume=True, progress=False)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["samples.per_prompt=1"], r"samples\.per_prompt is 1; expected a number of at least 2"),
        (["annotators={}"], "annotators is empty"),
        (["annotators.gold.reward=length"], "an annotator is named 'gold'"),
        (['annotators."a/b".kind=reward'], "an annotator is named 'a/b'"),
        (["annotators.a.kind=judg"], 'did you mean "judge"'),
        (["annotators.a.reward=hapy_end"], "did you mean 'happy_end'"),
        (["annotators.a.kind=judge"], r"judge\.model is empty"),
        (["annotators.a.judge.concurency=2"], "did you mean"),
        (["output.annotators=['rewards']"], "did you mean 'reward'"),
        (["gold.reward=nobody"], "unknown reward 'nobody'"),
        (["engine.name=transformer"], "did you mean 'transformers'"),
        (["model=no/such/model"], "there is no model folder"),
    ],
)
def test_bad_settings_leave_nothing_behind(tmp_path, overrides, message):
    from lmrl.errors import LmrlError

    with pytest.raises(LmrlError, match=message):
        prefer(config_of(tmp_path / "run", *overrides), progress=False)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no rows|nothing"),
        (b'{"prompt": "p", "completions": ["a", "b"]', "line 1: not valid JSON"),
        (b'{"prompt": "p", "completions": ["\xff"]}', "line 1.*not UTF-8"),
        (b'{"prompt": "p", "completions": "a"}', "not a list"),
        (b'{"prompt": "p", "completions": ["a", " a"]}', "no prompt has two different completions"),
        (b'{"prompt": "p", "completions": ["a", "b"], "gold_ranks": [1]}', "not as many gold_ranks"),
        (b'{"prompt": "p", "completions": ["a", "b"], "gold_scores": ["x", 1]}', "gold_scores: not finite numbers"),
        (b'{"prompt": "p", "completions": ["a", "\\ud83d"]}', "half a character"),
        (
            b'{"prompt": "p", "completions": ["a", "b"]}\n'
            b'{"prompt": [{"role": "user", "content": "p"}], "completions": ["a", "b"]}',
            r"1 prompts are text and 1 are messages; expected one kind: completions_from\.chat",
        ),
        (b'{"question": "p", "answers": ["a"]}', "no known shape"),
    ],
)
def test_bad_files_of_completions_are_refused(tmp_path, content, message):
    (tmp_path / "a.jsonl").write_bytes(content)
    with pytest.raises(DataError, match=message):
        prefer(config_of(tmp_path / "run", f"completions_from.path={tmp_path / 'a.jsonl'}"), progress=False)
    assert not (tmp_path / "run").exists()


def test_a_broken_archive_is_refused(tmp_path):
    whole = gzip.compress(json.dumps(ANSWERS[0]).encode() * 50)
    (tmp_path / "a.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match="gzip"):
        prefer(config_of(tmp_path / "run", f"completions_from.path={tmp_path / 'a.jsonl.gz'}"), progress=False)


def test_columns_that_no_table_holds_become_text(tmp_path):
    rows = [{"a": 1, "b": {}, "c": [1]}, {"a": "x", "b": {}, "c": ["y"]}, {"c": None}]
    assert write_rows(tmp_path / "r.parquet", rows, "parquet") == ["a", "b", "c"]
    assert load_dataset("parquet", data_files=str(tmp_path / "r.parquet"), split="train")["a"] == ["1", '"x"', None]
    write_rows(tmp_path / "late.parquet", [{"a": 1}, {"a": 2, "b": "x"}], "parquet")
    assert load_dataset("parquet", data_files=str(tmp_path / "late.parquet"), split="train")["b"] == [None, "x"]
    write_rows(tmp_path / "r.jsonl", [{"a": math.nan, "b": "\ud800"}, {"a": math.pi, "b": "x"}], "jsonl")
    assert lines(tmp_path / "r.jsonl") == [{"a": None, "b": "?"}, {"a": math.pi, "b": "x"}]


def test_scores_of_the_second_annotator_stay_in_a_parquet_file(tmp_path):
    """A table takes its columns from all rows: a person's, which come first, have no scores."""
    source = write_lines(tmp_path / "answers.jsonl", ANSWERS)
    overrides = (f"completions_from.path={source}", "output.format=parquet", "output.annotators=['taste', 'gold_like']")
    annotators = {"taste": Taste(), "gold_like": Scorer()}
    result = prefer(config_of(tmp_path / "run", *overrides), annotators=annotators, progress=False)
    rows = load_dataset("parquet", data_files=str(result.rankings), split="train")
    assert [row["scores"] is not None for row in rows] == [row["annotator"] == "gold_like" for row in rows]
    pairs = load_dataset("parquet", data_files=str(result.pairs), split="train")
    assert {margin is None for margin in pairs["margin"]} == {True, False}


def test_a_column_that_became_text_is_told(tmp_path, caplog):
    source = write_lines(tmp_path / "answers.jsonl", ANSWERS)
    prefer(
        config_of(tmp_path / "run", f"completions_from.path={source}"), annotators={"taste": Taste()}, progress=False
    )
    assert "the column 'topic' holds values of kinds that no table takes" in caplog.text


def test_a_folder_at_which_another_process_works_is_refused(tmp_path):
    source = write_lines(tmp_path / "answers.jsonl", ANSWERS)
    config = config_of(tmp_path / "run", f"completions_from.path={source}")
    holder = [
        "import sys, pathlib, lmrl.locks",
        "with lmrl.locks.folder_lock(pathlib.Path(sys.argv[1]), print):",
        "    print('held', flush=True)",
        "    sys.stdin.read()",
    ]
    command = [sys.executable, "-c", "\n".join(holder), str(tmp_path / "run")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(ResumeError, match=rf"process {other.pid} on .* is at work on .*run; wait until"):
            prefer(config, annotators={"taste": Taste()}, progress=False)
        assert [path.name for path in (tmp_path / "run").iterdir()] == [".lock"]
        other.kill()  # a dead process holds nothing
        other.wait()
    prefer(config, annotators={"taste": Taste()}, progress=False)
    result = prefer(config, annotators={"taste": Taste()}, resume=True, progress=False)
    assert not result.interrupted and result.rankings.exists()
