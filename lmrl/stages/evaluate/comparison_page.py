"""A side-by-side table as Markdown and as a part of an HTML page."""

from __future__ import annotations

import re

from lmrl.reporting.pages import Cell, Page
from lmrl.stages.evaluate.comparison import Answer, SideBySide


def to_markdown(table: SideBySide, title: str = "Side by side") -> str:
    """Return the table as Markdown that GitHub and others show as it was written: nothing in a text is markup."""
    head = ["prompt", *(column.heading for column in table.columns)]
    lines = [f"# {markdown_text(title)}", "", _row(head), _row(["---"] * len(head), escape=False)]
    for prompt, answers in zip(table.prompts, table.answers, strict=True):
        cells = [markdown_text(prompt)]
        for answer in answers:
            note = answer_note(answer)
            cells.append(markdown_text(answer.text.strip()) + (f"<br>*{note}*" if note else ""))
        lines.append(_row(cells, escape=False))
    if table.reward or table.reference:
        means = [means_note(table, column) for column in range(len(table.columns))]
        lines.append(_row(["**mean**", *(f"**{mean}**" if mean else "" for mean in means)], escape=False))
    lines += ["", *(f"* {markdown_text(line)}" for line in settings_lines(table)), ""]
    return "\n".join(lines)


def to_page(table: SideBySide, title: str = "Side by side") -> Page:
    """Return an HTML page of the table alone."""
    page = Page(title)
    add_to_page(page, table)
    return page


def add_to_page(page: Page, table: SideBySide, caption: str = "") -> None:
    """Add the table and the settings that it was made with to a page."""
    rows: list[list[Cell | str]] = []
    for prompt, answers in zip(table.prompts, table.answers, strict=True):
        rows.append([prompt, *(Cell(answer.text.strip(), answer_note(answer)) for answer in answers)])
    if table.reward or table.reference:
        means = [Cell(means_note(table, column), strong=True) for column in range(len(table.columns))]
        rows.append([Cell("mean", strong=True), *means])
    page.add_table(["prompt", *(column.heading for column in table.columns)], rows, caption)
    page.add_text("\n\n".join(settings_lines(table)))


def answer_note(answer: Answer) -> str:
    """Return what stands below an answer: its reward and KL where they were asked for, and whether it was cut off."""
    parts = [] if answer.reward is None else [f"reward {signed(answer.reward)}"]
    parts += [] if answer.kl is None else [f"KL {round(answer.kl, 1) + 0.0:.1f}"]
    if not answer.text.strip():
        parts.append("empty answer")
    if not answer.ended:
        parts.append(f"cut off at {answer.tokens} tokens")
    return " · ".join(parts)


def means_note(table: SideBySide, column: int) -> str:
    """Return a model's mean reward and mean KL over the prompts, as far as they were measured."""
    reward, kl = table.mean(column, "reward"), table.mean(column, "kl")
    parts = [] if reward is None else [f"reward {signed(reward)}"]
    return " · ".join(parts + ([] if kl is None else [f"KL {round(kl, 1) + 0.0:.1f}"]))


def settings_lines(table: SideBySide) -> list[str]:
    """Return how the answers were made, a sentence per line."""
    sampling = table.sampling
    how = "greedy" if sampling.temperature == 0 else f"temperature {sampling.temperature:g}, seed {table.seed}"
    filters = [
        f"{name} {value:g}"
        for name, value, off in (
            ("top-k", sampling.top_k, 0),
            ("top-p", sampling.top_p, 1),
            ("min-p", sampling.min_p, 0),
        )
        if value != off
    ]
    lines = ["Sampling: " + ", ".join([how, *filters, f"at most {sampling.max_new_tokens} tokens"])]
    if table.system:
        lines.append(f"System prompt: {table.system}")
    if table.reward:
        lines.append(f"Reward: {table.reward}")
    if table.reference:
        lines.append(f"KL: log pi - log pi_ref in nats, summed over the answer; the reference is {table.reference}")
    return lines + [f"Note: {note}" for note in table.notes]


def signed(value: float) -> str:
    """Return a reward as text, with its sign."""
    return f"{round(value, 2) + 0.0:+.2f}"


def markdown_text(text: str) -> str:
    """Return text that Markdown shows as it is, on one line of a table.

    >>> markdown_text("a | <b>\\n*c*")
    'a \\\\| &lt;b&gt;<br>\\\\*c\\\\*'
    """
    text = text.replace("\r\n", "\n").replace("\r", "\n").replace("&", "&amp;").replace("<", "&lt;")
    text = text.replace(">", "&gt;")
    text = re.sub(r"([\\`*_{}\[\]()#!|~$])", r"\\\1", text)
    return text.replace("\n", "<br>")


def _row(cells: list[str], escape: bool = True) -> str:
    return "| " + " | ".join(markdown_text(cell) if escape else cell for cell in cells) + " |"
