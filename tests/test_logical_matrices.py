"""Parameters of transformers' models that are several matrices: where the table says that they lie, there they lie.

A part set to zero says what it is. Without its values, an attention gives nothing; without queries it weighs all keys
alike, and so it does without keys. Without its gate a gated layer gives nothing, nor without what that lets through.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

import hfoptim
from hfoptim.optimizers.shared.matrices import form_of
from hfoptim.param_groups.logical_matrices import FUSED, divisions

WIDTH, HEADS, HEAD = 24, 4, 6
SIZES = {
    "hidden_size": WIDTH,
    "intermediate_size": 20,
    "num_hidden_layers": 1,
    "num_attention_heads": HEADS,
    "vocab_size": 16,
    "max_position_embeddings": 16,
    **{"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2},
}
GROUPED = {**SIZES, "num_key_value_heads": 2, "head_dim": HEAD}
OLD = {"n_embd": WIDTH, "n_layer": 1, "n_head": HEADS, "vocab_size": 16}
EXPERTS = {"moe_intermediate_size": 10, "num_experts_per_tok": 2}
LATENT = {
    "num_key_value_heads": HEADS,
    **SIZES,
    **EXPERTS,
    **{"q_lora_rank": 8, "kv_lora_rank": 6, "qk_rope_head_dim": 4, "qk_nope_head_dim": 6, "v_head_dim": 2},
    **{"n_routed_experts": 4, "first_k_dense_replace": 0, "n_shared_experts": 1, "topk_group": 1, "n_group": 1},
}
DELTA = {
    **GROUPED,
    **EXPERTS,
    "num_experts": 4,
    "shared_expert_intermediate_size": 8,
    "num_hidden_layers": 2,
    "layer_types": ["linear_attention", "full_attention"],
    **{"linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 3, "linear_value_head_dim": 5},
}
# By model type, sizes of a small model, and what the parameters are: see `says`.
MODELS: dict[str, tuple[dict[str, Any], dict[str, str]]] = {
    "bloom": ({**OLD, "hidden_size": WIDTH}, {"query_key_value": "qkv"}),
    "codegen": ({**OLD, "n_positions": 16, "rotary_dim": 2}, {"qkv_proj": "qvk"}),
    "deepseek_v2": (LATENT, {"kv_a_proj_with_mqa": "v.", "kv_b_proj": ".v", "gate_up_proj": "gu"}),
    "deepseek_v3": (LATENT, {"kv_a_proj_with_mqa": "v.", "kv_b_proj": ".v", "gate_up_proj": "gu"}),
    "falcon": ({**SIZES, "multi_query": False, "new_decoder_architecture": False}, {"query_key_value": "qkv"}),
    "glm": (GROUPED, {"gate_up_proj": "gu"}),
    "glm4": (GROUPED, {"gate_up_proj": "gu"}),
    "gpt2": (OLD, {"c_attn": "qkv"}),
    "gpt_bigcode": (OLD, {"c_attn": "qkv"}),
    "gpt_neox": (SIZES, {"query_key_value": "qkv"}),
    "gpt_oss": ({**GROUPED, "num_local_experts": 4}, {"gate_up_proj": "g."}),  # up + 1
    "granitemoe": ({**GROUPED, "num_local_experts": 4}, {"gate_up_proj": "gu"}),
    "llama4_text": ({**GROUPED, "num_local_experts": 4, "intermediate_size_mlp": 20}, {"gate_up_proj": "gu"}),
    "mixtral": ({**GROUPED, "num_local_experts": 4}, {"gate_up_proj": "gu"}),
    "mpt": ({"d_model": WIDTH, "n_heads": HEADS, "n_layers": 1, "vocab_size": 16}, {"Wqkv": "qkv"}),
    "olmoe": ({**GROUPED, "num_experts": 4, "num_experts_per_tok": 2}, {"gate_up_proj": "gu"}),
    "persimmon": ({**SIZES, "num_attention_heads": 3}, {"query_key_value": "qkv"}),
    "phi3": (GROUPED, {"qkv_proj": "qkv", "gate_up_proj": "gu"}),
    "phimoe": ({**GROUPED, "num_local_experts": 4}, {"gate_up_proj": "gu"}),
    "qwen2_moe": ({**GROUPED, **EXPERTS, "num_experts": 4}, {"gate_up_proj": "gu"}),
    "qwen3_5_text": (DELTA, {"in_proj_qkv": "vvv", "q_proj": ".."}),
    "qwen3_moe": ({**GROUPED, **EXPERTS, "num_experts": 4}, {"gate_up_proj": "gu"}),
    "qwen3_next": (DELTA, {"in_proj_qkvz": "vvvv", "in_proj_ba": "..", "q_proj": "..", "gate_up_proj": "gu"}),
}
VARIANTS = {
    "falcon-new": (
        "falcon",
        {**SIZES, "num_kv_heads": 2, "new_decoder_architecture": True},
        {"query_key_value": "qkv"},
    ),
    "falcon-one": (
        "falcon",
        {**SIZES, "multi_query": True, "new_decoder_architecture": False},
        {"query_key_value": "qkv"},
    ),
    "gpt_bigcode-apart": ("gpt_bigcode", {**OLD, "multi_query": False}, {"c_attn": "qkv"}),
}
CASES = {**{kind: (kind, *case) for kind, case in MODELS.items()}, **VARIANTS}


def tiny(kind: str, sizes: dict[str, Any]) -> nn.Module:
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **sizes)
    config._attn_implementation = config._experts_implementation = "eager"
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for name, param in model.named_parameters():
            if name.endswith("bias"):
                param.zero_()
            elif param.ndim > 1:
                param.normal_(std=0.3)
    return model


def holder(model: nn.Module, found: str) -> tuple[str, nn.Parameter, nn.Module]:
    """A parameter by the last part of its name, with its name and the module that computes with it."""
    for name, param in model.named_parameters():
        path = name.removesuffix(".weight")
        if path.rpartition(".")[2] == found:
            return name, param, model.get_submodule(path.rpartition(".")[0])
    raise AssertionError(f"no {found} in {[name for name, _ in model.named_parameters()]}")


def without_each(model: nn.Module, name: str, param: nn.Parameter, module: nn.Module) -> list[torch.Tensor]:
    """What the module gives with everything there, and without each of the parts of a parameter in turn."""
    division = divisions(model).get(id(param), (None, None))
    form = form_of(name, param.shape, True, param.ndim == 3, *division)
    whole, seen = param.detach().clone(), []
    outputs: list[torch.Tensor] = []
    hook = module.register_forward_hook(lambda _, __, out: outputs.append(out[0] if isinstance(out, tuple) else out))
    parts = form.cut(whole)
    assert torch.equal(form.joined(parts), whole)
    for gone in (None, *range(len(parts))):
        left = [part * (0.0 if index == gone else 1.0) for index, part in enumerate(parts)]
        param.data.copy_(form.joined(left))
        model(input_ids=torch.tensor([[3, 5, 7, 2, 11]]))
        seen.append(outputs[-1].clone())
    param.data.copy_(whole)
    hook.remove()
    return seen


@torch.no_grad()
@pytest.mark.parametrize("case", CASES)
def test_a_part_set_to_zero_says_what_it_is(case):
    kind, sizes, expected = CASES[case]
    model = tiny(kind, sizes)
    if kind in MODELS:
        assert {*expected} == {*FUSED[kind]}
    for found, letters in expected.items():
        name, param, module = holder(model, found)
        module = module.dense if kind == "bloom" else module  # what is around it adds the residual stream
        everything, *without = without_each(model, name, param, module)
        assert len(without) == len(letters)
        by_letter = dict(zip(letters, without, strict=True))
        for letter, output in zip(letters, without, strict=True):
            assert not torch.allclose(output, everything, rtol=1e-3, atol=1e-4), (name, letter)
            assert (output.abs().max() < 1e-6) == (letter in "vgu"), (name, letter)
        if "q" in letters:
            torch.testing.assert_close(by_letter["q"], by_letter["k"])


def test_every_family_of_the_table_has_a_model_here():
    # The mixtures that are built of what is tested elsewhere.
    assert {*FUSED} - {*MODELS} == {"glm4_moe", "qwen3_5_moe_text"}


@pytest.mark.parametrize("kind", ["qwen3_next"])
def test_rates_of_the_delta_net_are_taken_apart_as_the_model_does(kind):
    model = tiny(kind, MODELS[kind][0])
    name, param, module = holder(model, "in_proj_ba")
    coded = torch.arange(float(len(param)))
    other = torch.zeros(1, 1, len(holder(model, "in_proj_qkvz")[1]))
    *_, b, a = module.fix_query_key_value_ordering(other, coded.view(1, 1, -1))
    division = divisions(model)[id(param)]
    parts = form_of(name, param.shape, True, False, division.sizes, division.dim).cut(coded.view(-1, 1))
    for part, theirs in zip(parts, (b, a), strict=True):
        assert part.flatten().tolist() == theirs.flatten().tolist()


def test_muon_steps_the_parts_as_matrices_of_their_own():
    model = tiny("gpt_neox", MODELS["gpt_neox"][0])
    _, param, _ = holder(model, "query_key_value")
    grad = torch.randn_like(param)

    def heads(tensor):
        return tensor.view(HEADS, 3, HEAD, WIDTH).transpose(0, 1).reshape(3, HEADS * HEAD, WIDTH)

    parts = [nn.Parameter(part.clone()) for part in heads(param.detach())]
    apart = hfoptim.Muon([{"params": parts, "use_muon": True}], lr=0.1)
    whole = hfoptim.create_optimizer_v2(model, "muon", lr=0.1, weight_decay=0.1, adjust_lr_fn="original")
    param.grad = grad
    for part, its in zip(parts, heads(grad), strict=True):
        part.grad = its.clone()
    apart.step(), whole.step()
    torch.testing.assert_close(heads(param.detach()), torch.stack(list(parts)).detach(), rtol=1e-5, atol=1e-6)


def test_heads_are_matrices_where_one_asks_for_it():
    model = tiny("phi3", MODELS["phi3"][0])
    groups = hfoptim.param_groups_muon(model, per_head=True)
    split = {name: (group.get("split"), group.get("split_dim")) for group in groups for name, _ in group["params"]}
    assert split["model.layers.0.self_attn.qkv_proj.weight"] == ((HEAD,) * (HEADS + 4), -2)
    assert split["model.layers.0.mlp.gate_up_proj.weight"] == ((20, 20), -2)
    assert split["model.layers.0.self_attn.o_proj.weight"] == (None, None)
    llama = tiny("llama", GROUPED)
    groups = hfoptim.param_groups_muon(llama, per_head=True)
    split = {name.split(".")[-2]: group.get("split") for group in groups for name, _ in group["params"]}
    assert (split["q_proj"], split["k_proj"], split["o_proj"]) == ((HEAD,) * HEADS, (HEAD,) * 2, None)
    assert not any("split" in group for group in hfoptim.param_groups_muon(llama))
    hfoptim.Muon(groups)


@pytest.mark.parametrize(
    "kind", ["bert", "t5", "llama", "qwen2", "qwen3", "mistral", "gemma", "gemma2", "olmo", "olmo2", "phi"]
)
def test_families_with_matrices_apart_are_left_as_they_are(kind):
    from transformers import AutoModel

    given = (
        {"d_model": WIDTH, "num_layers": 1, "num_heads": HEADS, "d_kv": HEAD, "d_ff": 20} if kind == "t5" else GROUPED
    )
    with torch.device("meta"):
        model = AutoModel.from_config(AutoConfig.for_model(kind, **given))
    assert divisions(model) == {}
    groups = hfoptim.param_groups_muon(model)
    matrices = {name for group in groups if group["use_muon"] for name, _ in group["params"]}
    assert matrices == {
        name
        for name, param in model.named_parameters()
        if param.ndim == 2 and not any(word in name for word in ("embed", "shared", "position", "relative_attention"))
    }


def test_what_a_pattern_says_of_the_division_stays():
    model = tiny("gpt_neox", MODELS["gpt_neox"][0])
    optimizer = hfoptim.create_optimizer_v2(model, "muon", param_options={"*query_key_value*": {"split": 1}})
    (group,) = [
        g for g in optimizer.param_groups if any("query_key_value" in n for n in g["param_names"]) and g["use_muon"]
    ]
    assert (group["split"], group["split_dim"]) == (1, None)
