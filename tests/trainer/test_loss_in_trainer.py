"""Optimizers whose step depends on the loss are told it in a Trainer: the loss of the step, as the Trainer logs it."""

from __future__ import annotations

import pytest
from transformers import TrainerCallback

import hfoptim
from hfoptim.trainer import OptimizerCallback, TellLoss


class Logged(TrainerCallback):
    def __init__(self):
        self.losses = []

    def on_log(self, args, state, control, logs=None, **kwargs):
        self.losses += [logs["loss"]] if "loss" in logs else []


@pytest.fixture
def told(monkeypatch):
    """SGD as if its step depended on the loss, and the losses it was told."""
    seen = []

    def begin(self, totals, loss=None, of=None):
        seen.append(loss.item())
        return {}

    monkeypatch.setattr(hfoptim.SGD, "needs_loss", True)
    monkeypatch.setattr(hfoptim.SGD, "_begin", begin)
    return seen


@pytest.mark.parametrize("by", ["name", "hand"])
@pytest.mark.parametrize("micro_batches", [1, 2])
def test_it_is_the_loss_that_is_logged(by, micro_batches, told, make_trainer, model):
    logged, given = Logged(), {"gradient_accumulation_steps": micro_batches, "learning_rate": 1e-2}
    if by == "name":
        trainer = make_trainer(OptimizerCallback("sgd"), logged, **given)
    else:
        own = model()
        optimizer = hfoptim.SGD(own.parameters(), lr=1e-2)
        trainer = make_trainer(TellLoss(), logged, own={"model": own, "optimizers": (optimizer, None)}, **given)
    trainer.train()
    assert len(told) == 4
    assert told == pytest.approx(logged.losses, abs=2e-4)  # logged with four digits
    assert len(set(told)) == 4
