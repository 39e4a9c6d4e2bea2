"""What a run prints at its end: samples stay whole in a pipe, and nothing of the markup shows."""

from types import SimpleNamespace

from lmrl.cli.report import print_result
from lmrl.reporting import plots
from lmrl.statistics.intervals import Interval


def test_samples_hang_below_their_reward(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(plots, "plot_run", lambda folder: folder / "curves.png")
    monkeypatch.setenv("COLUMNS", "80")
    text = "[bold] One day, Tom saw a red ball in the park, and the ball was so red that he laughed.\nHe went home."
    interval = Interval(1.0, 0.5, 1.5, 1)
    evaluation = SimpleNamespace(
        reward=interval, kl=interval, length=interval, ended_share=1.0, texts=[text], shown_rewards=[1.0]
    )
    result = SimpleNamespace(interrupted=False, before=evaluation, after=evaluation, folder=tmp_path)
    print_result(result)
    lines = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    first, second = text.split("\n")
    for name in ("before", "after"):
        at = lines.index(f"Samples {name} (same prompts)")
        assert lines[at + 1 : at + 3] == [f"  [+1.00] {first}", f"          {second}"]
