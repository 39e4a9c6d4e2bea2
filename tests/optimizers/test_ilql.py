"""ILQL: the loss by hand, values against dynamic programming, the merged policy, resuming, and refusals."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from lmrl.algorithms.experience import Responses, TrajectoryBatch
from lmrl.algorithms.sequences import Sequences
from lmrl.config import build
from lmrl.engines import SamplingSpec
from lmrl.errors import DataError, ModelError, SettingsError
from lmrl.models import PolicyModel, load
from lmrl.models.text_policy import TextPolicy
from lmrl.plugins.specs import Needs
from lmrl.reporting.metrics import read_metrics
from lmrl.stages.rl import RLConfig, rl
from lmrl.stages.rl.config import LearningData
from lmrl.stages.rl.offline import load_offline
from lmrl.testing import random_problem, write_tiny_model
from lmrl.training.checkpoint import list_checkpoints
from lmrl.training.update import Updater
from lmrl.training.update_settings import TrainSettings
from lmrl_ilql import ILQL, ILQLSettings

ROWS = [
    {"prompt": "the cat", "completion": " happy home .", "reward": 1.0},
    {"prompt": "the cat", "completion": " sad far", "reward": -0.5},
    {"prompt": "a dog", "completion": " happy", "reward": 0.7},
    {"prompt": "a dog", "completion": " sad far far .", "reward": -1.0},
    {"prompt": "the dog", "completion": " ran home happy .", "reward": 0.8},
    {"prompt": "the dog", "completion": " sad .", "reward": -0.4},
    {"prompt": "a cat", "completion": " happy .", "reward": 0.9},
    {"prompt": "a cat", "completion": " ran far sad .", "reward": 0.0},
]


def test_the_loss_by_hand():
    """Two actions, the second gets 1: targets are 0.5 * 0.4 and 1; V is 0.2 and 0.4."""
    mask = torch.ones(1, 2, dtype=torch.bool)
    now = SimpleNamespace(
        values=torch.tensor([[0.2, 0.4]]),
        head=lambda name: torch.stack(
            [
                torch.tensor([[[0.3, 0.5]], [[0.1, 2.0]]]),  # of either head, its target, and log softmax(Q)
                torch.tensor([[[0.7, 0.3]], [[0.5, 0.9]]]),
                torch.tensor([[[-1.0, -2.0]], [[-3.0, -4.0]]]),
            ]
        ),
        logprobs=torch.tensor([[-0.5, -1.5]]),
    )
    policy = SimpleNamespace(evaluate=lambda responses: now)
    batch = TrajectoryBatch(Responses(None, mask), torch.tensor([[0.0, 1.0]]), torch.tensor([True]))
    settings = ILQLSettings(tau=0.8, alpha=0.1, gamma=0.5, cloning_coefficient=2.0, cloning_beta=1.0)
    loss = ILQL(settings).loss(policy, batch)
    td = torch.tensor([0.1**2 + 0.1**2, 0.5**2 + 1.0**2])
    value = torch.tensor([0.8 * 0.3**2, 0.2 * 0.1**2])  # the smaller target is 0.5 and 0.3
    cloning = torch.tensor([0.3, -0.1]).exp() * torch.tensor([0.5, 1.5])
    expected = td + value + 0.1 * torch.tensor([4.0, 6.0]) + 2 * cloning
    assert torch.allclose(loss.losses, expected[None])
    cut = replace(batch, terminated=torch.tensor([False]))
    without = ILQL(settings).loss(policy, cut).losses
    assert torch.allclose(without, expected - torch.tensor([0.0, 1.25])), "what follows a cut answer is not known"


# Values against dynamic programming.

COUNT = 60


def logged(problem):
    """Return a batch in which every response stands about as often as the reference gives it, at least once."""
    counts = (problem.reference_table.log_probabilities.exp() * COUNT).round().long().clamp_min(1)
    rows = torch.arange(len(problem)).repeat_interleave(counts)
    inputs = problem.inputs.select(rows)
    last = inputs.action_counts[:, None] - 1
    mask = problem.action_mask[rows]
    rewards = torch.zeros(mask.shape).scatter(1, last, problem.rewards[rows].float()[:, None])
    return rows, TrajectoryBatch(Responses(inputs, mask), rewards, torch.ones(len(rows), dtype=torch.bool))


def expectile(draws, tau):
    low, high = min(draws), max(draws)
    for _ in range(60):
        middle = (low + high) / 2
        slope = sum((tau if x > middle else 1 - tau) * (x - middle) for x in draws)
        low, high = (middle, high) if slope > 0 else (low, middle)
    return low


def solve(rows, tau):
    """Return Q of every (response so far, next token) by backward induction over the rows (ids, reward)."""
    values = {}

    def state_value(said):
        follows = [(ids, reward) for ids, reward in rows if len(ids) > len(said) and ids[: len(said)] == said]
        draws = []
        for ids, reward in follows:
            after = ids[: len(said) + 1]
            if after not in values:
                values[after] = reward if len(after) == len(ids) else state_value(after)
            draws.append(values[after])
        return expectile(draws, tau)

    state_value(())
    return values


def fitted(problem, batch, settings, steps=800):
    torch.manual_seed(0)
    optimizer = ILQL(settings)
    policy = PolicyModel(problem.policy(with_values=True).model, with_values=True, optimizer=optimizer)
    train = TrainSettings(learning_rate=3e-3, value_learning_rate=1e-2, updates=steps, schedule="linear")
    face = TextPolicy(policy, problem.spec, True, True)
    updater = Updater(optimizer, face, train)
    for step in range(1, steps + 1):
        updater.learn(batch, update=step, seed=0)
    with torch.no_grad():
        found = face.evaluate(batch.responses).head("action_values")[0]
    return policy, found


@pytest.mark.slow
@pytest.mark.parametrize("tau", [0.5, 0.9])
def test_action_values_become_those_of_dynamic_programming_and_the_policy_scores_more(tau):
    """At 0.5 they are the data's own expected returns, near 1 the best that the data support."""
    problem = random_problem(3, vocabulary=3, max_new_tokens=3, layers=1)
    rows, batch = logged(problem)
    lengths = problem.inputs.action_counts.tolist()
    ids = [tuple(row[:n]) for row, n in zip(problem.inputs.action_ids.tolist(), lengths, strict=True)]
    table = solve([(ids[row], float(problem.rewards[row])) for row in rows.tolist()], tau)
    expected = torch.zeros(batch.action_mask.shape)
    for place, row in enumerate(rows.tolist()):
        for t in range(lengths[row]):
            expected[place, t] = table[ids[row][: t + 1]]
    settings = ILQLSettings(tau=tau, alpha=0.0, beta=5.0, minibatches=1)
    policy, found = fitted(problem, batch, settings)
    assert expected[batch.action_mask].std() > 0.5
    error = (found - expected)[:, batch.action_mask].abs()
    assert error.max() < 0.1 and error.mean() < 0.02
    with policy.extracted() as model:
        extracted = problem.measure(PolicyModel(model), beta=0).reward
    best, data = float(problem.rewards.max()), float(problem.rewards[rows].mean())
    assert extracted > data + 0.5 * (best - data)


# The merged policy.


def inputs():
    return Sequences.of_pairs([([3, 4], [6, 7, 1]), ([5], [8, 1])])


def policy_of(model, **settings):
    return PolicyModel(model, with_values=True, optimizer=ILQL(ILQLSettings(**settings)))


def moved(model, extraction=2.0):
    """Return a policy whose targets are far from 0."""
    policy = policy_of(model, beta=extraction)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in policy.heads.action_values.targets.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return policy


def phi_folder(folder):
    """The tiny model in a family whose LM head has a bias."""
    from transformers import PhiConfig, PhiForCausalLM

    write_tiny_model(folder)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    ids = {"bos_token_id": None, "eos_token_id": 1, "pad_token_id": 0}
    config = PhiConfig(vocab_size=15, max_position_embeddings=48, **sizes, **ids)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = PhiForCausalLM(config)
        torch.nn.init.normal_(model.lm_head.bias)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(params=["llama", "gpt2", "phi"])
def folder(request, tmp_path):
    """Heads that are untied, tied, and untied with a bias."""
    path = tmp_path / "model"
    return phi_folder(path) if request.param == "phi" else write_tiny_model(path, architecture=request.param)


@torch.no_grad()
def test_the_checkpoint_is_a_plain_model_of_cloned_logits_plus_beta_times_action_values(folder, tmp_path):
    from transformers import AutoModelForCausalLM

    model = load(folder).model
    policy = moved(model)
    tied = model.config.tie_word_embeddings
    ids = torch.tensor([[3, 4, 6, 7], [5, 8, 9, 10]])
    own, hidden = model(ids).logits, model.base_model(ids).last_hidden_state
    first, second = policy.heads.action_values.targets
    q = [head.level(hidden) + head.actions(hidden) for head in (first, second)]
    value = policy.value_head(hidden)
    expected = (own.log_softmax(-1) + 2.0 * ((q[0] + q[1]) / 2 - value)).log_softmax(-1)
    (tmp_path / "out").mkdir()
    policy.save(tmp_path / "out", str(folder))
    found, report = AutoModelForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(report.values()) and not found.config.tie_word_embeddings
    assert torch.allclose(found(ids).logits.log_softmax(-1), expected, atol=1e-4)
    assert not torch.allclose(expected, own.log_softmax(-1), atol=0.1)
    assert torch.equal(model(ids).logits, own) and model.config.tie_word_embeddings == tied, "training goes on unmerged"

    again = policy_of(load(tmp_path / "out").model)
    assert again.load_value_head(tmp_path / "out")
    assert torch.equal(again.model(ids).logits, own) and again.model.config.tie_word_embeddings == tied
    assert (again.model.get_output_embeddings().weight is again.model.get_input_embeddings().weight) == tied
    named = dict(policy.named_parameters())
    assert all(torch.equal(named[name], parameter) for name, parameter in again.named_parameters())
    assert len(list(again.model.parameters())) == len(list(model.parameters()))


@torch.no_grad()
def test_evaluations_are_of_the_actions_taken(tiny_folder):
    policy = moved(load(tiny_folder).model)
    rows = inputs()
    mask = torch.tensor([[True, True, True], [True, True, False]])
    now = TextPolicy(policy, SamplingSpec(), True, True).evaluate(Responses(rows, mask))
    values, targets, logprobs = now.head("action_values")
    assert now.head("action_values").shape == (3, 2, 2, 3)
    hidden = policy.model.base_model(torch.tensor([[3, 4, 6, 7]])).last_hidden_state[0]
    for number in range(2):
        head, target = policy.heads.action_values.heads[number], policy.heads.action_values.targets[number]
        for t, token in enumerate((6, 7, 1)):
            state = hidden[1 + t] if t < 3 else None
            table = head.level(state) + head.actions(state)
            assert values[number, 0, t] == pytest.approx(float(table[token]), abs=1e-5)
            logprob = float(table.log_softmax(-1)[token])
            assert logprobs[number, 0, t] == pytest.approx(logprob, abs=1e-5)
            wanted = float(target.level(state) + target.actions(state)[token])
            assert targets[number, 0, t] == pytest.approx(wanted, abs=1e-4)
    assert not values[:, 1, 2].any()
    with pytest.raises(ModelError, match="unknown head 'action_value'; did you mean 'action_values'"):
        now.head("action_value")


def test_targets_move_a_share_of_the_way_and_heads_start_apart(tiny_folder):
    optimizer = ILQL(ILQLSettings(target_rate=0.25))
    policy = PolicyModel(load(tiny_folder).model, with_values=True, optimizer=optimizer)
    heads, targets = policy.heads.action_values.heads, policy.heads.action_values.targets
    first, second = (head.actions.weight for head in heads)
    assert torch.equal(first, -second) and first.abs().max() > 0, "apart, with a mean of 0"
    assert torch.equal(targets[0].actions.weight, first)
    with torch.no_grad():
        first.add_(1.0)
    before = targets[0].actions.weight.clone()
    optimizer.after_step(TextPolicy(policy, SamplingSpec(), True, True))
    assert torch.allclose(targets[0].actions.weight, before + 0.25, atol=1e-6)
    assert not any(p.requires_grad for p in targets.parameters())
    assert all(p.requires_grad for p in heads.parameters())


def test_a_family_without_a_linear_head_is_refused(tmp_path):
    from transformers import Gemma2Config, Gemma2ForCausalLM

    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = Gemma2Config(vocab_size=15, num_key_value_heads=2, head_dim=8, eos_token_id=1, pad_token_id=0, **sizes)
    write_tiny_model(tmp_path / "model")
    Gemma2ForCausalLM(config).save_pretrained(tmp_path / "model")
    with pytest.raises(ModelError, match="gemma2 models are more than a linear head"):
        run(config_of(tmp_path / "model", tmp_path / "run"))
    assert not (tmp_path / "run").exists()


# Data, updates and whole runs.


def config_of(model, folder, settings=None, **train):
    return build(
        RLConfig,
        {
            "model": str(model),
            "run": {"folder": str(folder), "device": "cpu"},
            "sampling": {"max_new_tokens": 4},
            "train": {"updates": 4, "prompts_per_update": 4, "learning_rate": 0.01, **train},
            "optimizer": {"name": "ilql", "ilql": {"minibatches": 2, **(settings or {})}},
            "evaluation": {"every": 2, "prompts": 2},
            "checkpoint": {"every": 1, "keep": 10},
        },
    )


def happy(prompts, responses):
    return [float("happy" in response) for response in responses]


def run(config, data=ROWS, **kwargs):
    prompts = ["the cat", "a dog", "the dog", "a cat"]
    return rl(config, reward=happy, prompts=prompts, data=data, progress=False, **kwargs)


def offline(folder, data):
    needs = Needs(experience="trajectories", values=True)
    return load_offline(LearningData(), data, load(folder).card, needs, torch.device("cpu"))


def test_rewards_stand_on_the_token_that_ends_an_answer(tiny_folder):
    data = offline(tiny_folder, ROWS)
    batch = data.batch([1, 3])
    assert batch.rewards.tolist() == [[0, 0, -0.5, 0, 0], [0, 0, 0, 0, -1]], "EOS is an action"
    assert batch.terminated.all() and batch.responses.inputs.action_counts.tolist() == [3, 5]
    part = batch.select(torch.tensor([1]))
    assert len(part) == 1 and part.rewards.tolist() == [[0, 0, 0, 0, -1]]
    assert data.fingerprint() != offline(tiny_folder, [{**ROWS[0], "reward": 0.9}, *ROWS[1:]]).fingerprint()


def test_scored_rankings_are_rewarded_answers(tiny_folder):
    rows = [{"prompt": "the", "completions": [" cat", " dog", " home"], "scores": [0.5, 2.0, -1.0]}]
    data = offline(tiny_folder, rows)
    assert len(data) == 3 and data.batch([0, 1, 2]).rewards.sum(1).tolist() == [0.5, 2.0, -1.0]


def test_microbatches_change_no_gradient(tiny_folder):
    def update(tokens):
        torch.manual_seed(0)
        optimizer = ILQL(ILQLSettings(minibatches=1))
        policy = PolicyModel(load(tiny_folder).model, with_values=True, optimizer=optimizer)
        trained = [p for p in policy.parameters() if p.requires_grad]
        before = torch.nn.utils.parameters_to_vector(trained).detach().clone()
        train = TrainSettings(max_gradient_norm=0.0, microbatch_tokens=tokens)
        updater = Updater(
            optimizer,
            TextPolicy(policy, SamplingSpec(), True, True),
            train,
            torch_optimizer=torch.optim.SGD(trained, lr=1.0),
        )
        data = offline(tiny_folder, ROWS)
        metrics = updater.learn(data.batch(range(len(data))), update=1, seed=0)
        return torch.nn.utils.parameters_to_vector(trained).detach() - before, metrics

    whole, metrics = update(100_000)
    split, again = update(1)
    assert whole.abs().max() > 1e-3
    assert torch.allclose(whole, split, atol=1e-5 * float(whole.abs().max()))
    assert metrics == pytest.approx(again, rel=1e-4, abs=1e-6)


def test_a_run_starts_as_its_reference_and_comes_to_score_more(tiny_folder, tmp_path):
    train = {"updates": 40, "prompts_per_update": 8, "value_learning_rate": 0.03}
    config = config_of(tiny_folder, tmp_path / "run", **train)
    config = replace(config, evaluation=replace(config.evaluation, every=0, samples_per_prompt=32))
    config = replace(config, run=replace(config.run, seed=1))
    result = run(config)
    records = read_metrics(tmp_path / "run")
    assert records[0]["evaluation/kl"] == pytest.approx(0, abs=1e-4), "the mean of both heads is 0"
    assert records[-1]["optimizer/td_loss"] < records[1]["optimizer/td_loss"]
    assert records[-1]["optimizer/cloning_loss"] < records[1]["optimizer/cloning_loss"]
    assert result.after.reward.mean > result.before.reward.mean + 0.4
    for name in ("td_loss", "value_loss", "conservative_loss", "action_value", "value", "advantage"):
        assert isinstance(records[-1][f"optimizer/{name}"], float)

    on = config_of(tmp_path / "run", tmp_path / "more", updates=1)
    run(on)
    first = read_metrics(tmp_path / "more")[0]
    assert first["evaluation/kl"] == pytest.approx(0, abs=1e-4), "its checkpoint is the policy that was evaluated"


def weights(folder):
    return {file.name: load_file(file) for file in sorted(list_checkpoints(folder)[-1].glob("*.safetensors"))}


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_resumed_equals_undisturbed_bit_for_bit(tmp_path, architecture):
    model = write_tiny_model(tmp_path / "model", architecture=architecture)
    whole = config_of(model, tmp_path / "whole")
    run(whole)
    parts = replace(whole, run=replace(whole.run, folder=str(tmp_path / "parts")))
    run(replace(parts, train=replace(parts.train, updates=2)))
    run(parts, resume=True)
    strip = lambda records: [{k: v for k, v in r.items() if not k.startswith("time/")} for r in records]  # noqa: E731
    assert strip(read_metrics(tmp_path / "parts")) == strip(read_metrics(tmp_path / "whole"))
    expected, found = weights(tmp_path / "whole"), weights(tmp_path / "parts")
    assert {"model.safetensors", "value_head.safetensors", "action_values.safetensors"} == expected.keys()
    for file, tensors in expected.items():
        assert tensors.keys() == found[file].keys()
        assert all(torch.equal(tensor, found[file][name]) for name, tensor in tensors.items()), file


def test_what_it_cannot_learn_from_is_refused(tiny_folder, tmp_path):
    config = config_of(tiny_folder, tmp_path / "run")
    with pytest.raises(SettingsError, match=r"logged answers with their rewards, not from prompts; .*data\.path"):
        run(config, data=None)
    with pytest.raises(DataError, match="give rows with prompt, completion and reward, or rankings with scores"):
        run(config, data=[{"prompt": "the", "completion": " cat"}])
    with pytest.raises(DataError, match="without scores"):
        run(config, data=[{"prompt": "the", "completions": [" cat", " dog"], "ranks": [0, 1]}])
    with pytest.raises(DataError, match=r"all 2 answers have the reward 1; expected different ones"):
        run(config, data=[ROWS[0], {**ROWS[1], "reward": 1.0}])
    with pytest.raises(SettingsError, match=r"separate_critic is true.*one trunk"):
        run(config_of(tiny_folder, tmp_path / "run", separate_critic=True))
    assert not (tmp_path / "run").exists()


BAD = {
    "tau": (0.0, 1.0),
    "alpha": (-1.0,),
    "beta": (-1.0, float("inf")),
    "gamma": (-0.1, 1.1),
    "cloning_coefficient": (-0.1,),
    "cloning_beta": (float("nan"),),
    "target_rate": (0.0, 2.0),
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in BAD.items() for value in values])
def test_bad_settings_are_refused(name, value):
    with pytest.raises(SettingsError, match=f"{name} is {value}"):
        ILQLSettings(**{name: value})
