"""Tables, mappings and what accompanies a row reach every stage and the environment, not only the loaders."""

from __future__ import annotations

import json

import pytest

from lmrl.config import build
from lmrl.data import RowSettings, load_examples, load_rankings
from lmrl.envs.prompts import read_prompts
from lmrl.errors import DataError, LmrlError, PromptError, SettingsError
from lmrl.stages.evaluate import EvaluateConfig
from lmrl.stages.evaluate.prompts import held_out_questions
from lmrl.stages.prefer import PreferConfig
from lmrl.stages.prefer.drawing import prepare_prompts
from lmrl.stages.prefer.samples import load_samples, read_completions, write_samples
from lmrl.stages.rl import RLConfig
from lmrl.stages.rl.config import LearningData
from lmrl.stages.sft.config import SFTDataSettings
from lmrl.stages.sft.rows import encode_examples
from lmrl.testing import write_tiny_model
from lmrl.text.card import load_card

TEMPLATE = (
    "{% if tools %}{{ tools | length }} {% endif %}{% for m in messages %}"
    "{% if m.role == 'tool' %}{{ raise_exception('no tools here') }}{% endif %}{{ m.content }} "
    "{% if m.role == 'assistant' %}{{ eos_token }} {% endif %}{% endfor %}"
)
ROWS = [{"problem": "the cat", "solution": "sat", "hard": 1}, {"problem": "a dog", "solution": "ran", "hard": 0}]
COLUMNS = {"prompt": "problem", "completion": "solution"}
USER, ASSISTANT = {"role": "user", "content": "the cat"}, {"role": "assistant", "content": "sat"}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {}}}


@pytest.fixture(scope="module")
def chat_folder(tmp_path_factory):
    folder = write_tiny_model(tmp_path_factory.mktemp("model") / "tiny")
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return folder


@pytest.fixture
def card(chat_folder):
    return load_card(chat_folder)


def tables(tmp_path):
    import pandas
    from datasets import Dataset, DatasetDict

    dataset = Dataset.from_list(ROWS)
    dataset.save_to_disk(tmp_path / "saved")
    (tmp_path / "rows").mkdir()
    for number, row in enumerate(ROWS):
        (tmp_path / "rows" / f"{number}.jsonl").write_text(json.dumps(row) + "\n")
    return {
        "rows": ROWS,
        "pandas": pandas.DataFrame(ROWS),
        "dataset": dataset,
        "dataset dict": DatasetDict({"train": dataset}),
        "saved": str(tmp_path / "saved"),
        "folder": str(tmp_path / "rows"),
        "glob": str(tmp_path / "rows" / "*.jsonl"),
    }


@pytest.mark.parametrize("name", ["rows", "pandas", "dataset", "dataset dict", "saved", "folder", "glob"])
def test_every_table_is_a_source_of_prompts(tmp_path, card, chat_folder, name):
    source = tables(tmp_path)[name]
    read = read_prompts(source, card, COLUMNS)
    assert [prompt.text for prompt in read] == ["the cat", "a dog"] and read[0].columns["hard"] == 1
    prompts = {"file": {"columns": COLUMNS}}
    config = build(EvaluateConfig, {"prompts": prompts, "held_out": {"prompts": 0}})
    found = held_out_questions(config, [card], None, source)
    assert [item.columns["hard"] for item in found.items] == [1, 0]
    prefer = build(PreferConfig, {"model": str(chat_folder), "prompts": prompts, "chat": "off"})
    from lmrl.plugins import PluginManager

    assert prepare_prompts(prefer, PluginManager(), source).prompts == ["the cat", "a dog"]


def test_an_environment_reads_messages_and_shapes_of_any_kind(card):
    [read] = read_prompts([{"prompt": [USER], "tools": [TOOL], "answer": "sat"}], card)
    assert read.text == "1 the cat " and read.columns["answer"] == "sat" and read.in_turns
    [read] = read_prompts([[USER]], card)
    assert read.text == "the cat "
    [read] = read_prompts([{"question": "the cat", "choices": ["sat", "ran"], "answer": 1}], card)
    assert read.text == "the cat\n\nA. sat\nB. ran " and read.columns["answer"] == "B"
    read = read_prompts([[USER], [USER, {"role": "tool", "content": "x"}], [USER, ASSISTANT]], card)
    assert [prompt.text for prompt in read] == ["the cat ", "the cat sat"], "refused roles are left out"
    with pytest.raises(LmrlError, match="no tools here"):
        read_prompts([[USER, {"role": "tool", "content": "x"}]], card)
    with pytest.raises(LmrlError, match=r"unknown column 'problm'; did you mean 'problem'"):
        read_prompts(ROWS, card, {"prompt": "problm"})
    with pytest.raises(DataError, match="there is no file"):
        read_prompts("absent.jsonl", card)
    with pytest.raises(PromptError, match="one str"):
        read_prompts("the cat", card)


def test_an_evaluation_leaves_out_what_a_template_refuses(card, tmp_path):
    rows = [{"prompt": [USER]}, {"prompt": [{"role": "tool", "content": "x"}, USER]}]
    found = held_out_questions(build(EvaluateConfig, {"held_out": {"prompts": 0}}), [card], None, rows)
    assert len(found.items) == 1 and any("left out 1: a conversation that" in note for note in found.notes)
    plain = load_card(write_tiny_model(tmp_path / "plain"))
    (tmp_path / "plain" / "chat_template.jinja").write_text(TEMPLATE.replace("'tool'", "'system'"))
    strict = load_card(tmp_path / "plain")
    rows = [{"prompt": [USER]}, {"prompt": [{"role": "system", "content": "the"}, USER]}]
    found = held_out_questions(build(EvaluateConfig, {"held_out": {"prompts": 0}}), [card, strict], None, rows)
    assert (
        len(found.items) == 1
        and "1 of 2 prompts are refused by a model's chat template and were left out" in found.notes
    )
    assert plain.codec.chat_template is None


def test_fine_tuning_counts_what_the_template_drops_and_leaves_out_lost_calls(card):
    from lmrl.data import load_examples

    call = {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": {}}}]}
    rows = [
        {"messages": [USER, {**ASSISTANT, "reasoning_content": "hm"}], "tools": [TOOL]},
        {"messages": [USER, call, USER, ASSISTANT]},
    ]
    found = encode_examples(load_examples(rows), card.codec, card.eos_ids, SFTDataSettings(), 48, card.vocab_size)
    assert len(found.rows) == 1 and len(found.rows[0].ids) == 5, "the tools' count, two words, one word and EOS"
    assert any("does not render 'reasoning_content', which 1" in note for note in found.notes)
    assert any("renders no tool_calls" in note for note in found.notes)


def test_tools_and_prefill_survive_being_written_down(tmp_path):
    rows = [{"prompt": [USER, ASSISTANT], "completions": ["a", "b"], "tools": [TOOL]}]
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    write_samples(
        tmp_path, read_completions(build(PreferConfig, {"completions_from": {"path": str(path)}}).completions_from)
    )
    [sample], _ = load_samples(tmp_path)
    assert sample.comparison.prompt == (USER, ASSISTANT) and sample.comparison.prompt.variables == {"tools": [TOOL]}
    written = {**sample.to_dict(), "ranks": [0, 1], **sample.comparison.columns}
    [ranking] = load_rankings([{name: written[name] for name in ("prompt", "completions", "ranks", "tools")}]).rankings
    assert ranking.prompt == (USER, ASSISTANT) and ranking.prompt.variables == {"tools": [TOOL]}


@pytest.mark.parametrize("needs", ["preferences", "labelled", "trajectories"])
def test_learning_data_are_mapped_and_rendered_with_their_tools(card, needs):
    from lmrl.plugins.specs import Needs
    from lmrl.stages.rl.offline import load_offline

    rows, columns = {
        "preferences": (
            [{"q": [USER], "good": "sat", "bad": "ran", "tools": [TOOL]}],
            {"prompt": "q", "chosen": "good", "rejected": "bad"},
        ),
        "labelled": (
            [{"messages": [USER, ASSISTANT], "ok": ok, "tools": [TOOL]} for ok in (True, False)],
            {"label": "ok"},
        ),
        "trajectories": (
            [{"q": [USER], "a": "sat", "r": r, "tools": [TOOL]} for r in (1.0, 0.0)],
            {"prompt": "q", "completion": "a", "reward": "r"},
        ),
    }[needs]
    data = load_offline(LearningData(columns=columns), rows, card, Needs(experience=needs), "cpu")
    asked, _ = data.items[0].rows[0]
    assert len(asked) == 3, "the tools' count and two words"


def test_a_recipe_can_map_columns_on_the_command_line():
    from lmrl.config import apply_overrides

    overrides = ["data.columns.prompt=problem", 'data.columns.completions=["a", "b"]', "prompts.file.columns.prompt=q"]
    config = build(RLConfig, apply_overrides({}, overrides))
    assert config.data.columns == {"prompt": "problem", "completions": ["a", "b"]}
    assert config.prompts.tables["file"]["columns"] == {"prompt": "q"}


def test_the_environment_names_columns_that_only_rewards_get(chat_folder, caplog):
    card = load_card(chat_folder)
    with caplog.at_level("INFO"):
        read_prompts([{"prompt": "the cat", "passage": "a dog", "stars": 3}], card)
    assert "'passage' (1 rows), 'stars' (1 rows); columns maps a column that matters" in caplog.text
    assert read_prompts([{"prompt": '[{"role": "user", "content": "the cat"}]'}], card)[0].in_turns
    with pytest.raises(PromptError, match=r"the list of prompts: columns.prompt: unknown column 'qq'"):
        read_prompts([{"q": "the cat"}], card, {"prompt": "qq"})


@pytest.mark.parametrize(
    ("models", "row", "message"),
    [
        (["plain"], {"question": "the cat", "answer": "sat"}, "no model has a chat template"),
        (["chat"], {"prompt": "the cat"}, "all prompts are texts to complete; .* set chat=on"),
        (["plain", "chat"], {"question": "the cat", "answer": "sat"}, ""),
    ],
)
def test_a_system_prompt_that_no_model_is_given_is_refused(chat_folder, tmp_path, models, row, message):
    folders = {"chat": chat_folder, "plain": write_tiny_model(tmp_path / "plain")}
    cards = [load_card(folders[name]) for name in models]
    config = build(EvaluateConfig, {"system": "a dog", "held_out": {"prompts": 0}})
    if message:
        with pytest.raises(SettingsError, match=message):
            held_out_questions(config, cards, None, [row])
    else:
        assert held_out_questions(config, cards, None, [row]).items[0].prompt[0]["role"] == "system"


def test_notes_name_the_section_that_maps_the_columns(tmp_path):
    file = tmp_path / "rows.jsonl"
    row = {"prompt": "the cat", "completions": ["sat", "ran"], "ranks": [0, 1], "stars": 3}
    for rows in ([row], [{name: value for name, value in row.items() if name != "ranks"}]):
        file.write_text("".join(json.dumps(item) + "\n" for item in rows))
        notes = read_completions(RowSettings(path=str(file))).notes
        assert any("'stars' (1 rows); completions_from.columns maps" in note for note in notes)
    file.write_text(json.dumps({"problem": "the cat", "solution": "sat"}))
    with pytest.raises(DataError, match=r"Perhaps: texts.rows.columns.prompt=.problem."):
        load_examples(str(file), RowSettings(), "texts.rows")
