"""Stop strings that name special tokens, alone or with text: in sampling, early scoring, the environment and chat."""

import gymnasium
import pytest
import transformers
from byte_models import write_byte_model

from lmrl.engines import sample_batch
from lmrl.engines.local.engine import TransformersEngine
from lmrl.engines.protocol import FinishReason, SamplingSpec
from lmrl.engines.texts import sample_texts
from lmrl.models.loading import load
from lmrl.rewards.concurrent import ConcurrentReward
from lmrl.rewards.resolve import resolve
from lmrl.stages.chat.stream import Stream
from lmrl.stages.rl.early_scores import EarlyScores
from lmrl.text.card import FastCodec, TransformersCodec, contains_stop, response_texts
from lmrl.text.responses import certain_text

END, START = "<|im_end|>", "<|im_start|>"
CASES = [
    (f"yes{END}no", [END], "yes"),
    (f"yes{END}\nno", [f"{END}\n"], "yes"),
    (f"a{END}b", [f"{END}\n"], None),
    (f"yes, ok{END}", [f"ok{END}"], "yes, "),
    (f"a{START}b{END}{START}c", [f"{END}{START}"], "ab"),
    (f"a{END}stop", ["stop", END], "a"),
    (f"one stop{END}", ["stop", END], "one "),
    (
        f"a{START}b",
        ["ab"],
        "",
    ),
    ("é\U0001f600!" + END + "x", [END], "é\U0001f600!"),
    ("xyz", ["yz"], "x"),
    (f"{END}a", [END], ""),
    ("a</s>b", ["</s>"], "a"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    template = "{% for m in messages %}<|im_start|>{{ m['content'] }}<|im_end|>{% endfor %}<|im_start|>"
    return write_byte_model(tmp_path_factory.mktemp("m") / "m", tokens=[START, END], template=template)


@pytest.mark.parametrize("case", CASES, ids=repr)
@pytest.mark.parametrize("kind", ["fast", "transformers"])
def test_texts_end_before_the_stop(folder, case, kind):
    written, stops, expected = case
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    codec = FastCodec(folder / "tokenizer.json") if kind == "fast" else TransformersCodec(tokenizer)
    prompt, row = codec.encode_plain("Hi"), codec.encode_plain(written)
    found = contains_stop(codec, prompt, row, stops)
    assert found is (expected is not None)
    if not found:
        return
    assert response_texts(codec, [prompt], [row], (), stops) == [expected]
    first = next(size for size in range(1, len(row) + 1) if contains_stop(codec, prompt, row[:size], stops))
    assert response_texts(codec, [prompt], [row[:first]], (), stops) == [expected]
    said = ""
    for size in range(first):
        certain = certain_text(codec, prompt, row[:size], stops)
        assert certain.startswith(said), "what has been said stays"
        said = certain
    assert expected.startswith(said)


class Scripted:
    """A model's forward that makes it say a given text, whatever was sampled before."""

    def __init__(self, model, prompt, row):
        self.model, self.prompt, self.row = model, prompt, row

    def hook(self, module, arguments, output):
        width = output.logits.shape[1]
        for place in range(1, width + 1):
            at = min(self.seen - width + place - len(self.prompt), len(self.row) - 1)
            output.logits[:, place - 1] = -100.0
            output.logits[:, place - 1, self.row[max(at, 0)]] = 100.0
        return output

    def count(self, module, arguments, keywords):
        cache = keywords.get("past_key_values")
        before = 0 if cache is None else cache.get_seq_length()
        ids = arguments[0] if arguments else keywords["input_ids"]
        self.seen = before + ids.shape[1]


def scripted(folder, written):
    """Return a model that answers "Hi" with ``written``."""
    model = load(folder)
    prompt, row = model.card.codec.encode_plain("Hi"), model.card.codec.encode_plain(written)
    script = Scripted(model.model, prompt, row)
    model.model.register_forward_pre_hook(script.count, with_kwargs=True)
    model.model.register_forward_hook(script.hook)
    return model, prompt, row


@pytest.mark.parametrize("case", [case for case in CASES if case[2] is not None], ids=repr)
def test_sampling_early_scores_chat_and_environment_agree(folder, case):
    written, stops, expected = case
    model, prompt, row = scripted(folder, written)
    codec = model.card.codec
    spec = SamplingSpec(max_new_tokens=len(row) + 3, eos_ids=(3,), stop_strings=tuple(stops), on_length="truncate")
    [drawn] = sample_texts(model, [prompt], spec, 0)
    assert (drawn.text, drawn.finish) == (expected, FinishReason.STOP)
    assert drawn.ids == row[: len(drawn.ids)]

    stream = Stream(model, prompt, spec, 0)
    assert "".join(stream.pieces()) == expected == stream.text and stream.finish == FinishReason.STOP
    assert stream.ids == drawn.ids

    reward = ConcurrentReward(resolve(lambda prompts, responses: [float(len(text)) for text in responses]), "thread", 2)
    early = EarlyScores(reward, codec, ["Hi"], {})
    sample_batch(TransformersEngine(), model.model, [prompt], spec, 0, codec, on_response=early.add)
    assert early._pending.rows, "a row that a stop string ended is scored early"
    assert early.responses() == [expected]
    assert early.result([0]).scores.tolist() == [float(len(expected))]
    reward.close()

    env = gymnasium.make(
        "lmrl:TextGen-v0",
        model=folder,
        prompts=["Hi"],
        stop_strings=stops,
        reward=lambda prompts, responses: [float(len(text)) for text in responses],
        reference=False,
    )
    env.reset(seed=0)
    for place, token in enumerate(drawn.ids):
        _, score, terminated, _, info = env.step(token)
        assert terminated is (place == len(drawn.ids) - 1)
    assert score == len(expected)
    if drawn.ids[-1] != 2:
        assert info["finish_reason"] == "stop"


def test_special_tokens_stay_out_of_texts(folder):
    codec = load(folder).card.codec
    row = codec.encode_plain(f"a{START}b")
    assert codec.decode_batch([row]) == ["ab"] and codec.decode_batch([row], special=True) == [f"a{START}b"]
    assert response_texts(codec, [[]], [row], (), [END]) == ["ab"]
