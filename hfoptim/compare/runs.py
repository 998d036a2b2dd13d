"""One training run of a comparison: the Trainer with an optimizer chosen by name, watched by a recorder."""

from __future__ import annotations

import copy
import json
import math
import shutil
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from hfoptim.compare.config import PRESETS, CompareConfig
from hfoptim.compare.data import Blocks
from hfoptim.compare.results import DIVERGED, FINISHED, RunRecord, write_atomically
from hfoptim.engine import RuleOptimizer, unwrap
from hfoptim.trainer import OptimizerCallback
from hfoptim.wrappers import Wrapper

if TYPE_CHECKING:
    from transformers import PreTrainedModel

EVALUATIONS = 4
MARKER = "comparison.json"


def train(
    optimizer: str,
    lr: float,
    seed: int,
    config: CompareConfig,
    model: PreTrainedModel,
    train_blocks: Blocks,
    held_out_blocks: Blocks,
    folder: Path,
    on_step: Callable[[int], None],
) -> RunRecord:
    """Train a copy of a model with one optimizer and one learning rate.

    A run that was interrupted goes on from its last complete checkpoint in `folder`, which is removed at the end.

    Args:
        optimizer: Name of the registry.
        lr: Peak learning rate.
        seed: Seed of the order of the data.
        config: What is the same for all runs.
        model: The initial model of this seed; it is not changed.
        train_blocks: Training tokens.
        held_out_blocks: Held-out tokens.
        folder: Where this run keeps its checkpoints; no other run may use it.
        on_step: Called with the number of steps taken, after each of them and once at the start.
    """
    checkpoint = last_checkpoint(folder)
    if checkpoint is None:
        shutil.rmtree(folder, ignore_errors=True)
    recorder = Recorder(config, checkpoint, on_step)
    options = PRESETS.get(optimizer, {})
    trainer = Trainer(
        model=copy.deepcopy(model),
        args=training_arguments(config, lr, seed, folder),
        train_dataset=train_blocks,
        eval_dataset=held_out_blocks,
        callbacks=[
            OptimizerCallback(
                optimizer, lr=lr, schedule=config.schedule, schedule_kwargs=config.schedule_kwargs, **options
            ),
            recorder,
        ],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    record = recorder.record(optimizer, lr, seed, options, trainer.state.log_history)
    shutil.rmtree(folder, ignore_errors=True)
    return record


def training_arguments(config: CompareConfig, lr: float, seed: int, folder: Path) -> TrainingArguments:
    """The Trainer's arguments: the same for every run but for learning rate and seed."""
    return TrainingArguments(
        output_dir=str(folder),
        max_steps=config.steps,
        warmup_steps=config.warmup_steps,
        learning_rate=lr,
        per_device_train_batch_size=config.batch_size,
        per_device_eval_batch_size=2 * config.batch_size,
        max_grad_norm=1.0,
        weight_decay=0.0,
        seed=seed,
        data_seed=seed,
        dataloader_drop_last=True,
        dataloader_pin_memory=torch.cuda.is_available(),
        logging_steps=1,
        # The default filter replaces a NaN by the mean of the losses before it.
        logging_nan_inf_filter=False,
        eval_strategy="no",
        save_strategy="no",
        save_total_limit=2,
        report_to="none",
        disable_tqdm=True,
    )


class Recorder(TrainerCallback):
    """Measures a run, asks for its evaluations and checkpoints, and stops it when the loss is no longer finite.

    Args:
        config: What is the same for all runs.
        checkpoint: The checkpoint that the run goes on from, if any.
        on_step: Called with the number of steps taken.
    """

    def __init__(self, config: CompareConfig, checkpoint: Path | None, on_step: Callable[[int], None]) -> None:
        self.config = config
        self.on_step = on_step
        self.step_seconds: list[float] = []
        self.seconds_before = 0.0
        if checkpoint is not None:
            marker = json.loads((checkpoint / MARKER).read_text(encoding="utf-8"))
            self.step_seconds = marker["step_seconds"]
            self.seconds_before = marker["wall_seconds"]
        every = max(1, config.steps // EVALUATIONS)
        self.eval_steps = {*range(every, config.steps, every), config.steps}
        self.diverged = False
        self.state_bytes_per_param: float | None = None
        self.wall_seconds = 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, optimizer: Any = None, **kwargs: Any) -> None:
        """Start the clocks."""
        # Of another package, by its name here, it is whatever Accelerate has wrapped.
        self.optimizer = unwrap(optimizer, (RuleOptimizer, Wrapper)) or unwrap(optimizer)
        self.optimizer.register_step_pre_hook(self._before_step)
        self.optimizer.register_step_post_hook(self._after_step)
        self.started = time.perf_counter()
        self.on_step(state.global_step)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Ask for an evaluation or a checkpoint where one is due."""
        step, every = state.global_step, self.config.save_every
        control.should_evaluate = step in self.eval_steps
        control.should_save = every > 0 and step % every == 0 and step < self.config.steps
        self.on_step(step)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        """Stop a run that has diverged: what follows would be NaN to the end."""
        loss = (logs or {}).get("loss")
        if loss is not None and not math.isfinite(loss):
            self.diverged = True
            control.should_training_stop = True
            control.should_evaluate = control.should_save = False

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Mark a checkpoint as complete: without this file a kill has met it half written."""
        marker = {"step_seconds": self.step_seconds, "wall_seconds": self._elapsed()}
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        write_atomically(folder / MARKER, json.dumps(marker).encode())

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Stop the clock and measure the optimizer's state."""
        self.wall_seconds = self._elapsed()
        self.state_bytes_per_param = state_bytes_per_param(self.optimizer)

    def record(
        self, optimizer: str, lr: float, seed: int, options: dict[str, Any], log: list[dict[str, Any]]
    ) -> RunRecord:
        """Sum up the run from what was measured and from the Trainer's log."""
        train = [entry for entry in log if "loss" in entry]
        evals = [entry for entry in log if "eval_loss" in entry]
        curve = [entry["loss"] for entry in train]
        final = evals[-1]["eval_loss"] if evals and not self.diverged else math.nan
        tail = curve[-max(1, len(curve) // 10) :]
        return RunRecord(
            optimizer=optimizer,
            lr=lr,
            seed=seed,
            options=dict(options),
            status=FINISHED if math.isfinite(final) else DIVERGED,
            steps=len(curve),
            train_loss=finite(statistics.fmean(tail)),
            eval_loss=finite(final),
            step_ms=1e3 * statistics.median(self.step_seconds),
            state_bytes_per_param=self.state_bytes_per_param,
            wall_seconds=self.wall_seconds,
            train_curve=[finite(loss) for loss in curve],
            learning_rates=[entry["learning_rate"] for entry in train],
            eval_steps=[entry["step"] for entry in evals],
            eval_curve=[finite(entry["eval_loss"]) for entry in evals],
        )

    def _elapsed(self) -> float:
        return self.seconds_before + time.perf_counter() - self.started

    def _before_step(self, *_: Any) -> None:
        _synchronize()
        self.step_started = time.perf_counter()

    def _after_step(self, *_: Any) -> None:
        _synchronize()
        self.step_seconds.append(time.perf_counter() - self.step_started)


def last_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint that was written completely, or None."""
    found = [path.parent for path in folder.glob(f"checkpoint-*/{MARKER}")]
    return max(found, key=lambda path: int(path.name.rpartition("-")[2]), default=None)


def state_bytes_per_param(optimizer: torch.optim.Optimizer) -> float:
    """Bytes of all state tensors divided by the number of parameters that are optimized."""
    total = sum(map(_bytes, optimizer.state_dict()["state"].values()))
    count: int = sum(param.numel() for group in optimizer.param_groups for param in group["params"])
    return total / count


def _bytes(value: Any) -> int:
    """Of all tensors in it: bitsandbytes has a dict of them inside of a parameter's, torchao tensors of tensors."""
    if isinstance(value, Mapping):
        return sum(map(_bytes, value.values()))
    if not isinstance(value, torch.Tensor):
        return 0
    if hasattr(value, "__tensor_flatten__"):  # PyTorch's protocol for tensors made of tensors
        names, _ = value.__tensor_flatten__()
        return sum(_bytes(getattr(value, name)) for name in names)
    return value.numel() * value.element_size()


def finite(value: float) -> float | None:
    """The value, or None for NaN and infinities, which JSON does not know."""
    return value if math.isfinite(value) else None


def _synchronize() -> None:
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()
