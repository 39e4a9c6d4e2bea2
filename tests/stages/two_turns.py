"""A toy task of two turns in lockstep, and a run over it that can be stopped and continued.

Each prompt is answered, a tool answers with words that depend on the answer, and the policy speaks once more. Every
second episode rewrites its context between the turns, so its trajectory has two sequences. Some rows are unscored.
"""

import torch

from lmrl.algorithms.kl import KLSettings, shape_rewards
from lmrl.algorithms.rollout import Rollout
from lmrl.algorithms.sequences import Sequences
from lmrl.engines import LiveWeights, Request, RequestQueue, SamplingSpec, derive_seed
from lmrl.engines.local.engine import TransformersEngine
from lmrl.models import PolicyModel, freeze_copy, load
from lmrl.models.text_policy import TextPolicy, score_logprobs, score_values
from lmrl.training.update import Updater
from lmrl.training.update_settings import TrainSettings

PROMPTS = [[3, 5], [4, 6, 7], [9], [8, 8, 4]]
SPEC = SamplingSpec(max_new_tokens=5, eos_ids=(1,))
KL = KLSettings(beta=0.05)
BUDGET = 40


def tool(ids):
    """Words that depend on what was sampled."""
    return [10 + sum(ids) % 3] * (1 + len(ids) % 3)


class TwoTurns:
    """A policy, its reference and an engine; ``rollout(step)`` plays a batch of episodes."""

    def __init__(self, folder, values=True, engine=None):
        model = load(folder).model
        self.policy = PolicyModel(model, with_values=values)
        self.reference = PolicyModel(freeze_copy(model))
        self.values = values
        self.engine = engine or TransformersEngine()

    def requests(self, step, turn, prompts, groups):
        """Requests of a turn; seeds derive from the step, the group, the sample and the turn."""
        counted = {}
        for row, (ids, group) in enumerate(zip(prompts, groups, strict=True)):
            sample = counted[group] = counted.get(group, -1) + 1
            yield Request(
                ids, SPEC, derive_seed(0, "episode", step, group, sample, turn), group, len(prompts) * turn + row
            )

    def episodes(self, step, groups):
        """Play all episodes in lockstep: the second turn is asked for once every first turn is answered."""
        prompts = [PROMPTS[group % len(PROMPTS)] for group in groups]
        self.engine.publish(LiveWeights(self.policy.model), step)
        queue, found = RequestQueue(self.requests(step, 0, prompts, groups)), {}
        contexts = []
        for response in self.engine.generate(queue):
            found[response.request.id] = response
            if len(found) == len(prompts):  # in the order of ids, whatever the order of completion
                for row, prompt in enumerate(prompts):
                    said = found[row].ids
                    contexts.append([*prompt, *tool(said)] if row % 2 else [*prompt, *said, *tool(said)])
                queue.add(self.requests(step, 1, contexts, groups))
                queue.close()
        return prompts, contexts, [(found[row], found[len(prompts) + row]) for row in range(len(prompts))]

    def rollout(self, step, groups=tuple(group for group in range(4) for _ in range(3))):
        """Return the batch's rollout: rewards, values, and reference log-probabilities."""
        prompts, contexts, turns = self.episodes(step, groups)
        trajectories = []
        for row, (prompt, context, (first, second)) in enumerate(zip(prompts, contexts, turns, strict=True)):
            if row % 2:
                sequences = [[(prompt, False), (first.ids, True)], [(context, False), (second.ids, True)]]
            else:
                said = len(prompt) + len(first.ids)
                sequences = [[(prompt, False), (first.ids, True), (context[said:], False), (second.ids, True)]]
            trajectories.append(sequences)
        inputs = Sequences.of(trajectories)

        def column(of, dtype=torch.float32):
            flat = [number for pair in turns for turn, response in enumerate(pair) for number in of(response, turn)]
            return inputs.columns(torch.tensor(flat, dtype=dtype))

        logprobs = column(lambda response, turn: response.logprobs)
        mask = inputs.action_mask()
        scored = torch.tensor([row % 5 != 4 for row in range(len(turns))])
        scores = torch.tensor([float(sum(a.ids + b.ids) % 7) for a, b in turns]).masked_fill(~scored, 0)
        reference = score_logprobs(self.reference, inputs, SPEC, BUDGET)
        declared = {"reference_logprobs": reference}
        if self.values:
            values, bootstrap = score_values(self.policy, inputs, BUDGET)
            declared |= {"values": values, "bootstrap_values": bootstrap}
        flags = torch.ones(len(turns), dtype=torch.bool)
        return Rollout(
            inputs=inputs,
            action_mask=mask,
            sampler_logprobs=logprobs,
            rewards=shape_rewards(scores, logprobs, reference, mask, KL, KL.beta),
            scores=scores,
            terminated=flags,
            truncated=~flags,
            group=torch.tensor(groups),
            declared=declared,
            scored=scored,
            policy_version=column(lambda response, turn: response.policy_version, torch.long),
            turn=column(lambda response, turn: [turn] * len(response.ids), torch.long),
        )

    def updater(self, optimizer, accelerator, torch_optimizer=None, module=None, **train):
        """Return an updater; plain SGD shows the gradient in the step."""
        torch_optimizer = torch_optimizer or torch.optim.SGD(self.policy.parameters(), lr=0.1)
        settings = TrainSettings(max_gradient_norm=0.0, **train)
        face = TextPolicy(module or self.policy, SPEC, self.values)
        return Updater(optimizer, face, settings, kl=KL, accelerator=accelerator, torch_optimizer=torch_optimizer)

    def parameters(self):
        return torch.cat([p.detach().flatten() for p in self.policy.parameters()])
