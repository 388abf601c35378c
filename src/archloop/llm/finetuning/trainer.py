"""transformers' Trainer with a dev loss and a reproducible order of pairs, also after resuming."""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer, TrainerCallback
from transformers.trainer_pt_utils import get_length_grouped_indices
from transformers.trainer_utils import IntervalStrategy

from archloop.worker import Emit


class LengthGrouped(torch.utils.data.Sampler[int]):
    """Groups pairs of similar length, in an order that depends only on seed and epoch."""

    def __init__(self, lengths: list[int], batch: int, seed: int) -> None:
        super().__init__()
        self._lengths, self._batch, self._seed, self._epoch = lengths, batch, seed, 0

    def __len__(self) -> int:
        return len(self._lengths)

    def set_epoch(self, epoch: int) -> None:
        """Called before each epoch."""
        self._epoch = epoch

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self._seed + 1_000_003 * self._epoch)
        order = get_length_grouped_indices(self._lengths, self._batch, generator=generator)
        return iter(order)


class PairTrainer(Trainer):  # type: ignore[misc]
    """Trains on encoded pairs; the model gives the loss (:mod:`archloop.llm.finetuning.loss`)."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.n_tokens = 0
        """Tokens of all pairs trained on in this process, a shared beginning counted in each."""
        self.model_accepts_loss_kwargs = True
        self.add_callback(_TellsEpoch(self))

    def _get_train_sampler(self, train_dataset: Any = None) -> LengthGrouped:
        pairs = train_dataset or self.train_dataset
        args = self.args
        together = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
        self.order = LengthGrouped([len(p.input_ids) for p in pairs], together, args.seed)
        return self.order

    def set_initial_training_values(self, args: Any, dataloader: Any) -> Any:
        """Overrides transformers' method for ``max_steps`` and the end of an epoch.

        A ``max_steps`` above the steps of all epochs adds no further epochs. The dev loss at an
        epoch's end is measured before the checkpoint of its last step is written, which then holds
        it.
        """
        updates = math.ceil(len(dataloader) / args.gradient_accumulation_steps)
        if args.eval_strategy == IntervalStrategy.EPOCH:
            args.eval_strategy, args.eval_steps = IntervalStrategy.STEPS, updates
        if args.max_steps >= args.num_train_epochs * updates:
            args.max_steps = -1  # only the number of epochs counts
        return super().set_initial_training_values(args, dataloader)

    def _init_training_state(
        self, max_steps: int, updates: int, epochs: int, *args: Any
    ) -> tuple[int, int]:
        """Corrects transformers, which adds a step to a checkpoint that ends within an epoch."""
        done: tuple[int, int] = super()._init_training_state(max_steps, updates, epochs, *args)
        return (epochs, 0) if self.state.global_step >= max_steps else done

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """The model's loss; counts the tokens."""
        self.n_tokens += inputs.pop("n_tokens")
        inputs.pop("shift_labels", None)
        return super().compute_loss(model, inputs, *args, **kwargs)

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """The dev loss, in nats a token: every token has the same weight, in whichever batch."""
        total, count = 0.0, 0
        self.model.eval()
        # Every process measures all dev pairs, so that all of them get the same value.
        pairs = sorted(self.eval_dataset, key=lambda p: len(p.input_ids))
        size = self.args.per_device_eval_batch_size
        for start in range(0, len(pairs), size):
            batch = self._prepare_inputs(self.data_collator(pairs[start : start + size]))
            with torch.no_grad(), self.compute_loss_context_manager():
                loss = self.model(**batch)["loss"]
            total += float(loss) * batch["labels"].numel()
            count += batch["labels"].numel()
        metrics = {"eval_loss": total / count}
        self.log(metrics)
        handler, state = self.callback_handler, self.state
        self.control: Any = handler.on_evaluate(self.args, state, self.control, metrics)
        self.model.train()
        return metrics


class _TellsEpoch(TrainerCallback):  # type: ignore[misc]
    """Sets the epoch of the order of pairs.

    The trainer itself does not set it when several processes resume within an epoch, because the
    sampler is then wrapped once more to skip batches.
    """

    def __init__(self, trainer: PairTrainer) -> None:
        self._trainer = trainer

    def on_epoch_begin(self, _args: Any, state: Any, _control: Any, **_: Any) -> None:
        """Called by the trainer; in mid-epoch ``state.epoch`` has a fraction."""
        self._trainer.order.set_epoch(int(state.epoch or 0))


class Reporter(TrainerCallback):  # type: ignore[misc]
    """Emits an event at the start, after every optimiser step and measurement of the dev loss.

    A loss that is not finite ends the training, as the weights cannot recover.
    """

    def __init__(self, emit: Emit) -> None:
        self._emit, self._since = emit, (time.monotonic(), 0)
        self.trainer: PairTrainer | None = None

    def on_train_begin(self, _args: Any, state: Any, _control: Any, **_: Any) -> None:
        """Called by the trainer when all is loaded; after a resumption, not at step 0."""
        self._since = (time.monotonic(), 0)
        if state.is_world_process_zero:
            self._emit("begin", {"step": state.global_step, "total_steps": state.max_steps})

    def on_log(self, _args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        """Called by the trainer with the step's loss, or the dev loss."""
        if logs and not math.isfinite(logs.get("loss", 0.0)):
            control.should_training_stop = True
        if not logs or not state.is_world_process_zero or not {"loss", "eval_loss"} & logs.keys():
            return
        assert self.trainer is not None
        (before, tokens), now = self._since, time.monotonic()
        trained = self.trainer.n_tokens * self.trainer.args.world_size
        if "loss" in logs:
            self._since = (now, trained)
        data = {
            "step": state.global_step,
            "total_steps": state.max_steps,
            "loss": logs.get("loss"),
            "dev_loss": logs.get("eval_loss"),
            "tokens_per_second": round((trained - tokens) / max(now - before, 1e-9), 1),
        }
        self._emit("step", data)


class BestOnDev(TrainerCallback):  # type: ignore[misc]
    """Keeps the adapter with the lowest dev loss, and stops early when it no longer falls.

    Its state is in the trainer's log, which is part of every checkpoint, so that a resumed
    fine-tune stops where an uninterrupted one does.
    """

    def __init__(self, checkpoints: Path, patience: int | None) -> None:
        self._checkpoints, self._patience = checkpoints, patience

    def on_save(self, args: Any, state: Any, _control: Any, **_: Any) -> None:
        """Called by the trainer after it has written a checkpoint, which knows the best step."""
        losses = dev_losses(state.log_history)
        if losses and args.should_save:
            best = best_folder(self._checkpoints, min(losses, key=lambda row: row[1])[0])
            for other in self._checkpoints.glob("best-*"):
                if other != best:
                    shutil.rmtree(other, ignore_errors=True)

    def on_evaluate(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        """Called by the trainer after it has measured the dev loss."""
        losses = dev_losses(state.log_history)
        best = min(losses, key=lambda row: row[1])
        if best[0] == state.global_step and args.should_save:
            folder = best_folder(self._checkpoints, best[0])
            partial = folder.with_name(folder.name + ".partial")
            for left in (partial, folder):
                shutil.rmtree(left, ignore_errors=True)
            model.save_pretrained(partial)
            partial.rename(folder)
        since = sum(step > best[0] for step, _ in losses)
        if self._patience is not None and since >= self._patience:
            control.should_training_stop = True
            # A checkpoint of this step would not contain the decision to stop, so training would
            # continue.
            control.should_save = False


def best_folder(checkpoints: Path, step: int) -> Path:
    """The folder for the adapter of a step with the lowest dev loss so far.

    One folder per step, as a fine-tune resumed from an earlier checkpoint may find another best
    step.
    """
    return checkpoints / f"best-{step}"


def dev_losses(history: list[dict[str, Any]]) -> list[tuple[int, float]]:
    """(step, dev loss) of each measurement in the trainer's log; NaN counts as infinite."""
    rows = [(row["step"], row["eval_loss"]) for row in history if "eval_loss" in row]
    return [(step, loss if loss == loss else float("inf")) for step, loss in rows]
