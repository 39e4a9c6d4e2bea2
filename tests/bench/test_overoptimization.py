"""The kind `overoptimization`: a proxy is trained once per seed, and gold and proxy are measured together."""

from __future__ import annotations

import numpy as np
import pytest

from lmrl.bench.records import read_records
from lmrl.bench.report import write_report
from lmrl.bench.running import plan, run_suite
from lmrl.bench.suite import load_suite
from lmrl.errors import SettingsError
from lmrl.plugins import PluginManager
from lmrl_suites.kinds.overoptimization import _best_of_curve, _ends


@pytest.fixture(scope="module")
def plugins():
    return PluginManager()


def small(plugins, tasks=("mean_of_4", "worst_of_4")):
    suite = load_suite("overoptimization", plugins, smoke=True, changes={"only": list(tasks)})
    proxy = {"model": "small", "pairs": 40, "members": 2, "settings": {"train": {"steps": 3}}}
    chosen = {}
    for name in tasks:
        aggregation = suite.tasks[name]["proxy"]["aggregation"]
        chosen[name] = {**suite.tasks[name], "best_of": 4, "proxy": {**proxy, "aggregation": aggregation}}
    models = {"small": {**suite.models["small"], "steps": 3}}
    changes = {"tasks": chosen, "models": models, "budget": {"amount": 2}, "only": list(tasks), "seeds": 1}
    return load_suite("overoptimization", plugins, smoke=True, changes=changes)


@pytest.mark.slow
def test_a_run_measures_gold_and_proxy_and_members_are_trained_once(plugins, tmp_path):
    suite = small(plugins)
    output = tmp_path / "over.jsonl"
    records = run_suite(suite, output, plugins=plugins, progress=False)
    assert [record.error for record in records] == [""] * 4
    assert len(list((tmp_path / "proxies").glob("*/held_out_accuracy.json"))) == 1
    for record in records:
        assert set(record.curve) == {"update", "gold", "proxy", "kl"}
        assert record.metrics["best_gold"] - record.metrics["gold"] == pytest.approx(record.metrics["lost"])
        assert record.score == pytest.approx((record.metrics["gold"] + 1) / 3)
    best = next(record for record in records if record.optimizer == "best_of_n")
    assert best.curve["update"] == [1, 2, 4]
    assert best.curve["proxy"] == sorted(best.curve["proxy"]), "the proxy's best of more is never less"
    trained = next(record for record in records if record.optimizer == "rloo")
    assert trained.curve["kl"][0] == pytest.approx(0, abs=1e-4)
    page, text = write_report({suite.name: read_records(output)}, tmp_path / "report", plugins)
    assert "gold and proxy against KL" in page.read_text(encoding="utf-8")
    assert "gold reward at the end" in text.read_text(encoding="utf-8")


def test_what_is_wrong_is_said_before_anything_runs(plugins):
    suite = small(plugins, tasks=("mean_of_4",))
    suite.tasks["mean_of_4"]["proxy"]["aggregation"] = "meen"
    with pytest.raises(SettingsError, match="aggregation"):
        plan(suite, plugins)
    suite.tasks["mean_of_4"]["proxy"]["aggregation"] = "mean"
    suite.tasks["mean_of_4"]["proxy"]["settings"] = {"train": {"stepz": 3}}
    with pytest.raises(SettingsError, match=r"did you mean 'proxy\.settings\.train\.steps'"):
        plan(suite, plugins)
    suite.tasks["mean_of_4"]["gold"] = "god_story"
    with pytest.raises(SettingsError, match="good_story"):
        plan(suite, plugins)


def test_the_best_of_a_curve_is_what_was_lost():
    curve = {"update": [0, 1, 2], "gold": [0.1, 0.9, 0.4], "proxy": [0.0, 1.0, 2.0], "kl": [0.0, 1.0, 4.0]}
    ends = _ends(curve)
    assert (ends["gold"], ends["best_gold"], ends["lost"], ends["kl"]) == (0.4, 0.9, pytest.approx(0.5), 4.0)


def test_best_of_n_is_chosen_by_the_proxy_and_valued_by_the_gold(monkeypatch):
    from lmrl_suites import offline

    proxies, golds = [0.0, 1.0, 2.0, 3.0], [5.0, 1.0, 1.0, -3.0]
    parts = {"learned": proxies * 2, "good_story": golds * 2}
    monkeypatch.setattr(offline, "judged_samples", lambda *_: parts)
    curve = _best_of_curve(None, None, 4, "good_story", None)
    assert curve["gold"][0] == np.mean(golds) and curve["gold"][-1] == -3.0 and curve["proxy"][-1] == 3.0
    # Of two, the better by the proxy: each pair of the four is as likely.
    pairs = [golds[max(i, j)] for i in range(4) for j in range(i)]
    assert curve["gold"][1] == pytest.approx(np.mean(pairs))
