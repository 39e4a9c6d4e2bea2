"""TRL's trainers as a side, which take turns with lmrl in one process.

The trainer's own ``train`` runs, and a callback gives the others their turn between two of its steps. (In a thread of
its own it would bring a second pool of workers, and both sides would run at half their speed.) TRL is an extra
(``pip install "lmrl[peers]"``); without it the sides are skipped.
"""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from lmrl_suites.throughput.learner import ADAM_BETA2, BETA, STILL
from lmrl_suites.throughput.setting import Cell
from lmrl_suites.throughput.shapes import ShareOfWords
from lmrl_suites.throughput.stage import Stage

ALGORITHMS = ("grpo", "rloo")


def missing() -> str | None:
    """Return why TRL cannot take part, or None if it can."""
    if importlib.util.find_spec("trl") is None:
        return 'TRL is not installed; install it with pip install "lmrl[peers]"'
    return None


class TRLTrainer:
    """One of TRL's trainers on a cell's workload."""

    def __init__(
        self,
        stage: Stage,
        cell: Cell,
        algorithm: str,
        learning_rate: float = STILL,
        seed: int = 0,
        updates: int = 10**6,
    ) -> None:
        self.reward = ShareOfWords(stage.shape.vocabulary // 4)
        self.lengths: list[float] = []
        """Mean length of the responses of every step, as the trainer counts them."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # TRL's use of names that transformers renames
            self.trainer = _make_trainer(stage, cell, algorithm, self.reward, learning_rate, seed, updates)

    def train(self, between: Callable[[], bool] | None = None) -> None:
        """Train to the end, or until ``between``, called before the first step and after each, says to go no further.

        It sees a step end as soon as the parameters have moved.
        """
        self.trainer.add_callback(_callback(self, between or (lambda: True)))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            self.trainer.train()


def _callback(owner: TRLTrainer, between: Callable[[], bool]) -> Any:
    from transformers import TrainerCallback

    class Turns(TrainerCallback):  # type: ignore[misc]
        """Gives the others their turn before the first step and after each."""

        def on_train_begin(self, args: Any, state: Any, control: Any, **others: Any) -> None:
            between()

        def on_step_end(self, args: Any, state: Any, control: Any, **others: Any) -> None:
            owner.lengths += owner.trainer._metrics["train"]["completions/mean_length"][-1:]
            if not between():
                control.should_training_stop = True

    return Turns()


def _make_trainer(
    stage: Stage, cell: Cell, algorithm: str, reward: ShareOfWords, learning_rate: float, seed: int, updates: int
) -> Any:
    import transformers
    import trl
    from datasets import Dataset
    from transformers.trainer_callback import PrinterCallback

    from lmrl.models.pretrained import quiet_transformers

    settings = stage.settings
    cuda = stage.device == "cuda"
    own = {"loss_type": "grpo", "scale_rewards": "group"} if algorithm == "grpo" else {"normalize_advantages": False}
    config_class = trl.GRPOConfig if algorithm == "grpo" else trl.RLOOConfig
    passes = cell.rows // settings.microbatch_rows
    arguments = config_class(
        output_dir=str(Path(stage.runs) / f"trl-{algorithm}"),
        max_steps=updates,
        per_device_train_batch_size=settings.microbatch_rows,
        gradient_accumulation_steps=passes,
        num_generations=cell.group_size,
        max_completion_length=settings.new_tokens,
        beta=BETA,
        learning_rate=learning_rate,
        lr_scheduler_type="constant",
        adam_beta2=ADAM_BETA2,
        weight_decay=0.0,
        max_grad_norm=1.0,
        temperature=1.0,
        top_k=0,
        gradient_checkpointing=settings.trl_checkpointing,
        bf16=cuda,
        use_cpu=not cuda,
        seed=seed,
        report_to="none",
        logging_strategy="no",
        save_strategy="no",
        eval_strategy="no",
        disable_tqdm=True,
        **own,
    )
    with quiet_transformers():
        model = transformers.AutoModelForCausalLM.from_pretrained(
            str(stage.folder), dtype=torch.float32, trust_remote_code=False
        )
        tokenizer = transformers.AutoTokenizer.from_pretrained(
            str(stage.folder), padding_side="left", trust_remote_code=False
        )
        trainer_class = trl.GRPOTrainer if algorithm == "grpo" else trl.RLOOTrainer
        trainer = trainer_class(
            model=model,
            reward_funcs=reward.for_trl,
            args=arguments,
            train_dataset=Dataset.from_dict({"prompt": stage.texts(cell.rows // cell.group_size)}),
            processing_class=tokenizer,
        )
    trainer.remove_callback(PrinterCallback)
    if cell.lengths == "full":
        beyond = [stage.shape.vocabulary]  # an id that the model cannot draw: TRL always has an EOS
        trainer.eos_token_ids = beyond
        trainer.generation_config.eos_token_id = beyond
        trainer.generation_kwargs["eos_token_id"] = beyond
    return trainer
