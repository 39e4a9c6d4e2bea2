"""Signatures by which callables are called, seen through decorators and partials."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from inspect import Parameter
from typing import Any

PLACES = (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)
"""Kinds of parameters that may be passed by position."""


def signature_of(function: Callable[..., Any]) -> inspect.Signature | None:
    """Return the signature by which a callable is called, or None for one that has none (some functions in C).

    A wrapper that takes ``*args`` has the signature of the function it wraps, known by ``__wrapped__`` or as the only
    function in its closure. What a partial has bound is left out, so no column of the data replaces a setting.
    """
    if isinstance(function, functools.partial):
        inner = signature_of(function.func)
        return None if inner is None else _without_bound(inner, function)
    try:
        own = inspect.signature(function, follow_wrapped=False)
    except (TypeError, ValueError):
        return None
    kinds = {parameter.kind for parameter in own.parameters.values()}
    if Parameter.VAR_POSITIONAL not in kinds:
        return own
    wrapped = _wrapped(function)
    found = None if wrapped is None else signature_of(wrapped)
    if found is None or Parameter.VAR_KEYWORD in kinds:
        return found or own
    by_place = [one.replace(kind=Parameter.POSITIONAL_ONLY) for one in found.parameters.values() if one.kind in PLACES]
    return found.replace(parameters=by_place)


def _wrapped(function: Any) -> Callable[..., Any] | None:
    if callable(inner := getattr(function, "__wrapped__", None)):
        return inner  # type: ignore[no-any-return]
    plain = function if inspect.isfunction(function) else getattr(function, "__func__", type(function).__call__)
    found = [inner] if callable(inner := getattr(plain, "__wrapped__", None)) else []
    for cell in () if found else getattr(plain, "__closure__", None) or ():
        try:
            value = cell.cell_contents
        except ValueError:  # not assigned yet
            continue
        if inspect.isroutine(value) and signature_of(value) is not None:
            found.append(value)
    if len(found) != 1:
        return None
    return found[0] if plain is function else functools.partial(found[0], None)  # without self


def _without_bound(signature: inspect.Signature, function: functools.partial[Any]) -> inspect.Signature:
    kept, skipped, keyword_only = [], len(function.args), False
    for parameter in signature.parameters.values():
        if parameter.kind in PLACES and skipped:
            skipped -= 1
        elif parameter.name in function.keywords:
            keyword_only = True  # what follows can no longer be passed by position
        elif keyword_only and parameter.kind is Parameter.POSITIONAL_OR_KEYWORD:
            kept.append(parameter.replace(kind=Parameter.KEYWORD_ONLY))
        elif not (keyword_only and parameter.kind is Parameter.VAR_POSITIONAL):
            kept.append(parameter)
    return signature.replace(parameters=kept)
