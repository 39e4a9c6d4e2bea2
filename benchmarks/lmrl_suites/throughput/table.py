"""The suite's records as a table: rates, ratios to the baseline, utilisation, and the targets beside them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

COLUMNS = ("workload", "model", "lengths", "groups", "side", "per second (least to greatest)", "times the baseline",
           "target", "of the matmul peak")  # fmt: skip
TARGETS: dict[tuple[str, str, str], float] = {
    **{("sampling", "full", size): target for size, target in (("1M", 2.5), ("10M", 1.7), ("60M", 1.5))},
    **{("sampling", "varying", size): target for size, target in (("1M", 5.0), ("10M", 4.5), ("60M", 4.0))},
    **{("update", "full", size): 1.35 for size in ("1M", "10M", "60M")},
    **{("update", "varying", size): target for size, target in (("1M", 2.5), ("10M", 3.3), ("60M", 4.0))},
    **{("episodes", "full", size): target for size, target in (("1M", 3.0), ("10M", 3.0), ("60M", 2.0))},
    **{("episodes", "varying", size): 4.0 for size in ("1M", "10M", "60M")},
    **{("episodes", lengths, size): 2.0 for lengths in ("full", "varying") for size in ("125M", "1B")},
}
"""Targets of lmrl, in times the baseline: ``generate``, the padded update, TRL's GRPO trainer."""
OF_OVERHEAD = 1 / 3
"""A vector step of the environment may cost three times Gymnasium's own overhead."""


def target_of(record: Mapping[str, Any]) -> float | None:
    """Return the ratio that a record is to reach, if it has one."""
    if record["side"] != "lmrl":
        return None
    if record["workload"] == "environment":
        return OF_OVERHEAD if str(record.get("baseline")).startswith("SyncVectorEnv") else None
    if record["workload"] == "episodes" and record.get("baseline") != "trl_grpo":
        return None
    return TARGETS.get((record["workload"], record["lengths"], record["model"]))


def rows_of(records: Iterable[Mapping[str, Any]]) -> Iterator[tuple[str, ...]]:
    """Yield the table's cells, one row per record."""
    for record in records:
        name = " ".join(part for part in (record["workload"], record["algorithm"], record.get("variant")) if part)
        head = (name, record["model"], record["lengths"], str(record["group_size"]), record["side"])
        yield (*head, *_measures(record))


def _measures(record: Mapping[str, Any]) -> tuple[str, str, str, str]:
    skipped = record.get("skipped", {}).get(record["side"])
    if skipped:
        return f"skipped: {skipped}", "", "", ""
    if record["workload"] == "memory":
        share = record.get("lmrl_share")
        of_it = f"lmrl uses {share:.2f} of it" if share is not None else ""
        return f"{record['peak_bytes'] / 2**20:,.0f} MiB at the peak", of_it, "", ""
    if record["workload"] == "learning":
        ends = ", ".join(f"{end:.3f}" for end in record["last"])
        return f"reward {record['first']:.3f} to {record['last_mean']:.3f} ({ends})", "", "", ""
    rate, ratio, target = record["rate"], record["ratio"], target_of(record)
    return (
        f"{rate['median']:,.1f} {record['unit']} ({rate['min']:,.1f} to {rate['max']:,.1f})",
        f"{ratio['median']:.3g} ({ratio['min']:.3g} to {ratio['max']:.3g})" if ratio else "",
        f"{target:.3g}" if target else "",
        f"{record['utilisation']:.0%}" if "utilisation" in record else "",
    )


def markdown(records: Sequence[Mapping[str, Any]]) -> str:
    """Return the records as a table in Markdown, with the circumstances above it and the decode steps below."""
    if not records:
        return "No records.\n"
    first = records[0]
    versions = ", ".join(f"{name} {version}" for name, version in first["versions"].items())
    lines = [
        f"{first['processor']}, {first['cores']} cores, {first['threads']} threads, device {first['device']}, "
        f"{first['precision']}; {versions}; commit {first['commit']}. Medians of {first['rounds']} interleaved rounds.",
        "",
        "| " + " | ".join(COLUMNS) + " |",
        "|" + "---|" * len(COLUMNS),
        *("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows_of(records)),
    ]
    steps = [record for record in records if "decode_floor_seconds" in record]
    if steps:
        lines += [
            "",
            "| decode step | groups | side | ms | floor, ms | share of the floor |",
            "|---|---|---|---|---|---|",
        ]
        for record in steps:
            step, floor = 1000 * record["decode_step_seconds"], 1000 * record["decode_floor_seconds"]
            lines.append(
                f"| {record['model']} | {record['group_size']} | {record['side']} | {step:.2f} | {floor:.2f} | "
                f"{floor / step:.0%} |"
            )
    return "\n".join(lines) + "\n"
