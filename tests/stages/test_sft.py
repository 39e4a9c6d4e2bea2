"""Supervised fine-tuning as a whole: templates, masks, resume, adapters, what other libraries read, real rows."""

import json
import os
import signal
import socket
import subprocess
import sys
import textwrap
import time

import pytest
import torch
import transformers

from lmrl.config import build
from lmrl.errors import DataError, ModelError, ResumeError, SettingsError
from lmrl.models import load
from lmrl.stages.sft.config import SFTConfig
from lmrl.stages.sft.stage import sft
from lmrl.testing import write_tiny_model
from lmrl.text.card import load_card
from lmrl.text.chat_template import DEFAULT_TOKENS, chat_row, prompt_ids
from lmrl.training.run import read_metrics

PLACES = ("home", "far")
ROWS = [
    {
        "messages": [
            {"role": "user", "content": f"the {animal} {verb} {place}"},
            {"role": "assistant", "content": f"a {animal} {'happy' if place == 'home' else 'sad'} {mark}"},
        ]
    }
    for animal in ("cat", "dog")
    for verb in ("ran", "sat")
    for place in PLACES
    for mark in (".", "!")
]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return write_tiny_model(tmp_path_factory.mktemp("sft") / "tiny")


def config_of(model, folder, **sections):
    settings = {
        "model": str(model),
        "run": {"folder": str(folder), "device": "cpu"},
        "data": {"held_out": 4},
        "train": {"steps": 6, "examples_per_step": 4, "learning_rate": 0.01, "warmup_steps": 2, "evaluate_every": 3},
        "samples": {"prompts": 2},
        "sampling": {"max_new_tokens": 6},
        "checkpoint": {"every": 2, "keep": 9},
    }
    for name, section in sections.items():
        settings[name] = {**settings.get(name, {}), **section} if isinstance(section, dict) else section
    return build(SFTConfig, settings)


def run(config, rows=ROWS, **named):
    return sft(config, examples=rows, progress=False, **named)


def without_times(folder):
    return [{k: v for k, v in record.items() if not k.startswith("time/")} for record in read_metrics(folder)]


def test_a_base_model_learns_to_chat(tiny, tmp_path):
    result = run(config_of(tiny, tmp_path / "run", train={"steps": 60}))
    assert result.after["loss"] < 0.7 < 1.5 < result.before["loss"]
    assert result.after["loss_low"] <= result.after["loss"] <= result.after["loss_high"]
    assert result.after["perplexity"] == pytest.approx(torch.tensor(result.after["loss"]).exp().item(), rel=1e-5)
    assert result.after["accuracy"] > 0.7 and result.examples == 12 and result.held_out == 4
    assert {sample.answer.split()[0] for sample in result.samples} == {"a"}
    card = load_card(tmp_path / "run")
    assert card.codec.chat_template and len(card.codec.encode_plain("<|user|><|assistant|>")) == 2
    text = (tmp_path / "run" / "samples" / "samples-000060.txt").read_text()
    assert text.startswith("prompt: user: the ") and "\nreference: a " in text and "\nanswer: a " in text
    report = json.loads((tmp_path / "run" / "data.json").read_text())
    assert report["examples"] == 12 and any("new tokens <|system|>" in note for note in report["notes"])
    # A run folder is a model: training goes on from it, with its own template now.
    again = run(config_of(tmp_path / "run", tmp_path / "again", train={"steps": 1}))
    assert "the tokenizer's own chat template" in again.notes
    assert again.before["loss"] == pytest.approx(result.after["loss"], rel=1e-5)


@pytest.mark.parametrize("method", ["none", "lora"])
def test_transformers_and_peft_read_what_is_saved(tiny, tmp_path, method):
    adapter = {"method": method, "rank": 4}
    result = run(config_of(tiny, tmp_path / "run", adapter=adapter, train={"learning_rate": 0.05}))
    card = load_card(result.folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(result.checkpoint)
    messages = ROWS[0]["messages"]
    assert tokenizer.apply_chat_template(messages, tokenize=False) == card.codec.render_chat(messages, False)
    row, mask = chat_row(card.codec, card.eos_ids, messages)
    assert tokenizer.apply_chat_template(messages)["input_ids"] == row
    assert [trained for trained in mask] == [False] * (row.index(17) + 1) + [True] * 5 and row[-1] == 1
    assert prompt_ids(card.codec, messages[:1])[1] == row[: row.index(17) + 1]

    ids = torch.tensor([row])
    ours = load(result.folder).model(ids).logits
    theirs = transformers.AutoModelForCausalLM.from_pretrained(result.checkpoint)
    torch.testing.assert_close(theirs(ids).logits, ours, rtol=0, atol=0)
    assert theirs.config.vocab_size == 18 == theirs.get_input_embeddings().weight.shape[0]
    assert (result.checkpoint / "adapter").exists() == (method == "lora")
    if method == "lora":
        peft = pytest.importorskip("peft")
        base = transformers.AutoModelForCausalLM.from_pretrained(tiny)
        base.resize_token_embeddings(len(tokenizer), mean_resizing=False)
        adapted = peft.PeftModel.from_pretrained(base, result.checkpoint / "adapter").eval()
        torch.testing.assert_close(adapted(ids).logits, ours, rtol=0, atol=1e-5)
        alone = peft.AutoPeftModelForCausalLM.from_pretrained(result.checkpoint / "adapter").eval()
        torch.testing.assert_close(alone(ids).logits, ours, rtol=0, atol=1e-5)
        start = load(tiny).model
        assert torch.equal(adapted.get_base_model().model.norm.weight, start.model.norm.weight)
        assert result.trained_parameters < result.parameters
    else:
        assert result.trained_parameters == result.parameters


@pytest.mark.parametrize("method", ["none", "lora"])
def test_a_stopped_run_resumes_as_if_nothing_had_happened(tiny, tmp_path, method, monkeypatch):
    from lmrl.stages.sft import task as sft_task

    adapter = {"method": method, "rank": 4, "dropout": 0.2}
    whole = run(config_of(tiny, tmp_path / "whole", adapter=adapter))
    usual = sft_task.SFTTask.microbatches
    config = config_of(tiny, tmp_path / "part", adapter=adapter)

    def interrupt(self, step, rank, ranks):
        if step == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return usual(self, step, rank, ranks)

    monkeypatch.setattr(sft_task.SFTTask, "microbatches", interrupt)
    stopped = run(config)
    assert stopped.interrupted and stopped.steps == 3
    monkeypatch.undo()
    resumed = run(config, resume=True)
    assert without_times(resumed.folder) == without_times(whole.folder)
    assert (resumed.checkpoint / "model.safetensors").read_bytes() == (
        whole.checkpoint / "model.safetensors"
    ).read_bytes()
    with pytest.raises(ResumeError, match="data have changed"):
        run(config, rows=ROWS[:-1], resume=True)


SCRIPT = """
    import json, sys
    from lmrl.config import build
    from lmrl.stages.sft.stage import sft
    from lmrl.stages.sft.config import SFTConfig
    settings, rows = json.loads(sys.argv[1]), json.loads(sys.argv[2])
    sft(build(SFTConfig, settings), examples=rows, resume=sys.argv[3] == "yes", progress=False)
"""


@pytest.mark.slow
def test_a_killed_run_resumes_as_if_nothing_had_happened(tiny, tmp_path):
    settings = {
        "model": str(tiny),
        "run": {"folder": "", "device": "cpu"},
        "data": {"held_out": 4},
        "train": {"steps": 40, "examples_per_step": 4, "evaluate_every": 10},
        "samples": {"prompts": 1},
        "sampling": {"max_new_tokens": 4},
        "checkpoint": {"every": 3},
        "adapter": {"method": "lora", "rank": 2},
    }

    def start(name, resume):
        settings["run"]["folder"] = str(tmp_path / name)
        command = [sys.executable, "-c", textwrap.dedent(SCRIPT), json.dumps(settings), json.dumps(ROWS), resume]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    whole = start("whole", "no")
    assert whole.wait(timeout=240) == 0, whole.stdout.read()
    killed = start("killed", "no")
    deadline = time.monotonic() + 120
    while not list((tmp_path / "killed").glob("checkpoint-*/trainer_state.pt")):
        assert killed.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    killed.kill()
    killed.communicate()
    resumed = start("killed", "yes")
    output = resumed.communicate(timeout=240)[0]
    assert resumed.returncode == 0, output[-2000:]
    assert without_times(tmp_path / "killed") == without_times(tmp_path / "whole")


@pytest.mark.slow
def test_trap_28_two_processes_train_as_one(tiny, tmp_path):
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    settings = [f"model={tiny}", f"data.path={data}", "data.held_out=4", "run.device=cpu", "trackers=[]"]
    settings += ["train.steps=3", "train.examples_per_step=6", "train.learning_rate=0.01", "train.microbatch_tokens=20"]
    settings += ["adapter.method=lora", "samples.prompts=0"]
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = str(listener.getsockname()[1])
    processes = []
    for ranks in (1, 2):
        for rank in range(ranks):
            environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
            if ranks > 1:
                environment |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks)}
                environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
            command = [sys.executable, "-m", "lmrl", "sft", "--quiet", *settings, f"run.folder={tmp_path / str(ranks)}"]
            processes.append(subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True))
    errors = [process.communicate(timeout=240)[1] for process in processes]
    assert all(process.returncode == 0 for process in processes), errors
    one, two = (without_times(tmp_path / ranks) for ranks in ("1", "2"))
    for mine, theirs in zip(one, two, strict=True):
        assert mine == pytest.approx(theirs, abs=1e-4)


def test_packing_and_microbatches_change_nothing(tiny, tmp_path):
    records = []
    for name, train in {
        "packed": {"packing": "on"},
        "padded": {"packing": "off"},
        "small": {"packing": "off", "microbatch_tokens": 1},
    }.items():
        records.append(without_times(run(config_of(tiny, tmp_path / name, train=train)).folder))
    for other in records[1:]:
        for mine, theirs in zip(records[0], other, strict=True):
            assert mine == pytest.approx(theirs, rel=2e-4, abs=1e-5)


def test_a_family_that_cannot_pack_is_padded_and_says_so(tiny, tmp_path):
    config = transformers.BloomConfig(
        vocab_size=15, hidden_size=16, n_layer=1, n_head=2, bos_token_id=None, eos_token_id=1, pad_token_id=0
    )
    folder = tmp_path / "bloom"
    transformers.BloomForCausalLM(config).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((tiny / name).read_bytes())
    result = run(config_of(folder, tmp_path / "run", train={"packing": "on", "steps": 1}))
    assert "the family bloom cannot keep examples in one row apart" in result.notes[-1]


def test_completions_need_no_template_and_end_with_eos(tiny, tmp_path):
    rows = [{"prompt": f"the {a} {b}", "completion": " home ."} for a in ("cat", "dog") for b in ("ran", "sat")]
    result = run(config_of(tiny, tmp_path / "run", data={"held_out": 1}, train={"steps": 40}), rows)
    assert result.after["loss"] < 0.2 and result.samples[0].answer.split() == ["home", "."]
    card = load_card(result.folder)
    assert card.codec.chat_template is None and card.vocab_size == 15
    chat = config_of(tiny, tmp_path / "chat", data={"held_out": 1, "chat": "on"}, template={"name": "plain"})
    assert load_card(run(chat, rows).folder).codec.chat_template


def test_the_templates_own_end_ends_a_response(tiny, tmp_path):
    file = tmp_path / "mine.jinja"
    file.write_text(
        "{% for m in messages %}{{ '<|' + m.role + '|> ' + m.content + ' <|end|> ' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
    )
    template = {"name": "file", "file": str(file), "tokens": ["<|user|>", "<|assistant|>", "<|end|>"]}
    result = run(config_of(tiny, tmp_path / "run", template=template, train={"steps": 80}))
    card = load_card(result.folder)
    end = card.codec.encode_plain("<|end|>")[0]
    assert card.eos_ids == (1, end)
    assert transformers.GenerationConfig.from_pretrained(result.checkpoint).eos_token_id == [1, end]
    assert all(len(sample.answer.split()) == 4 for sample in result.samples), "they stop at the end of the turn"


def test_too_long_examples_are_counted(tiny, tmp_path):
    long = {"messages": [{"role": "user", "content": "the cat"}, {"role": "assistant", "content": "ran " * 60}]}
    asked = {"messages": [{"role": "user", "content": "the cat " * 30}, {"role": "assistant", "content": "ran"}]}
    rows = [*ROWS, long, asked]
    skipped = run(config_of(tiny, tmp_path / "skip", data={"held_out": 0}), rows)
    assert skipped.skipped == {"longer than 48 tokens": 2} and skipped.examples == len(ROWS)
    assert any("left out 2: longer than 48 tokens (first: example 17: 65 tokens)" in note for note in skipped.notes)
    assert skipped.before == {} and skipped.samples == []
    cut = run(config_of(tiny, tmp_path / "cut", data={"held_out": 0, "too_long": "truncate"}), rows)
    assert cut.skipped == {"nothing of the answer is left to learn": 1} and cut.examples == len(ROWS) + 1
    assert any("cut off 2 of 18 at 48 tokens" in note for note in cut.notes)
    with pytest.raises(DataError, match=r"no training example of 2 can be used.*longer than 48"):
        run(config_of(tiny, tmp_path / "none", data={"held_out": 0}), [long, asked])
    assert not (tmp_path / "none").exists()


def test_a_role_that_the_template_cannot_render_is_counted(tiny, tmp_path):
    tool = {"messages": [{"role": "user", "content": "the cat"}, {"role": "tool", "content": "ran"}]}
    tool["messages"].append({"role": "assistant", "content": "sat"})
    result = run(config_of(tiny, tmp_path / "run", data={"held_out": 0}), [*ROWS, tool])
    assert result.skipped == {"the chat template cannot render it": 1}
    assert any("the role 'tool' is none of" in note for note in result.notes)


def test_a_tokenizer_of_another_model(tiny, tmp_path):
    folder = write_tiny_model(tmp_path / "model")
    other = write_tiny_model(tmp_path / "other", words=[f"w{i}" for i in range(40)])
    (folder / "tokenizer.json").write_bytes((other / "tokenizer.json").read_bytes())
    rows = [{"prompt": f"w{i}", "completion": " w39"} for i in range(6)]
    with pytest.raises(ModelError, match=r"token id 42.*embedding table has 15 rows.*does not belong"):
        run(config_of(folder, tmp_path / "run", data={"held_out": 0}), rows)
    with pytest.raises(ModelError, match=r"tokenizer has 43 ids .* 15 rows"):
        run(config_of(folder, tmp_path / "run", data={"held_out": 0}))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("sections", "error", "message"),
    [
        ({"template": {"name": "own"}}, DataError, "has no chat template; choose"),
        ({"template": {"name": "file", "file": "missing.jinja"}}, DataError, r"missing\.jinja cannot be read"),
        ({"template": {"name": "file"}}, SettingsError, "template.file"),
        ({"template": {"tokens": ["<x>"]}}, SettingsError, "template.tokens"),
        ({"data": {"held_out": 99}}, SettingsError, r"^data\.held_out=99 keeps 99 of 16 examples"),
        ({"data": {"max_length": -1}}, SettingsError, "data.max_length"),
        ({"train": {"examples_per_step": 0}}, SettingsError, "train.examples_per_step"),
        ({"train": {"epochs": -1.0}}, SettingsError, "train.epochs"),
        ({"adapter": {"method": "lora", "target_modules": ["nope"]}}, ModelError, "q_proj"),
        ({"adapter": {"rank": 0}}, SettingsError, "adapter.rank"),
        ({"samples": {"prompts": -1}}, SettingsError, "samples.prompts"),
        ({"sampling": {"forbidden_ids": [99]}}, SettingsError, "99"),
        ({"trackers": ["tensorbord"]}, SettingsError, "tensorbord"),
    ],
)
def test_what_is_refused_leaves_nothing_behind(tiny, tmp_path, sections, error, message):
    with pytest.raises(error, match=message):
        run(config_of(tiny, tmp_path / "run", **sections))
    assert not (tmp_path / "run").exists()


def test_a_missing_model_or_no_rows(tiny, tmp_path):
    with pytest.raises(ModelError, match="there is no model folder"):
        run(config_of("no/such/model/here", tmp_path / "run"))
    with pytest.raises(DataError, match="no examples were named"):
        sft(config_of(tiny, tmp_path / "run"), progress=False)
    assert not (tmp_path / "run").exists()


def test_epochs_take_the_place_of_steps(tiny, tmp_path):
    result = run(config_of(tiny, tmp_path / "run", train={"epochs": 1.5}))
    assert result.steps == 5  # ceil(1.5 * 12 / 4)
    assert "steps = 5" in (tmp_path / "run" / "config.toml").read_text()


def test_held_out_rows_of_their_own_and_the_last_turn_alone(tiny, tmp_path):
    file = tmp_path / "held.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in ROWS[:3]))
    talk = [{"messages": ROWS[0]["messages"] + ROWS[5]["messages"]}] * 2
    sections = {"data": {"held_out_path": str(file), "turns": "last"}}
    result = run(config_of(tiny, tmp_path / "run", **sections), talk)
    assert result.held_out == 3 and result.examples == 2
    tokens = {record["train/tokens"] for record in read_metrics(result.folder)[1:]}
    assert tokens == {4 * 5.0}, "four examples a step, of whose answers the last has five tokens"


def test_real_instructions_on_a_real_model(shared, tmp_path):
    data = {"path": str(shared / "data" / "sft" / "rasbt_instruction_data.json"), "held_out": 20, "limit": 220}
    config = config_of(
        shared / "data" / "models" / "stories260K-llama",
        tmp_path / "run",
        data=data,
        train={"steps": 8, "examples_per_step": 16, "learning_rate": 3e-3, "evaluate_every": 0},
        checkpoint={"every": 0},
    )
    result = sft(config, progress=False)
    assert result.after["loss"] < result.before["loss"] - 0.5
    card = load_card(result.folder)
    assert card.eos_ids == (1, 2)
    for token in DEFAULT_TOKENS:
        assert len(card.codec.encode_plain(token)) == 1
    tokenizer = transformers.AutoTokenizer.from_pretrained(result.checkpoint)
    messages = [{"role": "user", "content": "Name a fruit."}, {"role": "assistant", "content": "An apple."}]
    row, mask = chat_row(card.codec, card.eos_ids, messages)
    assert row == tokenizer.apply_chat_template(messages)["input_ids"]
    assert row[0] == 1 and row.count(1) == 1 and row[-1] == 2 and mask[-1]
