"""The generated tasks: their graders, their texts, and that what is right scores 1."""

import random
from itertools import pairwise

import pytest

from lmrl.errors import SettingsError
from lmrl.rewards import resolve
from lmrl.stories import story
from lmrl_suites.tasks import dates, numbers, stories, sums, walks, words


@pytest.mark.parametrize(
    ("module", "arguments"),
    [(walks, {}), (sums, {}), (words, {"task": "sort"}), (words, {"task": "copy"}), (numbers, {}), (dates, {})],
)
def test_prompts_are_distinct_and_a_function_of_their_seed(module, arguments):
    rows = module.prompts(seed=3, count=200, **arguments)
    assert len({row["prompt"] for row in rows}) == len(rows) == 200
    assert rows == module.prompts(seed=3, count=200, **arguments) != module.prompts(seed=4, count=200, **arguments)
    generator, again = random.Random(0), random.Random(0)
    assert module.texts(generator) == module.texts(again)


def test_sums_are_graded_exactly():
    rows = sums.prompts(seed=0, count=50)
    answers = [" ".join(str(row["answer"])) for row in rows]
    prompts, column = [row["prompt"] for row in rows], [row["answer"] for row in rows]
    assert sums.exact(prompts, answers, answer=column) == [1.0] * 50
    assert sums.exact(["1 + 1 ="] * 3, ["2 2", "", "3"], answer=[2] * 3) == [0.0] * 3
    shares = [text_is_right(sums.texts(random.Random(i), right=0.4)) for i in range(2000)]
    assert 0.36 < sum(shares) / 2000 < 0.44


def text_is_right(text):
    asked, _, total = text.partition(" = ")
    return sum(int(part.replace(" ", "")) for part in asked.split(" + ")) == int(total.replace(" ", ""))


def test_sorted_words_are_sorted_and_copied_ones_the_same():
    for task in ("sort", "copy"):
        for row in words.prompts(seed=0, count=50, task=task):
            listed = row["prompt"].removeprefix(f"{task} : ").removesuffix(" ->").split()
            assert row["answer"].split() == (sorted(listed) if task == "sort" else listed)
    with pytest.raises(SettingsError, match="fewer than"):
        words.prompts(seed=0, count=500, shortest=2, longest=2)


def test_a_shortest_path_scores_one_a_longer_one_less_and_none_nothing():
    graph, distances = walks.graph(), walks.distances()
    assert len(graph) == walks.NODES and set(distances) == set(range(walks.NODES))
    for start in range(1, walks.NODES):
        node, path = start, []
        while node != walks.GOAL:
            node = min(graph[node], key=distances.__getitem__)
            path.append(walks.NAMES[node])
        assert len(path) == distances[start] and walks.path_optimality(start, " ".join(path)) == 1
        assert walks.path_optimality(start, " ".join([*path, "b", "z"])) == 1, "what follows the goal is not read"
        assert walks.path_optimality(start, " ".join(path[:-1])) == 0
        stranger = next(n for n in range(walks.NODES) if n not in graph[start])
        assert walks.path_optimality(start, walks.NAMES[stranger]) == 0
    generator = random.Random(0)
    scores = []
    for _ in range(500):
        start = generator.randrange(1, walks.NODES)
        nodes = walks.walk(generator, start)[1:]
        scores.append(walks.path_optimality(start, " ".join(walks.NAMES[node] for node in nodes)))
        assert 0 <= scores[-1] <= 1
    assert 0.05 < sum(scores) / 500 < 0.6, "random walks leave room"


def test_some_texts_of_numbers_rise_and_the_rest_are_chance():
    generator = random.Random(0)
    texts = [[int(word) for word in numbers.texts(generator).split()] for _ in range(2000)]
    assert {len(text) for text in texts} == {numbers.LENGTH}
    assert all(0 <= number <= numbers.LARGEST for text in texts for number in text)
    rising = sum(all(0 < b - a <= numbers.STEP for a, b in pairwise(text)) for text in texts)
    assert rising / 2000 == pytest.approx(numbers.RISING, abs=0.04)


def test_increasing_numbers_count_until_one_is_not_larger():
    def score(answer):
        return numbers.increasing(["50 3"], [answer])[0]

    assert score("4 5 6 7 8 9 10 11 12 13") == 1
    assert score("4 5 6") == pytest.approx(0.3) and score("4 5 5 6") == pytest.approx(0.2)
    assert score("") == score("2") == score("x 9") == 0
    assert score(" ".join(map(str, range(4, 24)))) == 1


def test_dates_agree_place_by_place():
    for row in dates.prompts(seed=0, count=20):
        assert dates.formatted([""], [row["answer"]], answer=[row["answer"]]) == [1.0]
        assert 0 < dates.formatted([""], [row["answer"] + " 1 1"], answer=[row["answer"]])[0] < 1
    assert dates.formatted([""], [""], answer=["2 0"]) == [0.0]


def test_stories_that_keep_their_object_score_more():
    reward = resolve("lmrl_suites.tasks.stories:objects")
    told = story(0)
    opening = told.sentences[0]
    scores = reward([opening] * 2, [" ".join(told.sentences[1:]), " He walked home."], {}).scores
    assert scores[0] > scores[1] == 0
    assert stories.objects([opening], [f" The {told.object}" * 4]) == [1.0]
    assert stories.objects([opening], [f" The {told.object}."]) == [0.25]
