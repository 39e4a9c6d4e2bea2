"""Python code of a checkpoint runs only where ``trust_remote_code`` is set: no prompt, and one message."""

import ast
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from checkpoint_files import edit_json

import lmrl
import lmrl_suites
from lmrl.errors import ModelError
from lmrl.models import PolicyModel, load
from lmrl.models.reward_model import load_reward_model, start_reward_model
from lmrl.testing import write_tiny_model
from lmrl.text.card import load_card
from lmrl.text.reward_card import load_reward_card

MARK = "open({mark!r}, 'a').write('ran')\n"
TOKENIZER = """
from transformers import PreTrainedTokenizerFast
class OwnTokenizer(PreTrainedTokenizerFast):
    pass
"""
MODEL = """
import torch
from transformers import LlamaConfig, LlamaForCausalLM, LlamaModel, LlamaPreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput
class OwnConfig(LlamaConfig):
    model_type = "own"
class OwnModel(LlamaForCausalLM):
    config_class = OwnConfig
class OwnScorer(LlamaPreTrainedModel):
    config_class = OwnConfig
    def __init__(self, config):
        super().__init__(config)
        self.model = LlamaModel(config)
        self.score = torch.nn.Linear(config.hidden_size, config.num_labels, bias=False)
        self.post_init()
    def forward(self, input_ids=None, attention_mask=None, **unused):
        hidden = self.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        return SequenceClassifierOutput(logits=self.score(hidden[:, -1]))
"""
AUTO = {
    "AutoConfig": "own_model.OwnConfig",
    "AutoModelForCausalLM": "own_model.OwnModel",
    "AutoModelForSequenceClassification": "own_model.OwnScorer",
}


def own_tokenizer(folder, mark):
    (folder / "own_tokenizer.py").write_text(MARK.format(mark=str(mark)) + TOKENIZER)
    edit_json(
        folder / "tokenizer_config.json",
        tokenizer_class="OwnTokenizer",
        auto_map={"AutoTokenizer": ["own_tokenizer.OwnTokenizer", "own_tokenizer.OwnTokenizer"]},
    )


def own_model(folder, mark):
    (folder / "own_model.py").write_text(MARK.format(mark=str(mark)) + MODEL)
    edit_json(folder / "config.json", model_type="own", auto_map=AUTO)


def own_config(folder, mark):
    """Like ``own_model``, with a config.json that names too little to be read without its code."""
    own_model(folder, mark)
    edit_json(folder / "config.json", max_position_embeddings=...)


@pytest.fixture(autouse=True)
def modules(tmp_path, monkeypatch):
    """Keep transformers' copies of the code out of the user's cache."""
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))


@pytest.mark.parametrize("code", [own_tokenizer, own_model, own_config])
def test_code_runs_only_when_it_is_trusted(checkpoint, named, tmp_path, code):
    mark = tmp_path / "mark"
    code(checkpoint, mark)
    name = named(checkpoint)
    with pytest.raises(ModelError, match=r"Python code of its own.*own_.*set trust_remote_code=true"):
        load(name)
    assert not mark.exists()
    found = load(name, trust_remote_code=True)
    assert mark.exists() and found.card.codec.encode("the cat") == [3, 5]


@pytest.mark.parametrize("code", [own_tokenizer, own_model])
def test_reward_models_too(checkpoint, named, tmp_path, code):
    start_reward_model(checkpoint, seed=0).save(tmp_path / "scores")
    code(tmp_path / "scores", tmp_path / "mark")
    name = named(tmp_path / "scores")
    with pytest.raises(ModelError, match="trust_remote_code=true"):
        load_reward_model(name)
    assert not (tmp_path / "mark").exists()
    assert load_reward_model(name, trust_remote_code=True).card.trust_remote_code
    assert load_reward_card(name, trust_remote_code=True).card.codec.encode("cat") == [5]


def test_code_beside_a_known_family_is_not_needed(checkpoint, tmp_path):
    (checkpoint / "own_model.py").write_text(MARK.format(mark=str(tmp_path / "mark")) + MODEL)
    edit_json(checkpoint / "config.json", auto_map=AUTO)
    assert type(load(checkpoint).model).__name__ == "LlamaForCausalLM"
    assert not (tmp_path / "mark").exists()


def run(command, folder):
    """Run a command with "y" on its standard input, for whoever asks."""
    return subprocess.run(
        [sys.executable, "-m", "lmrl", *command],
        input="y\n" * 50,
        text=True,
        capture_output=True,
        cwd=folder,
        env=dict(os.environ, HF_MODULES_CACHE=str(folder / "modules")),
    )


PAIR = {"prompt": "the cat", "chosen": " ran home", "rejected": " sat"}
SMALL = ("train.steps=1", "run.device=cpu", "data.path=rows.jsonl", "data.held_out=0")
COMMANDS = {
    "compare": (["compare", "own", "--prompt", "the cat", "--max-new-tokens", "3"], ["--trust-remote-code"]),
    "chat": (["chat", "own", "--max-new-tokens", "3"], ["--trust-remote-code"]),
    "sft": (["sft", "model=own", *SMALL, "data.limit=8"], ["trust_remote_code=true"]),
    "reward": (["reward", "model=own", *SMALL, "normalise.on=off"], ["trust_remote_code=true"]),
    "rl": (
        [
            "rl",
            "model=own",
            "train.updates=1",
            "prompts.name=file",
            "prompts.file.path=rows.jsonl",
            "reward.name=length",
            "reward.length.mode=linear",
            "train.prompts_per_update=4",
            "sampling.max_new_tokens=4",
            "evaluation.prompts=0",
        ],
        ["trust_remote_code=true"],
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_no_command_asks_on_standard_input(tmp_path, command):
    own_tokenizer(write_tiny_model(tmp_path / "own"), tmp_path / "mark")
    own_model(tmp_path / "own", tmp_path / "mark")
    row = PAIR if command == "reward" else {"prompt": "the cat", "completion": " ran home"}
    (tmp_path / "rows.jsonl").write_text("\n".join(json.dumps(row) for _ in range(8)))
    words, trusted = COMMANDS[command]
    refused = run(words, tmp_path)
    assert refused.returncode != 0 and "trust_remote_code=true" in refused.stderr and "[y/N]" not in refused.stdout
    assert not (tmp_path / "mark").exists()
    shutil.rmtree(tmp_path / "runs", ignore_errors=True)
    done = run([*words, *trusted], tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "mark").exists()


def test_a_trained_checkpoint_keeps_its_code(tmp_path):
    own_tokenizer(write_tiny_model(tmp_path / "own"), tmp_path / "mark")
    own_model(tmp_path / "own", tmp_path / "mark")
    found = load(tmp_path / "own", trust_remote_code=True)
    (tmp_path / "saved").mkdir()
    PolicyModel(found.model).save(tmp_path / "saved", found.card.files)
    again = load(tmp_path / "saved", trust_remote_code=True)
    assert type(again.model).__name__ == "OwnModel" and again.card.codec.encode("the cat") == [3, 5]
    with pytest.raises(ModelError, match="trust_remote_code=true"):
        load_card(tmp_path / "saved")


def calls(names):
    """Yield every call of these methods in the library and in the suites."""
    for path in sorted(path for package in (lmrl, lmrl_suites) for path in Path(package.__path__[0]).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in names:
                yield f"{path}:{node.lineno} {ast.unparse(node.func)}", node


def test_every_load_says_whether_code_is_trusted():
    found = dict(calls({"from_pretrained", "from_config"}))
    codeless = ("PeftModel", "RLTrainer")  # PEFT runs no code; a trainer's configuration says it
    ours = {place: node for place, node in found.items() if not any(name in place for name in codeless)}
    assert len(ours) >= 8
    silent = [place for place, node in ours.items() if "trust_remote_code" not in {word.arg for word in node.keywords}]
    assert not silent
    indirect = {"pipeline", "SentenceTransformer", "get_class_from_dynamic_module"}
    assert not [place for place, _ in calls(indirect)]


LOADERS = {"load_card", "load", "load_reward_card", "load_reward_model", "start_reward_model", "set_up_chat"}
FOLDERS = ("stages", "rewards", "annotators", "judges", "envs", "cli")


def test_every_stage_passes_the_setting():
    package = Path(lmrl.__path__[0])
    silent = []
    for path in [file for name in FOLDERS for file in (package / name).rglob("*.py")]:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        ours = {
            alias.name
            for node in ast.walk(tree)
            if isinstance(node, ast.ImportFrom) and str(node.module).startswith(("lmrl.models", "lmrl.text"))
            for alias in node.names
        }
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in LOADERS & ours:
                words = {word.arg for word in node.keywords} | {ast.unparse(word) for word in node.args}
                if not {"trust_remote_code", "trust"} & words:
                    silent.append(f"{path.relative_to(package)}:{node.lineno}")
    assert not silent


def test_data_sets_never_run_code():
    """``datasets`` from version 4 on has no loading scripts; older versions would ask on the terminal."""
    import datasets

    assert int(datasets.__version__.split(".")[0]) >= 4
    assert list(calls({"load_dataset"})) == []  # imported as a function, without any option that runs code
