"""Options by layer, by head and by name: the groups one expects, the steps of a hand-made optimizer, every refusal."""

from __future__ import annotations

import fnmatch
import sys
from types import ModuleType

import peers
import pytest
import torch
from torch import nn
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    BertForMaskedLM,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForSequenceClassification,
    T5Config,
    T5ForConditionalGeneration,
    T5ForSequenceClassification,
)

import hfoptim
from hfoptim import CombinedOptimizer, create_optimizer_v2, param_groups_options
from hfoptim.param_groups.options import OPTIONS, Grouping
from hfoptim.param_groups.selection import head_names, layer_depths
from hfoptim.registry.lookup import group_defaults, option_names


def gpt2(tied=True):
    config = GPT2Config(n_layer=3, n_head=2, n_embd=8, vocab_size=11, n_positions=8, bos_token_id=0, eos_token_id=0)
    config.tie_word_embeddings = tied
    torch.manual_seed(0)
    return GPT2LMHeadModel(config).eval()  # no dropout


def bert(kind=BertForSequenceClassification):
    torch.manual_seed(0)
    return kind(
        BertConfig(
            hidden_size=8,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=16,
            vocab_size=11,
            max_position_embeddings=8,
        )
    ).eval()


def t5(kind=T5ForConditionalGeneration):
    torch.manual_seed(0)
    config = T5Config(d_model=8, d_kv=4, d_ff=16, num_layers=2, num_heads=2, vocab_size=11, decoder_start_token_id=0)
    return kind(config).eval()


def llama():
    return LlamaForSequenceClassification(
        LlamaConfig(
            hidden_size=8,
            intermediate_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=2,
            vocab_size=11,
            pad_token_id=0,
        )
    )


def found(optimizer, *keys):
    """Parameter name -> what its group has under the keys."""
    return {name: tuple(g.get(k) for k in keys) for g in optimizer.param_groups for name in g["param_names"]}


def train(model, optimizer, steps=3):
    """A few steps on numbers that depend on the step alone."""
    for t in range(steps):
        optimizer.zero_grad()
        tokens = torch.randint(11, (2, 6), generator=torch.Generator().manual_seed(t))
        labels = tokens[:, 0] % 2 if hasattr(model, "classifier") else tokens
        model(input_ids=tokens, labels=labels).loss.backward()
        optimizer.step()


def same_params(one, other):
    for (name, p), (_, q) in zip(one.named_parameters(), other.named_parameters(), strict=True):
        assert torch.equal(p, q), name


# -- heads and layers -------------------------------------------------------------------------------------------------


def test_heads_of_models_of_transformers():
    assert head_names(gpt2()) == []  # tied to the embeddings
    assert head_names(gpt2(tied=False)) == ["lm_head.weight"]
    assert head_names(bert()) == ["classifier.weight", "classifier.bias"]
    assert head_names(bert(BertForQuestionAnswering)) == ["qa_outputs.weight", "qa_outputs.bias"]
    assert head_names(llama()) == ["score.weight"]
    assert head_names(bert(BertModel)) == []
    assert head_names(t5()) == []
    assert all(name.startswith("classification_head.") for name in head_names(t5(T5ForSequenceClassification)))
    assert len(head_names(t5(T5ForSequenceClassification))) == 4
    masked = head_names(bert(BertForMaskedLM))  # the decoder's weight is tied, the rest of the head is not
    assert set(masked) == {n for n, _ in bert(BertForMaskedLM).named_parameters() if n.startswith("cls.")}
    assert masked
    assert not any(name.endswith("decoder.weight") for name in masked)


def test_heads_of_other_models():
    model = nn.Sequential()
    model.add_module("blocks", nn.ModuleList(nn.Linear(2, 2) for _ in range(2)))
    model.add_module("head", nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)))
    assert head_names(model) == [f"head.{i}.{kind}" for i in (0, 1) for kind in ("weight", "bias")]
    model = nn.ModuleDict({"body": nn.Linear(2, 2), "out": nn.Linear(2, 2)})
    assert head_names(model) == []
    model.get_classifier = lambda: model["out"]  # as timm's models have it
    assert head_names(model) == ["out.weight", "out.bias"]
    model = nn.ModuleDict({"emb": nn.Embedding(3, 2), "lm_head": nn.Linear(2, 3, bias=False)})
    assert head_names(model) == ["lm_head.weight"]
    model["lm_head"].weight = model["emb"].weight
    assert head_names(model) == []


def test_heads_of_an_adapted_model():
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(task_type="SEQ_CLS", target_modules=["q_proj"], modules_to_save=["score"])
    model = peft.get_peft_model(llama(), config)
    trained = {name for name, param in model.named_parameters() if param.requires_grad}
    assert trained & set(head_names(model)) == {"base_model.model.score.modules_to_save.default.weight"}
    optimizer = create_optimizer_v2(model, "adamw", lr=1e-3, layer_decay=0.5, head_lr=1e-2)
    rates = {name.replace("base_model.model.", ""): lr for name, (lr,) in found(optimizer, "lr").items()}
    assert rates == {
        "score.modules_to_save.default.weight": 1e-2,
        **{f"model.layers.1.self_attn.q_proj.lora_{x}.default.weight": 1e-3 * 0.5 for x in "AB"},
        **{f"model.layers.0.self_attn.q_proj.lora_{x}.default.weight": 1e-3 * 0.25 for x in "AB"},
    }


def test_a_head_with_numbers_is_no_block():
    model = nn.ModuleDict(
        {"blocks": nn.ModuleList(nn.Linear(2, 2) for _ in range(3)), "classifier": nn.Sequential(nn.Linear(2, 2))}
    )
    depths = layer_depths(model)
    assert [depths[f"blocks.{i}.weight"] for i in range(3)] == [1, 2, 3]
    assert depths["classifier.0.weight"] == 4


def test_embeddings_of_a_decoder_are_at_the_bottom():
    model = BartForConditionalGeneration(
        BartConfig(
            d_model=8,
            encoder_layers=2,
            decoder_layers=2,
            encoder_attention_heads=2,
            decoder_attention_heads=2,
            encoder_ffn_dim=16,
            decoder_ffn_dim=16,
            vocab_size=11,
            max_position_embeddings=8,
        )
    )
    for name, depth in layer_depths(model).items():
        block = name.split(".")[3] if ".layers." in name else None
        assert depth == (0 if block is None else int(block) + 1), name
    depths = layer_depths(t5())
    assert depths["shared.weight"] == 0
    assert depths["encoder.final_layer_norm.weight"] == depths["decoder.final_layer_norm.weight"] == 3
    assert depths["decoder.block.1.layer.0.layer_norm.weight"] == 2


class Vit(nn.Module):
    """Named as timm's vision transformer is."""

    def __init__(self):
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, 4))
        self.pos_embed = nn.Parameter(torch.zeros(1, 5, 4))
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(3, 4, 2)})
        self.blocks = nn.ModuleList(nn.ModuleDict({"mlp": nn.Linear(4, 4), "norm1": nn.LayerNorm(4)}) for _ in range(3))
        self.norm = nn.LayerNorm(4)
        self.head = nn.Linear(4, 2)


@pytest.fixture
def timms_layers(monkeypatch):
    """timm's function from names to layers. Its package wants torchvision, of which nothing is used."""
    if not peers.installed("timm"):
        pytest.skip("timm is not installed")
    if "torchvision" not in sys.modules:
        for name in ("torchvision", "torchvision.ops", "torchvision.ops.misc"):
            monkeypatch.setitem(sys.modules, name, ModuleType(name))
        sys.modules["torchvision.ops.misc"].FrozenBatchNorm2d = nn.Identity
    return peers.load("timm.models._manipulate.group_parameters")


def test_depths_are_timms(timms_layers):
    model = Vit()
    matcher = {"stem": r"^cls_token|pos_embed|patch_embed", "blocks": [(r"^blocks\.(\d+)", None)]}
    assert layer_depths(model) == timms_layers(model, matcher, reverse=True)
    # timm's vision transformer has the final norm go with the last block; here it goes with the head, as in BEiT.
    matcher["blocks"] += [(r"^norm", (99999,))]
    theirs = timms_layers(model, matcher, reverse=True)
    ours = layer_depths(model)
    assert {name for name in ours if ours[name] != theirs[name]} == {"norm.weight", "norm.bias"}
    assert theirs["norm.weight"] == theirs["blocks.2.mlp.weight"] == 3


# -- groups -----------------------------------------------------------------------------------------------------------


def test_groups_of_gpt2():
    model = gpt2(tied=False)
    optimizer = create_optimizer_v2(
        model,
        "adamw",
        lr=1e-3,
        weight_decay=0.1,
        layer_decay=0.5,
        head_lr=1e-2,
        param_options={"*.ln_?.weight": {"weight_decay": 0.3, "betas": (0.5, 0.6)}, "*.h.1.*": {"lr": 7e-3}},
    )
    expected = {}
    for name, param in model.named_parameters():
        part = name.split(".")
        depth = 1 + int(part[2]) if part[1] == "h" else (4 if part[1] == "ln_f" else 0)
        lr, decay, betas = 1e-3 * 0.5 ** (4 - depth), 0.1 if param.ndim > 1 else 0.0, (0.9, 0.999)
        if name == "lm_head.weight":
            lr = 1e-2
        if part[-2] in ("ln_1", "ln_2", "ln_f") and part[-1] == "weight":
            decay, betas = 0.3, (0.5, 0.6)
        elif part[1:3] == ["h", "1"]:
            lr = 7e-3
        expected[name] = (lr, decay, betas)
    assert found(optimizer, "lr", "weight_decay", "betas") == expected
    assert len(optimizer.param_groups) == len(set(expected.values()))
    # The first group is of the layer at the top, whose learning rate is the one given.
    assert optimizer.param_groups[0]["param_names"] == ["transformer.ln_f.bias"]
    assert optimizer.param_groups[0]["lr"] == 1e-3


def test_groups_of_a_classifier():
    model = bert()
    model.bert.embeddings.requires_grad_(False)
    optimizer = create_optimizer_v2(
        model,
        "lion",
        lr=1e-3,
        weight_decay=0.1,
        layer_decay=0.8,
        head_lr=1e-2,
        param_options={"*.bias": {"weight_decay": 0.2, "lr_scale": 2.0}, "bert.pooler.dense.weight": {"caution": True}},
    )
    expected = {}
    for name, param in model.named_parameters():
        if not param.requires_grad:
            continue
        depth = int(name.split(".")[3]) + 1 if ".layer." in name else 3
        scale, lr = 0.8 ** (3 - depth), 1e-3
        if name.startswith("classifier"):
            scale, lr = 1.0, 1e-2
        decay = 0.1 if param.ndim > 1 else 0.0
        if name.endswith(".bias"):
            scale, decay = 2 * scale, 0.2
        expected[name] = (pytest.approx(lr * scale), decay, name == "bert.pooler.dense.weight")
    assert found(optimizer, "lr", "weight_decay", "caution") == expected
    # What a learning rate was scaled by can be read in its group; those given are not scaled.
    for group in optimizer.param_groups:
        given = group["lr"] in (1e-2, 2e-2)
        assert ("lr_scale" in group) is not given
        assert given or group["lr"] == pytest.approx(1e-3 * group["lr_scale"])


def test_groups_of_t5():
    model = t5()
    optimizer = create_optimizer_v2(
        model, "adamw", lr=1e-3, layer_decay=0.5, param_options={"shared.*": {"lr": 0.0}, "decoder.*": {"eps": 1e-3}}
    )
    for name, (lr, eps) in found(optimizer, "lr", "eps").items():
        depth = int(name.split(".")[2]) + 1 if ".block." in name else 3
        assert lr == (0.0 if name == "shared.weight" else pytest.approx(1e-3 * 0.5 ** (3 - depth))), name
        assert eps == (1e-3 if name.startswith("decoder") else 1e-8), name
    with pytest.raises(
        ValueError, match=r"head_lr=0.1: T5ForConditionalGeneration has no head .*lm_head.weight is tied"
    ):
        create_optimizer_v2(model, "adamw", lr=1e-3, head_lr=0.1)


def test_the_first_pattern_that_matches_decides_alone():
    patterns = {"*.0.*": {"lr": 1.0}, "*.bias": {"lr": 2.0}, "*": {"weight_decay": 0.5}}
    model = nn.ModuleDict({"layers": nn.ModuleList(nn.Linear(2, 2) for _ in range(2))})
    optimizer = create_optimizer_v2(model, "adamw", lr=1e-3, weight_decay=0.1, param_options=patterns)
    for name, (lr, decay) in found(optimizer, "lr", "weight_decay").items():
        first = next(pattern for pattern in patterns if fnmatch.fnmatch(name, pattern))
        assert lr == patterns[first].get("lr", 1e-3), name
        assert decay == patterns[first].get("weight_decay", 0.1 if name.endswith("weight") else 0.0), name


def test_without_filter_biases_are_decayed_too():
    for options in ({"head_lr": 1.0}, {"head_lr": 1.0, "layer_decay": 0.5}):
        optimizer = create_optimizer_v2(bert(), "adamw", weight_decay=0.1, filter_bias_and_bn=False, **options)
        assert {decay for (decay,) in found(optimizer, "weight_decay").values()} == {0.1}


def test_groups_for_an_optimizer_of_ones_own():
    model, other = gpt2(tied=False), gpt2(tied=False)
    groups = param_groups_options(
        model, 1e-3, 0.1, ["*wpe*"], 0.5, 1e-2, {"*.c_fc.*": {"lr_scale": 3.0, "amsgrad": True}}
    )
    optimizer = torch.optim.AdamW(groups, lr=9.0, weight_decay=9.0)
    expected = []
    for name, param in other.named_parameters():
        part = name.split(".")
        depth = 1 + int(part[2]) if part[1] == "h" else (4 if part[1] == "ln_f" else 0)
        lr = 1e-2 if name == "lm_head.weight" else 1e-3 * 0.5 ** (4 - depth)
        decay = 0.1 if param.ndim > 1 and part[1] != "wpe" else 0.0
        more = "c_fc" in part
        expected.append({"params": [param], "lr": 3 * lr if more else lr, "weight_decay": decay, "amsgrad": more})
    assert {id(p) for g in optimizer.param_groups for p in g["params"]} == {id(p) for p in model.parameters()}
    train(model, optimizer)
    train(other, torch.optim.AdamW(expected))
    same_params(model, other)
    assert all("lr" in group for group in param_groups_options(bert(), 1e-3))
    with pytest.raises(ValueError, match=r"names the optimizer 'lion', and parameter groups are for one"):
        param_groups_options(model, 1e-3, param_options={"*": {"optimizer": "lion"}})
    for wrong in ({"lr": -1.0}, {"lr": 1e-3, "weight_decay": -1.0}, {"lr": 1e-3, "layer_decay": 2.0}):
        with pytest.raises(ValueError, match="out of range"):
            param_groups_options(model, **wrong)


def test_the_steps_are_those_of_a_hand_made_optimizer():
    model, other = bert(), bert()
    optimizer = create_optimizer_v2(
        model,
        "adamw",
        lr=1e-3,
        weight_decay=0.1,
        layer_decay=0.5,
        head_lr=1e-2,
        param_options={"*.LayerNorm.*": {"lr": 0}},
    )
    groups = []
    for name, param in other.named_parameters():
        depth = int(name.split(".")[3]) + 1 if ".layer." in name else (0 if "embeddings" in name else 3)
        lr = 1e-2 if name.startswith("classifier") else 1e-3 * 0.5 ** (3 - depth)
        decay = 0.1 if param.ndim > 1 else 0.0
        groups.append({"params": [param], "lr": 0.0 if "LayerNorm" in name else lr, "weight_decay": decay})
    start = {name: param.detach().clone() for name, param in model.named_parameters()}
    train(model, optimizer)
    train(other, hfoptim.get_optimizer_class("adamw")(groups))
    same_params(model, other)
    moved = {name for name, param in model.named_parameters() if not torch.equal(param, start[name])}
    assert moved == {name for name in start if "LayerNorm" not in name}


# -- several optimizers -----------------------------------------------------------------------------------------------


def test_a_pattern_gives_its_parameters_to_another_optimizer():
    model, other = gpt2(tied=False), gpt2(tied=False)
    options = {
        "lm_head.*": {"optimizer": "AdamW", "lr": 1e-2, "betas": (0.8, 0.9)},
        "*.w[tp]e.*": {"optimizer": "lion"},
        "*.h.2.*": {"momentum": 0.5},
    }
    optimizer = create_optimizer_v2(model, "muon", lr=1e-3, weight_decay=0.1, layer_decay=0.5, param_options=options)
    assert isinstance(optimizer, CombinedOptimizer)
    assert [type(member) for member in optimizer.optimizers] == [hfoptim.Muon, hfoptim.Adam, hfoptim.Lion]

    def scale(name):
        depth = 1 + int(name.split(".")[2]) if ".h." in name else (0 if "te" in name.split(".")[1] else 4)
        return 0.5 ** (4 - depth)

    body, tables = [], []
    for name, param in other.named_parameters():
        if ".wte." in name or ".wpe." in name:
            tables.append({"params": [(name, param)], "lr": 1e-4 * 0.5**4, "weight_decay": 0.0})
        elif name != "lm_head.weight":
            inside = param.ndim > 1
            group = {"params": [(name, param)], "lr": 1e-3 * scale(name), "weight_decay": 0.1 if inside else 0.0}
            body.append({**group, "use_muon": inside, "momentum": 0.5 if ".h.2." in name else 0.9})
    by_hand = [
        hfoptim.Muon(body, adjust_lr_fn="match_rms_adamw", momentum=0.9),
        hfoptim.get_optimizer_class("adamw")([("lm_head.weight", other.lm_head.weight)], lr=1e-2, betas=(0.8, 0.9)),
        hfoptim.Lion(tables),
    ]
    # timm's signature: a momentum not given is the class's own.
    momentum = optimizer.optimizers[0].defaults["momentum"]
    for group in by_hand[0].param_groups:
        group["momentum"] = 0.5 if group["momentum"] == 0.5 else momentum
    train(model, optimizer)
    train(other, CombinedOptimizer(by_hand))
    same_params(model, other)
    assert optimizer.optimizers[1].param_groups[0]["weight_decay"] == 0.01  # its own, not Muon's


def test_the_matrices_inside_may_go_to_muon_by_pattern():
    model = gpt2()
    optimizer = create_optimizer_v2(
        model,
        "adamw",
        lr=1e-3,
        param_options={
            "*.c_fc.*": {"optimizer": "muon", "lr": 2e-3, "use_muon": None},
            "*.attn.*": {"optimizer": "muon"},
        },
    )
    adamw, muon = optimizer.optimizers
    flags = {name: (g["use_muon"], g["lr"]) for g in muon.param_groups for name in g["param_names"]}
    for name, (flag, lr) in flags.items():
        assert flag is name.endswith("weight"), name
        assert lr == (2e-3 if "c_fc" in name else 1e-3), name
    assert set(flags) == {n for n, _ in model.named_parameters() if ".c_fc." in n or ".attn." in n}
    assert type(adamw) is hfoptim.Adam
    # What a pattern says of use_muon stays.
    optimizer = create_optimizer_v2(model, "muon", param_options={"*.c_proj.*": {"use_muon": False}})
    assert {n for n, (flag,) in found(optimizer, "use_muon").items() if flag} == {
        f"transformer.h.{i}.{name}.weight" for i in range(3) for name in ("attn.c_attn", "mlp.c_fc")
    }


def test_one_optimizer_serves_all_patterns_that_name_it():
    optimizer = create_optimizer_v2(
        bert(),
        "sgd",
        param_options={"*.bias": {"optimizer": "adamw"}, "*.LayerNorm.*": {"optimizer": "AdamW", "lr": 1.0}},
    )
    assert [type(member) for member in optimizer.optimizers] == [hfoptim.SGD, hfoptim.Adam]
    # By the main one's own name there is only one.
    optimizer = create_optimizer_v2(bert(), "adamw", param_options={"*.bias": {"optimizer": "adam-w", "lr": 1.0}})
    assert type(optimizer) is hfoptim.Adam
    wrapped = create_optimizer_v2(bert(), "lookahead_lion", lookahead_k=3, param_options={"*.bias": {"lookahead_k": 2}})
    assert {name for name, (k,) in found(wrapped, "lookahead_k").items() if k == 2} == {
        name for name, _ in bert().named_parameters() if name.endswith(".bias")
    }


# -- optimizers with a will of their own ------------------------------------------------------------------------------


def test_a_learning_rate_that_an_optimizer_sets_itself_is_not_scaled():
    for options in ({"layer_decay": 0.5, "head_lr": 1e-3}, {"param_options": {"*.bias": {"lr_scale": 0.5}}}):
        with pytest.raises(ValueError, match=r"adafactor sets its own learning rate, which .* changes; give lr"):
            create_optimizer_v2(bert(), "adafactor", **options)
        create_optimizer_v2(bert(), "adafactor", lr=1e-3, **options)
    optimizer = create_optimizer_v2(bert(), "adafactor", param_options={"*.bias": {"clip_threshold": 2.0}})
    assert {relative for (relative,) in found(optimizer, "relative_step").values()} == {True}
    with pytest.raises(ValueError, match=r"adafactor sets its own .* param_options\['\*.bias'\] changes"):
        create_optimizer_v2(bert(), "lion", param_options={"*.bias": {"optimizer": "adafactor", "lr_scale": 0.5}})
    # A learning rate is meant to be used, as it is for a whole Adafactor.
    for options in ({"head_lr": 1e-3}, {"param_options": {"classifier.*": {"lr": 1e-3}}}):
        optimizer = create_optimizer_v2(bert(), "adafactor", **options)
        for name, given in found(optimizer, "lr", "relative_step").items():
            assert given == ((1e-3, False) if name.startswith("classifier") else (None, True)), name
        with pytest.raises(ValueError, match=r"lr=0\.001 and relative_step=True exclude each other"):
            create_optimizer_v2(bert(), "adafactor", relative_step=True, head_lr=1e-3)
    optimizer = create_optimizer_v2(bert(), "lion", param_options={"*.bias": {"optimizer": "adafactor", "lr": 0.5}})
    assert {g["relative_step"] for g in optimizer.optimizers[1].param_groups} == {False}


def test_prodigy_has_one_learning_rate():
    for options in (
        {"layer_decay": 0.5},
        {"head_lr": 0.5},
        {"param_options": {"*.bias": {"lr": 0.5}}},
        {"param_options": {"*.bias": {"lr_scale": 0.5}}},
    ):
        with pytest.raises(ValueError, match="prodigy finds one step size for all"):
            create_optimizer_v2(bert(), "prodigy", **{"head_lr": 1.0, **options})
    model = bert()
    optimizer = create_optimizer_v2(model, "prodigy", head_lr=1.0, param_options={"*.bias": {"lr": 0.0}})
    before = {name: param.detach().clone() for name, param in model.named_parameters()}
    train(model, optimizer)
    frozen = {name for name, param in model.named_parameters() if torch.equal(param, before[name])}
    assert frozen == {name for name in before if name.endswith(".bias")}
    with pytest.raises(ValueError, match=r"param_options\['\*.bias'\]: betas=.* in one group and"):
        create_optimizer_v2(bert(), "prodigy", param_options={"*.bias": {"betas": (0.5, 0.5)}})
    with pytest.raises(ValueError, match="prodigy finds one step size"):
        create_optimizer_v2(
            bert(),
            "lion",
            param_options={"*.bias": {"optimizer": "prodigy", "lr": 1.0}, "cl*": {"optimizer": "prodigy", "lr": 0.5}},
        )


def test_adam_weight_decays_patterns_and_functions():
    patterns = {"exclude_from_weight_decay": ["LayerNorm"]}
    with pytest.raises(ValueError, match=r"has weight_decay=0.0, and exclude_from_weight_decay says which"):
        create_optimizer_v2(bert(), "adam_weight_decay", param_options={"*.bias": {"weight_decay": 0.0}}, **patterns)
    optimizer = create_optimizer_v2(
        bert(),
        "adam_weight_decay",
        weight_decay=0.1,
        filter_bias_and_bn=False,
        head_lr=1e-2,
        param_options={"*.query.*": {"lr": 1e-4}},
        **patterns,
    )
    for name, (lr, decay) in found(optimizer, "lr", "weight_decay").items():
        assert decay == (0.0 if "LayerNorm" in name else 0.1), name
        assert lr == (1e-2 if name.startswith("classifier") else 1e-4 if ".query." in name else 1e-3), name
    model = bert()
    optimizer = create_optimizer_v2(
        model,
        "adam_weight_decay",
        learning_rate=lambda step: 0.1 / (step + 1),
        param_options={"*.bias": {"lr_scale": 0.5}},
    )
    train(model, optimizer, 2)
    assert {n.endswith(".bias"): lr for n, (lr,) in found(optimizer, "lr").items()} == {True: 0.025, False: 0.05}
    with pytest.raises(ValueError, match=r"head_lr gives a learning rate, and that of adam_weight_decay is a function"):
        create_optimizer_v2(bert(), "adam_weight_decay", learning_rate=lambda step: 0.1, head_lr=1.0)


def test_gradient_release_is_for_one_optimizer():
    optimizer = create_optimizer_v2(bert(), "lion", gradient_release=True, head_lr=1e-3)
    assert {release for (release,) in found(optimizer, "gradient_release").values()} == {True}
    with pytest.raises(ValueError, match=r"gradient_release=True is for one optimizer, and param_options names adamw"):
        create_optimizer_v2(bert(), "lion", gradient_release=True, param_options={"*.bias": {"optimizer": "adamw"}})
    with pytest.raises(ValueError, match=r"no option 'gradient_release' that may differ"):
        create_optimizer_v2(bert(), "lion", param_options={"*.bias": {"gradient_release": True}})


# -- mistakes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("patterns", "words"),
    [
        (
            {"lm_haed.*": {"lr": 1.0}},
            r"param_options\['lm_haed.\*'\] matches no parameter: did you mean 'lm_head.weight'",
        ),
        ({"*.bais": {"lr": 1.0}}, r"matches no parameter: no name has 'bais', did you mean 'bias'"),
        ({"*.xyz": {"lr": 1.0}}, r"matches no parameter: names are such as 'transformer.wte.weight'"),
        ({"*.wpe.*": {"lr": 1.0}}, r"matches no parameter: transformer.wpe.weight is frozen"),
        ({"*.bias": {"lr": 1.0}, "*.ln_f.bias": {"lr": 2.0}}, r"'\*.ln_f.bias'\] decides nothing: .*'\*.bias' before"),
        ({"*.bias": {"lrr": 1.0}}, r"'\*.bias'\]: adamw has no option 'lrr' that may differ.*did you mean 'lr'"),
        ({"*.bias": {"optimiser": "lion"}}, r"no option 'optimiser' .*did you mean 'optimizer'"),
        ({"*.bias": {"optimizer": "loin"}}, r"'\*.bias'\]: unknown optimizer 'loin'; did you mean 'lion'"),
        ({"*.bias": {"optimizer": "sgd", "eps": 1.0}}, r"'\*.bias'\]: sgd has no option 'eps'"),
        ({"*.bias": {"lr": 1.0, "lr_scale": 1.0}}, r"'\*.bias'\] has lr=1.0 and lr_scale=1.0; give one"),
        ({"*.bias": {"lr": -1.0}}, r"'\*.bias'\]: lr=-1.0 is out of range"),
        ({"*.bias": {"lr_scale": -1.0}}, r"'\*.bias'\]: lr_scale=-1.0 is out of range"),
        ({"*.bias": {"betas": (0.9, 1.5)}}, r"'\*.bias'\]: betas\[1\]=1.5 is out of range"),
        ({"*.bias": {"betas": 0.9}}, r"'\*.bias'\]: betas=0.9 is a float, expected 2 numbers"),
        ({"*.bias": {"optimizer": 3}}, r"'\*.bias'\]: optimizer name 3 is a int"),
        ({"*.bias": {}}, r"'\*.bias'\] is empty"),
        ({"*.bias": 3.0}, r"'\*.bias'\]=3.0, expected a pattern of names and a mapping"),
        ([("*.bias", {"lr": 1.0})], r"is a list, expected a mapping such as"),
        ({"*": {"optimizer": "lion"}}, r"leaves no parameter for adamw"),
        ({"*.bias": {"optimizer": "lbfgs"}}, r"lbfgs needs a closure that computes the loss again"),
        ({"*.bias": {"optimizer": "sam_sgd"}}, r"sam_sgd needs a closure"),
    ],
)
def test_mistakes_in_patterns_are_refused(patterns, words):
    model = gpt2(tied=False)
    model.transformer.wpe.requires_grad_(False)
    with pytest.raises((ValueError, TypeError), match=words):
        create_optimizer_v2(model, "adamw", param_options=patterns)


def test_a_tied_weight_is_named_by_its_other_name():
    with pytest.raises(ValueError, match=r"lm_head.weight is tied to transformer.wte.weight, write that name"):
        create_optimizer_v2(gpt2(), "adamw", param_options={"lm_head.*": {"lr": 1.0}})
    with pytest.raises(
        ValueError, match=r"no head that could be told .*lm_head.weight is tied to transformer.wte.weight"
    ):
        create_optimizer_v2(gpt2(), "adamw", head_lr=1.0)


def test_other_mistakes_are_refused():
    for name, value in (("layer_decay", 0.0), ("layer_decay", 1.5), ("head_lr", -1.0), ("head_lr", float("nan"))):
        with pytest.raises(ValueError, match=name):
            create_optimizer_v2(bert(), "lion", **{name: value})
    with pytest.raises(TypeError, match="head_lr='one'"):
        create_optimizer_v2(bert(), "lion", head_lr="one")
    model = bert()
    model.classifier.requires_grad_(False)
    with pytest.raises(ValueError, match=r"the head is frozen \(classifier.weight"):
        create_optimizer_v2(model, "lion", head_lr=1.0)
    with pytest.raises(ValueError, match="BertModel has no head that could be told from the rest; name the parameters"):
        create_optimizer_v2(bert(BertModel), "lion", head_lr=1.0)
    for given, more in ((bert().parameters(), {}), (bert(), {"param_group_fn": lambda m: m.parameters()})):
        with pytest.raises(ValueError, match="head_lr, param_options and mup group the parameters of a model"):
            create_optimizer_v2(given, "lion", head_lr=1.0, **more)


def test_no_optimizer_has_an_option_of_these_names():
    for name in hfoptim.list_optimizers():
        assert not set(option_names(name)) & {*OPTIONS, "lr_scale", "optimizer"}
        assert "gradient_release" not in group_defaults(name)
    assert not Grouping()
    assert Grouping(head_lr=1.0).given == {"head_lr": 1.0}
