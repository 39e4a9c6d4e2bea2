"""Pretraining as a whole: runs, resumes, what it saves, what it refuses, and the command."""

from __future__ import annotations

import itertools
import json
import math
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import torch

from lmrl.cli.main import main
from lmrl.config import build, read_toml
from lmrl.corpus import CorpusSettings, TokenizerSettings, open_corpus
from lmrl.errors import DataError, ModelError, ResumeError, SettingsError
from lmrl.models import load
from lmrl.reporting.metrics import read_metrics
from lmrl.stages.pretrain import PretrainConfig, pretrain
from lmrl.stages.pretrain.config import PretrainModelSettings, PretrainTrainSettings, SampleSettings
from lmrl.stages.pretrain.task import PretrainTask
from lmrl.stories import grammar
from lmrl.training.devices import make_accelerator
from lmrl.training.settings import CheckpointSettings, RunSettings


@pytest.fixture(scope="module")
def stories(tmp_path_factory):
    path = tmp_path_factory.mktemp("stories") / "stories.jsonl"
    generator = random.Random(0)
    texts = [grammar.story(generator, "train").text for _ in range(400)]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    return path


@pytest.fixture
def config(tmp_path, stories):
    return PretrainConfig(
        model=PretrainModelSettings(context_length=32, hidden_size=32, layers=2, heads=2),
        corpus=CorpusSettings(paths=[str(stories)], folder=str(stories.parent / "corpus"), held_out=0.1),
        tokenizer=TokenizerSettings(kind="bpe", vocabulary_size=400),
        run=RunSettings(folder=str(tmp_path / "run"), device="cpu"),
        train=PretrainTrainSettings(steps=8, rows=4, learning_rate=1e-2, warmup_steps=2, evaluate_every=4),
        samples=SampleSettings(prompts=["", "One day"], max_new_tokens=8),
        checkpoint=CheckpointSettings(every=4, keep=9),
        trackers=[],
    )


def changed(config, section, **values):
    return replace(config, **{section: replace(getattr(config, section), **values)})


def make_task(config):
    from lmrl.stages.pretrain.stage import _corpus, _model

    accelerator = make_accelerator(config.run)
    corpus = _corpus(config, accelerator, resume=False, progress=False)
    return PretrainTask(_model(config, corpus, accelerator), corpus, config, accelerator)


def test_a_run_learns_and_its_checkpoint_loads_everywhere(config):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    result = pretrain(changed(config, "train", steps=30, evaluate_every=15), progress=False)
    assert result.evaluation["loss"] < result.first_evaluation["loss"] - 0.5
    assert result.first_evaluation["loss"] == pytest.approx(math.log(400), rel=0.05)
    assert result.evaluation["bits_per_byte"] < result.first_evaluation["bits_per_byte"]
    assert result.tokens == 30 * 4 * 32 and not result.interrupted
    speeds = [record["time/tokens_per_second"] for record in read_metrics(result.folder)[1:]]
    assert min(speeds) <= result.tokens_per_second <= max(speeds) and result.mfu > 0
    records = read_metrics(result.folder)
    assert [record["step"] for record in records] == list(range(31))
    assert {"train/loss", "time/tokens_per_second", "time/mfu", "train/learning_rate"} <= records[1].keys()
    assert [record["step"] for record in records if "evaluation/loss" in record] == [0, 15, 30]
    samples = (result.folder / "samples" / "samples-000030.txt").read_text(encoding="utf-8")
    assert "One day" in samples and result.samples == [part.rstrip("\n") for part in samples.split("\n\n")]
    report = json.loads((result.folder / "corpus_report.json").read_text(encoding="utf-8"))
    assert report["documents_in"] == 400

    theirs = AutoModelForCausalLM.from_pretrained(result.folder / "checkpoint").eval()
    tokenizer = AutoTokenizer.from_pretrained(result.folder / "checkpoint")
    ours = load(result.folder)
    ids = tokenizer("One day, Rosa saw a bell.", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        assert torch.equal(theirs(input_ids=ids).logits, ours.model(input_ids=ids).logits)
    assert theirs.generation_config.eos_token_id == tokenizer.eos_token_id == ours.card.eos_ids[0]
    assert theirs.generation_config.pad_token_id == tokenizer.pad_token_id == ours.card.pad_id
    assert ours.card.context_length == 32


def test_the_logged_held_out_numbers_are_those_of_the_documents(config):
    """Document by document, after an end token, with transformers alone; the longest fits into one window."""
    result = pretrain(changed(config, "model", context_length=128), progress=False)
    model = load(result.folder).model
    stream = open_corpus(result.corpus.folder).tokens.split("held_out")
    nats = tokens = size = 0.0
    for number in range(stream.documents):
        row, length = stream.document(number)
        assert len(row) < 128
        labels = torch.tensor([[1, *row.tolist()]])
        with torch.no_grad():
            nats += float(model(input_ids=labels, labels=labels).loss) * len(row)
        tokens += len(row)
        size += length
    assert result.evaluation["loss"] == pytest.approx(nats / tokens, rel=1e-5)
    assert result.evaluation["bits_per_byte"] == pytest.approx(nats / math.log(2) / size, rel=1e-5)


def test_an_evaluation_reads_whole_documents_up_to_its_limit(config):
    task = make_task(changed(config, "train", evaluate_tokens=200))
    assert 100 < task.held_out.tokens <= 200
    everything = make_task(changed(config, "train", evaluate_tokens=0))
    stream = everything.corpus.tokens.split("held_out")
    assert (everything.held_out.tokens, everything.held_out.documents) == (len(stream), stream.documents)
    assert everything.held_out.text_bytes == stream.text_bytes
    assert make_task(changed(config, "train", evaluate_tokens=1)).held_out.documents == 1


def gradients(task, module):
    module.zero_grad()
    total = 0.0
    for part in task.microbatches(3, 0, 1):
        loss, _ = task.loss(module, part)
        loss.backward()
        total += float(loss.detach())
    return total, torch.cat([parameter.grad.flatten() for parameter in module.parameters()])


@pytest.mark.parametrize("cross_documents", [True, False])
def test_microbatches_change_no_gradient(config, cross_documents):
    whole, parts = (
        make_task(changed(config, "train", rows=5, microbatch_rows=rows, cross_documents=cross_documents))
        for rows in (5, 2)
    )
    assert [task_part.inputs.shape[0] for task_part in parts.microbatches(3, 0, 1)] == [2, 2, 1]
    loss, gradient = gradients(whole, whole.module)
    again, same = gradients(parts, whole.module)
    assert again == pytest.approx(loss, rel=1e-6)
    torch.testing.assert_close(same, gradient, rtol=1e-4, atol=1e-6)


def test_attention_does_not_cross_documents_when_told_so(config):
    task = make_task(changed(config, "train", rows=8, cross_documents=False))
    (batch,) = task.microbatches(1, 0, 1)
    with torch.no_grad():
        packed = task.module(input_ids=batch.inputs, position_ids=batch.positions, use_cache=False).logits
        checked = 0
        for row in range(len(batch.inputs)):
            begins = [*(batch.positions[row] == 0).nonzero().flatten().tolist(), batch.inputs.shape[1]]
            for begin, end in itertools.pairwise(begins):
                alone = task.module(input_ids=batch.inputs[row : row + 1, begin:end], use_cache=False).logits
                torch.testing.assert_close(packed[row, begin:end], alone[0], rtol=1e-4, atol=1e-5)
                checked += 1
    assert checked > 8


def test_documents_that_a_family_cannot_keep_apart_are_refused(config):
    apart = changed(changed(config, "train", cross_documents=False), "model", architecture="mamba")
    with pytest.raises(ModelError, match=r"mamba does not keep the documents.*train\.cross_documents"):
        pretrain(apart, progress=False)


def test_a_resumed_run_is_the_undisturbed_one_bit_for_bit(config, tmp_path):
    whole = pretrain(changed(config, "run", folder=str(tmp_path / "whole")), progress=False)
    pretrain(config, progress=False)
    for name in ("checkpoint-000008", "checkpoint"):
        path = tmp_path / "run" / name
        path.unlink() if path.is_symlink() else shutil.rmtree(path)
    resumed = pretrain(changed(config, "corpus", folder=str(whole.corpus.folder)), resume=True, progress=False)
    states = [load(result.folder).model.state_dict() for result in (whole, resumed)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    losses = [[record.get("train/loss") for record in read_metrics(result.folder)] for result in (whole, resumed)]
    assert losses[0] == losses[1] and whole.evaluation == resumed.evaluation


def test_a_changed_corpus_is_refused_on_resume(config, tmp_path, stories):
    pretrain(config, progress=False)
    other = changed(config, "corpus", folder=str(tmp_path / "other"), held_out=0.2)
    pretrain(changed(other, "run", folder=str(tmp_path / "elsewhere")), progress=False)
    with pytest.raises(ResumeError, match="the data have changed"):
        pretrain(other, resume=True, progress=False)
    with pytest.raises(DataError, match="holds no finished corpus"):
        pretrain(changed(config, "corpus", folder=str(tmp_path / "nowhere")), resume=True, progress=False)


def test_a_checkpoint_is_continued_with_its_own_tokenizer(config, tmp_path):
    first = pretrain(config, progress=False)
    more = changed(config, "model", continue_from=str(first.folder))
    more = changed(more, "corpus", folder=str(tmp_path / "corpus"))
    more = changed(more, "run", folder=str(tmp_path / "more"))
    second = pretrain(replace(more, tokenizer=TokenizerSettings()), progress=False)
    assert second.first_evaluation["loss"] == pytest.approx(first.evaluation["loss"], rel=1e-6)
    assert second.evaluation["loss"] < first.evaluation["loss"]


def test_a_real_checkpoint_is_continued(config, shared, tmp_path):
    source = shared / "data" / "models" / "stories260K-llama"
    more = changed(config, "model", continue_from=str(source), context_length=64)
    more = changed(changed(more, "corpus", folder=str(tmp_path / "corpus")), "train", steps=2, learning_rate=1e-4)
    result = pretrain(replace(more, tokenizer=TokenizerSettings()), progress=False)
    assert result.first_evaluation["loss"] < 3.5  # of ln 512 = 6.2: it knows stories
    assert "bits_per_byte" in result.evaluation and load(result.folder).card.eos_ids == (1, 2)


def test_what_does_not_belong_together_is_refused_before_a_run_exists(config, shared, tmp_path):
    source = str(shared / "data" / "models" / "stories260K-llama")
    corpus = changed(config, "corpus", folder=str(tmp_path / "corpus"))
    with pytest.raises(ModelError, match=r"context_length is 1024.*made for 512"):
        pretrain(
            replace(changed(corpus, "model", continue_from=source, context_length=1024), tokenizer=TokenizerSettings()),
            progress=False,
        )
    other = changed(corpus, "model", continue_from=source)
    gpt2 = TokenizerSettings(path=str(shared / "data" / "models" / "gpt2-tokenizer"))
    with pytest.raises(ModelError, match=r"another tokenizer than that of .*: 50\d+ of its 50257 tokens"):
        pretrain(replace(changed(other, "corpus", folder=str(tmp_path / "c2")), tokenizer=gpt2), progress=False)
    with pytest.raises(SettingsError, match=r"samples\.prompts: .* the context 32"):
        pretrain(changed(config, "samples", prompts=["word " * 40]), progress=False)
    with pytest.raises(DataError, match=r"too few for one block"):
        pretrain(changed(config, "model", context_length=100_000), progress=False)
    assert not (tmp_path / "run").exists()


def test_a_tokenizer_with_more_ids_than_its_model_has_is_refused(config, shared, tmp_path):
    from tokenizers import Tokenizer

    source = shutil.copytree(shared / "data" / "models" / "stories260K-llama", tmp_path / "grown")
    (source / "tokenizer.json").chmod(0o644)
    tokenizer = Tokenizer.from_file(str(source / "tokenizer.json"))
    tokenizer.add_tokens(["<new>"])
    tokenizer.save(str(source / "tokenizer.json"))
    grown = changed(changed(config, "model", continue_from=str(source)), "corpus", folder=str(tmp_path / "corpus"))
    with pytest.raises(ModelError, match=r"the tokenizer has 513 ids and .* 512 rows"):
        pretrain(replace(grown, tokenizer=TokenizerSettings()), progress=False)


def test_a_folder_that_holds_a_run_is_refused_before_any_preparation(config, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.toml").touch()
    with pytest.raises(SettingsError, match="already holds a run"):
        pretrain(changed(config, "corpus", folder=str(tmp_path / "corpus")), progress=False)
    (tmp_path / "a_file").touch()
    for name, message in (("a_file", "which is a file"), ("a_file/run", r"cannot be made or written to \(Not a dir")):
        with pytest.raises(SettingsError, match=message):
            pretrain(changed(config, "run", folder=str(tmp_path / name)), progress=False)
    (tmp_path / "run" / "config.toml").unlink()
    with pytest.raises(SettingsError, match=r"a_file/corpus cannot be made or written to \(Not a directory\)"):
        pretrain(changed(config, "corpus", folder=str(tmp_path / "a_file" / "corpus")), progress=False)
    assert not (tmp_path / "corpus").exists()


def test_a_model_or_tokenizer_that_is_not_there_is_refused_before_any_preparation(config, shared, tmp_path):
    corpus = changed(config, "corpus", folder=str(tmp_path / "corpus"))
    source = str(shared / "data" / "models" / "stories260K-llama")
    (tmp_path / "empty").mkdir()
    for refused, message in (
        (changed(corpus, "model", continue_from="no/such/run"), "there is no model folder no/such/run"),
        (changed(corpus, "model", continue_from=source, context_length=1024), "context_length is 1024.*made for 512"),
        (changed(corpus, "tokenizer", path=str(tmp_path / "empty")), "holds no tokenizer"),
        (changed(corpus, "tokenizer", path=source, eos_token="<end>"), "names no eos_token in its vocabulary"),
    ):
        with pytest.raises(ModelError, match=message):
            pretrain(refused, progress=False)
        assert [path.name for path in tmp_path.iterdir()] == ["empty"]


@pytest.fixture
def fresh_accelerate():
    """Precision is fixed for a process when accelerate is first used; let this test choose another."""
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.usefixtures("fresh_accelerate")
def test_autocast_trains_and_the_weights_stay_in_full_precision(config):
    half = pretrain(changed(config, "run", precision="bf16"), progress=False)
    assert half.evaluation["loss"] < half.first_evaluation["loss"]
    assert {parameter.dtype for parameter in load(half.folder).model.parameters()} == {torch.float32}


def test_a_word_level_model_speaks_proper_english_and_claims_no_bits_per_byte(config, tmp_path):
    words = replace(config, tokenizer=TokenizerSettings(kind="words", vocabulary_size=1000))
    result = pretrain(changed(words, "corpus", folder=str(tmp_path / "corpus")), progress=False)
    assert "loss" in result.evaluation
    assert ("bits_per_byte" in result.evaluation) == result.corpus.tokens.manifest["lossless"]
    codec = load(result.folder).card.codec
    text = "One day, Rosa saw a small bell in the forest."
    assert codec.decode_batch([codec.encode(text)]) == [text]


STEPS = 250
RECIPE = """
trackers = []

[model]
context_length = 32
hidden_size = 32
layers = 1
heads = 2

[model.config]
num_key_value_heads = 1

[corpus]
paths = ["{paths}"]
held_out = 0.1

[tokenizer]
kind = "words"

[run]
folder = "run"
device = "cpu"

[train]
steps = {steps}
rows = 2
evaluate_every = 0

[samples]
max_new_tokens = 5
"""


def command(*arguments, cwd):
    return subprocess.Popen(
        [sys.executable, "-m", "lmrl.cli.main", "pretrain", *arguments],
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_the_command_runs_is_stopped_and_goes_on(tmp_path, stories):
    (tmp_path / "recipe.toml").write_text(RECIPE.format(paths=stories, steps=STEPS), encoding="utf-8")
    process = command("recipe.toml", cwd=tmp_path)
    metrics = tmp_path / "run" / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not (metrics.exists() and len(read_metrics(tmp_path / "run")) > 5):
        assert time.monotonic() < deadline and process.poll() is None, process.communicate()
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    out, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "lmrl pretrain --resume run" in out and "Documents" in out and "nats per token" in out
    assert read_metrics(tmp_path / "run")[-1]["step"] < STEPS
    process = command("--resume", "run", "--quiet", cwd=tmp_path)
    out, errors = process.communicate(timeout=120)
    assert process.returncode == 0 and "Sample" in out and not errors.strip(), errors
    assert " per second, MFU " in out and "(peak: measured on this cpu" in out
    assert [record["step"] for record in read_metrics(tmp_path / "run")] == list(range(STEPS + 1))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["corpus.paths=['text.jsonl']"], "error: text.jsonl, row 1: unknown column 'text'; did you mean 'txt'?"),
        ([], "error: corpus.paths is empty"),
        (["model.architecture=lama"], "did you mean 'llama'?"),
        (["clean.qality=true"], "did you mean 'clean.quality'?"),
        (["--resume", "."], "holds no config.toml"),
    ],
)
def test_the_commands_errors_are_one_paragraph(tmp_path, monkeypatch, capsys, arguments, message):
    (tmp_path / "text.jsonl").write_text('{"txt": "a"}\n', encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    assert main(["pretrain", "--quiet", *arguments]) == 2
    assert message in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["text.jsonl"]


RANK_SCRIPT = """
import json, sys
import torch
torch.set_num_threads(1)
from lmrl.config import build, read_toml
from lmrl.stages.pretrain.stage import pretrain
from lmrl.stages.pretrain.config import PretrainConfig
result = pretrain(build(PretrainConfig, read_toml(sys.argv[1])), progress=False)
from accelerate import PartialState
if PartialState().is_main_process:
    print("RESULT" + json.dumps(result.evaluation))
PartialState().destroy_process_group()
"""


@pytest.mark.slow
def test_two_processes_train_as_one(tmp_path, stories, monkeypatch):
    recipe = RECIPE.format(paths=stories, steps=4).replace('kind = "words"', "vocabulary_size = 300")
    (tmp_path / "recipe.toml").write_text(recipe, encoding="utf-8")
    (tmp_path / "rank.py").write_text(RANK_SCRIPT, encoding="utf-8")
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = str(listener.getsockname()[1])
    processes = []
    for rank in range(2):
        place = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
        place |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
        processes.append(
            subprocess.Popen(
                [sys.executable, "rank.py", "recipe.toml"],
                cwd=tmp_path,
                env=os.environ | place,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    outputs = [process.communicate(timeout=240) for process in processes]
    assert all(process.returncode == 0 for process in processes), outputs[0][1][-3000:]
    evaluation = json.loads(outputs[0][0].rpartition("RESULT")[2])
    losses_of_two = [record.get("train/loss") for record in read_metrics(tmp_path / "run")]

    (tmp_path / "alone").mkdir()
    monkeypatch.chdir(tmp_path / "alone")
    one = pretrain(build(PretrainConfig, read_toml("../recipe.toml")), progress=False)
    losses = [record.get("train/loss") for record in read_metrics(one.folder)]
    assert evaluation["loss"] == pytest.approx(one.evaluation["loss"], abs=1e-4)
    assert losses_of_two[1:] == pytest.approx(losses[1:], abs=1e-4)
