"""Options of commands that sample texts, and how they become settings."""

from __future__ import annotations

import argparse

from lmrl.engines.settings import SamplingSettings
from lmrl.errors import SettingsError


def add_sampling_options(parser: argparse.ArgumentParser, temperature: float, max_new_tokens: int) -> None:
    """Declare the options of sampling, with a command's own defaults."""
    group = parser.add_argument_group("sampling")
    group.add_argument("--temperature", type=float, metavar="T", help=f"default {temperature}")
    group.add_argument("--greedy", action="store_true", help="always the likeliest token; the same as --temperature 0")
    group.add_argument("--top-k", type=int, metavar="K", help="keep the K likeliest tokens; 0 is off")
    group.add_argument("--top-p", type=float, metavar="P", help="keep the likeliest tokens of this share")
    group.add_argument("--min-p", type=float, metavar="P", help="drop tokens below this share of the likeliest one")
    group.set_defaults(default_temperature=temperature)
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
    """Return the settings that the options stand for. Raises ``SettingsError`` for one that greedy decoding ignores."""
    given = {name: getattr(arguments, name) for name in ("temperature", "top_k", "top_p", "min_p")}
    given = {name: value for name, value in given.items() if value is not None}
    if arguments.greedy and given.get("temperature"):
        raise SettingsError(f"--greedy and --temperature {given['temperature']:g} are both given; expected one of them")
    temperature = 0.0 if arguments.greedy else given.get("temperature", arguments.default_temperature)
    ignored = [f"--{name.replace('_', '-')}" for name in given if name != "temperature" and temperature == 0]
    if ignored:
        greedy = "--greedy" if arguments.greedy else "--temperature 0"
        raise SettingsError(f"{', '.join(ignored)} with {greedy}: greedy decoding does not read it. Drop one of them.")
    return SamplingSettings(
        **{**given, "temperature": temperature},
        max_new_tokens=arguments.max_new_tokens,
        stop_strings=list(arguments.stop),
    )
