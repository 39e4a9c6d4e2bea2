"""Process that compares mathematical expressions with math-verify, one JSON line per request and per reply.

It runs as a script, so that it imports nothing but math-verify. The process that started it ends it when a comparison
takes too long: math-verify's own time limits need signals, which exist in the main thread alone.
"""

from __future__ import annotations

import json
import logging
import sys
from typing import Any

MEMORY = 4 << 30
"""Bytes of address space: a power tower is an error here and no trouble for the machine."""


def main() -> None:
    """Answer requests ``{"gold", "given"}`` (LaTeX without dollars) with ``{"read", "equal"}`` until the input ends."""
    replies, sys.stdout = sys.stdout, sys.stderr  # whatever a library prints is no reply
    logging.disable(logging.CRITICAL)
    sys.setrecursionlimit(3000)
    try:
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    except (ImportError, ValueError, OSError):  # not on this platform
        pass
    for line in sys.stdin:
        request = json.loads(line)
        try:
            reply = _compare(request["gold"], request["given"])
        except (
            BaseException
        ) as error:  # RecursionError, MemoryError, math-verify's own kinds: nothing may end the worker
            if isinstance(error, KeyboardInterrupt | SystemExit):
                raise
            reply = {"read": False, "equal": False}
        replies.write(json.dumps(reply) + "\n")
        replies.flush()


def _compare(gold: str, given: str) -> dict[str, bool]:
    from math_verify import verify

    one, other = _parsed(gold), _parsed(given)
    equal = bool(one and other) and (
        bool(verify(one, other, timeout_seconds=None)) or bool(verify(other, one, timeout_seconds=None))
    )
    return {"read": bool(one), "equal": equal}


def _parsed(latex: str) -> Any:
    from math_verify import LatexExtractionConfig, parse

    # Without the fallback to matched text, and without the search for a number in what cannot be parsed whole.
    return parse(f"${latex}$", [LatexExtractionConfig()], fallback_mode="no_fallback", parsing_timeout=None)


if __name__ == "__main__":
    main()
