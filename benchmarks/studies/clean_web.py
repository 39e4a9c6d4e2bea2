"""Crawled pages and C4 documents through cleaning to a packed corpus: what each step left out, and why."""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

from lmrl.corpus import CleanSettings, CorpusSettings, TokenizerSettings, prepare_corpus

FILES = ("dolma_sample-0000.warc.gz", "whirlwind.warc.gz", "whirlwind.warc.wet.gz", "c4_demo.jsonl")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        epilog="example:\n  python benchmarks/studies/clean_web.py --data ../shared/data",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--data", type=Path, required=True, help=f"folder that holds text/{FILES[0]} and the others")
    parser.add_argument("--output", type=Path, help="keep the packed corpus in this folder")
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results"), help="folder of the results")
    parser.add_argument("--smoke", action="store_true", help="the two archives of one page only")
    arguments = parser.parse_args()
    names = FILES[1:3] if arguments.smoke else FILES
    with tempfile.TemporaryDirectory() as folder:
        corpus = CorpusSettings(
            paths=[str(arguments.data / "text" / name) for name in names],
            folder=str(arguments.output or folder),
            held_out=0.0 if arguments.smoke else 0.05,
        )
        clean = CleanSettings(
            near_duplicates=True,
            fix_encoding=True,
            quality=not arguments.smoke,  # the one page of the smoke run is in Aragonese and breaks rules for English
            languages=[] if arguments.smoke else ["en"],
        )
        began = time.perf_counter()
        found = prepare_corpus(corpus, clean, TokenizerSettings(vocabulary_size=4096))
        seconds = time.perf_counter() - began
        splits = {name: found.tokens.split(name) for name in ("train", "held_out")}
        tokens = {name: {"documents": split.documents, "tokens": len(split)} for name, split in splits.items()}
    report = found.report
    parent = str(arguments.data / "text") + "/"
    lines = report.to_markdown().replace(parent, "") + "\n"
    record = json.loads(json.dumps(report.to_json()).replace(parent, ""))
    record |= {"seconds": seconds, "settings": asdict(clean), "packed": tokens}
    arguments.results.mkdir(parents=True, exist_ok=True)
    (arguments.results / "clean_web.jsonl").write_text(json.dumps(record) + "\n", encoding="utf-8")
    (arguments.results / "clean_web.md").write_text(lines, encoding="utf-8")
    print(lines)
    print(f"{tokens}; {seconds:.1f} seconds; notes: {'; '.join(report.notes) or 'none'}")


if __name__ == "__main__":
    main()
