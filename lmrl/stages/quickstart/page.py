"""The quickstart's one page: the table of base, SFT and RLHF, their answers side by side, and every stage's curves."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lmrl.reporting.metrics import read_metrics
from lmrl.reporting.pages import Page
from lmrl.reporting.plots import PLOT_FILE, plot_run
from lmrl.stages.evaluate.comparison_page import add_to_page
from lmrl.stages.evaluate.report import add_table
from lmrl.stages.quickstart.recipes import STAGES, chat_commands

PAGE_FILE = "report.html"
WHAT: Mapping[str, str] = {
    "pretrain": "A small Llama reads stories from a grammar, from scratch: the base model. It continues texts and has "
    "never been asked anything.",
    "sft": "Fine-tuned on requests and answers in a chat template, with the loss on the answers alone: SFT.",
    "prefer": "The SFT model answers each request several times. A reader whose taste is known (a happy end, and the "
    "hero, object and place that were asked for) ranks the answers; ties are allowed.",
    "reward": "A scalar head on the SFT model learns the rankings by the Plackett-Luce likelihood.",
    "rl": "PPO maximises the learned reward minus beta times the KL to the SFT model: RLHF. The reader's own taste is "
    "not seen here.",
    "eval": "Held-out requests, which share no combination of hero, object and place with training.",
}


def write_page(folder: Path, results: Mapping[str, Any]) -> Path:
    """Write the page into the quickstart's folder and return its path."""
    page = Page("From raw text to a model that tells stories as asked")
    evaluation = results["eval"]
    page.add_text(
        "good_story is the reader's own score, which labelled the preferences and judges here: -1 to 2. The other "
        "reward is the learned one, which RL maximised. best-of-N takes, of N answers of the SFT model, the one that "
        "the learned reward likes best."
    )
    add_table(page, evaluation)
    page.add_heading("The same requests, answered side by side")
    add_to_page(page, evaluation.samples)
    for number, stage in enumerate(STAGES[:-1], start=1):
        page.add_heading(f"{number}. lmrl {stage}")
        page.add_text(WHAT[stage])
        table = evaluations_table(folder / stage)
        if table:
            page.add_table(["held out", "first", "last"], table)
        if stage == "rl":
            plot_run(folder / stage)
        for plot in sorted((folder / stage).glob("*.png"), key=lambda path: (path.name != PLOT_FILE, path.name)):
            page.add_image(plot, plot.stem.replace("_", " "))
        page.add_commands([f"lmrl {stage} {folder}/recipes/{stage}.toml run.folder=runs/{stage}-again"])
    page.add_heading(f"{len(STAGES)}. lmrl eval")
    page.add_text(WHAT["eval"])
    for plot in sorted((folder / "eval").glob("*.png")):
        page.add_image(plot, plot.stem.replace("_", " "))
    page.add_heading("Go on")
    page.add_commands(chat_commands(folder))
    return page.write(folder / PAGE_FILE)


def evaluations_table(run_folder: Path) -> list[tuple[str, float, float]]:
    """Return (name, first value, last value) of what a run measured on held-out data; empty if it measured nothing."""
    found = [
        {name.removeprefix("evaluation/"): value for name, value in record.items() if name.startswith("evaluation/")}
        for record in read_metrics(run_folder)
    ]
    found = [numbers for numbers in found if numbers]
    if not found:
        return []
    first, last = found[0], found[-1]
    return [(name.replace("_", " "), first[name], last[name]) for name in last if name in first]
