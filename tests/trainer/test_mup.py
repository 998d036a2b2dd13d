"""muP and CompleteP: the rules of mup and nanoGPT-mup, and a learning rate that holds at 4 times the width."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

import hfoptim
from hfoptim.trainer import OptimizerCallback


def gpt2(width, layers=1, tied=False):
    torch.manual_seed(0)
    sizes = {"vocab_size": 16, "n_positions": 8, "n_embd": width, "n_layer": layers, "n_head": 2}
    return GPT2LMHeadModel(GPT2Config(**sizes, tie_word_embeddings=tied, bos_token_id=0, eos_token_id=0))


def llama(width, layers=2):
    torch.manual_seed(0)
    sizes = {"hidden_size": width, "intermediate_size": 2 * width, "num_attention_heads": 2, "num_key_value_heads": 1}
    return LlamaForCausalLM(LlamaConfig(vocab_size=16, num_hidden_layers=layers, pad_token_id=0, **sizes))


def by_name(groups, *options):
    return {
        name: tuple(group.get(option) for option in options or ("lr", "weight_decay"))
        for group in groups
        for name in (group.get("param_names") or [name for name, _ in group["params"]])
    }


class Shapes(nn.Module):
    """A net with every kind of shape; `width` and `inner` are its widths."""

    def __init__(self, width, inner):
        super().__init__()
        self.embed = nn.Embedding(5, width)
        self.up = nn.Linear(width, inner)
        self.conv = nn.Conv1d(inner, width, 3)
        self.norm = nn.LayerNorm(width)
        self.gate = nn.Parameter(torch.ones(3))
        self.head = nn.Linear(width, 7)


def mup_rules(model, base, rule):
    """(learning rate, weight decay) by the rules of microsoft/mup's MuAdam and MuSGD, written down from its optim.py.

    A dimension that differs from the base model's is infinite; the width multiple of a parameter is its last one's.
    """
    found = {}
    for (name, param), before in zip(model.named_parameters(), base.parameters(), strict=True):
        multiples = [own / other for own, other in zip(param.shape, before.shape, strict=True)]
        infinite = [multiple for multiple in multiples if multiple != 1]
        lr, decay = 1.0, 1.0
        if rule == "adam" and len(infinite) == 2:
            lr, decay = 1 / infinite[-1], infinite[-1]
        if rule == "sgd" and len(infinite) == 1:
            lr, decay = infinite[-1], 1 / infinite[-1]
        if rule == "sgd" and len(infinite) == 2:
            ratio = multiples[1] / multiples[0]
            lr, decay = 1 / ratio, ratio
        found[name] = (lr, decay)
    return found


@pytest.mark.parametrize("rule", ["adam", "sgd"])
def test_rules_of_mup(rule):
    model, base = Shapes(12, 20), Shapes(4, 5)
    expected = mup_rules(model, base, rule)
    groups = hfoptim.param_groups_mup(model, base, 0.5, 0.1, rule=rule, output_multiplier=True)
    decayed = {name for name, param in model.named_parameters() if param.ndim > 1}
    for name, (lr, decay) in by_name(groups).items():
        assert lr == pytest.approx(0.5 * expected[name][0]), name
        assert decay == pytest.approx(0.1 * expected[name][1] if name in decayed else 0.0), name
    assert by_name(groups).keys() == expected.keys()
    # The paper's Table 3: an output without a multiplier.
    own = by_name(hfoptim.param_groups_mup(model, base, 0.5, 0.1, rule=rule))
    assert own.pop("head.weight") == pytest.approx((0.5 / 3, 0.1 * 3))
    assert own == {name: options for name, options in by_name(groups).items() if name != "head.weight"}


@pytest.mark.parametrize("make", [gpt2, llama])
def test_a_width_says_the_same_as_a_base_model(make):
    model = make(32)
    by_width = by_name(hfoptim.param_groups_mup(model, 8, 1e-2, 0.1))
    with torch.device("meta"):
        base = make(8, layers=1)  # a block stands for those that it has not
    assert by_width == by_name(hfoptim.param_groups_mup(model, base, 1e-2, 0.1))
    for name, (lr, decay) in by_width.items():
        matrix = dict(model.named_parameters())[name].ndim == 2
        grown = matrix and not any(part in name for part in ("wte", "wpe", "embed_tokens"))
        assert (lr, decay) == pytest.approx((1e-2 / 4, 0.4) if grown else (1e-2, 0.1 if matrix else 0.0)), name


def test_completep():
    """Lr, weight decay and eps of all kinds, as nanoGPT-mup has them since its eps are those of Equation 40."""
    model, m, d = gpt2(32, layers=6), 4.0, 3.0
    for alpha in (1.0, 0.5):
        groups = hfoptim.param_groups_mup(
            *(model, 8, 1e-2, 0.1), output_multiplier=True, base_depth=2, depth_alpha=alpha, eps=1e-8
        )
        for name, (lr, decay, eps) in by_name(groups, "lr", "weight_decay", "eps").items():
            inside, matrix = ".h." in name, dict(model.named_parameters())[name].ndim == 2
            assert lr == pytest.approx(1e-2 * (d ** (alpha - 1) if inside else 1) / (m if inside and matrix else 1))
            assert decay == pytest.approx((0.1 * m if inside else 0.1) if matrix else 0.0)
            assert eps == pytest.approx(1e-8 / m * (d**-alpha if inside else 1))


def test_by_name_and_in_the_trainer(make_trainer):
    model = llama(32)
    groups = by_name(hfoptim.param_groups_mup(model, 8, 1e-2, 0.1))
    mup = {"base": 8}
    assert by_name(hfoptim.create_optimizer_v2(model, "adamw", 1e-2, 0.1, mup=mup).param_groups) == groups
    config = {"optimizer": {"type": "AdamW", "lr": 1e-2, "weight_decay": 0.1}, "groups": {"mup": mup}}
    assert by_name(hfoptim.from_config(config, model).optimizer.param_groups) == groups
    depth = {"base": 8, "base_depth": 1}
    made = hfoptim.create_optimizer_v2(model, "adamw", 1e-2, 0.1, mup=depth, eps=1e-6)
    expected = hfoptim.param_groups_mup(model, 8, 1e-2, 0.1, base_depth=1, eps=1e-6)
    assert by_name(made.param_groups, "lr", "weight_decay", "eps") == by_name(expected, "lr", "weight_decay", "eps")
    hfoptim.enable()
    try:
        for callbacks, given in (
            ([OptimizerCallback("adamw", lr=1e-2, weight_decay=0.1, mup=mup)], {}),
            ([], {"optim": "hfoptim_adamw", "optim_args": 'lr=1e-2,weight_decay=0.1,mup={"base": 8}'}),
        ):
            trainer = make_trainer(*callbacks, own={"model": model}, max_steps=1, lr_scheduler_type="constant", **given)
            trainer.train()
            # The Trainer's own choice of what is decayed: no embedding is left out of it.
            assert by_name(unwrapped(trainer.optimizer).param_groups) == groups
    finally:
        hfoptim.disable()


def unwrapped(optimizer):
    return getattr(optimizer, "optimizer", optimizer)


def test_what_cannot_be_is_said():
    wrong = [
        (lambda: hfoptim.param_groups_mup(gpt2(32, tied=True), 8, 1e-2), ValueError, "makes the logits.*untie them"),
        (lambda: hfoptim.param_groups_mup(nn.Linear(4, 4), 2, 1e-2), ValueError, "Linear does not have; give the base"),
        (lambda: hfoptim.param_groups_mup(Shapes(4, 4), Shapes(4, 4), 1e-2), ValueError, "no shape differs"),
        (lambda: hfoptim.param_groups_mup(Shapes(4, 4), nn.Linear(2, 2), 1e-2), ValueError, "no parameter 'gate' of 1"),
        (
            lambda: hfoptim.param_groups_mup(gpt2(32), 8, 1e-2, base_depth=1),
            ValueError,
            "eps and base_depth go together",
        ),
        (lambda: hfoptim.param_groups_mup(gpt2(32), 0, 1e-2), ValueError, "base=0 is out of range"),
        (lambda: hfoptim.param_groups_mup(gpt2(32), 8, 1e-2, rule="adm"), ValueError, "did you mean 'adam'"),
        (lambda: hfoptim.create_optimizer_v2(gpt2(8), "adamw", mup=8), TypeError, "expected a mapping such as"),
        (lambda: hfoptim.create_optimizer_v2(gpt2(8), "adamw", mup={}), ValueError, "has no base"),
        (lambda: hfoptim.create_optimizer_v2(gpt2(8), "adamw", mup={"bas": 1}), ValueError, "mup has no entry 'bas'"),
        (
            lambda: hfoptim.create_optimizer_v2(gpt2(8), "prodigy", mup={"base": 4}),
            ValueError,
            "mup would make it differ",
        ),
    ]
    for call, error, message in wrong:
        with pytest.raises(error, match=message):
            call()


# --- the learning rate of a small model -------------------------------------------------------------------------------

BASE, STEPS = 32, 60


class Net(nn.Module):
    """Three layers over pairs of symbols; without the multiple of the width its weights begin as torch's usual ones."""

    def __init__(self, width, mup, seed):
        super().__init__()
        torch.manual_seed(seed)
        self.embed = nn.Embedding(32, width)
        self.hidden = nn.ModuleList([nn.Linear(2 * width, width), nn.Linear(width, width)])
        self.head = nn.Linear(width, 16)
        nn.init.normal_(self.embed.weight)
        for layer in self.hidden:
            nn.init.normal_(layer.weight, std=(2 / layer.in_features) ** 0.5)
            nn.init.zeros_(layer.bias)
        nn.init.normal_(self.head.weight, std=BASE**-0.5 * (BASE / width) ** (1.0 if mup else 0.5))
        nn.init.zeros_(self.head.bias)

    def forward(self, pairs):
        values = self.embed(pairs).flatten(1)
        for layer in self.hidden:
            values = torch.relu(layer(values))
        return self.head(values)


def loss(width, lr, mup):
    """The mean loss of the last steps over seeds."""
    generator = torch.Generator().manual_seed(1)
    pairs = torch.randint(0, 32, (1024, 2), generator=generator)
    labels = (pairs[:, 0] * 3 + pairs[:, 1] * 5 + pairs.prod(1) // 3) % 16
    found = []
    for seed in range(3):
        model, generator = Net(width, mup, seed), torch.Generator().manual_seed(seed)
        grown = mup and width != BASE
        groups = hfoptim.param_groups_mup(model, Net(BASE, mup, 0), lr) if grown else model.named_parameters()
        optimizer = hfoptim.create_optimizer_v2(groups, "adam", lr=lr)
        for step in range(STEPS):
            batch = torch.randint(0, 1024, (256,), generator=generator)
            value = nn.functional.cross_entropy(model(pairs[batch]), labels[batch])
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
            if step >= STEPS - 10:
                found.append(float(value.detach()))
    return sum(found) / len(found)


@pytest.mark.slow
def test_the_best_learning_rate_is_that_of_a_quarter_of_the_width():
    rates = [2.0**-power for power in range(3, 8)]
    small = {lr: loss(BASE, lr, True) for lr in rates}
    wide = {lr: loss(4 * BASE, lr, True) for lr in rates}
    best = min(small, key=small.__getitem__)
    assert best not in (rates[0], rates[-1])
    assert min(wide, key=wide.__getitem__) == best
    assert wide[best] < small[best]
    # As torch makes it, the wide model wants a lower one, and the small model's costs it several times the loss.
    usual = {lr: loss(4 * BASE, lr, False) for lr in rates}
    assert min(usual, key=usual.__getitem__) < best
    assert usual[best] > 3 * min(usual.values())
