"""Which parameter gets which weight decay and learning rate."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import BertConfig, BertForMaskedLM, GPT2Config, GPT2LMHeadModel, T5Config, T5ForConditionalGeneration

import hfoptim
from hfoptim import decay_groups, layer_decay_groups


def gpt2(layers=3):
    return GPT2LMHeadModel(
        GPT2Config(n_layer=layers, n_head=2, n_embd=8, vocab_size=11, n_positions=8, bos_token_id=0, eos_token_id=0)
    )


def bert(layers=2):
    return BertForMaskedLM(
        BertConfig(
            hidden_size=8,
            num_hidden_layers=layers,
            num_attention_heads=2,
            intermediate_size=16,
            vocab_size=11,
            max_position_embeddings=8,
        )
    )


def t5():
    return T5ForConditionalGeneration(
        T5Config(d_model=8, d_kv=4, d_ff=16, num_layers=2, num_heads=2, vocab_size=11, decoder_start_token_id=0)
    )


def by_name(groups, key):
    """Parameter name -> what its group has under `key`."""
    return {name: group[key] for group in groups for name, _ in group["params"]}


MODELS = [gpt2, bert, t5]


@pytest.mark.parametrize("make", MODELS)
@pytest.mark.parametrize(
    "group",
    [lambda m: decay_groups(m, 0.1), lambda m: layer_decay_groups(m, 0.1)],
    ids=["decay", "layer"],
)
def test_every_parameter_is_in_one_group_once_tied_or_not(make, group):
    model = make()
    pairs = [pair for g in group(model) for pair in g["params"]]
    own = dict(model.named_parameters())
    assert len(pairs) == len(own)
    assert {name: id(param) for name, param in pairs} == {name: id(param) for name, param in own.items()}
    tied = model.get_input_embeddings().weight is model.get_output_embeddings().weight
    assert tied, "this model was chosen because its embeddings are tied"
    assert sum(param is model.get_output_embeddings().weight for _, param in pairs) == 1
    hfoptim.Lion(group(model))  # torch refuses a parameter in two groups


@pytest.mark.parametrize("make", MODELS)
def test_weight_decay_is_for_matrices_and_higher(make):
    model = make()
    decay = by_name(decay_groups(model, 0.1), "weight_decay")
    for name, param in model.named_parameters():
        assert decay[name] == (0.1 if param.ndim >= 2 else 0.0), name


def test_a_bias_is_not_decayed_whatever_its_shape():
    model = nn.Module()
    model.weight = nn.Parameter(torch.ones(2, 2))
    model.bias = nn.Parameter(torch.ones(2, 2))
    model.bias_table = nn.Parameter(torch.ones(2, 2))
    assert by_name(decay_groups(model, 0.1), "weight_decay") == {
        "weight": 0.1,
        "bias": 0.0,
        "bias_table": 0.1,
    }


def test_names_and_patterns_exempt_from_decay():
    model = gpt2()
    groups = decay_groups(model, 0.1, ["transformer.wpe.weight", "*.mlp.*"])
    decay = by_name(groups, "weight_decay")
    assert decay["transformer.wpe.weight"] == 0.0
    assert decay["transformer.h.1.mlp.c_fc.weight"] == 0.0
    assert decay["transformer.wte.weight"] == decay["transformer.h.1.attn.c_attn.weight"] == 0.1
    model.no_weight_decay = lambda: {"transformer.wte.weight"}
    decay = by_name(decay_groups(model, 0.1), "weight_decay")
    assert decay["transformer.wte.weight"] == 0.0
    assert decay["transformer.wpe.weight"] == 0.1


@pytest.mark.parametrize("group", [decay_groups, layer_decay_groups])
def test_frozen_parameters_are_left_out(group):
    model = gpt2()
    model.transformer.wte.requires_grad_(False)
    model.transformer.h[0].requires_grad_(False)
    names = {name for g in group(model) for name, _ in g["params"]}
    assert names == {name for name, param in model.named_parameters() if param.requires_grad}
    assert "transformer.wte.weight" not in names
    assert group(nn.Linear(2, 2).requires_grad_(False)) == []


def test_empty_groups_are_left_out():
    assert len(decay_groups(nn.Linear(2, 2, bias=False), 0.1)) == 1
    assert len(decay_groups(nn.LayerNorm(2), 0.1)) == 1


def test_layer_decay_of_gpt2():
    scales = by_name(layer_decay_groups(gpt2(3), 0.1, layer_decay=0.5), "lr_scale")
    for name, scale in scales.items():
        if name.startswith(("transformer.wte", "transformer.wpe")):
            depth = 0
        elif name.startswith("transformer.h."):
            depth = 1 + int(name.split(".")[2])
        else:
            assert name.startswith("transformer.ln_f")
            depth = 4
        assert scale == 0.5 ** (4 - depth), name
    assert len(set(scales.values())) == 5


def test_layer_decay_of_bert():
    scales = by_name(layer_decay_groups(bert(2), 0.1, layer_decay=0.5), "lr_scale")
    for name, scale in scales.items():
        if name.startswith("bert.embeddings"):
            depth = 0
        elif name.startswith("bert.encoder.layer."):
            depth = 1 + int(name.split(".")[3])
        else:
            assert name.startswith("cls.")
            depth = 3
        assert scale == 0.5 ** (3 - depth), name


def test_layer_decay_with_frozen_embeddings_keeps_the_depths():
    model = gpt2(3)
    usual = by_name(layer_decay_groups(model, layer_decay=0.5), "lr_scale")
    model.transformer.wte.requires_grad_(False)
    model.transformer.wpe.requires_grad_(False)
    frozen = by_name(layer_decay_groups(model, layer_decay=0.5), "lr_scale")
    assert frozen == {name: usual[name] for name in frozen}
    # Freezing the whole top must not move the rest up.
    model = gpt2(3)
    model.transformer.ln_f.requires_grad_(False)
    model.transformer.h[2].requires_grad_(False)
    top = by_name(layer_decay_groups(model, layer_decay=0.5), "lr_scale")
    assert top == {name: usual[name] for name in top}


def test_layer_decay_gives_learning_rates_and_a_floor():
    groups = layer_decay_groups(gpt2(3), 0.1, layer_decay=0.5, lr=1e-2, min_scale=0.2)
    scales, rates = by_name(groups, "lr_scale"), by_name(groups, "lr")
    assert min(scales.values()) == 0.2
    assert all(rates[name] == pytest.approx(1e-2 * scales[name]) for name in scales)
    assert "lr" not in layer_decay_groups(gpt2(1))[0]
    decay = by_name(groups, "weight_decay")
    assert decay["transformer.h.0.attn.c_attn.weight"] == 0.1
    assert decay["transformer.h.0.ln_1.weight"] == 0.0
    everything = layer_decay_groups(gpt2(1), 0.1, weight_decay_exclude_1d=False)
    assert set(by_name(everything, "weight_decay").values()) == {0.1}
    some = layer_decay_groups(gpt2(1), 0.1, no_weight_decay_list=["*wte*"])
    assert by_name(some, "weight_decay")["transformer.wte.weight"] == 0.0


def test_a_layer_decay_of_one_keeps_all_learning_rates():
    assert set(by_name(layer_decay_groups(gpt2(2), layer_decay=1.0), "lr_scale").values()) == {1.0}


def test_a_model_without_blocks_is_one_layer():
    assert set(by_name(layer_decay_groups(nn.Linear(2, 2), layer_decay=0.5), "lr_scale").values()) == {1.0}


@pytest.mark.parametrize("value", [-0.1, float("nan"), float("inf"), "a little", None, True])
def test_bad_numbers_are_refused(value):
    with pytest.raises((TypeError, ValueError), match="weight_decay="):
        decay_groups(gpt2(1), value)
    for name in ("weight_decay", "layer_decay", "min_scale", "lr"):
        if name == "lr" and value is None:
            continue  # no learning rate is given
        with pytest.raises((TypeError, ValueError), match=f"{name}="):
            layer_decay_groups(gpt2(1), **{name: value})


def test_other_bad_input_is_refused():
    with pytest.raises(ValueError, match="layer_decay"):
        layer_decay_groups(gpt2(1), layer_decay=0.0)
    with pytest.raises(ValueError, match="layer_decay"):
        layer_decay_groups(gpt2(1), layer_decay=1.1)
    with pytest.raises((TypeError, ValueError), match="no_weight_decay_list"):
        decay_groups(gpt2(1), 0.1, "transformer.wte.weight")  # a string, not a list of them
