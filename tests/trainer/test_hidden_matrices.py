"""Muon by name in the Trainer: which parameters get it, with what, and that a run resumes."""

import pytest
import torch

import hfoptim
from hfoptim.trainer import OptimizerCallback
from hfoptim.trainer.options import parse_options

INSIDE = {f"transformer.h.0.{name}.weight" for name in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")}


@pytest.fixture(params=["callback", "name"])
def make(request, make_trainer, names):
    """Makes a Trainer whose optimizer is chosen through the callback or through TrainingArguments.optim."""

    def with_optimizer(name, optim_args=None, **given):
        if request.param == "callback":
            return make_trainer(OptimizerCallback(name, **parse_options(optim_args)), **given)
        return make_trainer(optim=f"hfoptim_{name}", optim_args=optim_args, **given)

    return with_optimizer


@pytest.mark.parametrize("name", ["muon", "nmuon", "adamuon", "nadamuon"])
def test_the_matrices_inside_get_muon_and_everything_else_adamw(make, inner, name):
    trainer = make(name)
    trainer.train()
    optimizer, model = inner(trainer), trainer.model
    assert type(optimizer) is hfoptim.Muon
    state = {name: set(optimizer.state[param]) for name, param in model.named_parameters()}
    assert {name for name, found in state.items() if "momentum_buffer" in found} == INSIDE
    assert all("exp_avg" in found for name, found in state.items() if name not in INSIDE)
    flags = {name: g["use_muon"] for g in optimizer.param_groups for name in g["param_names"]}
    assert flags == {name: name in INSIDE for name, _ in model.named_parameters()}
    own = hfoptim.get_optimizer_class(name)([torch.nn.Parameter(torch.zeros(2, 2))]).param_groups[0]
    for group in optimizer.param_groups:
        differing = {key for key in own if key != "params" and group[key] != own[key]}
        assert differing <= {"use_muon", "weight_decay", "lr"}  # the schedule has moved lr


def test_weight_decay_goes_where_the_trainer_puts_it(make, inner):
    for given, decay in (({}, 0.1), ({"weight_decay": 0.3}, 0.3)):  # its own, unless one is given
        trainer = make("muon", **given)
        trainer.create_optimizer()
        found = {n: g["weight_decay"] for g in inner(trainer).param_groups for n in g["param_names"]}
        assert found == {name: decay if param.ndim > 1 else 0.0 for name, param in trainer.model.named_parameters()}


def test_options_and_arguments_reach_it(make, inner):
    trainer = make(
        "muon",
        "ns_coefficients=quintic,ns_dtype=bfloat16,split=1,fallback_lr_scale=0.5",
        adam_beta2=0.99,
        learning_rate=3e-4,
    )
    trainer.create_optimizer()
    for group in inner(trainer).param_groups:
        assert (group["lr"], group["betas"], group["fallback_lr_scale"]) == (3e-4, (0.9, 0.99), 0.5)
        assert (group["ns_coefficients"], group["ns_dtype"], group["split"]) == ("quintic", "bfloat16", 1)
    trainer = make("muon", '{"ns_coefficients": [[3.0, -3.0, 1.0], [1.5, -0.5, 0.0]], "adjust_lr_fn": null}')
    trainer.create_optimizer()
    assert inner(trainer).param_groups[0]["ns_coefficients"] == ((3.0, -3.0, 1.0), (1.5, -0.5, 0.0))
    assert inner(trainer).param_groups[0]["adjust_lr_fn"] is None


def test_frozen_parameters_are_left_out(make_trainer, inner, model):
    frozen = model()
    frozen.transformer.wte.requires_grad_(False)
    trainer = make_trainer(OptimizerCallback("muon"), own={"model": frozen})
    trainer.create_optimizer()
    held = {name for group in inner(trainer).param_groups for name in group["param_names"]}
    assert held == {name for name, param in frozen.named_parameters() if param.requires_grad}
    frozen.transformer.h.requires_grad_(False)
    trainer = make_trainer(OptimizerCallback("muon"), own={"model": frozen})
    with pytest.raises(ValueError, match=r"none of the .* is a matrix inside a network"):
        trainer.create_optimizer()


def test_the_class_given_to_the_trainer_without_names_is_refused(make_trainer):
    # The Trainer's own groups have no names: embeddings would be taken for hidden matrices.
    trainer = make_trainer(own={"optimizer_cls_and_kwargs": (hfoptim.Muon, {"lr": 1e-3})})
    with pytest.raises(ValueError, match="cannot tell embeddings"):
        trainer.create_optimizer()


def test_muon_learns(make):
    trainer = make("muon", max_steps=40, learning_rate=1e-2, lr_scheduler_type="constant")
    losses = [entry["loss"] for entry in (trainer.train(), trainer.state.log_history)[1] if "loss" in entry]
    assert losses[-1] < 0.5 * losses[0]
