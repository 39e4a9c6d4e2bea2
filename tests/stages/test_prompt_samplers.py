"""Prompt samplers: which prompts they choose, what they are told, and that a resumed run is the undisturbed one."""

import importlib.util
import json
import math
import random
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lmrl import PluginManager, RLTrainer, SettingsError
from lmrl.algorithms import PromptPool, PromptResults, PromptSampler
from lmrl.errors import PluginError, ResumeError
from lmrl.seeds import PromptOrder, derive_seed
from lmrl.stages.rl.prompt_samplers import Curriculum, CurriculumSettings, Difficulty, DifficultySettings
from lmrl.stages.rl.source import Shuffled

TEXTS = ["the cat", "a dog", "the dog sat", "a", "home", "far .", "a cat ran", "the"]
ROWS = [{"prompt": text, "level": level} for level, text in enumerate(TEXTS)]
SMALL = {"group_size": 2, "prompts_per_update": 2, "max_new_tokens": 4, "device": "cpu", "learning_rate": 0.01}


def cats(prompts, completions):
    return [float(completion.split().count("cat")) for completion in completions]


def trainer_of(folder, **changes):
    return RLTrainer(folder, **{"optimizer": "grpo", "prompts": ROWS, "reward": cats, **SMALL, **changes})


def numbers(metrics):
    return {name: value for name, value in metrics.items() if not name.startswith("time/")}


def pool(count, batch, seed=0, column=None):
    columns = {"level": list(range(count)) if column is None else column}
    return PromptPool([f"prompt {index}" for index in range(count)], columns, batch, seed, group_size=4)


def results(update, rows):
    """Return what a sampler is told of (index, mean, spread, scored responses)."""
    return PromptResults(update, *zip(*rows, strict=True))


@given(count=st.integers(1, 40), batch=st.integers(1, 12), seed=st.integers(0, 5), update=st.integers(1, 20))
def test_the_default_is_the_order_of_before(count, batch, seed, update):
    sampler = Shuffled(None, pool(count, batch, seed))
    assert sampler.indices(update) == PromptOrder(count, batch, derive_seed(seed, "prompts")).indices(update - 1)
    expected = random.Random(derive_seed(seed, "further prompts", update, 1, 3)).randrange(count)
    assert sampler.further(update, 1, [5, 3])[1] == expected


levels = st.lists(st.integers(0, 9), min_size=8, max_size=40)


@given(column=levels, batch=st.integers(1, 8), start=st.floats(0.01, 1), pace=st.integers(1, 9), up=st.booleans())
def test_a_curriculum_goes_from_easy_to_hard(column, batch, start, pace, up):
    settings = CurriculumSettings("level", up, start, pace)
    made = Curriculum(settings, pool(len(column), batch, column=column))
    before = 0
    for update in range(1, pace + 3):
        opened = made.open(update)
        hardest = max((1 if up else -1) * column[index] for index in opened)
        rest = set(range(len(column))) - set(opened)
        assert all((1 if up else -1) * column[index] >= hardest for index in rest)
        assert len(opened) >= max(before, batch)
        drawn = made.indices(update)
        assert len(drawn) == len(set(drawn)) == batch and set(drawn) <= set(opened)
        assert set(made.further(update, 0, range(9))) <= set(opened)
        assert drawn == Curriculum(settings, made.pool).indices(update)
        before = len(opened)
    assert len(made.open(pace + 1)) == len(column) and len(made.open(1)) == max(batch, math.ceil(start * len(column)))


def counts(sampler, updates):
    drawn = [index for update in updates for index in sampler.indices(update)]
    return [drawn.count(index) for index in range(len(sampler.pool))]


def test_difficulty_prefers_prompts_whose_scores_differ():
    sampler = Difficulty(DifficultySettings(rate=1.0, forgetting=0.0, floor=0.05), pool(10, 2))
    untried = counts(sampler, range(1, 2001))
    assert min(untried) > 330 and max(untried) < 470, "all alike: 400 each"
    sampler.observe(results(1, [(index, 0.5, 0.5 * (index < 5), 4) for index in range(10)]))
    assert sampler.weights(2) == [1.0] * 5 + [0.05] * 5
    found = counts(sampler, range(1, 2001))
    assert min(found[:5]) > 650 and min(found[5:]) > 0 and max(found[5:]) < 100
    further = sampler.further(1, 0, range(2000))
    assert 20 < sum(index >= 5 for index in further) < 200


@pytest.mark.parametrize(("mean", "expected"), [(0, 0), (1, 0), (0.5, 1), (0.25, 0.75), (-3, 0), (7, 0)])
def test_solve_rates_near_a_half_say_the_most(mean, expected):
    sampler = Difficulty(DifficultySettings("solve_rate", rate=0.5, floor=1e-9), pool(4, 1))
    sampler.observe(results(1, [(2, mean, 0.0, 1)]))
    assert sampler.weights(1)[2] == pytest.approx(max(0.5 + 0.5 * expected, 1e-9))


def test_estimates_are_forgotten_and_rows_without_a_score_say_nothing():
    sampler = Difficulty(DifficultySettings(rate=1.0, forgetting=0.5, floor=0.01), pool(4, 1))
    sampler.observe(results(3, [(0, 1.0, 2.0, 4), (1, 1.0, 0.0, 4), (2, math.nan, math.nan, 0)]))
    assert sampler.weights(3) == [1.0, 0.01, 1.0, 1.0]
    assert sampler.weights(4)[1] == 0.5 and sampler.weights(6)[1] == 0.875
    assert DifficultySettings(power=0.0).power == 0 and set(
        Difficulty(DifficultySettings(power=0.0), pool(4, 1)).weights(9)
    ) == {1.0}


@given(
    st.lists(st.tuples(st.integers(0, 9), st.floats(0, 1), st.floats(0, 3), st.integers(0, 4)), min_size=1),
    st.integers(1, 6),
)
def test_the_state_survives_a_file(rows, update):
    one, other = (Difficulty(DifficultySettings(), pool(10, 3)) for _ in range(2))
    one.observe(results(update, rows))
    other.load_state_dict(json.loads(json.dumps(one.state_dict())))
    assert other.indices(update + 1) == one.indices(update + 1)
    assert other.weights(update + 2) == one.weights(update + 2)


class Watching(PromptSampler):
    """The first prompts in order, and everything that it is told."""

    def __init__(self, settings, pool):
        super().__init__(settings, pool)
        self.told = []

    def indices(self, update):
        return [(update + place) % len(self.pool) for place in range(self.pool.batch)]

    def observe(self, results):
        self.told.append(results)


def plugin(tmp_path, body):
    file = tmp_path / "sampler.py"
    file.write_text(
        "from dataclasses import dataclass\nfrom lmrl import PromptSamplerSpec, hookimpl\n"
        "from lmrl.algorithms import PromptSampler\n\n@dataclass\nclass Settings:\n    step: int = 1\n\n\n"
        f"class Mine(PromptSampler):\n{body}\n\n\n@hookimpl\ndef lmrl_prompt_samplers():\n"
        "    yield PromptSamplerSpec('mine', Mine, Settings)\n",
        encoding="utf-8",
    )
    return PluginManager([file])


def test_a_sampler_is_told_the_scores_of_its_prompts(tiny_folder, tmp_path):
    body = "    def indices(self, update):\n        return [(update + place) % 8 for place in range(self.pool.batch)]"
    trainer = trainer_of(tiny_folder, plugins=plugin(tmp_path, body), prompt_sampler={"name": "mine"}, group_size=8)
    stream = trainer.source.prompts
    assert not stream.observes, "nothing is gathered for one that does not ask"
    watching = Watching(None, stream.sampler.pool)
    assert watching.pool.columns["level"] == list(range(8)) and len(watching.pool) == 8
    object.__setattr__(stream, "sampler", watching)
    drawn = []
    trainer.drawn = lambda one: drawn.append(one.experience)
    metrics = list(trainer.steps(2))
    for number, (one, rollout) in enumerate(zip(watching.told, drawn, strict=True), start=1):
        assert one.update == number and list(one.indices) == [number, number + 1] and one.scored == (8, 8)
        groups = [rollout.scores[rollout.group == group].double() for group in (0, 1)]
        assert list(one.means) == [float(scores.mean()) for scores in groups]
        assert list(one.spreads) == [float(scores.std(correction=0)) for scores in groups]
        assert sum(one.means) / 2 == pytest.approx(metrics[number - 1]["rollout/reward"], abs=1e-6)


DYNAMIC = {"name": "grpo", "dynamic_sampling": True, "minibatches": 1}


@pytest.mark.parametrize("optimizer", ["grpo", DYNAMIC], ids=["grpo", "dynamic"])
@pytest.mark.parametrize("name", ["difficulty", "curriculum", "shuffled"])
def test_a_restored_trainer_draws_the_same_prompts(tiny_folder, tmp_path, name, optimizer):
    table = {"name": name, "curriculum": {"column": "level", "pace": 3}}
    changes = {"prompt_sampler": table, "optimizer": optimizer}
    whole, first, again = (trainer_of(tiny_folder, **changes) for _ in range(3))
    expected = [numbers(metrics) for metrics in whole.steps(5)]
    list(first.steps(3))
    again.restore(first.save(tmp_path / "checkpoint"))
    assert [numbers(metrics) for metrics in again.steps(2)] == expected[3:]
    assert again.source.state_dict() == whole.source.state_dict()
    if name != "shuffled":
        with pytest.raises(ResumeError, match=f"checkpoint is of prompt_sampler.name={name}, and this run's is shu"):
            trainer_of(tiny_folder, optimizer=optimizer).restore(tmp_path / "checkpoint")


@pytest.mark.filterwarnings("error")
def test_a_group_without_scores_is_told_as_nan(tiny_folder):
    trainer = trainer_of(
        tiny_folder,
        reward=lambda prompts, responses: [None] * 2 + [1.0] * (len(prompts) - 2),
        group_size=2,
        prompts_per_update=2,
        prompt_sampler={"name": "difficulty"},
    )
    stream = trainer.source.prompts
    object.__setattr__(stream, "sampler", watching := Watching(None, stream.sampler.pool))
    trainer.step()
    [told] = watching.told
    assert told.scored == (0, 2) and math.isnan(told.means[0]) and math.isnan(told.spreads[0])
    assert (told.means[1], told.spreads[1]) == (1.0, 0.0)


def test_groups_that_were_left_out_are_told_too(tiny_folder):
    """An easy prompt that is drawn in vain must not be drawn again and again."""
    trainer = trainer_of(tiny_folder, optimizer=DYNAMIC, reward=lambda prompts, completions: [1.0] * len(prompts))
    stream = trainer.source.prompts
    object.__setattr__(stream, "sampler", Watching(None, stream.sampler.pool))
    trainer.step()
    [told] = stream.sampler.told
    assert len(told.indices) == 2 * (1 + trainer.config.train.resamples) and set(told.spreads) == {0.0}


def test_easy_prompts_come_first_in_a_run(tiny_folder):
    table = {"name": "curriculum", "curriculum": {"column": "level", "start": 0.25, "pace": 6}}
    trainer = trainer_of(tiny_folder, prompt_sampler=table)
    seen = [sorted(trainer.source.prompts.share(update)) for update in range(1, 30)]
    assert seen[0] == [0, 1] and {index for one in seen[6:] for index in one} == set(range(8))


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"name": "curiculum"}, r"prompt_sampler\.name: unknown prompt_sampler 'curiculum'; did you mean 'curriculum'"),
        ({"name": "curriculum"}, r"prompt_sampler\.curriculum\.column: unknown column ''"),
        ({"name": "curriculum", "curriculum": {"column": "levle"}}, "unknown column 'levle'; did you mean 'level'"),
        ({"name": "curriculum", "curriculum": {"column": "word"}}, "which holds 'cat' for the prompt 'the cat'"),
        ({"name": "curriculum", "curriculum": {"column": "level", "start": 0}}, "start is 0"),
        ({"name": "curriculum", "curriculum": {"column": "level", "pace": 0}}, "pace is 0"),
        ({"name": "difficulty", "difficulty": {"rate": 0}}, "rate is 0"),
        ({"name": "difficulty", "difficulty": {"floor": 0}}, "floor is 0"),
        ({"name": "difficulty", "difficulty": {"forgetting": 2}}, "forgetting is 2"),
        ({"name": "difficulty", "difficulty": {"measure": "spred"}}, 'did you mean "spread"'),
        ("difficulty", "prompt_sampler"),
    ],
)
def test_wrong_settings_are_named(tiny_folder, table, message):
    rows = [{"prompt": "the cat", "level": 1, "word": "cat"}, {"prompt": "a", "level": 2, "word": "dog"}]
    with pytest.raises(SettingsError, match=message):
        trainer_of(tiny_folder, prompts=rows, prompt_sampler=table)


def test_one_response_has_no_spread(tiny_folder):
    table = {"name": "difficulty"}
    with pytest.raises(SettingsError, match=r"measure is spread, but train\.group_size is 1"):
        trainer_of(tiny_folder, optimizer="reinforce", group_size=1, prompt_sampler=table)
    table["difficulty"] = {"measure": "solve_rate"}
    assert trainer_of(tiny_folder, optimizer="reinforce", group_size=1, prompt_sampler=table).source.prompts.observes


@pytest.mark.parametrize("name", ["difficulty", "curriculum"])
def test_too_few_prompts_are_refused(tiny_folder, name):
    table = {"name": name, "curriculum": {"column": "level"}}
    with pytest.raises(SettingsError, match="draws 9 different prompts per update, but there are 8; lower"):
        trainer_of(tiny_folder, prompts_per_update=9, prompt_sampler=table)


def test_data_have_no_prompt_sampler(tiny_folder):
    pairs = [{"prompt": "the cat", "chosen": " sat", "rejected": " ran"}] * 4
    with pytest.raises(SettingsError, match=r"prompt_sampler.* but this run reads it only with"):
        RLTrainer(tiny_folder, optimizer="dpo", data=pairs, prompts=TEXTS, prompt_sampler={"name": "difficulty"})


@pytest.mark.parametrize("answer", ["[0]", "[0, 8]", "[0, -1]", "[0.5, 1]", "None"])
def test_indices_that_do_not_fit_are_refused(tiny_folder, tmp_path, answer):
    plugins = plugin(tmp_path, f"    def indices(self, update):\n        return {answer}")
    trainer = trainer_of(tiny_folder, plugins=plugins, prompt_sampler={"name": "mine"})
    message = r"the prompt sampler 'mine' returned .* expected 2 (of 8 prompts|whole numbers)"
    with pytest.raises(PluginError, match=message):
        trainer.step()


def ranks():
    spec = importlib.util.spec_from_file_location("ranks", Path(__file__).with_name("test_ranks.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_two_processes_choose_the_prompts_of_one(tiny_folder, tmp_path):
    """Every rank is told the scores of all ranks, groups that are sampled anew included."""
    module, script = ranks(), tmp_path / "run.py"
    script.write_text(module.RUN)
    (tmp_path / "watch.py").write_text(module.WATCH)
    for count in (1, 2):
        config = {
            "model": str(tiny_folder),
            "run": {"folder": str(tmp_path / f"run{count}"), "device": "cpu", "precision": "no"},
            "sampling": {"max_new_tokens": 4},
            "train": {"updates": 3, "prompts_per_update": 4, "group_size": 3, "learning_rate": 0.003},
            "optimizer": {"name": "grpo", "grpo": {"dynamic_sampling": True, "minibatches": 1}},
            "prompt_sampler": {"name": "difficulty"},
            "evaluation": {"prompts": 0},
            "trackers": [],
        }
        module.run_ranks(count, script, [json.dumps(config)])
    actions = [[json.loads(line) for line in (tmp_path / f"{name}.jsonl").open()] for name in ("1-0", "2-0", "2-1")]
    one, first, second = actions
    assert [a + b for a, b in zip(first, second, strict=True)] == one
    states = [
        torch.load(next((tmp_path / f"run{count}").glob("checkpoint-*")) / "trainer_state.pt")["source"]
        for count in (1, 2)
    ]
    assert states[0] == states[1] and states[0]["prompt_sampler"]["state"]["estimates"]
