"""Micro-batches that count by their tokens: accumulated gradients equal those of one big batch."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from transformers import TrainerCallback

from hfoptim.trainer import private

logger = logging.getLogger(__name__)

IGNORED = -100  # labels that no loss of transformers counts


@dataclass
class _Window:
    """The micro-batches between two optimizer steps.

    Args:
        tokens: the labels that count in them, on all processes: all, and without the first of each row.
        shifted: whether the loss leaves out the first of each row; None until the first batch has shown it.
    """

    tokens: Tensor
    shifted: bool | None = None


_windows: WeakKeyDictionary[Any, _Window] = WeakKeyDictionary()


class TokenWeights(TrainerCallback):
    r"""Makes a Trainer's loss the mean over all tokens of an optimizer step, however it cuts them into micro-batches.

        Trainer(model, args, train_dataset=data, callbacks=[TokenWeights()])

    With micro-batches i on processes r, their losses l (each a mean over c labels that are not -100), the Trainer steps
    with the gradient of

        L = sum(c_ri l_ri) / sum(c_ri)

    which is the loss of one big batch. The logged loss is L, too. docs/trainer.md has a table of where the Trainer
    alone is off. Whether the loss shifts the labels, and so leaves out the first of each row, is found out with one
    more forward pass at the start. `model.train()` and the random numbers are as without it.

    Evaluations are the Trainer's own. A dataset without a length whose last window has too few micro-batches loses
    that window, with a warning: the Trainer would add its gradients to the first window of the next epoch.

    Raises:
        ValueError: at the start of the training: a loss that is not the model's plain mean (`compute_loss_func`,
            `loss_is_scaled_for_ga`), several GPUs in one process, or parallelism that splits a sequence or a model.
            Later: a batch without `labels`.
    """

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        trainer = private.trainer_in_charge()
        _refuse(trainer)
        _windows[trainer] = _Window(torch.zeros((), dtype=torch.float32, device=args.device))
        private.intercept(trainer, "get_batch_samples", _reading)
        private.intercept(trainer, "compute_loss", _weighing)


def _refuse(trainer: Any) -> None:
    if trainer.compute_loss_func is not None or getattr(trainer, "loss_is_scaled_for_ga", None):
        raise ValueError(
            f"TokenWeights weighs the mean losses of micro-batches, but the loss of this {type(trainer).__name__} is "
            f"scaled already (compute_loss_func or loss_is_scaled_for_ga); use one of them"
        )
    if trainer.args.n_gpu > 1:
        raise ValueError(
            f"TokenWeights needs a process for each GPU, but this one has {trainer.args.n_gpu}; start with torchrun or "
            f"accelerate launch"
        )
    if getattr(trainer.accelerator, "parallelism_config", None) is not None:
        raise ValueError("TokenWeights works with data parallelism only, but the Trainer has a parallelism_config")


def _reading(trainer: Any, read: Callable[..., Any], name: str, batches: Any, wanted: int, device: Any) -> Any:
    """`get_batch_samples`: count the window's tokens. Without a number of items the Trainer keeps to plain means."""
    window, items = read(batches, wanted, device)
    if not _weighs(trainer):
        return window, items
    if 0 < len(window) < wanted and not _has_length(trainer.callback_handler.train_dataloader):
        logger.warning(
            "the last window of the epoch has %d of %d micro-batches and is left out: the dataset has no length, so "
            "the Trainer takes no step after it",
            len(window),
            wanted,
        )
        window = []
    if window:
        counts = torch.stack([_counts(batch) for batch in window]).sum(0)
        _windows[trainer].tokens = trainer.accelerator.gather(counts.to(device)[None]).sum(0)
    return window, None


def _weighing(
    trainer: Any,
    compute: Callable[..., Any],
    name: str,
    model: Any,
    inputs: Any,
    return_outputs: bool = False,
    num_items_in_batch: Any = None,
) -> Any:
    """`compute_loss`: in training, a micro-batch's mean loss times its share of the window's tokens."""
    if not (model.training and _weighs(trainer)):
        return compute(model, inputs, return_outputs=return_outputs, num_items_in_batch=num_items_in_batch)
    window = _windows[trainer]
    if window.shifted is None:
        window.shifted = leaves_out_the_first(compute, model, inputs)
    tokens, total = _counts(inputs)[int(window.shifted)], window.tokens[int(window.shifted)]
    loss, outputs = compute(model, inputs, return_outputs=True)
    # The Trainer divides by the number of micro-batches, and DDP by the number of processes.
    share = tokens.to(total.device) / total * trainer.current_gradient_accumulation_steps
    # The mean of no token is NaN.
    loss = torch.where(tokens > 0, loss * share * trainer.accelerator.num_processes, 0.0)
    return (loss, outputs) if return_outputs else loss


def _weighs(trainer: Any) -> bool:
    """Whether the trainer trains, and still has the callback: methods stay intercepted."""
    return trainer.is_in_train and any(isinstance(each, TokenWeights) for each in trainer.callback_handler.callbacks)


def _counts(batch: Any) -> Tensor:
    """How many labels count in a batch: all, and without the first of each row."""
    if "labels" not in batch:
        found = ", ".join(map(repr, batch)) or "nothing (remove_unused_columns keeps what the model's forward names)"
        raise ValueError(f"TokenWeights counts 'labels', and a batch has only {found}")
    counted = batch.get("shift_labels", batch["labels"]).ne(IGNORED)
    rows = counted[..., 1:] if counted.ndim > 1 and "shift_labels" not in batch else counted
    return torch.stack([counted.sum(), rows.sum()])


def leaves_out_the_first(compute: Callable[..., Any], model: Any, inputs: Any) -> bool:
    """Whether a batch in which only the first label of each row counts has no loss."""
    labels = inputs["labels"]
    if labels.ndim < 2 or labels.is_floating_point() or "shift_labels" in inputs:
        return False
    firsts = torch.full_like(labels, IGNORED)
    firsts[..., 0] = 0
    model.eval()
    with torch.no_grad(), torch.random.fork_rng([labels.device] if labels.is_cuda else []):
        loss = compute(model, {**inputs, "labels": firsts})
    model.train()
    return not loss.isfinite().item() or loss.item() == 0.0


def _has_length(loader: Any) -> bool:
    try:
        return len(loader) >= 0
    except TypeError:
        return False
