"""``per_row``: write a reward for one row, use it for batches."""

from __future__ import annotations

import asyncio
import functools
import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from lmrl.errors import RewardError
from lmrl.rewards.binding import bind


class PerRow:
    """A reward for batches made of a function of one row. Made by ``per_row``."""

    def __init__(self, function: Callable[..., Any]) -> None:
        # Takes over the name; the signature says which columns the row function names.
        functools.update_wrapper(self, function)
        self.function = function
        self._binding = bind(getattr(function, "__qualname__", "per_row"), function, of_rows=True)
        self.__signature__ = self._binding.batch_signature()

    def __call__(self, prompts: Sequence[str], responses: Sequence[str], **columns: Sequence[Any]) -> Any:
        """Return the scores of a batch, or an awaitable of them when the function is asynchronous."""
        results = []
        for index, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
            row = {name: values[index] for name, values in columns.items()}
            positional, keywords = self._binding.arguments(prompt, response, row)
            results.append(self.function(*positional, **keywords))
        if results and all(inspect.isawaitable(result) for result in results):
            return _gathered(results)
        return _transposed(results)

    def __reduce__(self) -> Any:
        # As a decorator it replaces the function under its name, so it has to be pickled by that name.
        module, name = getattr(self, "__module__", ""), getattr(self, "__qualname__", "")
        if name and getattr(sys.modules.get(module), name, None) is self:
            return name
        return (PerRow, (self.function,))


def per_row(function: Callable[..., Any]) -> PerRow:
    """Return a reward for batches from ``function(prompt, response, **columns) -> float`` (also as a decorator).

    The function may be asynchronous (all rows run at once) and may return a mapping with the key ``score``, or None for
    a row that it does not apply to.

        >>> per_row(lambda prompt, response: len(response))(["a", "b"], ["one", "three"])
        [3, 5]
    """
    return PerRow(function)


async def _gathered(results: list[Any]) -> Any:
    return _transposed(list(await asyncio.gather(*results)))


def _transposed(results: list[Any]) -> Any:
    given = [(index, result) for index, result in enumerate(results) if result is not None]
    if not given or not all(isinstance(result, Mapping) for _, result in given):
        return results
    first, keys = given[0][0], list(given[0][1])
    for index, result in given:
        if set(result) != set(keys):
            raise RewardError(
                f"row {index} returned the parts {', '.join(map(str, result))}, row {first} "
                f"{', '.join(map(str, keys))}; expected the same parts for every row"
            )
    return {key: [None if result is None else result[key] for result in results] for key in keys}
