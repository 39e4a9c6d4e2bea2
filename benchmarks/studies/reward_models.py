"""Reward models on real preferences: N-way against pairs, beside the longer answer and a bag of words.

For each seed a share of the prompts is held out, and every method learns from the same others: the whole rankings by
Plackett-Luce, all their pairs by Bradley-Terry, and one pair of each ranking (as many rows computed in all), each with
a new head on the same language model; and logistic regression on differences of word counts, its penalty chosen by
cross-validation over prompts. Accuracies are pooled over the seeds, with 95% intervals over prompts.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import subprocess
import tempfile
import time
from dataclasses import dataclass, field, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from lmrl.cli.tables import make_console, make_table
from lmrl.config import build
from lmrl.data import Ranking, RankingSet, load_rankings
from lmrl.data.conversations import opening
from lmrl.models.reward_model import load_reward_model
from lmrl.stages.reward import reward
from lmrl.stages.reward_config import RewardConfig
from lmrl.stages.reward_data import RankedRows, encode_rankings
from lmrl.stages.reward_measures import HeldOut, clustered_share
from lmrl.statistics import Interval, bootstrap_interval

FILES = {"HH-RLHF harmless": "hh_harmless_base_test.jsonl.gz", "OASST replies": "oasst_en_100_tree.jsonl"}
MODEL = "models/stories260K-llama"
EPOCHS = {"HH-RLHF harmless": 1, "OASST replies": 3}
RATES = {"HH-RLHF harmless": 1e-3, "OASST replies": 3e-4}
"""Chosen by the held-out log loss of the split with seed 100, which the table does not use."""
LOSSES = {"all pairs": "bradley_terry", "N-way": "plackett_luce", "one pair each": "bradley_terry"}
BASELINES = ("the longer one", "bag of words")
PENALTIES = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3)


@dataclass
class Pooled:
    """What one method got right, over all seeds: a value and the number of its prompt for each pair."""

    right: list[np.ndarray] = field(default_factory=list)
    clusters: list[np.ndarray] = field(default_factory=list)

    def accuracy(self) -> Interval:
        return clustered_share(np.concatenate(self.right), np.concatenate(self.clusters))

    def sums(self, weights: bool = False) -> np.ndarray:
        right, clusters = np.concatenate(self.right), np.concatenate(self.clusters)
        return np.bincount(clusters, weights=None if weights else right).astype(float)


def main(arguments: list[str] | None = None) -> None:
    """Train, measure, record and show."""
    options = parse(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    around = circumstances(options)
    records: list[dict[str, Any]] = []
    tables = []
    with tempfile.TemporaryDirectory() as folder:
        for name in options.only or FILES:
            found = load_rankings(options.data / "preference" / FILES[name])
            if options.smoke:
                found = found.select(range(min(len(found), 60)))
            lines = study(name, found, options, Path(folder))
            chosen = {"epochs": options.epochs or EPOCHS[name], "learning_rate": options.learning_rate or RATES[name]}
            records += [{**line, **chosen, **around} for line in lines]
            tables.append(markdown(name, found, lines))
            make_console().print(terminal_table(name, lines))
    options.output.parent.mkdir(parents=True, exist_ok=True)
    with options.output.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(record) + "\n" for record in records)
    options.output.with_suffix(".md").write_text("\n".join(tables), encoding="utf-8")
    print(f"written to {options.output} and {options.output.with_suffix('.md').name}")


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="Example: python benchmarks/studies/reward_models.py --data ../shared/data",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--data", type=Path, required=True, help="folder with preference/ and models/")
    parser.add_argument(
        "--only", choices=list(FILES), action="append", help="leave out the other data; may be repeated"
    )
    parser.add_argument("--seeds", type=int, default=3, help="held-out splits, new heads and orders (default: 3)")
    parser.add_argument("--first-seed", type=int, default=0, help="the first of them (default: 0)")
    parser.add_argument("--epochs", type=float, help="passes over the rankings (default: HH 1, OASST 3)")
    parser.add_argument("--learning-rate", type=float, help="peak learning rate (default: HH 1e-3, OASST 3e-4)")
    parser.add_argument("--max-tokens", type=int, default=256, help="rows lose their beginning beyond (default: 256)")
    parser.add_argument("--threads", type=int, help="threads of torch")
    parser.add_argument("--smoke", action="store_true", help="a few rankings and steps, to see that everything works")
    parser.add_argument(
        "--output", type=Path, default=Path("benchmarks/results/reward_models.jsonl"), help="JSON lines; .md beside it"
    )
    return parser.parse_args(arguments)


def study(name: str, found: RankingSet, options: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """Return a record for each method and seed, and one for each method over all seeds."""
    # Of pairs alone, all ways of taking them are one.
    wide = max(len(ranking.completions) for ranking in found.rankings) > 2
    arms = list(LOSSES) if wide else ["all pairs"]
    pooled = {method: Pooled() for method in (*arms, *BASELINES)}
    numbers: dict[str, int] = {}
    lines: list[dict[str, Any]] = []
    seeds = 2 if options.smoke else options.seeds
    with tqdm(total=seeds * (len(arms) + 1), desc=name, unit="model") as bar:
        for seed in range(options.first_seed, options.first_seed + seeds):
            for arm in arms:
                began = time.perf_counter()
                run = train(arm, name, found, seed, options, folder / f"{name}-{arm}-{seed}".replace(" ", "-"))
                model = load_reward_model(run)
                training, test = found.split(held_out_share(name), seed)
                held_out = encode_rankings(test.rankings, model.card, "truncate", options.max_tokens).items
                scores = model.score_rows([row for item in held_out for row in item.rows], normalised=False)
                scored = HeldOut.of(held_out, list(scores.split([len(item.rows) for item in held_out])))
                lines.append(line_of(name, arm, seed, scored, time.perf_counter() - began))
                add(pooled[arm], scored.gaps, scored, numbers)
                bar.update()
            words = HeldOut.of(held_out, bag_of_words(training.rankings, held_out))
            lines.append(line_of(name, "bag of words", seed, words, 0.0))
            add(pooled["bag of words"], words.gaps, words, numbers)
            add(pooled["the longer one"], scored.better_lengths - scored.worse_lengths, scored, numbers)
            bar.update()
    for method, results in pooled.items():
        lines.append({"data": name, "method": method, "seed": "all", **interval("accuracy", results.accuracy())})
    for arm, other in (("N-way", "all pairs"), ("N-way", "one pair each"), ("all pairs", "bag of words")):
        if arm in pooled and other in pooled:
            change = pooled[arm].sums() - pooled[other].sums()
            found_change = bootstrap_interval(change, pooled[arm].sums(weights=True))
            lines.append(
                {"data": name, "method": f"{arm} - {other}", "seed": "all", **interval("accuracy", found_change)}
            )
    return lines


def train(arm: str, name: str, found: RankingSet, seed: int, options: argparse.Namespace, folder: Path) -> Path:
    """Train one reward model and return its run's folder."""
    per_step = 16 if name.startswith("HH") else 8
    training = found.split(held_out_share(name), seed)[0]
    epochs = options.epochs or EPOCHS[name]
    steps = 3 if options.smoke else max(1, round(epochs * len(training) / per_step))
    if arm == "one pair each":
        # The same number of rows in all: a pair has fewer than a ranking, so a step takes more of them.
        rows = sum(len(ranking.completions) for ranking in training.rankings)
        per_step = round(per_step * rows / (2 * len(training)))
        found = replace(found, rankings=[one_pair(ranking, seed) for ranking in found.rankings])
    table = {
        "model": str(options.data / MODEL),
        "run": {"folder": str(folder), "seed": seed},
        "data": {"held_out": held_out_share(name), "too_long": "truncate", "template": "plain"}
        | {"max_tokens": options.max_tokens},
        "objective": {"loss": LOSSES[arm], "centring": 0.01},
        "train": {"steps": steps, "rankings_per_step": per_step, "learning_rate": options.learning_rate or RATES[name]}
        | {"warmup_steps": max(1, steps // 10), "evaluate_every": 0, "weight_decay": 0.1},
        "normalise": {"on": "off"},
        "checkpoint": {"every": 0},
        "trackers": [],
    }
    return reward(build(RewardConfig, table), rankings=found, progress=False).folder


def one_pair(ranking: Ranking, seed: int) -> Ranking:
    """Return a ranking of two of the answers, drawn from those that differ in rank."""
    pair = random.Random(f"{seed} {opening(ranking.prompt)} {ranking.completions}").choice(ranking.pairs())
    return replace(ranking, completions=tuple(ranking.completions[i] for i in pair), ranks=(0, 1), scores=())


def held_out_share(name: str) -> float:
    """Return the share of the prompts that each seed holds out."""
    return 0.2 if name.startswith("HH") else 0.3


def bag_of_words(training: list[Ranking], held_out: list[RankedRows]) -> list[np.ndarray]:
    """Return scores of the held-out answers: a linear function of log word counts, fitted to the training pairs."""
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GroupKFold, cross_val_score

    counter = CountVectorizer(min_df=2, token_pattern=r"(?u)\b\w+\b|[?!]")
    counter.fit(text for ranking in training for text in texts(ranking))
    differences, groups = [], []
    for ranking in training:
        counts = counter.transform(texts(ranking)).log1p().tocsr()
        for better, worse in ranking.pairs():
            differences.append(counts[better] - counts[worse])
            groups.append(opening(ranking.prompt))
    from scipy.sparse import vstack

    rows = vstack(differences).tocsr()
    # Each pair both ways round, so that classes are balanced and no intercept is needed.
    rows, labels = vstack([rows, -rows]).tocsr(), np.repeat([1, 0], rows.shape[0])
    folds = GroupKFold(min(5, len(set(groups))))
    fits = [LogisticRegression(C=penalty, fit_intercept=False, max_iter=1000) for penalty in PENALTIES]
    quality = [
        cross_val_score(fit, rows, labels, groups=groups * 2, cv=folds, scoring="neg_log_loss").mean() for fit in fits
    ]
    best = fits[int(np.argmax(quality))].fit(rows, labels)
    return [counter.transform(texts(item.ranking)).log1p() @ best.coef_[0] for item in held_out]


def texts(ranking: Ranking) -> list[str]:
    """Return the answers as texts; several turns as one."""
    answers = ranking.completions
    return [text if isinstance(text, str) else "\n".join(turn["content"] for turn in text) for text in answers]


def add(pooled: Pooled, gaps: np.ndarray, scored: HeldOut, numbers: dict[str, int]) -> None:
    """Add a seed's pairs, with prompts numbered alike over the seeds."""
    names = dict.fromkeys(opening(item.ranking.prompt) for item in scored.items)
    own = np.array([numbers.setdefault(name, len(numbers)) for name in names])
    pooled.right.append((np.sign(gaps) + 1) / 2)
    pooled.clusters.append(own[scored.clusters])


def line_of(name: str, method: str, seed: int, scored: HeldOut, seconds: float) -> dict[str, Any]:
    """Return one seed's numbers."""
    report = scored.report()
    numbers = {"pairs": report.pairs, "rankings": report.rankings, "prompts": report.prompts}
    numbers |= {"log_loss": report.log_loss, "calibration_error": report.calibration_error}
    numbers |= {"spearman_length": report.score_length_spearman, "seconds": seconds}
    if report.n_way:
        numbers |= {
            "kendall_tau": report.kendall_tau.mean,
            "top_1": report.top_1.mean,
            "top_1_chance": report.top_1_chance,
        }
    shorter = report.accuracy_where_shorter_is_better.mean
    return (
        {"data": name, "method": method, "seed": seed, **interval("accuracy", report.accuracy)}
        | numbers
        | {"accuracy_where_shorter_is_better": shorter}
    )


def interval(name: str, found: Interval) -> dict[str, float]:
    """Return an interval as JSON keeps it."""
    return {name: found.mean, f"{name}_low": found.low, f"{name}_high": found.high, "units": found.count}


def rows_of(lines: list[dict[str, Any]]) -> list[list[str]]:
    """Return the cells of the summary, best known things first."""
    rows = [["a constant", "0.500", "", "", "0.693", ""]]
    order = [*BASELINES, *LOSSES]
    summaries = [line for line in lines if line["seed"] == "all"]
    for line in sorted(summaries, key=lambda line: order.index(line["method"]) if line["method"] in order else 99):
        each = [one for one in lines if one["method"] == line["method"] and one["seed"] != "all"]
        accuracy = f"{line['accuracy']:.3f} [{line['accuracy_low']:.3f}, {line['accuracy_high']:.3f}]"
        if " - " in line["method"]:
            rows.append([line["method"], f"{'+' if line['accuracy'] >= 0 else ''}{accuracy}", *[""] * 4])
            continue
        means = [mean(each, key) for key in MEANS]
        shown = line["method"] if line["method"] in BASELINES else f"reward model, {line['method']}"
        rows.append([shown, accuracy, *means])
    return rows


MEANS = ("accuracy_where_shorter_is_better", "kendall_tau", "log_loss", "calibration_error")
HEAD = ["", "accuracy on pairs", "where the better is shorter", "Kendall's tau", "log loss", "calibration error"]


def mean(lines: list[dict[str, Any]], key: str) -> str:
    """Return the mean over seeds as text."""
    values = [line[key] for line in lines if key in line]
    return f"{np.mean(values):.3f}" if values else ""


def markdown(name: str, found: RankingSet, lines: list[dict[str, Any]]) -> str:
    """Return the table for the documentation."""
    seeds = len({line["seed"] for line in lines}) - 1
    sizes = [line["rankings"] for line in lines if line["method"] == "bag of words" and line["seed"] != "all"]
    caption = f"{name}: {len(found)} rankings; {seeds} seeds, each with about {sizes[0]} of them held out."
    cells = [HEAD, ["---"] * len(HEAD), *rows_of(lines)]
    return caption + "\n\n" + "\n".join("| " + " | ".join(row) + " |" for row in cells) + "\n"


def terminal_table(name: str, lines: list[dict[str, Any]]) -> Any:
    """Return the same for the terminal."""
    table = make_table(HEAD)
    table.title = f"{name} [95% interval over prompts]"
    for row in rows_of(lines):
        table.add_row(*row)
    return table


def circumstances(options: argparse.Namespace) -> dict[str, Any]:
    """Return what a number means nothing without."""
    command = ["git", "rev-parse", "--short=12", "HEAD"]
    try:
        commit = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        commit = "unknown"
    versions = {name: metadata.version(name) for name in ("lmrl", "torch", "transformers", "scikit-learn", "numpy")}
    return {
        "smoke": options.smoke,
        "max_tokens": options.max_tokens,
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "versions": versions,
        "commit": commit.strip(),
    }


if __name__ == "__main__":
    main()
