"""The n-gram baseline is a probability, and the studies of pretraining run."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

STUDIES = Path(__file__).resolve().parents[2] / "benchmarks" / "studies"


@pytest.fixture(scope="module")
def ngrams():
    sys.path.insert(0, str(STUDIES))
    try:
        import ngrams as module
    finally:
        sys.path.remove(str(STUDIES))
    return module


@settings(max_examples=30, deadline=None)
@given(st.lists(st.sampled_from(b"abc "), max_size=60).map(bytes), st.integers(1, 4), st.binary(max_size=6))
def test_probabilities_are_a_distribution_whatever_the_context(ngrams, text, length, context):
    model = ngrams.train(text, length)
    probabilities = [model.probability(context, bytes([byte])) for byte in range(256)]
    assert min(probabilities) > 0 and math.fsum(probabilities) == pytest.approx(1, abs=1e-9)


def test_kneser_ney_by_hand(ngrams):
    # "abab": bigrams ab twice, ba once. Contexts of one byte count what was seen; b follows one byte, a follows one.
    model = ngrams.train(b"abab", 2)
    lower, upper = model.orders
    assert lower.counts == {b"a": 1, b"b": 1} and upper.counts == {b"ab": 2, b"ba": 1}
    assert upper.discount == 1 / (1 + 2 * 1) and lower.discount == 0.5  # no count of two: the usual half
    low = (1 - 0.5 + 0.5 * 2 / 256) / 2
    assert model.probability(b"", b"b") == pytest.approx(low)
    assert model.probability(b"xa", b"b") == pytest.approx((2 - 1 / 3 + 1 / 3 * low) / 2)
    assert model.bits(b"b") == pytest.approx(-math.log2(low))


def test_order_one_is_a_smoothed_count(ngrams):
    text = b"aaaabbc"
    model = ngrams.train(text, 1)
    counts = Counter(text)
    discount = model.orders[0].discount
    for byte, count in counts.items():
        expected = (count - discount + discount * 3 / 256) / 7
        assert model.probability(b"zz", bytes([byte])) == pytest.approx(expected)


@pytest.mark.parametrize("name", ["pretrain_shakespeare", "clean_web"])
def test_a_study_runs(shared, tmp_path, name):
    command = [sys.executable, str(STUDIES / f"{name}.py"), "--data", str(shared / "data"), "--smoke"]
    done = subprocess.run([*command, "--results", str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    records = [json.loads(line) for line in (tmp_path / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]
    assert (tmp_path / f"{name}.md").read_text(encoding="utf-8").startswith("|")
    if name == "pretrain_shakespeare":
        assert {record["method"].split()[0] for record in records} == {"bzip2", "xz", "Kneser-Ney", "llama"}
        assert all(0 < record["bits_per_byte"] < 8 for record in records)
    else:
        assert str(shared) not in json.dumps(records) and records[0]["documents_in"] == 2
