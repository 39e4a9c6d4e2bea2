"""Options of commands that sample texts, and how they become settings."""

from __future__ import annotations

import argparse

from lmrl.engines.settings import SamplingSettings


def add_sampling_options(parser: argparse.ArgumentParser, temperature: float, max_new_tokens: int) -> None:
    """Declare the options of sampling, with a command's own defaults."""
    group = parser.add_argument_group("sampling")
    group.add_argument("--temperature", type=float, default=temperature, metavar="T", help="default %(default)s")
    group.add_argument("--greedy", action="store_true", help="always the likeliest token; the same as --temperature 0")
    group.add_argument("--top-k", type=int, default=0, metavar="K", help="keep the K likeliest tokens; 0 is off")
    group.add_argument("--top-p", type=float, default=1.0, metavar="P", help="keep the likeliest tokens of this share")
    group.add_argument(
        "--min-p", type=float, default=0.0, metavar="P", help="drop tokens below this share of the likeliest one"
    )
    group.add_argument(
        "--max-new-tokens", type=int, default=max_new_tokens, metavar="N", help="tokens per answer; default %(default)s"
    )
    group.add_argument("--stop", action="append", default=[], metavar="TEXT", help="an answer ends before this text")
    group.add_argument("--seed", type=int, default=0, help="the same seed gives the same answers; default 0")
    group.add_argument("--device", default="auto", help="auto, cpu, cuda:1 and the like; default auto")
    group.add_argument(
        "--trust-remote-code", action="store_true", help="run Python code that a model comes with; read it first"
    )


def read_sampling(arguments: argparse.Namespace) -> SamplingSettings:
    """Return the settings that the options stand for."""
    return SamplingSettings(
        temperature=0.0 if arguments.greedy else arguments.temperature,
        top_k=arguments.top_k,
        top_p=arguments.top_p,
        min_p=arguments.min_p,
        max_new_tokens=arguments.max_new_tokens,
        stop_strings=list(arguments.stop),
    )
