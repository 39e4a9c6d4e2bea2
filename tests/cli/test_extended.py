"""A finished run of a supervised stage is made longer on resume, as a person types it."""

import json

import pytest

from lmrl.cli.main import main
from lmrl.config import read_toml
from lmrl.reporting.metrics import read_metrics
from lmrl.testing import write_tiny_model

ROWS = [
    {"prompt": f"the {animal}", "chosen": f" {verb} .", "rejected": f" {verb} far .", "completion": f" {verb} ."}
    for animal in ("cat", "dog")
    for verb in ("ran", "sat")
]
SFT = [{"prompt": row["prompt"], "completion": row["completion"]} for row in ROWS]
PAIRS = [{key: row[key] for key in ("prompt", "chosen", "rejected")} for row in ROWS]
SIZES = ["model.layers=1", "model.hidden_size=16", "model.heads=2", "model.context_length=16", "train.rows=2"]


@pytest.fixture
def settings(tmp_path):
    """Return the settings of a stage that write a run into ``tmp_path``/run."""
    common = [f"run.folder={tmp_path / 'run'}", "run.device=cpu", "trackers=[]", "train.warmup_steps=1"]

    def of(stage):
        if stage == "pretrain":
            text = tmp_path / "text.jsonl"
            text.write_text(
                "\n".join(json.dumps({"text": f"The cat ran {n} miles to a happy home."}) for n in range(400))
            )
            corpus = [f'corpus.paths=["{text}"]', f"corpus.folder={tmp_path / 'corpus'}"]
            return [*common, *corpus, *SIZES, "tokenizer.vocabulary_size=300", "corpus.held_out=0.1"]
        file = tmp_path / "rows.jsonl"
        file.write_text("\n".join(json.dumps(row) for row in (SFT if stage == "sft" else PAIRS)))
        return [*common, f"model={write_tiny_model(tmp_path / 'model')}", f"data.path={file}", "data.held_out=0"]

    return of


@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant"])
@pytest.mark.parametrize(
    ("stage", "more"), [("sft", []), ("reward", []), ("reward", ["ensemble.members=2"]), ("pretrain", [])]
)
def test_an_extended_run_says_what_changes_and_keeps_its_length(settings, tmp_path, caplog, stage, more, schedule):
    chosen = [*settings(stage), *more, f"train.schedule={schedule}", "train.steps=3"]
    assert main([stage, "--quiet", *chosen]) == 0
    folder = tmp_path / "run"
    caplog.clear()
    with caplog.at_level("INFO", "lmrl"):
        assert main([stage, "--quiet", "--resume", str(folder), "train.steps=6"]) == 0
    metrics = folder / "member-2" if more else folder
    rates = [record["train/learning_rate"] for record in read_metrics(metrics)[1:]]
    assert len(rates) == 6
    noted = f"was {rates[2]:.3g} in step 3 and is {rates[3]:.3g} in step 4"
    assert (noted in caplog.text) == (rates[2] != rates[3]) == (schedule != "constant")
    assert read_toml(folder / "config.toml")["train"]["steps"] == 6
    assert main([stage, "--quiet", "--resume", str(folder)]) == 0
    assert "has made 6 of 6 steps" in caplog.text and len(read_metrics(metrics)) == 7


def test_epochs_of_fine_tuning_extend_a_run(settings, tmp_path, caplog, capsys):
    chosen = [*settings("sft"), "train.epochs=1", "train.examples_per_step=2"]
    assert main(["sft", "--quiet", *chosen]) == 0
    folder = tmp_path / "run"
    with caplog.at_level("INFO", "lmrl"):
        assert main(["sft", "--quiet", "--resume", str(folder), "train.epochs=2"]) == 0
    assert "train.steps was 2 and is now 4" in caplog.text and "does not read" not in caplog.text
    assert len(read_metrics(folder)) == 5
    assert main(["sft", "--quiet", "--resume", str(folder), "train.learning_rate=1"]) == 2
    assert "train.learning_rate cannot change in a resumed run" in capsys.readouterr().err
