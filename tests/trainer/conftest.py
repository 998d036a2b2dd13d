"""A tiny language model, synthetic text and TrainingArguments for the Trainer's tests."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
import torch
from environment import accelerates_variables_restored
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainerCallback, TrainingArguments


@pytest.fixture(autouse=True)
def own_variables():
    """A test's precision and compiler are not those of the tests after it."""
    with accelerates_variables_restored():
        yield


@pytest.fixture
def text():
    """32 sequences of 8 tokens; the next token depends on the last one, so a model can learn it."""
    start = torch.arange(32) % 16
    tokens = (start[:, None] + 3 * torch.arange(8)) % 16
    return [{"input_ids": row, "labels": row} for row in tokens]


@pytest.fixture
def model():
    """Makes a GPT-2 of about 5000 parameters, with dropout, always the same."""

    def make(seed=0):
        torch.manual_seed(seed)
        config = GPT2Config(
            n_layer=1, n_head=2, n_embd=16, vocab_size=16, n_positions=8, bos_token_id=0, eos_token_id=0
        )
        return GPT2LMHeadModel(config)

    return make


@pytest.fixture
def arguments(tmp_path):
    """Makes TrainingArguments for a short quiet run on the CPU."""

    def make(**given):
        usual = {
            "output_dir": str(tmp_path / "out"),
            "use_cpu": True,
            "report_to": [],
            "disable_tqdm": True,
            "save_strategy": "no",
            "logging_steps": 1,
            "max_steps": 4,
            "per_device_train_batch_size": 4,
            "seed": 7,
        }
        return TrainingArguments(**{**usual, **given})

    return make


class Watcher(TrainerCallback):
    """Notes the learning rate each step is taken with, next to the one the Trainer logs."""

    def __init__(self):
        self.applied = []
        self.logged = []

    def on_pre_optimizer_step(self, args, state, control, optimizer=None, **kwargs):
        self.applied.append([group["lr"] for group in optimizer.param_groups])

    def on_log(self, args, state, control, logs=None, **kwargs):
        if "learning_rate" in logs:
            self.logged.append(logs["learning_rate"])


@pytest.fixture
def watcher():
    return Watcher()


@pytest.fixture
def make_trainer(model, text, arguments):
    """Makes a Trainer; keyword arguments of the Trainer besides `args`, `callbacks` and the arguments' own."""

    def make(*callbacks, trainer_class=Trainer, own=None, **given):
        own = {"model": model(), "train_dataset": text, "eval_dataset": text[:4], **(own or {})}
        return trainer_class(args=arguments(**given), callbacks=list(callbacks), **own)

    return make


@pytest.fixture
def inner():
    """The optimizer of a Trainer without accelerate's wrapper."""

    def find(trainer):
        optimizer = trainer.optimizer
        return getattr(optimizer, "optimizer", optimizer)

    return find
