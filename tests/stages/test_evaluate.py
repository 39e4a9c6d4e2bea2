"""`lmrl eval` as a function: the numbers against RL's own and by hand, empty answers, resume, mistakes."""

from __future__ import annotations

import json
import math

import pytest

from lmrl.annotators.annotators import Judgement
from lmrl.config import build, read_toml
from lmrl.engines.protocol import FinishReason
from lmrl.engines.texts import Completion
from lmrl.errors import DataError, PromptError, ResumeError, SettingsError
from lmrl.models import load
from lmrl.stages.asking import Asked
from lmrl.stages.evaluate import EvaluateConfig, evaluate
from lmrl.stages.evaluate.answers import Answers
from lmrl.stages.evaluate.config import TextSettings
from lmrl.stages.evaluate.prompts import Question, Questions
from lmrl.stages.evaluate.report import to_dict
from lmrl.stages.evaluate.texts import read_texts, row_nats, text_measures, text_rows
from lmrl.stages.evaluate.wins import win_rate
from lmrl.statistics.intervals import wilson_interval
from lmrl.testing import write_tiny_model
from lmrl.text.card import load_card

BASE = {
    "run": {"device": "cpu"},
    "prompts": {"stories": {"count": 64}},
    "held_out": {"prompts": 12},
    "sampling": {"max_new_tokens": 24},
}


def configure(tmp_path, **sections):
    """Return a configuration: the base with these sections merged into its own."""
    mapping = {key: dict(value) for key, value in BASE.items()}
    for key, value in sections.items():
        mapping[key] = mapping.get(key, {}) | value if isinstance(value, dict) else value
    mapping["run"] = {"folder": str(tmp_path / "eval")} | mapping["run"]
    return build(EvaluateConfig, mapping)


def run(tmp_path, *, prompts=None, resume=False, **sections):
    return evaluate(configure(tmp_path, **sections), prompts=prompts, resume=resume, progress=False)


@pytest.fixture(scope="module")
def plain_folder(tmp_path_factory):
    return str(write_tiny_model(tmp_path_factory.mktemp("plain") / "plain", context=64))


@pytest.fixture(scope="module")
def uniform_folder(tmp_path_factory):
    return str(write_tiny_model(tmp_path_factory.mktemp("uniform") / "uniform", context=32, scale=0.0))


# Against RL


@pytest.mark.slow
def test_the_numbers_are_those_of_the_rl_run_itself(tmp_path):
    from lmrl.stages.rl import RLConfig, rl

    shared = {"prompts": BASE["prompts"], "sampling": BASE["sampling"]}
    recipe = shared | {
        "run": {"folder": str(tmp_path / "rl"), "device": "cpu", "seed": 3},
        "train": {"updates": 1, "prompts_per_update": 8},
        "evaluation": {"prompts": 12, "samples_per_prompt": 2},
        "trackers": [],
    }
    trained = rl(build(RLConfig, recipe), progress=False)
    result = run(
        tmp_path,
        models=["stories", str(tmp_path / "rl")],
        names=["base", "RL"],
        reference="stories",
        run={"seed": 3},
        held_out={"seed": 3, "samples_per_prompt": 2},
    )
    for name, known in (("base", trained.before), ("RL", trained.after)):
        for key, interval in (("reward:happy_end", known.reward), ("kl", known.kl), ("length", known.length)):
            assert result.value(name, key).mean == pytest.approx(interval.mean, abs=2e-5), (name, key)
        assert result.value(name, "ended").mean == pytest.approx(known.ended_share)
        assert result.value(name, "reward:happy_end").count == 12


# One whole evaluation


@pytest.fixture(scope="module")
def evaluation(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    return run(
        folder,
        models=["stories", "stories"],
        names=["one", "two"],
        reference="stories",
        rewards=["happy_end", "length"],
        reward_settings={"length": {"mode": "linear"}},
        best_of={"n": 2, "samples": 4, "model": "two", "reward": "happy_end"},
        held_out={"samples_per_prompt": 2},
        show=2,
    )


def test_equal_models_are_equal_in_everything(evaluation):
    one, two = evaluation.values[:2]
    for key in ("reward:happy_end", "reward:length", "kl", "length", "ended", "repeated", "distinct_2", "compression"):
        assert one[key].mean == two[key].mean
    assert one["kl"].mean == pytest.approx(0, abs=1e-4)
    difference, wins = two["difference:happy_end"], two["wins"]
    assert difference.mean == 0 and difference.low < 0 < difference.high
    assert (wins.mean, wins.count) == (0.5, 12) and wins.low < 0.5 < wins.high
    assert evaluation.wins["two"].ties == 24 and evaluation.wins["two"].unanswered == 0
    assert "difference:happy_end" not in one and "wins" not in one


def test_best_of_n_is_a_column_of_its_own(evaluation):
    assert [column.name for column in evaluation.columns] == ["one", "two", "two, best of 2"]
    best = evaluation.values[2]
    assert best["reward:happy_end"].mean > evaluation.value("two", "reward:happy_end").mean
    assert best["kl"].mean == pytest.approx(math.log(2) - 0.5) and math.isnan(best["kl"].low)
    assert evaluation.value("two, best of 2", "wins").mean > 0.5
    assert "bits_per_byte" not in best


def test_best_of_one_is_the_mean_of_all_samples(tmp_path):
    result = run(tmp_path, best_of={"n": 1, "samples": 3})
    rows = json.loads((result.folder / "answers" / "best-of-3-stories.json").read_text())["rows"]
    from lmrl.rewards import resolve

    scores = resolve("happy_end")([row["prompt"] for row in rows], [row["answer"] for row in rows]).scores
    assert result.values[1]["reward:happy_end"].mean == pytest.approx(scores.mean())
    assert len(rows) == 36


def test_what_a_run_leaves_behind(evaluation):
    folder = evaluation.folder
    found = json.loads((folder / "results.json").read_text(), parse_constant=pytest.fail)
    assert found == to_dict(evaluation) and found["prompts"] == 12 and found["samples_per_prompt"] == 2
    assert [column["name"] for column in found["columns"]] == ["one", "two", "two, best of 2"]
    assert found["columns"][1]["wins"]["ties"] == 24
    measured = found["columns"][0]["measures"]["reward:happy_end"]
    assert measured["low"] <= measured["mean"] <= measured["high"] and measured["count"] == 12
    for name in ("bars.png", "reward_kl.png"):
        assert (folder / name).read_bytes().startswith(b"\x89PNG")
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert page.count("data:image/png") == 2 and "two, best of 2" in page and "12 held-out prompts x 2 samples" in page
    assert json.loads((folder / "versions.json").read_text())["stage"] == "eval"
    again = build(EvaluateConfig, read_toml(folder / "config.toml"))
    assert again.names == ["one", "two"] and again.prompts.tables["stories"]["count"] == 64
    assert len(evaluation.samples.prompts) == 2 and len(evaluation.samples.answers[0]) == 3
    with pytest.raises(SettingsError, match="did you mean 'ended'"):
        evaluation.value("one", "endet")


def test_a_resume_samples_only_what_is_missing(evaluation, tmp_path):
    config = build(EvaluateConfig, read_toml(evaluation.folder / "config.toml"))
    answers = evaluation.folder / "answers"
    (answers / "2-two.json").unlink()
    untouched = (answers / "1-one.json").stat().st_mtime_ns
    again = evaluate(config, resume=True, progress=False)
    assert to_dict(again) == to_dict(evaluation)
    assert (answers / "1-one.json").stat().st_mtime_ns == untouched and (answers / "2-two.json").exists()
    with pytest.raises(SettingsError, match="already holds a run"):
        evaluate(config, progress=False)
    with pytest.raises(ResumeError, match="prompts have changed"):
        evaluate(config, prompts=[f"Prompt {index}" for index in range(20)], resume=True, progress=False)
    (answers / "1-one.json").write_text('{"rows": [')
    with pytest.raises(ResumeError, match="cannot be read"):
        evaluate(config, resume=True, progress=False)


# Prompts


def test_prompts_without_room_are_left_out_before_the_split_and_counted(tmp_path, plain_folder, uniform_folder):
    words = [f"{one} {other}" for one in ("the cat", "a dog", "home", "far") for other in ("ran", "sat", ".")]
    wanted = {"models": [plain_folder, uniform_folder], "held_out": {"prompts": 4}, "show": 4, "rewards": []}
    clean = run(tmp_path / "clean", prompts=words, **wanted)
    long = ["the cat " * 40, "the " * 33]  # beyond both contexts, and beyond that of 32 alone
    found = run(tmp_path / "long", prompts=[*words, *long], **wanted)
    assert found.samples.prompts == clean.samples.prompts
    assert "2 of 14 prompts leave no room to answer and were left out" in found.notes


def test_conversations_are_held_out_as_in_rl_and_asked_model_by_model(tmp_path, chat_folder, plain_folder):
    from lmrl.data import load_prompts

    words = ["the cat", "a dog", "ran home", "sat far", "the dog", "a cat", "home", "far"]
    rows = [{"prompt": [{"role": "user", "content": text}], "topic": text} for text in words]
    seen = {}
    (tmp_path / "rewards_of_a_test.py").write_text(
        "seen = []\n"
        "def judge(prompts, responses, topic, prompt_messages):\n"
        "    seen.append((list(prompts), list(topic), list(prompt_messages)))\n"
        "    return [len(response) for response in responses]\n"
    )
    import sys

    sys.path.insert(0, str(tmp_path))
    try:
        result = run(
            tmp_path,
            models=[plain_folder, str(chat_folder)],
            names=["base", "SFT"],
            prompts=rows,
            rewards=["rewards_of_a_test:judge"],
            held_out={"prompts": 3, "seed": 5},
        )
        seen = sys.modules["rewards_of_a_test"].seen
    finally:
        sys.path.remove(str(tmp_path))
    _, expected = load_prompts(rows, codec=load_card(chat_folder).codec).split(3, 5)
    (base, topics, messages), (sft, topics_too, _) = seen
    assert sft == expected.prompts and topics == topics_too == expected.columns["topic"] == base
    assert messages == [[{"role": "user", "content": topic}] for topic in topics]
    assert [column.chatted for column in result.columns] == [False, True]


def test_plain_prompts_are_completed_unless_chat_is_on(tmp_path, chat_folder):
    prompts = ["the cat", "a dog", "ran"]
    for chat, expected in (("auto", False), ("on", True), ("off", False)):
        result = run(
            tmp_path / chat, models=[str(chat_folder)], prompts=prompts, chat=chat, held_out={"prompts": 0}, rewards=[]
        )
        assert result.columns[0].chatted is expected and result.prompts == 3
        assert not any(key.startswith("reward") for key in result.values[0])


# Win rates


def answers_of(texts, groups, rewards):
    asked = [Asked(f"q{group}", [1], False) for group in range(max(groups) + 1)]
    completions = [Completion(text, [1], [0.0], FinishReason.EOS) for text in texts]
    shown = list(range(len(texts)))
    return Answers("x", asked, list(groups), completions, [0.0] * len(texts), rewards={"r": rewards}, shown=shown)


def questions_of(count):
    return Questions([Question(f"q{index}", {"index": index}) for index in range(count)], (), "")


class Recorder:
    """Prefers what it is told to, and keeps what it was asked."""

    name = "recorder"

    def __init__(self, verdicts):
        self.verdicts = verdicts
        self.asked = []

    def judge(self, comparisons):
        self.asked += comparisons
        ranks = {"first": (0, 1), "second": (1, 0), "tie": (0, 0)}
        found = [self.verdicts[comparison.prompt] for comparison in comparisons]
        return [None if verdict is None else Judgement(ranks[verdict]) for verdict in found]


def test_win_rates_by_hand():
    mine = answers_of(["a", "b", "c", "d"], [0, 1, 2, 3], [1.0, 0.0, 0.5, 3.0])
    base = answers_of(["e", "f", "g", "h"], [0, 1, 2, 3], [0.0, 1.0, 0.4, 0.0])
    sharp = win_rate(mine, base, questions_of(4), reward="r")
    assert (sharp.wins, sharp.ties, sharp.losses, sharp.rate.mean) == (3, 0, 1, 0.75)
    expected = wilson_interval(3, 4)
    assert (sharp.rate.low, sharp.rate.high) == pytest.approx((expected.low, expected.high))
    blunt = win_rate(mine, base, questions_of(4), reward="r", tolerance=0.2)
    assert (blunt.wins, blunt.ties, blunt.losses, blunt.rate.mean) == (2, 1, 1, 0.625)


def test_empty_answers_lose_and_nobody_is_asked_about_them():
    mine = answers_of(["", "b", " \n", "d", "e"], [0, 1, 2, 3, 4], [9.0] * 5)
    base = answers_of(["x", "\u200b", "", "y", "z"], [0, 1, 2, 3, 4], [0.0] * 5)
    annotator = Recorder({"q3": "first", "q4": None})
    found = win_rate(mine, base, questions_of(5), annotator)
    assert [comparison.completions for comparison in annotator.asked] == [("d", "y"), ("e", "z")]
    assert annotator.asked[0].columns == {"index": 3} and annotator.asked[0].prompt_text == "q3"
    assert (found.wins, found.ties, found.losses, found.by_empty, found.unanswered) == (2, 1, 1, 3, 1)
    assert found.rate.count == 4, "a comparison without a verdict counts nowhere"
    by_reward = win_rate(mine, base, questions_of(5), reward="r")
    assert (by_reward.wins, by_reward.ties, by_reward.losses) == (3, 1, 1), "however much a reward likes nothing"


def test_samples_of_one_prompt_are_one_unit():
    texts, groups = ["a"] * 8, [0, 0, 0, 0, 1, 1, 1, 1]
    found = win_rate(
        answers_of(texts, groups, [1.0] * 8), answers_of(texts, groups, [0.0] * 8), questions_of(2), reward="r"
    )
    assert found.wins == 8 and found.rate.count == 2 and found.rate.low < 0.5


def test_swapping_the_models_swaps_wins_and_losses():
    mine = answers_of(["a", "", "c", "d"], [0, 1, 2, 3], [1.0, 0.0, 0.5, 3.0])
    base = answers_of(["e", "f", "g", "h"], [0, 1, 2, 3], [0.0, 1.0, 0.5, 4.0])
    one, other = (win_rate(*pair, questions_of(4), reward="r") for pair in ((mine, base), (base, mine)))
    assert (one.wins, one.ties, one.losses) == (other.losses, other.ties, other.wins)
    assert one.rate.mean == pytest.approx(1 - other.rate.mean) and one.rate.low == pytest.approx(1 - other.rate.high)


# Reference texts


def test_a_uniform_model_has_the_perplexity_of_its_vocabulary(tmp_path, uniform_folder):
    model = load(uniform_folder)
    text = " ".join(["the cat ran home ."] * 30)
    (tmp_path / "text.txt").write_text(text)
    texts = read_texts(build(TextSettings, {"rows": {"path": str(tmp_path / "text.txt")}}))
    rows = [row for row in text_rows(texts, model.card, 32) if row]
    tokens = sum(sum(row.counted) for row in rows)
    assert tokens == len(model.card.codec.encode(text)) - 1, "each token once, but the first, which nothing precedes"
    assert all(len(row.ids) <= 32 for row in rows)
    assert sum(row.size for row in rows) == len(text) - len("the ")
    nats = row_nats(model, rows)
    measures = text_measures(nats, rows, 0)
    assert measures["perplexity"].mean == pytest.approx(model.card.vocab_size, rel=1e-5)
    expected = tokens * math.log(model.card.vocab_size) / math.log(2) / (len(text) - 4)
    assert measures["bits_per_byte"].mean == pytest.approx(expected, rel=1e-5)


def test_nats_are_those_of_a_plain_forward_pass(tmp_path, shared):
    import torch

    model = load(shared / "data" / "models" / "stories260K-llama")
    text = "Once upon a time, there was a little girl named Lily. \u00e9\u4e2d She \u2014 smiled."
    (tmp_path / "text.jsonl").write_text(json.dumps({"text": text}) + "\n" + json.dumps({"text": " "}) + "\n")
    texts = read_texts(build(TextSettings, {"rows": {"path": str(tmp_path / "text.jsonl")}}))
    assert any("1 texts without a word were left out" in note for note in texts.notes)
    [row] = [row for row in text_rows(texts, model.card, 512) if row]
    ids = torch.tensor([model.card.codec.encode(text)])
    assert row.ids == ids[0].tolist() and row.size == len(text.encode()), "BOS precedes the first token"
    with torch.no_grad():
        logprobs = model.model(ids).logits.double().log_softmax(-1)[0, :-1]
    expected = -logprobs.gather(-1, ids[0, 1:, None]).sum().item()
    assert row_nats(model, [row])[0] == pytest.approx(expected, rel=1e-5)
    cut = [row for row in text_rows(texts, model.card, 16) if row]
    assert [i for row in cut for i, one in zip(row.ids, row.counted, strict=True) if one] == ids[0, 1:].tolist()
    assert sum(row.size for row in cut) == len(text.encode())


def test_answers_of_examples_count_with_their_end(tmp_path, uniform_folder, chat_folder):
    card = load_card(uniform_folder)
    rows = [{"prompt": "the cat", "completion": " ran home"}, {"prompt": "a " * 40, "completion": " sat"}]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = build(TextSettings, {"rows": {"path": str(file)}})
    first, second = text_rows(read_texts(settings), card, 32)
    assert first is not None and sum(first.counted) == 3 and first.ids[-1] == card.eos_ids[0] and first.size == 9
    assert second is None, "longer than the context"
    result = run(
        tmp_path,
        models=[uniform_folder, str(chat_folder)],
        names=["uniform", "chat"],
        prompts=["the cat", "a"],
        held_out={"prompts": 0},
        rewards=[],
        texts={"rows": {"path": str(file)}},
    )
    assert result.value("uniform", "perplexity").mean == pytest.approx(card.vocab_size, rel=1e-4)
    assert result.value("chat", "nats_per_token").count == 1, "the same rows for every model"
    assert any("1 reference examples were left out" in note for note in result.notes)


def test_a_model_without_a_template_has_no_perplexity_of_conversations(tmp_path, uniform_folder, chat_folder):
    messages = [{"role": "user", "content": "the cat"}, {"role": "assistant", "content": "ran home"}]
    (tmp_path / "chat.jsonl").write_text(json.dumps({"messages": messages}) + "\n")
    result = run(
        tmp_path,
        models=[uniform_folder, str(chat_folder)],
        names=["base", "chat"],
        prompts=["the cat"],
        held_out={"prompts": 0},
        rewards=[],
        texts={"rows": {"path": str(tmp_path / "chat.jsonl")}},
    )
    assert "perplexity" not in result.values[0] and "perplexity" in result.values[1]
    assert any(note.startswith("base has no perplexity of the reference texts") for note in result.notes)


@pytest.mark.parametrize(
    ("content", "message"), [(b"\xff\xfe", "not UTF-8"), (b"", "holds no text"), (b" \n ", "holds no text")]
)
def test_texts_that_cannot_be_read(tmp_path, content, message):
    (tmp_path / "t.txt").write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_texts(build(TextSettings, {"rows": {"path": str(tmp_path / "t.txt")}}))


def test_plain_texts_need_their_column(tmp_path):
    (tmp_path / "t.jsonl").write_text('{"body": "x"}\n')
    with pytest.raises(DataError, match="no column 'text', but body"):
        read_texts(build(TextSettings, {"rows": {"path": str(tmp_path / "t.jsonl")}, "kind": "plain"}))


# Mistakes


@pytest.mark.parametrize(
    ("sections", "error", "message"),
    [
        ({"models": ["stories"], "names": ["a", "b"]}, SettingsError, "2 names were given for 1 models"),
        ({"models": ["stories"] * 2, "names": ["a", "a"]}, SettingsError, "two models are called 'a'"),
        ({"models": ["stories", "no/such/folder"]}, Exception, "no model folder"),
        ({"rewards": ["hapy_end"]}, SettingsError, "did you mean 'happy_end'"),
        ({"wins": {"reward": "length"}}, SettingsError, "wins.reward: unknown reward 'length'.*Add it to rewards"),
        ({"wins": {"baseline": "storys"}}, SettingsError, "wins.baseline: unknown model.*did you mean 'stories'"),
        ({"best_of": {"n": 4, "samples": 2}}, SettingsError, "expected at least n samples"),
        ({"best_of": {"n": 4, "model": "x"}}, SettingsError, "best_of.model: unknown model 'x'"),
        ({"best_of": {"n": 4}, "rewards": [], "wins": {"kind": "none"}}, SettingsError, "rewards is empty"),
        ({"bounds": {"happy_end": [1.0, -1.0]}}, SettingsError, "expected the least and the greatest"),
        ({"bounds": {"happy": [-1.0, 1.0]}}, SettingsError, "unknown reward 'happy'"),
        ({"held_out": {"prompts": 64}}, SettingsError, "held_out.prompts is 64, of 64 prompts"),
        ({"sampling": {"forbidden_ids": [10**6]}}, SettingsError, "forbidden_ids"),
        ({"texts": {"rows": {"path": "no.jsonl"}}}, DataError, "no.jsonl"),
        ({"reference": "no/such/reference"}, Exception, "no model folder"),
        ({"show": -1}, SettingsError, "show is -1"),
    ],
)
def test_what_is_wrong_is_said_before_a_folder_is_made(tmp_path, sections, error, message):
    with pytest.raises(error, match=message):
        run(tmp_path, **sections)
    assert not (tmp_path / "eval").exists()


def test_a_prompt_without_room_is_refused(tmp_path, plain_folder):
    with pytest.raises(PromptError, match="leaves no room in the context of 64"):
        run(tmp_path, models=[plain_folder], prompts=["the cat " * 50], held_out={"prompts": 0})


def test_comparisons_without_a_verdict_are_noted_with_their_reasons(tmp_path, shared):
    """A local judge that writes stories runs to its limit, so its replies are unreadable."""
    judge = {"model": str(shared / "data" / "models" / "stories260K-llama"), "answer": "text", "cache": ""}
    judge |= {"max_answer_tokens": 4, "swap": False}
    found = run(
        tmp_path,
        models=["stories", "stories"],
        names=["one", "two"],
        held_out={"prompts": 2, "samples_per_prompt": 1},
        sampling={"max_new_tokens": 4},
        wins={"kind": "judge", "judge": judge},
    )
    assert found.wins["two"].unanswered == 2 and found.wins["two"].wins == 0
    (note,) = [note for note in found.notes if "no verdict" in note]
    assert note.startswith("2 of 2 comparisons") and "replies unreadable (cut off at its limit)" in note
