"""Coverage of 95% intervals, on data as evaluations have them: shares, win rates with ties, skewed KL.

Each kind of data is drawn again and again from a known distribution; the table shows the share of intervals that hold
its mean, and their mean width, for Student's t and for the interval that `lmrl eval` takes.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
from tqdm import tqdm

from lmrl.statistics.intervals import Interval, bootstrap_interval, bounded_interval, mean_interval

Draw = Callable[[np.random.Generator, int], np.ndarray]


def _signed(values: np.ndarray) -> Interval:
    return bounded_interval(values, -1, 1)


KINDS: list[tuple[str, float, Draw, Callable[[np.ndarray], Interval]]] = [
    ("share of 3%", 0.03, lambda g, n: (g.random(n) < 0.03) * 1.0, bounded_interval),
    ("share of 50%", 0.5, lambda g, n: (g.random(n) < 0.5) * 1.0, bounded_interval),
    ("reward of -1 or 1, mean 0.9", 0.9, lambda g, n: np.where(g.random(n) < 0.95, 1.0, -1.0), _signed),
    ("win rate 55%, half of it ties", 0.55, lambda g, n: g.choice([1, 0.5, 0], n, p=[0.3, 0.5, 0.2]), bounded_interval),
    ("win rate 52.5%, 95% ties", 0.525, lambda g, n: g.choice([1, 0.5, 0], n, p=[0.05, 0.95, 0]), bounded_interval),
    ("4 samples a prompt, prompts differ", 0.5, lambda g, n: g.binomial(4, g.beta(0.5, 0.5, n)) / 4, bounded_interval),
    ("KL, exponential", 2.0, lambda g, n: g.exponential(2, n), bootstrap_interval),
    ("length, log-normal", float(np.exp(0.5)), lambda g, n: g.lognormal(0, 1, n), bootstrap_interval),
]
"""Name, true mean, how it is drawn, and the interval that `lmrl eval` takes for it."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        epilog="example:\n  python benchmarks/studies/intervals.py --repetitions 2000",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--repetitions", type=int, default=2000, help="draws of each kind and size; default 2000")
    parser.add_argument("--sizes", type=int, nargs="+", default=[32, 128], help="numbers of prompts; default 32 128")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--results", default="benchmarks/results", help="folder of intervals.jsonl and intervals.md")
    parser.add_argument("--smoke", action="store_true", help="20 draws of each, to see that it runs")
    arguments = parser.parse_args()
    repetitions = 20 if arguments.smoke else arguments.repetitions
    records = []
    for name, truth, draw, interval in tqdm(KINDS, unit="kind"):
        for size in arguments.sizes:
            generator = np.random.default_rng(arguments.seed)
            found = [(mean_interval(x), interval(x)) for x in (draw(generator, size) for _ in range(repetitions))]
            for place, method in enumerate(("t", interval.__name__.strip("_").replace("signed", "bounded_interval"))):
                ours = [pair[place] for pair in found]
                records.append(
                    {
                        "data": name,
                        "prompts": size,
                        "interval": method,
                        "coverage": sum(one.low <= truth <= one.high for one in ours) / repetitions,
                        "width": float(np.mean([one.high - one.low for one in ours if np.isfinite(one.high)])),
                        "without_width": sum(one.low == one.high for one in ours) / repetitions,
                        "repetitions": repetitions,
                        "seed": arguments.seed,
                    }
                )
    folder = Path(arguments.results)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "intervals.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    (folder / "intervals.md").write_text(table(records))
    print(table(records))


def table(records: list[dict]) -> str:
    lines = ["| data | prompts | t: holds the truth | width | lmrl eval: holds the truth | width |", "|---" * 6 + "|"]
    for plain, ours in zip(records[::2], records[1::2], strict=True):
        lines.append(
            f"| {plain['data']} | {plain['prompts']} | {plain['coverage']:.1%} | {plain['width']:.3f} "
            f"| {ours['coverage']:.1%} | {ours['width']:.3f} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
