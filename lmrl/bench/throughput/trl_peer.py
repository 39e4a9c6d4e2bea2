"""TRL's trainers as a side: one step at a time, so that they can take turns with lmrl in one process.

The trainer's own ``train`` runs in a thread of its own and waits, in a callback, between two of its steps. TRL is an
extra (``pip install "lmrl[peers]"``); without it the sides are skipped.
"""

from __future__ import annotations

import importlib.util
import queue
import threading
import warnings
from pathlib import Path
from typing import Any

import torch

from lmrl.bench.throughput.learner import ADAM_BETA2, BETA, STILL
from lmrl.bench.throughput.setting import Cell
from lmrl.bench.throughput.shapes import ShareOfWords
from lmrl.bench.throughput.stage import Stage
from lmrl.errors import LmrlError

ALGORITHMS = ("grpo", "rloo")


def missing() -> str | None:
    """Return why TRL cannot take part, or None if it can."""
    if importlib.util.find_spec("trl") is None:
        return 'TRL is not installed; install it with pip install "lmrl[peers]"'
    return None


class TRLTrainer:
    """One of TRL's trainers on a cell's workload; ``step`` lets it take one step."""

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
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # TRL's use of names that transformers renames
            self.trainer = _make_trainer(stage, cell, algorithm, self.reward, learning_rate, seed, updates)
        self._go = threading.Semaphore(0)
        self._done: queue.Queue[BaseException | None] = queue.Queue()
        self._closing = False
        self._threads = torch.get_num_threads()
        self.trainer.add_callback(_callback(self))
        self._thread = threading.Thread(target=self._train, name="trl", daemon=True)
        self._thread.start()

    def step(self) -> None:
        """Sample, score and learn once, and return when the step is over."""
        if not self._thread.is_alive():
            raise LmrlError("TRL's trainer has come to its end; ask it for more updates when it is made")
        self._go.release()
        error = self._done.get()
        if error is not None:
            raise error

    def mean_length(self, steps: int) -> float:
        """Return the mean length of the responses of the last ``steps`` steps, as the trainer counts them."""
        lengths: list[float] = self.trainer._metrics["train"]["completions/mean_length"][-steps:]
        return sum(lengths) / len(lengths)

    def close(self) -> None:
        """Let the trainer stop after the step that it is at."""
        self._closing = True
        self._go.release()
        self._thread.join()

    def wait(self) -> bool:
        """Wait for the next step to be asked for; return whether there is one."""
        self._go.acquire()
        return not self._closing

    def _train(self) -> None:
        try:
            torch.set_num_threads(self._threads)  # a new thread starts with the library's own number
            self.trainer.train()
        except BaseException as error:
            self._done.put(error)

    def finish_step(self) -> None:
        """Say that a step is over."""
        self._done.put(None)


def _callback(owner: TRLTrainer) -> Any:
    from transformers import TrainerCallback

    class Turns(TrainerCallback):  # type: ignore[misc]
        """Waits before the first step and after each."""

        def on_train_begin(self, args: Any, state: Any, control: Any, **others: Any) -> None:
            control.should_training_stop = not owner.wait()

        def on_step_end(self, args: Any, state: Any, control: Any, **others: Any) -> None:
            owner.finish_step()
            if state.global_step < state.max_steps:
                control.should_training_stop = not owner.wait()

    return Turns()


def _make_trainer(
    stage: Stage, cell: Cell, algorithm: str, reward: ShareOfWords, learning_rate: float, seed: int, updates: int
) -> Any:
    import transformers
    import trl
    from datasets import Dataset
    from transformers.trainer_callback import PrinterCallback

    from lmrl.models.loading import no_transformers_bars

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
    with no_transformers_bars():
        model = transformers.AutoModelForCausalLM.from_pretrained(str(stage.folder), dtype=torch.float32)
        tokenizer = transformers.AutoTokenizer.from_pretrained(str(stage.folder), padding_side="left")
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
