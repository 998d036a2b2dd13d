"""`enable(replace=True)`: ours in the place of transformers' own that need packages; and other packages' by name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import transformers
from transformers import TrainingArguments
from transformers.training_args import OptimizerNames

import hfoptim
from hfoptim.engine import RuleOptimizer, unwrap_all
from hfoptim.registry.transformers_names import optimizer_names, schedule_names
from hfoptim.trainer import OptimizerCallback
from hfoptim.trainer.replacing import REPLACEMENTS

# What transformers wants to be told beside the name.
OPTIONS = {
    "galore_adamw": {"optim_args": "rank=4,update_proj_gap=2"},
    "galore_adamw_8bit": {"optim_args": "rank=4,update_proj_gap=2"},
    "galore_adafactor": {"optim_args": "rank=4,update_proj_gap=2"},
    "apollo_adamw": {"optim_args": "rank=4,update_proj_gap=2,scale_type=tensor,scale=2"},
    "grokadamw": {"optim_args": "lamb=1.5,alpha_init=0.9"},
    "schedule_free_adamw": {
        "optim_args": "r=0.5,weight_lr_power=1.5",
        "warmup_steps": 2,
        "lr_scheduler_type": "constant",
    },
    "schedule_free_sgd": {"warmup_steps": 2, "lr_scheduler_type": "constant"},
    "schedule_free_radam": {"lr_scheduler_type": "constant"},
    "stable_adamw": {"optim_args": "kahan_sum=True"},
}


@pytest.fixture(autouse=True)
def _disabled():
    yield
    hfoptim.disable()


def test_every_name_is_transformers_own():
    assert REPLACEMENTS.keys() <= {member.value for member in OptimizerNames}
    assert {each.name for each in REPLACEMENTS.values()} <= set(hfoptim.list_optimizers())


@pytest.mark.parametrize("name", REPLACEMENTS)
def test_ours_trains_by_their_name(name, make_trainer):
    given = dict(OPTIONS.get(name.removesuffix("_layerwise"), {}))
    if name.startswith(("galore", "apollo")):
        given["optim_target_modules"] = ["attn", "mlp"]
    if "layerwise" in name or "lomo" in name:
        given["max_grad_norm"] = 0.0
    hfoptim.enable(replace=True)
    trainer = make_trainer(optim=name, learning_rate=1e-3, max_steps=6, **given)
    assert trainer.args.optim == f"hfoptim_{REPLACEMENTS[name].name}"
    before = [param.detach().clone() for param in trainer.model.parameters()]
    trainer.train()
    assert not all(torch.equal(a, b) for a, b in zip(before, trainer.model.parameters(), strict=True))
    (inner,) = unwrap_all(trainer.optimizer, RuleOptimizer)
    assert type(inner) is hfoptim.get_optimizer_info(REPLACEMENTS[name].name).opt_class


def test_what_transformers_hands_over_is_handed_over():
    hfoptim.enable(replace=True)
    args = TrainingArguments("out", use_cpu=True, optim="stable_adamw", adam_beta2=0.95)
    # Nothing of this is changed but adam_beta2, and ours has other defaults: 1e-3, (0.9, 0.99), 1e-6, 1e-2.
    assert json.loads(args.optim_args) == {"lr": 5e-5, "betas": [0.9, 0.95], "eps": 1e-8, "weight_decay": 0.0}
    args = TrainingArguments("out", use_cpu=True, optim="schedule_free_adamw", optim_args="r=1.0", warmup_steps=7)
    assert json.loads(args.optim_args)["r"] == 1.0
    assert json.loads(args.optim_args)["warmup_steps"] == 7
    args = TrainingArguments(
        "out", use_cpu=True, optim="galore_adamw", optim_args="weight_decay=0.2", learning_rate=1e-2
    )
    assert json.loads(args.optim_args) == {"weight_decay": 0.2}
    args = TrainingArguments("out", use_cpu=True, optim="lomo", optim_args="clip_grad_norm=1.0")
    assert "gradient_release" not in json.loads(args.optim_args)
    with pytest.raises(ValueError, match="grokadamw has no option 'lambda'"):
        TrainingArguments("out", use_cpu=True, optim="grokadamw", optim_args="lambda=2")


@pytest.mark.parametrize("again", [{"replace": False}, None])
def test_without_it_their_names_stay_theirs(again):
    hfoptim.enable(replace=True)
    if again is None:
        hfoptim.disable()
        hfoptim.enable()
    else:
        hfoptim.enable(**again)
    args = TrainingArguments("out", use_cpu=True, optim="lomo")
    assert args.optim is OptimizerNames.LOMO
    assert args.optim_args is None


def test_same_losses_as_schedulefree(make_trainer):
    """Of the packages that transformers' own need this one is here: its training, and ours by the same arguments."""
    pytest.importorskip("schedulefree")
    given = {"learning_rate": 1e-2, "warmup_steps": 2, "lr_scheduler_type": "constant", "optim_args": "r=1.0"}
    runs = []
    for replace in (False, True):
        hfoptim.enable(replace=replace)
        trainer = make_trainer(optim="schedule_free_adamw", **given)
        trainer.train()
        assert bool(unwrap_all(trainer.optimizer, RuleOptimizer)) is replace
        runs.append([entry["loss"] for entry in trainer.state.log_history if "loss" in entry])
    assert runs[0] == pytest.approx(runs[1], abs=2e-4)


# -- other packages' -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["name", "callback"])
def test_torchs_own_by_name(how, make_trainer):
    given = {"learning_rate": 1e-2, "weight_decay": 0.1, "max_steps": 3}
    if how == "name":
        hfoptim.enable()
        trainer = make_trainer(optim="Torch-AdamW", optim_args="betas=(0.8,0.9)", **given)
    else:
        callback = OptimizerCallback("torch_adamw", betas=(0.8, 0.9), schedule="cosine")
        trainer = make_trainer(callback, **given)
    trainer.train()
    inner = trainer.optimizer.optimizer
    assert type(inner) is torch.optim.AdamW
    assert {(group["weight_decay"], group["betas"]) for group in inner.param_groups} == {
        (0.1, (0.8, 0.9)),
        (0.0, (0.8, 0.9)),
    }
    assert all(group["param_names"] for group in inner.param_groups)


def test_what_is_not_here_is_said_when_the_arguments_are_made():
    hfoptim.enable()
    with pytest.raises(
        ImportError, match=r"fusedadam is apex.optimizers.FusedAdam, and apex is not installed: build it"
    ):
        TrainingArguments("out", use_cpu=True, optim="fusedadam")
    with pytest.raises(ValueError, match=r"ds_onebit_adam needs DeepSpeed's engine.*OneBitAdam"):
        TrainingArguments("out", use_cpu=True, optim="ds_onebit_adam")


def test_the_tables_have_every_name_of_transformers():
    page = (Path(__file__).resolve().parents[2] / "docs" / "trainer.md").read_text(encoding="utf-8")
    rows = page.partition("<!-- names: begin -->")[2].partition("<!-- names: end -->")[0]
    pinned = (Path(__file__).resolve().parents[2] / "constraints.txt").read_text(encoding="utf-8")
    if f"transformers=={transformers.__version__}\n" not in pinned:
        pytest.skip("the tables are of the pinned transformers")
    for name in optimizer_names() | schedule_names():
        assert f"\n| `{name}` |" in rows
