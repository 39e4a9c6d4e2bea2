"""Answers side by side: how models are asked, reward and KL columns, and the three ways to show the table."""

from __future__ import annotations

import json
import re
from io import StringIO

import pytest
from rich.console import Console

from lmrl.cli.compare import print_side_by_side
from lmrl.data import PromptSettings
from lmrl.engines.settings import SamplingSettings
from lmrl.errors import DataError, ModelError, PromptError, SettingsError
from lmrl.models import load
from lmrl.stages.asking import answer_spec, as_messages, ask, transcript
from lmrl.stages.evaluate import SideBySide, compare
from lmrl.stages.evaluate.comparison import Answer, Column
from lmrl.stages.evaluate.comparison_page import to_markdown, to_page
from lmrl.stages.evaluate.scores import sequence_logprobs
from lmrl.stories import MODEL_PATH
from lmrl.testing import write_tiny_model

SHORT = SamplingSettings(max_new_tokens=6)


@pytest.fixture(scope="module")
def base_folder(tmp_path_factory):
    return write_tiny_model(tmp_path_factory.mktemp("base") / "plain", context=64)


def run(models, prompts, **settings):
    return compare(models, prompts, device="cpu", progress=False, **({"sampling": SHORT} | settings))


def test_a_template_decides_how_a_model_is_asked(chat_folder, base_folder):
    chatter, base = load(chat_folder).card, load(base_folder).card
    asked = ask(chatter, "the cat", "home")
    assert asked.text == "system : home user : the cat assistant :" and asked.chatted
    assert asked.ids == chatter.codec.encode(asked.text)
    completed = ask(base, "the cat", "home")
    assert (completed.text, completed.ids, completed.chatted) == ("the cat", base.codec.encode("the cat"), False)
    assert ask(chatter, "the cat", complete=True).ids == chatter.codec.encode("the cat")
    conversation = [
        {"role": "user", "content": "the"},
        {"role": "assistant", "content": "cat"},
        {"role": "user", "content": "ran"},
    ]
    assert ask(base, conversation).text == "User: the\nAssistant: cat\nUser: ran\nAssistant:"
    assert transcript(conversation[:1]) == "the"
    own = [{"role": "system", "content": "a"}, *conversation]
    assert as_messages(own, "b") == tuple(own)
    with pytest.raises(PromptError, match="120 tokens, which leaves no room in the context of 64"):
        ask(base, "the cat " * 60)


def test_an_answer_ends_where_the_template_ends_a_turn(tmp_path):
    """A checkpoint whose EOS is another token: its template's end of a turn must end an answer all the same."""
    folder = write_tiny_model(tmp_path / "m", words=("a", "user", "assistant", "<end>"))
    settings = json.loads((folder / "tokenizer_config.json").read_text()) | {"end_token": "<end>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "chat_template.jinja").write_text(
        "{% for m in messages %}{{ m['role'] ~ ' ' ~ m['content'] ~ ' <end> ' }}{% endfor %}assistant "
    )
    card = load(folder).card
    end = card.codec.encode("<end>")
    assert answer_spec(SHORT, card, chatted=True).eos_ids == (1, *end)
    assert answer_spec(SHORT, card, chatted=False).eos_ids == (1,)


def test_every_model_answers_every_prompt(chat_folder, base_folder):
    table = run([base_folder, chat_folder], ["the cat", "a dog"], names=["base", "SFT"], system="home")
    assert table.prompts == ["the cat", "a dog"]
    assert [(column.name, column.chatted) for column in table.columns] == [("base", False), ("SFT", True)]
    assert table.columns[0].heading == "base (completes)"
    assert all(len(row) == 2 and all(0 < answer.tokens <= 6 for answer in row) for row in table.answers)
    assert "base completes the text: no chat template, so no roles and no system prompt" in table.notes
    assert table.mean(0, "reward") is None
    assert json.loads(json.dumps(table.to_dict()))["answers"][0][0]["text"] == table.answers[0][0].text


def test_equal_models_give_equal_answers_and_a_seed_repeats_them(base_folder):
    table = run([base_folder, str(base_folder)], ["the cat", "a"], names=["one", "two"], seed=3)
    assert all(one == two for one, two in table.answers)
    assert table.answers == run([base_folder] * 2, ["the cat", "a"], seed=3).answers
    assert table.answers != run([base_folder] * 2, ["the cat", "a"], seed=4).answers


def test_reward_and_kl_of_each_answer(tmp_path, base_folder):
    other = write_tiny_model(tmp_path / "other", context=64, seed=5)
    table = run(
        [base_folder, other],
        ["the cat", "a"],
        reference=base_folder,
        reward=lambda prompts, texts: list(map(len, texts)),
    )
    for mine, theirs in table.answers:
        assert mine.kl == pytest.approx(0, abs=1e-4) and mine.reward == len(mine.text)
        assert theirs.reward == len(theirs.text)
    model, reference = load(other), load(base_folder)
    again = run([other], ["the cat", "a"], reference=base_folder)
    assert table.mean(1, "kl") == pytest.approx(again.mean(0, "kl"))
    greedy = run(
        [other], ["the cat"], reference=base_folder, sampling=SamplingSettings(temperature=0, max_new_tokens=6)
    )
    [answer] = greedy.answers[0]
    prompt = model.card.codec.encode("the cat")
    ids = model.card.codec.encode(answer.text) + ([1] if answer.ended else [])
    rows = [(prompt, ids)]
    assert answer.kl == pytest.approx(
        sequence_logprobs(model, rows)[0] - sequence_logprobs(reference, rows)[0], abs=1e-4
    )
    assert any("log-ratio" in note for note in greedy.notes)


def test_rows_beyond_the_references_context_have_no_kl(base_folder, tmp_path):
    short = write_tiny_model(tmp_path / "short", architecture="gpt2", context=6)
    table = run([base_folder], ["the cat ran home"], reference=short, sampling=SamplingSettings(max_new_tokens=8))
    assert table.answers[0][0].kl is None
    assert any("beyond the reference's 6, so it has no KL" in note for note in table.notes)


def test_a_reference_with_another_tokenizer_has_no_kl(base_folder):
    table = run([base_folder, ""], ["the cat"], reference=base_folder)
    assert table.columns[1].path == str(MODEL_PATH)
    assert table.answers[0][0].kl is not None and table.answers[0][1].kl is None
    assert any("another tokenizer than the reference" in note for note in table.notes)


def test_rewards_get_the_columns_and_the_conversation(chat_folder, base_folder):
    seen = []

    def reward(prompts, responses, **columns):
        seen.append((list(prompts), columns))
        return [0.0] * len(responses)

    rows = [{"prompt": "the cat", "answer": "x"}, {"prompt": [{"role": "user", "content": "ran"}], "answer": "y"}]
    table = run([chat_folder, base_folder], rows, reward=reward)
    assert table.prompts == ["the cat", "ran"]
    for prompts, columns in seen:
        assert len(prompts) == 2 and columns["answer"] == ["x", "y"]
        assert columns["prompt_messages"] == [
            [{"role": "user", "content": "the cat"}],
            [{"role": "user", "content": "ran"}],
        ]
    run([base_folder], ["the cat"], reward=reward)
    assert "prompt_messages" not in seen[-1][1], "a text to continue is no conversation"


def test_mistakes_are_named_before_any_model_is_loaded(base_folder, tmp_path):
    for arguments, error, message in (
        (([], ["a"]), SettingsError, "no model was named"),
        (([base_folder], []), PromptError, "no prompt to answer"),
        (([base_folder], ["a", " "]), PromptError, "prompt 2 is empty"),
        (([tmp_path / "nothing"], ["a"]), ModelError, "no model folder"),
    ):
        with pytest.raises(error, match=message):
            run(*arguments)
    with pytest.raises(SettingsError, match="1 names were given for 2 models"):
        run([base_folder] * 2, ["a"], names=["x"])
    with pytest.raises(SettingsError, match="did you mean 'happy_end'"):
        run([base_folder], ["a"], reward="hapy_end")


def table_of(*texts, prompt="a | b <i>", reward=None, kl=None):
    columns = [Column(f"model {index}", "path", True) for index in range(len(texts))]
    answers = [[Answer(text, 3, index == 0, reward, kl) for index, text in enumerate(texts)]]
    return SideBySide(
        [prompt], columns, answers, SHORT, 0, reward="r" if reward is not None else "", reference="m" if kl else ""
    )


HARD = ["| one | two\n*bold* <script>alert(1)</script> `x` [a](b) ![c](d) $e$ ~~f~~", "\\| & &amp;\r\n# no heading"]


def test_markdown_shows_the_text_as_it_is():
    lines = to_markdown(table_of(*HARD, reward=0.5, kl=2.0)).splitlines()
    rows = [line for line in lines if line.startswith("|")]
    assert len(rows) == 4, "head, rule, one prompt, means"
    assert all(len(re.split(r"(?<!\\)(?:\\\\)*\|", row)) == 5 for row in rows), "three cells each"
    body = rows[2]
    assert "<script" not in body and "&lt;script&gt;" in body and "\\*bold\\*" in body and "\\`x\\`" in body
    assert "reward +0.50 · KL 2.0" in body and "cut off at 3 tokens" in body
    unescaped = re.sub(r"\\(.)", r"\1", body).replace("<br>", "\n").replace("&lt;", "<").replace("&gt;", ">")
    assert HARD[0] in unescaped


def test_html_shows_the_text_as_it_is():
    page = str(to_page(table_of(*HARD)))
    assert "<script" not in page and "&lt;script&gt;alert(1)" in page and "# no heading" in page


@pytest.mark.parametrize("width", [30, 60, 80, 120, 160])
@pytest.mark.parametrize("models", [1, 2, 3, 5])
def test_the_terminal_table_is_readable_at_every_width(width, models):
    texts = [f"word{index} " * 30 + "[bold]not markup[/bold]" for index in range(models)]
    console = Console(width=width, file=StringIO(), markup=False, highlight=False, emoji=False)
    print_side_by_side(table_of(*texts, prompt="ask " * 10, reward=1.0), console)
    lines = console.file.getvalue().splitlines()
    body = [line for line in lines if not line.startswith(("Sampling", "Reward"))]
    assert all(len(line) <= width for line in body)
    shown = "".join(lines)
    assert all(shown.count(f"word{index}") == 30 for index in range(models)), "nothing is cut off"
    assert shown.count("reward +1.00") == 2 * models
    stacked = any(line.startswith("[model 0]") for line in lines)
    assert stacked == (width < 20 + 25 * models)


@pytest.mark.parametrize(
    ("rows", "note"),
    [
        (["the cat", "a dog"], "chatter asks 2 texts as a user's message; --complete completes them as text"),
        ([{"prompt": "the cat"}, {"prompt": "a dog"}], "chatter asks 2 texts as a user's message"),
        ([{"question": "the cat", "answer": "a dog"}], ""),
        ([[{"role": "user", "content": "the cat"}]], ""),
    ],
)
def test_texts_that_are_asked_as_questions_are_noted(chat_folder, rows, note):
    table = run([chat_folder], rows, names=["chatter"])
    assert any(note in line for line in table.notes) if note else not table.notes
    assert not any("asks" in line for line in run([chat_folder], rows, complete=True).notes)


def test_rows_of_any_shape_are_read_with_their_mapping(base_folder):
    rows = [{"problem": "the cat", "solution": "sat"}]
    table = run([base_folder], rows, prompt_settings=PromptSettings(columns={"prompt": "problem"}))
    assert table.prompts == ["the cat"]
    assert run([base_folder], [{"question": "the cat", "context": "a dog", "answer": "x"}]).prompts == [
        "a dog\n\nthe cat"
    ]
    with pytest.raises(DataError, match=r"no known shape of prompts. Found the columns: problem, solution"):
        run([base_folder], rows)
