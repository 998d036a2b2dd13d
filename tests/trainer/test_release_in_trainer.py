"""Gradient release in the Trainer, by one argument."""

import copy

import pytest
import torch
from transformers import TrainerCallback

import hfoptim
from hfoptim.trainer import OptimizerCallback

NO_CLIPPING = {"max_grad_norm": 0.0, "lr_scheduler_type": "linear", "learning_rate": 1e-2}


class Alive(TrainerCallback):
    """Counts the gradients that are there when the Trainer calls the optimizer."""

    def __init__(self):
        self.counts = []

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        self.counts.append(sum(param.grad is not None for param in model.parameters()))


def weights(trainer):
    return {name: param.detach().clone() for name, param in trainer.model.named_parameters()}


def assert_equal(ours, theirs):
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.fixture
def trained(make_trainer):
    """Trains and returns the trainer, and how many gradients each step found."""

    def train(*callbacks, **given):
        alive = Alive()
        trainer = make_trainer(*callbacks, alive, **{**NO_CLIPPING, **given})
        trainer.train()
        return trainer, alive.counts

    return train


def test_by_callback(trained, inner):
    plain, counts = trained(OptimizerCallback("adamw"))
    assert min(counts) > 0
    trainer, counts = trained(OptimizerCallback("adamw", gradient_release=True))
    assert counts == [0] * 4
    assert type(inner(trainer)) is hfoptim.Adam
    assert_equal(weights(trainer), weights(plain))
    # The training is over, and so is the release.
    assert not any(param._post_accumulate_grad_hooks for param in trainer.model.parameters())
    assert not any(group["gradient_release"] for group in inner(trainer).param_groups)


def test_by_name(names, trained):
    plain, _ = trained(optim="hfoptim_adamw", optim_args="weight_decay=0.1")
    trainer, counts = trained(optim="hfoptim_adamw", optim_args="weight_decay=0.1,gradient_release=True")
    assert counts == [0] * 4
    assert_equal(weights(trainer), weights(plain))


def test_with_a_schedule_free_optimizer_and_evaluations(trained):
    given = {"eval_strategy": "steps", "eval_steps": 2, "lr_scheduler_type": "constant"}
    plain, _ = trained(OptimizerCallback("adamw_schedule_free"), **given)
    trainer, counts = trained(OptimizerCallback("adamw_schedule_free", gradient_release=True), **given)
    assert counts == [0] * 4
    assert_equal(weights(trainer), weights(plain))


def test_a_second_training_is_released_too(trained):
    trainer, _ = trained(OptimizerCallback("lion", gradient_release=True))
    before = weights(trainer)
    counts = next(c for c in trainer.callback_handler.callbacks if isinstance(c, Alive)).counts
    trainer.train()
    assert counts == [0] * 8
    assert not torch.equal(trainer.model.transformer.wte.weight, before["transformer.wte.weight"])


def test_after_a_training_that_was_cut_short(trained, make_trainer):
    class Cut(TrainerCallback):
        cut = True

        def on_pre_optimizer_step(self, *args, **kwargs):
            if self.cut:
                raise KeyboardInterrupt

    cut, alive = Cut(), Alive()
    trainer = make_trainer(OptimizerCallback("lion", gradient_release=True), cut, alive, **NO_CLIPPING)
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    cut.cut = False
    trainer.train()
    assert alive.counts == [0] * 4


def test_a_resumed_training_goes_on_bit_for_bit(trained, make_trainer, tmp_path):
    saving = {"save_strategy": "steps", "save_steps": 2, **NO_CLIPPING}
    whole, _ = trained(OptimizerCallback("adamw", gradient_release=True), **saving)
    resumed = make_trainer(OptimizerCallback("adamw", gradient_release=True), **saving)
    resumed.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-2"))
    assert_equal(weights(resumed), weights(whole))


REFUSED = [
    ({"max_grad_norm": 1.0}, r"max_grad_norm=1\.0 clips .* give max_grad_norm=0"),
    ({"gradient_accumulation_steps": 2}, "gradient_accumulation_steps=2 adds up gradients"),
]


@pytest.mark.parametrize(("given", "words"), REFUSED)
def test_what_excludes_it_is_refused_before_the_training(make_trainer, given, words):
    with pytest.raises(ValueError, match=words):
        make_trainer(OptimizerCallback("adamw", gradient_release=True), **{**NO_CLIPPING, **given})


@pytest.mark.parametrize(("given", "words"), REFUSED)
def test_by_name_when_the_arguments_are_made(names, arguments, given, words):
    with pytest.raises(ValueError, match=words):
        arguments(**{**NO_CLIPPING, **given}, optim="hfoptim_adamw", optim_args="gradient_release=True")


def test_scaled_gradients_are_refused(arguments):
    from hfoptim.trainer.release import check_arguments

    args = copy.copy(arguments(**NO_CLIPPING))
    args.fp16 = True  # not to be had on every machine
    with pytest.raises(ValueError, match="fp16=True scales gradients"):
        check_arguments(args)


@pytest.mark.parametrize("name", ["prodigy", "lamb", "lookahead_adamw"])
def test_optimizers_that_cannot_are_refused_when_the_callback_is_made(name):
    with pytest.raises(ValueError, match="gradient release"):
        OptimizerCallback(name, gradient_release=True)


def test_a_prepared_optimizer_of_ones_own(make_trainer, model):
    network = model()
    optimizer = hfoptim.Adam(network.parameters(), lr=1e-2, gradient_release=True)
    hfoptim.prepare_for_gradient_release(network, optimizer)
    alive = Alive()
    own = {"model": network, "optimizers": (optimizer, None)}
    make_trainer(alive, own=own, max_grad_norm=0.0).train()
    assert alive.counts == [0] * 4
