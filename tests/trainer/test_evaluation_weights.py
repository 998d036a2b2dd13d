"""Optimizers with two modes in the Trainer: what is evaluated and saved are the evaluation weights, to the bit."""

import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerCallback

import hfoptim
from hfoptim.trainer import OptimizerCallback

NAME = "adamw_schedule_free"
USUAL = {"max_steps": 7, "lr_scheduler_type": "constant", "per_device_train_batch_size": 8}
SAVES = {"save_strategy": "steps", "save_steps": 3}
EVALUATES = {"eval_strategy": "steps", "eval_steps": 2}


class Modes(TrainerCallback):
    """Notes in which mode the optimizer is at each event."""

    def __init__(self):
        self.seen = []

    def _note(self, event, optimizer):
        self.seen.append((event, optimizer.param_groups[0]["train_mode"]))

    def on_pre_optimizer_step(self, args, state, control, optimizer=None, **kwargs):
        self._note("step", optimizer)

    def on_evaluate(self, args, state, control, optimizer=None, **kwargs):
        self._note("evaluate", optimizer)

    def on_save(self, args, state, control, optimizer=None, **kwargs):
        self._note("save", optimizer)

    def on_train_end(self, args, state, control, optimizer=None, **kwargs):
        self._note("end", optimizer)


@pytest.fixture(params=["callback", "name"])
def make(request, make_trainer, names):
    """Makes a Trainer with the optimizer, through the callback or through TrainingArguments.optim."""

    def build(*callbacks, **given):
        given = {**USUAL, **given}
        if request.param == "callback":
            return make_trainer(OptimizerCallback(NAME, lr=1e-2), *callbacks, **given)
        return make_trainer(*callbacks, optim=NAME, learning_rate=1e-2, **given)

    return build


def averages(optimizer, params):
    """x, computed from what a state_dict in evaluation mode holds."""
    state = optimizer["state"]
    beta = optimizer["param_groups"][0]["betas"][0]
    ys = [state[i]["y"] for i in sorted(state)]
    zs = [state[i]["z"] for i in sorted(state)]
    assert [y.shape for y in ys] == [p.shape for p in params]
    return [y + (z - y) * (1 - 1 / beta) for y, z in zip(ys, zs, strict=True)]


def test_every_event_finds_the_mode_it_needs(make, inner):
    modes = Modes()
    trainer = make(modes, **SAVES, **EVALUATES)
    trainer.train()
    assert isinstance(inner(trainer), hfoptim.AdamWScheduleFree)
    assert [event for event, _ in modes.seen].count("save") == 3
    assert set(modes.seen) == {("step", True), ("evaluate", False), ("save", False), ("end", False)}


def test_a_checkpoint_holds_the_average_and_what_training_goes_on_from(make, tmp_path):
    trainer = make(output_dir=str(tmp_path), **SAVES)
    trainer.train()
    params = [p for group in trainer.optimizer.param_groups for p in group["params"]]
    names = {param: name for name, param in trainer.model.named_parameters()}
    for step in (3, 6, 7):
        folder = tmp_path / f"checkpoint-{step}"
        weights = load_file(folder / "model.safetensors")
        optimizer = torch.load(folder / "optimizer.pt", weights_only=True)
        assert all(group["k"] == step and group["train_mode"] is False for group in optimizer["param_groups"])
        found = averages(optimizer, params)
        assert all(torch.equal(weights[names[p]], x) for p, x in zip(params, found, strict=True) if names[p] in weights)
        assert any(not torch.equal(x, state["y"]) for x, state in zip(found, optimizer["state"].values(), strict=True))
    # What is in the model after the training is what was saved last.
    for name, value in load_file(tmp_path / "checkpoint-7" / "model.safetensors").items():
        assert torch.equal(trainer.model.state_dict()[name], value)


def test_saving_and_evaluating_do_not_disturb_the_training(make, tmp_path):
    plain, busy = make(output_dir=str(tmp_path / "a")), make(output_dir=str(tmp_path / "b"), **SAVES, **EVALUATES)
    for trainer in (plain, busy):
        for module in trainer.model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0  # an evaluation draws random numbers
        trainer.train()
    for ours, theirs in zip(plain.model.parameters(), busy.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_the_best_model_is_not_overwritten_at_the_end(make, tmp_path):
    best = {"load_best_model_at_end": True, "metric_for_best_model": "loss", "greater_is_better": True}
    trainer = make(output_dir=str(tmp_path), eval_strategy="steps", eval_steps=3, **best, **SAVES)
    trainer.train()
    assert trainer.state.best_global_step == 3
    trainer.save_model(str(tmp_path / "final"))
    saved = load_file(tmp_path / "final" / "model.safetensors")
    for name, value in load_file(tmp_path / "checkpoint-3" / "model.safetensors").items():
        assert torch.equal(saved[name], value)


@pytest.mark.parametrize(
    ("schedule", "warns"), [("linear", True), ("constant", False), ("constant_with_warmup", False)]
)
def test_a_schedule_that_is_not_constant_draws_one_warning(make, messages, schedule, warns):
    trainer = make(max_steps=2, lr_scheduler_type=schedule)
    trainer.train()
    trainer.train()
    found = [message for message in messages() if "constant learning rate" in message]
    assert len(found) == int(warns)
    assert not warns or ("AdamWScheduleFree" in found[0] and "'linear'" in found[0])


def test_other_optimizers_get_no_callback(make_trainer, names):
    from hfoptim.trainer.modes import EvaluationWeights

    for trainer in (make_trainer(OptimizerCallback("lion"), max_steps=1), make_trainer(optim="lion", max_steps=1)):
        trainer.train()
        assert not any(isinstance(c, EvaluationWeights) for c in trainer.callback_handler.callbacks)
