"""Classifiers with several labels as rewards, saved or live: their scores are transformers' own."""

import json
import pickle

import gymnasium as gym
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import nn

import lmrl  # noqa: F401 - registers the environment
from lmrl.cli.main import main
from lmrl.errors import LmrlError, ModelError, SettingsError
from lmrl.rewards import resolve
from lmrl.testing import write_tiny_model

WORDS = ["the", "cat", "dog", "ran", "sat", "home", "far", "a", "sad", "happy", ".", "!", "and", "then", "slept"]
PROMPTS = ["the cat", "a", "the dog ran and then", "cat"]
RESPONSES = [" sat home", " dog .", " slept ! the happy cat sat", ""]
LABELS = {0: "NEGATIVE", 1: "NEUTRAL", 2: "POSITIVE"}
KINDS = ("bert", "roberta", "llama", "gpt2")


def write_classifier(folder, kind, **changes):
    """A tiny classifier with its own tokenizer: special tokens around a text for encoders, none for causal models."""
    import transformers

    specials = ["<s>", "<pad>", "</s>", "<unk>"] if kind == "roberta" else ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    unknown = "<unk>" if kind == "roberta" else "[UNK]"
    vocabulary = {token: place for place, token in enumerate([*specials, *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=unknown))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if kind == "bert":
        tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    if kind == "roberta":
        tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    pad = "<pad>" if kind == "roberta" else "[PAD]"
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=pad, unk_token=unknown)
    sizes = {"vocab_size": len(vocabulary), "initializer_range": 0.5, "id2label": LABELS, **changes}
    sizes["label2id"] = {name: place for place, name in sizes["id2label"].items()}
    if kind == "gpt2":
        sizes |= {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 40, "pad_token_id": 0, "eos_token_id": 3}
        made = transformers.GPT2ForSequenceClassification(transformers.GPT2Config(**sizes))
    else:
        sizes |= {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
        sizes["max_position_embeddings"] = 40
        if kind == "bert":
            made = transformers.BertForSequenceClassification(transformers.BertConfig(**sizes))
        elif kind == "roberta":
            sizes |= {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2, "type_vocab_size": 1}
            made = transformers.RobertaForSequenceClassification(transformers.RobertaConfig(**sizes))
        else:
            sizes |= {"pad_token_id": 0, "eos_token_id": 3}
            made = transformers.LlamaForSequenceClassification(transformers.LlamaConfig(**sizes))
    made.eval().save_pretrained(folder)
    fast.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module", params=KINDS)
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def folder(kind, tmp_path_factory):
    torch.manual_seed(0)
    return write_classifier(tmp_path_factory.mktemp("classifiers") / kind, kind)


def own_logits(folder, texts):
    """What transformers gives for each text alone."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    with torch.no_grad():
        return torch.cat([model(**tokenizer(text, return_tensors="pt")).logits for text in texts])


JOINED = [prompt + response for prompt, response in zip(PROMPTS, RESPONSES, strict=True)]


@pytest.mark.parametrize("label", ["POSITIVE", "negative", "1"])
def test_scores_are_transformers_own(folder, label):
    place = {"POSITIVE": 2, "negative": 0, "1": 1}[label]
    logits = own_logits(folder, JOINED)
    expected = {"logit": logits, "probability": logits.softmax(1), "log_probability": logits.log_softmax(1)}
    for output, values in expected.items():
        found = resolve(str(folder), {"label": label, "output": output})(PROMPTS, RESPONSES).scores
        assert found == pytest.approx(values[:, place].double().numpy(), rel=1e-4, abs=1e-5)
    default = resolve("learned", {"path": str(folder), "label": label})(PROMPTS, RESPONSES).scores
    assert default == pytest.approx(expected["log_probability"][:, place].double().numpy(), rel=1e-4, abs=1e-5)


def test_a_pipeline_says_the_same(folder):
    from transformers import pipeline

    classify = pipeline("text-classification", model=str(folder), device="cpu", top_k=None)
    said = [next(one["score"] for one in row if one["label"] == "POSITIVE") for row in classify(JOINED)]
    settings = {"label": "POSITIVE", "output": "probability"}
    for reward in (str(folder), classify, (classify.model, classify.tokenizer)):
        assert resolve(reward, settings)(PROMPTS, RESPONSES).scores == pytest.approx(said, rel=1e-4, abs=1e-5)
    assert resolve(str(folder), settings).bounds == (0.0, 1.0)


def test_a_batch_gives_the_scores_of_its_rows(folder):
    reward = resolve(str(folder), {"label": "POSITIVE", "token_budget": 12})
    together = reward(PROMPTS, RESPONSES).scores
    alone = [reward([p], [r]).scores[0] for p, r in zip(PROMPTS, RESPONSES, strict=True)]
    assert together == pytest.approx(alone, abs=1e-5)
    assert reward(PROMPTS[::-1], RESPONSES[::-1]).scores[::-1] == pytest.approx(together, abs=1e-5)


def test_what_is_read(folder):
    settings = {"label": "POSITIVE", "output": "logit", "reads": "response"}
    expected = own_logits(folder, RESPONSES[:3])[:, 2].double().numpy()
    assert resolve(str(folder), settings)(PROMPTS[:3], RESPONSES[:3]).scores == pytest.approx(expected, abs=1e-5)
    messages = {"prompt_messages": [[{"role": "user", "content": "the cat"}]]}
    joined = own_logits(folder, ["the cat\nsat home"])[0, 2].item()
    settings["reads"] = "text"
    assert resolve(str(folder), settings)(["?"], ["sat home"], messages).scores[0] == pytest.approx(joined, abs=1e-5)


def test_a_long_text_is_cut_and_counted(folder):
    result = resolve(str(folder), {"label": "POSITIVE"})(["the cat " * 30], ["sat"])
    assert result.parts["cut"][0] > 0


def test_a_live_model_finds_the_tokenizer_it_was_loaded_with(folder):
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_pretrained(folder)
    reward = resolve(model, {"label": "POSITIVE"})
    saved = resolve(str(folder), {"label": "POSITIVE"})(PROMPTS, RESPONSES).scores
    assert reward(PROMPTS, RESPONSES).scores == pytest.approx(saved, abs=1e-6)
    assert pickle.loads(pickle.dumps(reward))(PROMPTS, RESPONSES).scores == pytest.approx(saved, abs=1e-6)


@pytest.mark.parametrize("make", [gym.make, gym.make_vec])
def test_the_environment_takes_it_live_and_saved(folder, tmp_path, make):
    from transformers import AutoModelForSequenceClassification

    base = write_tiny_model(tmp_path / "base")
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    expected = resolve(str(folder), {"label": "POSITIVE"})(["the cat"], [" ran home"]).scores[0]
    for reward in (model, str(folder)):
        env = make(
            "lmrl:TextGen-v0",
            model=str(base),
            prompts=["the cat"],
            reward=reward,
            reward_settings={"label": "POSITIVE"},
            max_new_tokens=3,
        )
        env.reset(seed=0)
        for action in (7, 9, 1):
            _, score, *_ = env.step(action if make is gym.make else [action] * env.num_envs)
        assert float(score if make is gym.make else score[0]) == pytest.approx(expected, abs=1e-5)
        env.close()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, r"is a classifier with 3 labels: NEGATIVE, NEUTRAL, POSITIVE; expected the label.*label = 'POSITIVE'"),
        ({"label": "POSITVE"}, r"has no label 'POSITVE'; did you mean 'POSITIVE'\? Its 3 labels are NEGATIVE"),
        ({"label": "7"}, "has no label '7'"),
    ],
)
def test_a_label_is_needed_and_must_exist(folder, settings, message):
    from transformers import AutoModelForSequenceClassification

    with pytest.raises(ModelError, match=message):
        resolve(str(folder), settings)
    with pytest.raises(ModelError, match=message):
        resolve(AutoModelForSequenceClassification.from_pretrained(folder), settings)


def test_independent_labels_have_probabilities_of_their_own(tmp_path):
    torch.manual_seed(1)
    folder = write_classifier(tmp_path / "many", "bert", problem_type="multi_label_classification")
    expected = own_logits(folder, JOINED).sigmoid()[:, 2].double().numpy()
    found = resolve(str(folder), {"label": "POSITIVE", "output": "probability"})(PROMPTS, RESPONSES).scores
    assert found == pytest.approx(expected, abs=1e-5)


def test_one_label_needs_none(tmp_path):
    folder = write_classifier(tmp_path / "one", "bert", id2label={0: "SCORE"})
    with pytest.raises(ModelError, match="has one label, its score, but label is 'POSITIVE'"):
        resolve(str(folder), {"label": "POSITIVE"})
    settings = {"reads": "text"}
    expected = own_logits(folder, JOINED)[:, 0].double().numpy()
    assert resolve(str(folder), settings)(PROMPTS, RESPONSES).scores == pytest.approx(expected, abs=1e-5)


class Scorer(nn.Module):
    def forward(self, prompts, responses):
        return torch.tensor([float(len(response)) for response in responses])


class Tokens(nn.Module):
    def forward(self, input_ids, attention_mask):
        return input_ids


def test_modules_are_accepted_or_refused_with_advice(tmp_path):
    from transformers import AutoModelForCausalLM, BertConfig, BertForSequenceClassification, pipeline

    assert resolve(Scorer())(["p"], ["four"]).scores.tolist() == [4.0]
    base = write_tiny_model(tmp_path / "base")
    language_model = AutoModelForCausalLM.from_pretrained(base)
    bare = BertForSequenceClassification(
        BertConfig(vocab_size=20, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    )
    cases = [
        (Tokens(), r"live Tokens \(torch.nn.Module\) whose forward takes \(input_ids, attention_mask\).*pipeline"),
        (nn.Linear(2, 1), "live Linear"),
        (language_model, "live LlamaForCausalLM, which gives no score of a text"),
        (bare, "without a tokenizer; expected both.*pipeline"),
        (pipeline("text-generation", model=str(base)), "pipeline for 'text-generation'; expected"),
    ]
    for reward, message in cases:
        with pytest.raises(LmrlError, match=message):
            resolve(reward, {"label": "1"} if reward is bare else None)
    with pytest.raises(SettingsError, match="live model, so its setting path is not read"):
        resolve(language_model, {"path": "x"})


def test_a_live_reward_model(tmp_path):
    from lmrl.models.reward_model import load_reward_model, start_reward_model

    start_reward_model(write_tiny_model(tmp_path / "base"), 0).save(tmp_path / "reward")
    live = resolve(load_reward_model(tmp_path / "reward"))
    saved = resolve(str(tmp_path / "reward"))
    assert live(["the cat"], ["sat"]).scores.tolist() == saved(["the cat"], ["sat"]).scores.tolist()


def test_a_run_trains_on_a_label(folder, tmp_path):
    base = write_tiny_model(tmp_path / "base")
    (tmp_path / "prompts.txt").write_text("the cat\na dog\nthe\na\ncat\n")
    settings = [f"model={base}", "prompts.name=file", f"prompts.file.path={tmp_path / 'prompts.txt'}"]
    settings += ["reward.name=learned", f"reward.learned.path={folder}", "reward.learned.label=POSITIVE"]
    settings += ["train.updates=1", "train.prompts_per_update=4", "evaluation.prompts=1", "sampling.max_new_tokens=4"]
    assert main(["rl", "--quiet", *settings, f"run.folder={tmp_path / 'run'}"]) == 0
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["rollout/reward"] < 0
