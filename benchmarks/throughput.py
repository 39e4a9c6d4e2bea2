"""Throughput of sampling, updates, whole batches and the environment, side by side with transformers and TRL."""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path

from lmrl.cli.tables import make_console, make_table
from lmrl.errors import SettingsError
from lmrl_suites.throughput import COLUMNS, ThroughputSettings, markdown, measure, rows_of


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line: an option for every setting of the suite."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="Example: python benchmarks/throughput.py --sizes 1M --workloads sampling,update --output results.jsonl",
    )
    for field in dataclasses.fields(ThroughputSettings):
        option = "--" + field.name.replace("_", "-")
        if field.type == "bool":
            parser.add_argument(option, action="store_true")
        elif "list" in str(field.type):
            parser.add_argument(option, metavar="A,B", help="names or numbers with commas between")
        else:
            parser.add_argument(option, type=int if field.type == "int" else str)
    parser.add_argument("--output", metavar="FILE.jsonl", type=Path, help="add the records to this file")
    options = parser.parse_args(arguments)
    given = {name: value for name, value in vars(options).items() if value is not None and name != "output"}
    for name, value in given.items():
        if isinstance(value, str) and name != "device":
            parts = [part.strip() for part in value.split(",") if part.strip()]
            given[name] = [int(part) for part in parts] if name == "group_sizes" else parts
    try:
        options.settings = ThroughputSettings(**given)
    except (SettingsError, ValueError) as error:
        parser.error(str(error))
    return options


def main(arguments: list[str] | None = None) -> None:
    """Measure, record and show."""
    options = parse(arguments)
    records = []
    for record in measure(options.settings):
        records.append(record)
        if options.output:
            options.output.parent.mkdir(parents=True, exist_ok=True)
            with options.output.open("a", encoding="utf-8") as out:
                out.write(json.dumps(record) + "\n")
    table = make_table(COLUMNS)
    for row in rows_of(records):
        table.add_row(*row)
    make_console().print(table)
    if options.output:
        options.output.with_suffix(".md").write_text(markdown(records), encoding="utf-8")


if __name__ == "__main__":
    main()
