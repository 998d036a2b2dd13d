"""`OptimizerCallback(..., hyperparameters=...)`: what follows a curve beside the learning rate, in the Trainer."""

import copy
import pickle

import pytest
import torch
from transformers import TrainerCallback

import schedules
from hfoptim.trainer import OptimizerCallback
from schedules import absolute, cosine, linear

GIVEN = {"max_steps": 6, "warmup_steps": 2, "weight_decay": 0.1, "learning_rate": 1e-2}
CURVES = {"weight_decay": cosine(6), "momentum": linear(6).between(absolute(0.95), absolute(0.8))}


class Watch(TrainerCallback):
    """Notes what each step is taken with: decay and betas of every group."""

    def __init__(self):
        self.seen = []

    def on_pre_optimizer_step(self, args, state, control, optimizer=None, **kwargs):
        self.seen.append([(group["weight_decay"], group.get("betas")) for group in optimizer.param_groups])


def expected(steps, betas):
    decays = [0.1 * cosine(6)(step) for step in range(steps)]
    firsts = [0.9 * linear(6).between(absolute(0.95), absolute(0.8)).bind(0.9)(step) for step in range(steps)]
    return [[(decay, (first, *betas[1:])), (0.0, (first, *betas[1:]))] for decay, first in zip(decays, firsts)]  # noqa: B905


@pytest.mark.parametrize("accumulation", [1, 4])
@pytest.mark.parametrize(("name", "betas"), [("adamw", (0.9, 0.999)), ("lion", (0.9, 0.99))])
def test_every_step_has_its_values(make_trainer, name, betas, accumulation):
    watch = Watch()
    callback = OptimizerCallback(name, schedule="cosine", hyperparameters=CURVES)
    make_trainer(callback, watch, gradient_accumulation_steps=accumulation, **GIVEN).train()
    assert watch.seen == expected(6, betas)


def test_curves_by_name_have_the_trainers_steps(make_trainer):
    watch = Watch()
    named = {"weight_decay": "linear", "beta2": ("cosine", {"num_warmup_steps": 0, "num_training_steps": 12})}
    make_trainer(OptimizerCallback("adamw", schedule="constant", hyperparameters=named), watch, **GIVEN).train()
    decay, beta2 = schedules.get_curve("linear", 2, 6), schedules.get_curve("cosine", 0, 12)
    assert watch.seen == [[(0.1 * decay(t), (0.9, 0.999 * beta2(t))), (0.0, (0.9, 0.999 * beta2(t)))] for t in range(6)]


@pytest.mark.parametrize("name", ["adamw", "lion", "adafactor", "sgd"])
def test_resume_is_exact(make_trainer, tmp_path, name):
    curves = {"weight_decay": cosine(6)}
    if name in ("adamw", "lion"):
        curves = CURVES
    if name == "sgd":
        curves = {"momentum": linear(6).floor(0.5)}

    def train(folder, resume=None):
        watch = Watch()
        callback = OptimizerCallback(name, schedule="linear", hyperparameters=copy.deepcopy(curves))
        trainer = make_trainer(
            callback,
            watch,
            output_dir=str(folder),
            save_strategy="steps",
            save_steps=3,
            **{**GIVEN, "max_grad_norm": 0.5},
        )
        trainer.train(resume_from_checkpoint=resume)
        return trainer, watch.seen

    whole, seen = train(tmp_path / "whole")
    resumed, after = train(tmp_path / "resumed", str(tmp_path / "whole" / "checkpoint-3"))
    assert after == seen[3:]
    for one, other in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(one, other)
    assert whole.lr_scheduler.state_dict() == resumed.lr_scheduler.state_dict()
    saved = torch.load(tmp_path / "whole" / "checkpoint-3" / "scheduler.pt", weights_only=True)
    assert [each["name"] for each in saved["hyperparameters"]][:1] == [next(iter(curves))]


def test_the_callback_is_pickled_with_its_curves(make_trainer):
    callback = pickle.loads(pickle.dumps(OptimizerCallback("lion", schedule="cosine", hyperparameters=CURVES)))
    assert callback.hyperparameters == CURVES


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"schedule": None}, ValueError, "not with the Trainer's lr_scheduler_type; give schedule"),
        ({"schedule": "greedy"}, ValueError, "not with 'greedy', which follows a metric"),
        ({"hyperparameters": {"weight_dekay": cosine(6)}}, ValueError, "closest names are 'weight_decay'"),
        ({"hyperparameters": {"lr": cosine(6)}}, ValueError, "get_scheduler"),
        ({"hyperparameters": {"beta1": "cosin"}}, ValueError, r"hyperparameters\['beta1'\]: unknown schedule 'cosin'"),
        ({"hyperparameters": {"beta1": ("cosine", {"cycles": 1})}}, TypeError, "no argument 'cycles'"),
        ({"hyperparameters": {"beta1": 0.5}}, TypeError, r"hyperparameters\['beta1'\] must be"),
    ],
)
def test_mistakes_are_named_at_once(given, error, message):
    with pytest.raises(error, match=message):
        OptimizerCallback("lion", **{"schedule": "cosine", "hyperparameters": {"beta1": cosine(6)}, **given})


def test_a_decay_of_0_has_nothing_to_scale(make_trainer):
    trainer = make_trainer(OptimizerCallback("lion", schedule="cosine", hyperparameters={"weight_decay": cosine(6)}))
    with pytest.raises(ValueError, match="weight_decay is 0 in the param groups"):
        trainer.train()
