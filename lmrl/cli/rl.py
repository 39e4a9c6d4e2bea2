"""`lmrl rl`: train a policy with reinforcement learning from a recipe."""

from __future__ import annotations

from lmrl.cli.recipes import recipe_command

SPEC = recipe_command(
    "rl",
    config="lmrl.stages.rl.config:RLConfig",
    stage="lmrl.stages.rl.stage:rl",
    report="lmrl.cli.report:print_result",
    summary="train a policy with reinforcement learning",
    example="lmrl rl examples/stories.toml optimizer.name=reinforce train.updates=50",
    free_on_resume=("train.updates", "evaluation.show"),
)
