"""Trainable parameters that the optimizer does not have are named when the training starts, in one warning."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import Trainer

import hfoptim
from hfoptim.trainer import OptimizerCallback

HEAD = {"transformer.ln_f.weight", "transformer.ln_f.bias"}


class Without(Trainer):
    """Leaves parameters out of its groups."""

    def get_optimizer_cls_and_kwargs(self, args, model=None):
        cls, kwargs = super().get_optimizer_cls_and_kwargs(args, model)
        kwargs["params"] = [{"params": [p for n, p in model.named_parameters() if n not in HEAD]}]
        return cls, kwargs


def missing(messages):
    return [message for message in messages() if "in no group" in message]


@pytest.mark.parametrize("way", ["callback", "name"])
def test_by_callback_and_by_name(make_trainer, names, messages, way):
    if way == "callback":
        trainer = make_trainer(OptimizerCallback("lion", lr=1e-3), trainer_class=Without)
    else:
        trainer = make_trainer(optim="lion", learning_rate=1e-3, trainer_class=Without)
    trainer.train()
    (message,) = missing(messages)
    assert message.startswith("2 of ")
    assert "are in no group of Lion, which leaves them as they are: transformer.ln_f.weight, tr" in message
    trainer.train()
    assert len(missing(messages)) == 2  # once in every training


@pytest.mark.parametrize("wrap", [lambda optimizer: optimizer, hfoptim.Lookahead])
def test_with_an_optimizer_of_ours_given_to_the_trainer(make_trainer, model, messages, wrap):
    network = model()
    optimizer = wrap(hfoptim.Lion([network.transformer.wte.weight], lr=1e-3))
    make_trainer(own={"model": network, "optimizers": (optimizer, None)}).train()
    (message,) = missing(messages)
    assert f"{len(list(network.parameters())) - 1} of {len(list(network.parameters()))} parameters" in message
    assert "transformer.wpe.weight" in message


def test_with_an_optimizer_for_another_model(make_trainer, model, messages):
    optimizer = hfoptim.AdamW(model(seed=1).parameters(), lr=1e-3)
    make_trainer(own={"optimizers": (optimizer, None)}).train()
    (message,) = missing(messages)
    assert "transformer.wte.weight" in message


def test_many_names_are_cut_short(make_trainer, model, messages):
    class Deep(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Linear(1, 1)
            self.layers = nn.ModuleList(nn.Linear(1, 1, bias=False) for _ in range(30))

        def forward(self, input_ids=None, labels=None):
            return {"loss": self.first.weight.sum().square()}

    network = Deep()
    optimizer = hfoptim.SGD(network.first.parameters(), lr=1e-3)
    make_trainer(own={"model": network, "optimizers": (optimizer, None)}).train()
    (message,) = missing(messages)
    assert "layers.19.weight and 10 more" in message


def test_a_loss_with_weights_beside_the_model(make_trainer, model, messages):
    class WithLoss(Trainer):
        def __init__(self, *args, **kwargs):
            self.losses = {"plain": nn.Linear(16, 1), "unused": nn.Linear(16, 1)}
            self.teacher = model(seed=1)
            super().__init__(*args, **kwargs)

        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            outputs = model(**inputs, output_hidden_states=True)
            loss = outputs.loss + self.losses["plain"](outputs.hidden_states[-1]).square().mean()
            return (loss, outputs) if return_outputs else loss

    make_trainer(OptimizerCallback("lion", lr=1e-3), trainer_class=WithLoss).train()
    (message,) = missing(messages)
    assert message.startswith("2 of 2 parameters get gradients, but are in no group of Lion")
    assert "losses.plain.weight, losses.plain.bias" in message


def test_nothing_is_said_where_all_are_there(make_trainer, model, messages):
    tied = model()
    assert tied.lm_head.weight is tied.transformer.wte.weight
    tied.transformer.wpe.requires_grad_(False)
    make_trainer(OptimizerCallback("muon", lr=1e-3), own={"model": tied}).train()
    options = {"*attn*": {"optimizer": "adamw", "lr": 1e-4}, "*wte*": {"lr": 0.0}}
    make_trainer(OptimizerCallback("lion", lr=1e-3, param_options=options)).train()
    config = LoraConfig(r=2, target_modules=["c_attn"], fan_in_fan_out=True, task_type="CAUSAL_LM")
    make_trainer(OptimizerCallback("lion", lr=1e-3), own={"model": get_peft_model(model(), config)}).train()
    assert missing(messages) == []


def test_optimizers_of_others_are_left_alone(make_trainer, model, messages):
    network = model()
    optimizer = torch.optim.SGD([network.transformer.wte.weight], lr=1e-3)
    make_trainer(own={"model": network, "optimizers": (optimizer, None)}).train()
    assert missing(messages) == []
