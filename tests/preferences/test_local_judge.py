"""Judges on this machine: a real pretrained model, by log-probabilities and by its words."""

import math
import os
import shutil

import pytest
import torch

from lmrl.annotators import AnnotatorSettings, Comparison, build_annotator
from lmrl.errors import ModelError, SettingsError
from lmrl.judges.local import response_logprobs
from lmrl.judges.settings import JudgeSettings
from lmrl.stories import MODEL_PATH

PAIRS = [
    Comparison("Once upon a time", "", (" there was a girl.", " xqz xqz.")),
    Comparison("One day", "", (" Tim ran.", " the the the", " a dog barked at Lily.")),
]


def make(model, **changes):
    settings = JudgeSettings(model=str(model), cache="", **changes)
    return build_annotator(AnnotatorSettings(kind="judge", judge=settings))


@pytest.fixture(scope="module")
def story_model(request):
    return request.getfixturevalue("shared") / "data" / "models" / "stories260K-llama"


def test_verdicts_are_those_that_the_model_finds_likeliest(story_model):
    """Against a forward pass written out by hand, one row at a time: by the first token, and by all of them."""
    annotator = make(story_model)
    asker = annotator.asker
    model = asker._loaded().model
    questions = [
        annotator.template.question("Once", first, second) for first, second in (("a b", "c"), ("x " * 40, ""))
    ]
    answers = dict(asker.ask(questions, lambda: False))
    for place, question in enumerate(questions):
        ids, verdicts = asker._ids(question), asker._values
        shared = next(t for t in range(9) if len({verdict[t] for verdict in verdicts}) > 1)
        first, whole = [], []
        for verdict in verdicts:
            with torch.no_grad():
                logits = torch.log_softmax(model(torch.tensor([[*ids, *verdict]])).logits[0].double(), -1)
            terms = [float(logits[len(ids) + t - 1, token]) for t, token in enumerate(verdict)]
            first.append(terms[shared])
            whole.append(sum(terms))
        assert answers[place].text == f"Verdict: {('A', 'B', 'TIE')[first.index(max(first))]}"
        assert response_logprobs(asker._policy, [(ids, verdict) for verdict in verdicts]) == pytest.approx(
            whole, abs=1e-4
        )


def test_verdicts_that_begin_alike_are_told_apart_by_their_ends(story_model):
    asker = make(story_model).asker
    asker.__dict__["_values"] = [[410, 447], [410, 368], [274, 442, 459]]
    (answer,) = asker._chosen([asker.card.codec.encode("Once upon a time")], asker.choices)
    scores = response_logprobs(asker._policy, [(asker.card.codec.encode("Once upon a time"), v) for v in asker._values])
    assert answer == f"Verdict: {('A', 'B', 'TIE')[scores.index(max(scores))]}"


def test_answers_do_not_depend_on_what_is_asked_beside_them(story_model):
    together = make(story_model).judge(PAIRS)
    alone = [make(story_model).judge([pair])[0] for pair in PAIRS]
    assert [one.ranks for one in together] == [one.ranks for one in alone]
    assert all(math.isfinite(score) for one in together for score in one.scores)


def test_a_written_answer_is_read_or_counted(story_model):
    annotator = make(story_model, answer="text", max_answer_tokens=8, temperature=1.0)
    annotator.judge(PAIRS)
    assert annotator.counts["calls"] == 8 and annotator.counts["tokens"] > 0
    assert annotator.counts["unreadable"] > 0, "a model of children's stories does not keep to the form"


def test_questions_longer_than_the_context_are_unreadable(story_model):
    annotator = make(story_model)
    judged = annotator.judge([Comparison("p", "p", ("word " * 400, "x")), PAIRS[0]])
    assert judged[0] is None and judged[1] is not None and annotator.counts["unreadable"] == 2


def test_a_budget_of_calls(story_model):
    annotator = make(story_model, max_calls=3)
    judged = annotator.judge(PAIRS)
    assert judged[0] is not None and judged[1] is None
    assert annotator.stopped == "max_calls = 3 is reached" and annotator.counts["calls"] == 3


def test_a_model_that_cannot_tell_the_verdicts_apart_is_refused():
    with pytest.raises(ModelError, match="does not tell A, B, TIE"):
        make(MODEL_PATH).judge(PAIRS[:1])


def test_models_that_do_not_exist_are_refused_at_once(tmp_path):
    with pytest.raises(ModelError, match="there is no model folder"):
        make(tmp_path / "nowhere")
    with pytest.raises(SettingsError, match=r"judge\.model is empty"):
        make("")


def test_new_weights_at_the_same_place_are_another_judge(story_model, tmp_path):
    copy = shutil.copytree(story_model, tmp_path / "model")
    before = make(copy).asker.identity
    weights = next(copy.glob("*.safetensors"))
    os.utime(weights, ns=(1, 1))
    assert make(copy).asker.identity != before
