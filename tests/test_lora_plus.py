"""Groups for LoRA+, beside peft's own."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.optimizers import create_loraplus_optimizer
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

import hfoptim


def adapted(**given):
    torch.manual_seed(0)
    config = GPT2Config(n_layer=1, n_head=2, n_embd=16, vocab_size=16, n_positions=8, bos_token_id=0, eos_token_id=0)
    usual = {"r": 2, "task_type": "CAUSAL_LM", "fan_in_fan_out": True, "target_modules": ["c_attn", "wte"]}
    return get_peft_model(GPT2LMHeadModel(config), LoraConfig(**{**usual, **given}))


def by_name(model, groups):
    names = {param: name for name, param in model.named_parameters()}
    found = {}
    for group in groups:
        for entry in group["params"]:
            param = entry if isinstance(entry, torch.Tensor) else entry[1]
            found[names[param]] = (group["lr"], group["weight_decay"])
    return found


@pytest.mark.parametrize("bias", ["none", "lora_only"])
def test_rates_are_those_of_peft(bias):
    model = adapted(bias=bias)
    theirs = create_loraplus_optimizer(
        model, torch.optim.AdamW, lr=1e-4, loraplus_lr_ratio=16, loraplus_weight_decay=0.1
    )
    ours = by_name(model, hfoptim.param_groups_lora_plus(model, 1e-4, 16, weight_decay=0.1))
    assert ours == by_name(model, theirs.param_groups)
    assert {lr for lr, _ in ours.values()} == {1e-4, 16e-4, 1e-6}
    assert len(ours) == sum(param.requires_grad for param in model.parameters())


def test_patterns_say_the_same_for_every_optimizer_by_name():
    model = adapted(target_modules=["c_attn"])
    options = {"*lora_B*": {"lr_scale": 16}}
    made = hfoptim.create_optimizer_v2(model, "lion", lr=1e-4, weight_decay=0.1, param_options=options)
    assert by_name(model, made.param_groups) == by_name(
        model, hfoptim.param_groups_lora_plus(model, 1e-4, 16, weight_decay=0.1)
    )


def test_a_model_without_adapters_and_bad_numbers_are_refused():
    with pytest.raises(ValueError, match="none of the 2 trainable parameters of Linear is called lora_B"):
        hfoptim.param_groups_lora_plus(nn.Linear(2, 2), 1e-4, 16)
    for ratio in (0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="lr_ratio"):
            hfoptim.param_groups_lora_plus(adapted(), 1e-4, ratio)
