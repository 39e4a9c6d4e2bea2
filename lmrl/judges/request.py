"""Fields of a request to an OpenAI-compatible endpoint: defaults, fields of the user's own, and dropped ones."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from lmrl.errors import SettingsError, nearest

DROP, EXTRA_BODY = "drop", "extra_body"
_OWN = {
    "model": "set judge.model",
    "messages": "the question is the only message; set judge.template for a question of your own",
    "stream": "replies are read whole; leave it out",
    "n": "each question gets one reply; leave it out",
}
_UNSUPPORTED = re.compile(
    r"unsupported|not support|unknown|unrecogni[sz]ed|unexpected|not permitted|not allowed|forbidden|deprecated|invalid"
    r"|only the default|extra (?:inputs|fields)|must be|cannot be|can't be|removed",
    re.IGNORECASE,
)
_PER_QUESTION = re.compile(r"context.{0,20}(?:length|window|size)|too (?:long|large)|too many tokens", re.IGNORECASE)


def request_fields(request: Mapping[str, Any], temperature: float, max_answer_tokens: int) -> dict[str, Any]:
    """Return the fields of the JSON body beside model and messages.

    ``request`` is the table ``[judge.request]``: its fields are added to ``temperature`` and ``max_tokens`` or replace
    them, those of its table ``extra_body`` as well, and the names in its list ``drop`` are left out.
    ``max_completion_tokens`` takes the place of ``max_tokens``, because both limit the same tokens.

    Raises ``SettingsError`` for fields that lmrl sets itself, and for names to drop that are not sent.
    """
    own = {name: value for name, value in request.items() if name not in (DROP, EXTRA_BODY)}
    nested = request.get(EXTRA_BODY, {})
    if not isinstance(nested, Mapping):
        raise SettingsError(f"judge.request.extra_body is {nested!r}; expected a table of request fields")
    twice = sorted(own.keys() & nested.keys())
    if twice:
        raise SettingsError(f"judge.request.{twice[0]} is also in judge.request.extra_body; expected it in one place")
    own |= nested
    for name in own:
        if name in _OWN:
            raise SettingsError(f"judge.request.{name} is set; expected other fields of the request: {_OWN[name]}")
    fields: dict[str, Any] = {"temperature": temperature, "max_tokens": max_answer_tokens}
    if "max_completion_tokens" in own and "max_tokens" not in own:
        del fields["max_tokens"]
        implied = {"max_tokens"}
    else:
        implied = set()
    fields |= own
    for name in _dropped(request.get(DROP, [])):
        if name in own:
            raise SettingsError(f"judge.request.drop names {name!r}, which judge.request sets; expected one of the two")
        if name in fields:
            del fields[name]
        elif name not in implied:
            guess = nearest(name, fields)
            raise SettingsError(
                f"judge.request.drop names {name!r}, which is not sent; expected some of {', '.join(sorted(fields))}"
                + (f". Did you mean {guess!r}?" if guess else "")
            )
    return fields


def _dropped(names: Any) -> list[str]:
    names = [names] if isinstance(names, str) else names
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
        raise SettingsError(
            f"judge.request.drop is {names!r}; expected a list of field names, such as "
            'drop = ["temperature", "max_tokens"]'
        )
    return list(names)


def refused_field(body: Any, message: str, fields: Mapping[str, Any]) -> str:
    """Return the sent field that an endpoint's status 400 or 422 refuses, or the empty string.

    The error's ``param`` names it, or its message does. A question that is too long for the context is no refused
    field, although such messages name ``max_tokens``.
    """
    details = body if isinstance(body, Mapping) else {}
    if isinstance(details.get("error"), Mapping):
        details = details["error"]
    text = f"{details.get('message') or message} {details.get('code') or ''}"
    if _PER_QUESTION.search(text) or not _UNSUPPORTED.search(text):
        return ""
    param = str(details.get("param") or "")
    for name in (param, param.rpartition(".")[2]):
        if name in fields:
            return name
    named = [(found.start(), name) for name in fields if (found := re.search(rf"(?<!\w){re.escape(name)}(?!\w)", text))]
    return min(named)[1] if named else ""


def advice_for(name: str, request: Mapping[str, Any], value: Any) -> str:
    """Return what to set so that a refused field is not sent."""
    nested = request.get(EXTRA_BODY, {})
    if name in request or name in nested:
        where = f"judge.request.{name}" if name in request else f"judge.request.{EXTRA_BODY}.{name}"
        return f"remove {where}, or give it a value that the model accepts"
    if name == "max_tokens":
        return f'set judge.request.max_completion_tokens = {value}, or judge.request.drop = ["max_tokens"]'
    dropped = sorted({*_dropped(request.get(DROP, [])), name})
    listed = ", ".join(f'"{one}"' for one in dropped)
    return f"set judge.request.drop = [{listed}]"
