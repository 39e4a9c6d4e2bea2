"""Shortest paths from random walks: the task of Chen et al. 2021 (Decision Transformer, sec. 3), in trlx's size.

A fixed directed graph of 21 nodes, one of them the goal. The model is pretrained on random walks, which wander; RL is
to make of it one that takes the shortest path. The prompt is the walk's number, which means nothing and only makes
prompts that training has not seen, and its first node. Written from the description: the graph's edges are this
module's own, so figures agree in kind, not node by node.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Sequence
from functools import cache
from typing import Any

NODES = 21
LONGEST = 10
"""Nodes of a walk, its first included; a walk that has not reached the goal by then has failed."""
GOAL = 0
EDGE = 0.1
"""Chance of each directed edge."""
NUMBERS = 32
"""Different numbers of walks: with each node a prompt of its own."""
NAMES = tuple("abcdefghijklmnopqrstu")


@cache
def graph(seed: int = 1002) -> tuple[tuple[int, ...], ...]:
    """Return the nodes that each node leads to: at least one, and the goal is reached from all within ``LONGEST``."""
    # The name is a seed: stored results were made with it.
    generator = random.Random(f"lmrl.bench.tasks.walks/{seed}")
    while True:
        edges = tuple(
            tuple(other for other in range(NODES) if other != node and generator.random() < EDGE)
            for node in range(NODES)
        )
        if all(edges[node] for node in range(NODES) if node != GOAL) and len(distances_of(edges)) == NODES:
            return edges


def distances_of(edges: Sequence[Sequence[int]]) -> dict[int, int]:
    """Return the least number of steps to the goal of every node that reaches it within a walk."""
    found, queue = {GOAL: 0}, deque([GOAL])
    while queue:
        node = queue.popleft()
        for before in range(NODES):
            if node in edges[before] and before not in found and found[node] + 1 < LONGEST:
                found[before] = found[node] + 1
                queue.append(before)
    return found


@cache
def distances() -> dict[int, int]:
    """Return the least number of steps from each node of the graph to the goal."""
    return distances_of(graph())


def walk(generator: random.Random, start: int) -> list[int]:
    """Return a random walk: it ends at the goal, or after ``LONGEST`` nodes."""
    nodes = [start]
    while nodes[-1] != GOAL and len(nodes) < LONGEST:
        nodes.append(generator.choice(graph()[nodes[-1]]))
    return nodes


def texts(generator: random.Random) -> str:
    """Return a number and a random walk from a random node that is not the goal, a letter for each node."""
    nodes = walk(generator, generator.randrange(1, NODES))
    return f"{generator.randrange(NUMBERS)} : {' '.join(NAMES[node] for node in nodes)}"


def prompts(seed: int = 0, count: int = NUMBERS * (NODES - 1)) -> list[dict[str, Any]]:
    """Return numbers and first nodes in an order of chance: every node is as often there as any other."""
    rows = [(number, node) for number in range(NUMBERS) for node in range(1, NODES)]
    random.Random(f"lmrl.bench.tasks.walks/{seed}").shuffle(rows)
    return [{"prompt": f"{number} : {NAMES[node]}", "start": node} for number, node in rows[:count]]


def optimality(prompts: Sequence[str], responses: Sequence[str], *, start: Sequence[int]) -> list[float]:
    """Return 1 for a shortest path, 0 for one of ``LONGEST`` nodes or none at all, and between them in proportion."""
    del prompts
    return [path_optimality(int(node), response) for node, response in zip(start, responses, strict=True)]


def path_optimality(start: int, response: str) -> float:
    """Return the score of one answer; nodes after the goal do not count, a step that is no edge fails the path."""
    node, steps = start, 0
    for word in response.split():
        if node == GOAL:
            break
        if word not in NAMES or NAMES.index(word) not in graph()[node]:
            return 0.0
        node, steps = NAMES.index(word), steps + 1
    if node != GOAL:
        return 0.0
    shortest = distances()[start]
    return max(0.0, 1 - (steps - shortest) / (LONGEST - 1 - shortest)) if shortest < LONGEST - 1 else 1.0
