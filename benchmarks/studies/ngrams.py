"""An interpolated Kneser-Ney model of bytes: the baseline that a neural model of the same text has to beat.

Chen and Goodman 1999, section 2.7, with one discount per order (Ney, Essen and Kneser 1994): D = n1 / (n1 + 2 n2). The
highest order counts what was seen; a lower order counts in how many contexts a byte was seen. The lowest interpolates
with the uniform distribution over 256 bytes, so that every text has a probability.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from dataclasses import dataclass

BYTES = 256


@dataclass(frozen=True)
class Order:
    """Counts of one order: of (context, byte), and per context their sum and the number of different bytes."""

    counts: dict[bytes, int]
    sums: dict[bytes, int]
    kinds: dict[bytes, int]
    discount: float


@dataclass(frozen=True)
class NGrams:
    """A model of order len(orders): ``orders[k]`` has contexts of k bytes."""

    orders: list[Order]

    def probability(self, context: bytes, byte: bytes) -> float:
        """Return P(byte | the last bytes of context), interpolated over all orders."""
        found = 1 / BYTES
        for length, order in enumerate(self.orders):
            if length > len(context):
                break
            history = context[len(context) - length :]
            total = order.sums.get(history)
            if not total:
                break  # a longer context was not seen either
            seen = max(order.counts.get(history + byte, 0) - order.discount, 0.0)
            found = (seen + order.discount * order.kinds[history] * found) / total
        return found

    def bits(self, text: bytes) -> float:
        """Return the length of a text's code in bits, read from its beginning without any context."""
        longest = len(self.orders) - 1
        return -sum(
            math.log2(self.probability(text[max(0, at - longest) : at], text[at : at + 1])) for at in range(len(text))
        )


def train(text: bytes, length: int) -> NGrams:
    """Count a text; ``length`` is that of the longest n-gram, so contexts have up to ``length - 1`` bytes."""
    grams = [Counter(text[at : at + size] for at in range(len(text) - size + 1)) for size in range(1, length + 1)]
    orders = []
    for size, found in enumerate(grams, start=1):
        # Below the highest order: in how many contexts. Each longer n-gram counts once, whatever its number.
        orders.append(_order(found if size == length else Counter(longer[1:] for longer in grams[size])))
    return NGrams(orders)


def _order(counts: dict[bytes, int]) -> Order:
    sums: dict[bytes, int] = defaultdict(int)
    kinds: dict[bytes, int] = defaultdict(int)
    for gram, count in counts.items():
        sums[gram[:-1]] += count
        kinds[gram[:-1]] += 1
    times = Counter(counts.values())
    once, twice = times[1], times[2]
    discount = once / (once + 2 * twice) if once and twice else 0.5
    return Order(counts, dict(sums), dict(kinds), discount)


def best_length(text: bytes, lengths: range, held_out: float = 0.1) -> int:
    """Return the n-gram length with the shortest code of the text's last part, trained on the rest."""
    cut = int(len(text) * (1 - held_out))
    return min(lengths, key=lambda length: train(text[:cut], length).bits(text[cut:]))
