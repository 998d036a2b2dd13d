"""GaLore and APOLLO in the Trainer: what `optim_target_modules` names is projected, also layer by layer."""

import pytest
import torch

import hfoptim
from hfoptim.trainer import OptimizerCallback

MLP = {f"transformer.h.0.mlp.{name}.weight" for name in ("c_fc", "c_proj")}
ATTENTION = {f"transformer.h.0.attn.{name}.weight" for name in ("c_attn", "c_proj")}
OPTIONS = "rank=4,update_proj_gap=2"


def projected(optimizer, model):
    return {name for name, param in model.named_parameters() if "ortho_matrix" in optimizer.state[param]}


@pytest.mark.parametrize(
    ("targets", "found"),
    [(None, MLP | ATTENTION), (["mlp"], MLP), (r".*\.attn\..*", ATTENTION), ("all-linear", MLP | ATTENTION)],
    ids=["hidden", "list", "regex", "all"],
)
def test_target_modules_are_projected(names, make_trainer, inner, targets, found):
    trainer = make_trainer(optim="hfoptim_galore_adamw", optim_args=OPTIONS, optim_target_modules=targets)
    trainer.train()
    optimizer, model = inner(trainer), trainer.model
    assert type(optimizer) is hfoptim.GaLoreAdamW
    # The head is tied to the embedding.
    assert projected(optimizer, model) == found
    state = optimizer.state[model.transformer.h[0].mlp.c_fc.weight]
    assert state["exp_avg"].shape == ((4, 64) if "transformer.h.0.mlp.c_fc.weight" in found else (16, 64))
    decays = {name: g["weight_decay"] for g in optimizer.param_groups for name in g["param_names"]}
    assert set(decays) == {name for name, _ in model.named_parameters()}


def test_target_modules_that_name_nothing_are_refused(names, make_trainer):
    trainer = make_trainer(optim="hfoptim_apollo_mini", optim_target_modules=["no_such_module"])
    with pytest.raises(ValueError, match=r"optim_target_modules=.*no_such_module.* names no linear layer"):
        trainer.train()


@pytest.mark.parametrize("name", ["galore_adamw", "apollo_adamw"])
def test_layer_by_layer_the_steps_are_the_same(names, make_trainer, inner, name):
    given = {"max_grad_norm": 0.0, "optim_target_modules": ["mlp", "attn"], "optim": f"hfoptim_{name}"}
    trained = []
    for release in (True, False):
        trainer = make_trainer(optim_args=f"{OPTIONS},gradient_release={release}", **given)
        trainer.train()
        trained.append(trainer.model.state_dict())
        assert projected(inner(trainer), trainer.model) == MLP | ATTENTION
    for key, value in trained[0].items():
        torch.testing.assert_close(value, trained[1][key], rtol=1e-4, atol=1e-6)


def test_a_run_goes_on_bit_for_bit(make_trainer, tmp_path):
    chosen = ("apollo_adamw", {"rank": 4, "update_proj_gap": 3})
    whole = make_trainer(OptimizerCallback(chosen[0], **chosen[1]), max_steps=6, save_strategy="steps", save_steps=4)
    whole.train()
    again = make_trainer(OptimizerCallback(chosen[0], **chosen[1]), max_steps=6)
    again.train(resume_from_checkpoint=f"{whole.args.output_dir}/checkpoint-4")
    for key, value in whole.model.state_dict().items():
        assert torch.equal(value, again.model.state_dict()[key]), key
