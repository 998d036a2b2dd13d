"""layer_decay: which layer a parameter is of, in models of every build; what cannot be told apart is refused."""

from __future__ import annotations

import copy
import re
import warnings

import pytest
from torch import nn
from transformers import (
    AlbertConfig,
    AlbertModel,
    BertConfig,
    BertModel,
    CLIPConfig,
    CLIPModel,
    ConvNextConfig,
    ConvNextForImageClassification,
    FunnelConfig,
    FunnelModel,
    GPT2Config,
    GPT2Model,
    MixtralConfig,
    MixtralForCausalLM,
    MobileBertConfig,
    MobileBertModel,
    PvtConfig,
    PvtForImageClassification,
    ResNetConfig,
    ResNetForImageClassification,
    SwinConfig,
    SwinForImageClassification,
    T5Config,
    T5ForConditionalGeneration,
    ViTConfig,
    ViTForImageClassification,
    Wav2Vec2Config,
    Wav2Vec2Model,
    WhisperConfig,
    WhisperForConditionalGeneration,
    XLMConfig,
    XLMModel,
)

from hfoptim import create_optimizer_v2, layer_decay_groups, param_groups_options
from hfoptim.param_groups.group_matcher import matched_layers
from hfoptim.param_groups.layers import layer_places
from hfoptim.param_groups.selection import head_names, layer_depths, layer_scales

TEXT = {
    **{"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 8},
    **{"vocab_size": 11, "max_position_embeddings": 8},
}
IMAGE = {
    **{"hidden_size": 8, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 8},
    **{"image_size": 8, "patch_size": 4},
}


def bert(layers=2):
    return BertModel(BertConfig(**{**TEXT, "num_hidden_layers": layers}))


class Block(nn.Module):
    def __init__(self, width, out=None):
        super().__init__()
        out = out or width
        self.conv1, self.bn1 = nn.Conv2d(width, out, 3), nn.BatchNorm2d(out)
        self.conv2, self.bn2 = nn.Conv2d(out, out, 3), nn.BatchNorm2d(out)
        self.downsample = nn.Sequential(nn.Conv2d(width, out, 1), nn.BatchNorm2d(out)) if width != out else None


class ResNet(nn.Module):
    """Named as torchvision's and timm's are."""

    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.layer1 = nn.Sequential(Block(4), Block(4))
        self.layer2 = nn.Sequential(Block(4, 8), Block(8), Block(8))
        self.layer3 = nn.Sequential(Block(8, 16))
        self.fc = nn.Linear(16, 2)


class Encoder(nn.Module):
    def __init__(self, layers, embed=True, norm=True, block=lambda: nn.Linear(4, 4)):
        super().__init__()
        self.embed = nn.Embedding(5, 4) if embed else None
        self.layers = nn.ModuleList(block() for _ in range(layers))
        self.norm = nn.LayerNorm(4) if norm else None


def transformer_block():
    return nn.TransformerEncoderLayer(4, 2, 8)


def above(model, *depths, **more):
    """The layers above each parameter, once for all names that begin alike up to the part that `depths` has."""
    places = layer_places(model, head_names(model), **more)
    found = {prefix: {place.above for name, place in places.items() if name.startswith(prefix)} for prefix in depths}
    assert all(len(numbers) == 1 for numbers in found.values()), found
    assert all(any(name.startswith(prefix) for prefix in depths) for name in places), set(places)
    return [numbers.pop() for numbers in found.values()]


def stack_of(prefix, count):
    return [f"{prefix}.{number}." for number in range(count)]


# -- an encoder inside something else ---------------------------------------------------------------------------------


def test_an_encoder_inside_a_sequential():
    model = nn.Sequential(bert(3), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
    names = ["0.embeddings.", *stack_of("0.encoder.layer", 3), "0.pooler.", "1.", "3."]
    assert above(model, *names) == [4, 3, 2, 1, 0, 0, 0]
    alone = layer_depths(bert(3))
    inside = layer_depths(model)
    assert {name: inside[f"0.{name}"] for name in alone} == alone


def test_a_sentence_transformer():
    """`0.auto_model.encoder.layer.3`, pooling without parameters, then dense layers of one class."""

    class Transformer(nn.Module):
        def __init__(self):
            super().__init__()
            self.auto_model = bert(3)

    model = nn.Sequential(Transformer(), nn.Identity(), nn.Linear(8, 4), nn.Linear(4, 4))
    names = ["0.auto_model.embeddings.", *stack_of("0.auto_model.encoder.layer", 3), "0.auto_model.pooler", "2.", "3."]
    assert above(model, *names) == [4, 3, 2, 1, 0, 0, 0]
    optimizer = create_optimizer_v2(model, "adamw", lr=1.0, layer_decay=0.5)
    rates = {name: group["lr"] for group in optimizer.param_groups for name in group["param_names"]}
    assert rates["0.auto_model.encoder.layer.0.output.dense.weight"] == 0.5**3
    assert rates["2.weight"] == 1.0


@pytest.mark.parametrize("block", [transformer_block, lambda: nn.Linear(4, 4)], ids=["blocks", "linear"])
@pytest.mark.parametrize("form", ["list", "attributes", "numbered attributes"])
def test_towers_beside_each_other(form, block):
    towers = [Encoder(2, block=block), Encoder(4, block=block)]
    keys = {"list": ("0", "1"), "attributes": ("query", "passage"), "numbered attributes": ("tower1", "tower2")}[form]
    model = nn.ModuleList(towers) if form == "list" else nn.ModuleDict(dict(zip(keys, towers, strict=True)))
    one, two = keys
    names = [f"{one}.embed", *stack_of(f"{one}.layers", 2), f"{one}.norm"]
    names += [f"{two}.embed", *stack_of(f"{two}.layers", 4), f"{two}.norm"]
    assert above(model, *names) == [3, 2, 1, 0, 5, 4, 3, 2, 1, 0]


def test_a_list_of_models_of_transformers():
    model = nn.ModuleDict({"towers": nn.ModuleList([bert(2), bert(3)]), "projection": nn.Linear(8, 2)})
    names = [f"towers.0.{name}" for name in ("embeddings.", "encoder.layer.0.", "encoder.layer.1.", "pooler.")]
    names += ["towers.1.embeddings.", *stack_of("towers.1.encoder.layer", 3), "towers.1.pooler.", "projection."]
    assert above(model, *names) == [3, 2, 1, 0, 4, 3, 2, 1, 0, 0]


# -- another row of blocks elsewhere ----------------------------------------------------------------------------------


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("block", [transformer_block, lambda: nn.Linear(4, 4)], ids=["blocks", "linear"])
def test_a_frozen_teacher_moves_nothing(block, first):
    student, teacher = Encoder(2, block=block), Encoder(9, block=block).requires_grad_(False)
    parts = {"student": student, "teacher": teacher}
    model = nn.ModuleDict(dict(reversed(parts.items())) if first else parts)
    scales = layer_scales(model, 0.5)
    alone = layer_scales(student, 0.5)
    assert {name: scales[f"student.{name}"] for name in alone} == alone
    groups = layer_decay_groups(model, layer_decay=0.5)
    assert {name.split(".")[0] for group in groups for name, _ in group["params"]} == {"student"}


def test_a_frozen_teacher_with_real_blocks_beside_a_student_of_single_layers():
    student = Encoder(3)
    teacher = Encoder(9, block=transformer_block).requires_grad_(False)
    scales = layer_scales(nn.ModuleDict({"teacher": teacher, "student": student}), 0.5)
    alone = layer_scales(student, 0.5)
    assert {name: scales[f"student.{name}"] for name in alone} == alone


def test_the_head_of_a_frozen_copy_puts_nothing_on_top():
    copied = Encoder(3).requires_grad_(False)  # its norm is above its blocks
    model = nn.ModuleDict({"model": Encoder(3, norm=False), "ema": copied})
    assert [layer_scales(model, 0.5)[f"model.layers.{i}.weight"] for i in range(3)] == [0.25, 0.5, 1.0]


def test_frozen_layers_of_a_trained_stack_count():
    for model in (bert(4), ResNet()):
        usual = layer_scales(model, 0.5)
        for name, param in model.named_parameters():
            param.requires_grad_(not re.search(r"embeddings|layer\.0|layer\.3|^layer1|^conv1|pooler|^fc", name))
        assert layer_scales(model, 0.5) == usual
    # All of the blocks: what is on top of them is on top.
    projection = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
    model = nn.ModuleDict({"encoder": bert(3).requires_grad_(False), "projection": projection})
    assert {scale for name, scale in layer_scales(model, 0.5).items() if name.startswith("projection")} == {1.0}


def test_two_towers_have_a_depth_each():
    config = CLIPConfig(text_config=TEXT, vision_config=IMAGE)
    text, vision = "text_model.", "vision_model."
    names = [f"{text}embeddings.", *stack_of(f"{text}encoder.layers", 2), f"{text}final_layer_norm."]
    names += [f"{vision}embeddings.", f"{vision}pre_layrnorm."]
    names += [*stack_of(f"{vision}encoder.layers", 4), f"{vision}post_layernorm."]
    tops = ["logit_scale", "text_projection.", "visual_projection."]
    found = above(CLIPModel(config), *names, *tops)
    assert found == [3, 2, 1, 0, 5, 5, 4, 3, 2, 1, 0, 0, 0, 0]


def test_an_encoder_and_a_decoder_have_a_depth_each():
    sizes = {"d_model": 8, "encoder_layers": 3, "decoder_layers": 1, "vocab_size": 11, "num_mel_bins": 4}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 8, "decoder_ffn_dim": 8}
    tokens = {"pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 0, "decoder_start_token_id": 0}
    whisper = WhisperConfig(**sizes, **heads, **tokens, max_source_positions=8, max_target_positions=8)
    names = ["model.encoder.conv1.", "model.encoder.conv2.", "model.encoder.embed_positions."]
    names += [*stack_of("model.encoder.layers", 3), "model.encoder.layer_norm."]
    names += ["model.decoder.embed_", "model.decoder.layers.0.", "model.decoder.layer_norm."]
    model = WhisperForConditionalGeneration(whisper)
    assert above(model, *names) == [4, 4, 4, 3, 2, 1, 0, 2, 1, 0]
    t5 = T5Config(d_model=8, d_kv=4, d_ff=8, num_layers=3, num_decoder_layers=1, num_heads=2, vocab_size=11)
    names = ["shared.", *stack_of("encoder.block", 3), "encoder.final_layer_norm."]
    names += ["decoder.block.0.", "decoder.final_layer_norm."]
    # What both start from is below the deeper one.
    assert above(T5ForConditionalGeneration(t5), *names) == [4, 3, 2, 1, 0, 1, 0]


# -- builds of blocks -------------------------------------------------------------------------------------------------


def test_stages_are_counted_through():
    model = ResNet()
    blocks = ["layer1.0.", "layer1.1.", "layer2.0.", "layer2.1.", "layer2.2.", "layer3.0."]
    assert above(model, "conv1.", "bn1.", *blocks, "fc.") == [7, 7, 6, 5, 4, 3, 2, 1, 0]
    inside = nn.Sequential(model, nn.Linear(2, 2))
    assert above(inside, *(f"0.{block}" for block in blocks), "0.conv1.", "0.bn1", "0.fc", "1.")[:6] == [
        6,
        5,
        4,
        3,
        2,
        1,
    ]


def test_stages_of_models_of_transformers():
    swin = SwinConfig(embed_dim=8, depths=[1, 2], num_heads=[1, 2], image_size=16, patch_size=2, window_size=2)
    at = "swin.encoder.layers"
    names = [f"{at}.0.blocks.0.", f"{at}.0.downsample.", f"{at}.1.blocks.0.", f"{at}.1.blocks.1."]
    found = above(SwinForImageClassification(swin), "swin.embeddings.", *names, "swin.layernorm.", "classifier.")
    assert found == [4, 3, 2, 2, 1, 0, 0]
    convnext = ConvNextConfig(hidden_sizes=[4, 8], depths=[2, 1], num_stages=2)
    at = "convnext.encoder.stages"
    names = [f"{at}.0.layers.0.", f"{at}.0.layers.1.", f"{at}.1.downsampling_layer.", f"{at}.1.layers.0."]
    found = above(
        ConvNextForImageClassification(convnext), "convnext.embeddings.", *names, "convnext.layernorm.", "classifier."
    )
    assert found == [4, 3, 2, 1, 1, 0, 0]
    resnet = ResNetConfig(embedding_size=4, hidden_sizes=[8, 16], depths=[1, 2], layer_type="basic")
    at = "resnet.encoder.stages"
    names = [f"{at}.0.layers.0.", f"{at}.1.layers.0.", f"{at}.1.layers.1."]
    assert above(ResNetForImageClassification(resnet), "resnet.embedder.", *names, "classifier.") == [4, 3, 2, 1, 0]
    # Stages in lists of lists, and what belongs to each in a list beside them.
    sizes = {"hidden_sizes": [4, 8], "depths": [1, 2], "num_attention_heads": [1, 2], "num_encoder_blocks": 2}
    more = {"sequence_reduction_ratios": [2, 1], "patch_sizes": [4, 2], "strides": [4, 2], "mlp_ratios": [1, 1]}
    at = "pvt.encoder"
    names = [
        f"{at}.{name}." for name in ("patch_embeddings.0", "patch_embeddings.1", "block.0.0", "block.1.0", "block.1.1")
    ]
    model = PvtForImageClassification(PvtConfig(**sizes, **more, image_size=16))
    assert above(model, *names, f"{at}.layer_norm.", "classifier.") == [4, 2, 3, 2, 1, 0, 0]
    funnel = FunnelConfig(block_sizes=[1, 2], num_decoder_layers=1, d_model=8, n_head=2, d_head=4, d_inner=8)
    names = [f"encoder.blocks.{block}." for block in ("0.0", "1.0", "1.1")]
    assert above(FunnelModel(funnel), "embeddings.", *names, "decoder.layers.") == [3, 2, 1, 0, 0]


def test_what_is_inside_of_a_block_is_of_its_layer():
    mixtral = MixtralConfig(**{**TEXT, "num_key_value_heads": 2}, num_local_experts=3)
    model = MixtralForCausalLM(mixtral)
    assert above(model, "model.embed", *stack_of("model.layers", 2), "model.norm.", "lm_head.") == [3, 2, 1, 0, 0]

    class Sparse(nn.Module):
        def __init__(self, experts):
            super().__init__()
            self.attention = nn.MultiheadAttention(4, 2)
            self.mlp = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
            self.experts = nn.ModuleList(Block(4) for _ in range(experts))
            self.heads = nn.ModuleList(Block(4) for _ in range(2))

    model = nn.ModuleDict({"blocks": nn.ModuleList(Sparse(experts) for experts in (0, 5, 0, 5))})
    assert above(model, *stack_of("blocks", 4)) == [3, 2, 1, 0]
    small = MobileBertConfig(**TEXT, embedding_size=8, intra_bottleneck_size=8, true_hidden_size=8)
    model = MobileBertModel(small)  # four feed-forward networks in every layer
    assert above(model, "embeddings.", *stack_of("encoder.layer", 2), "pooler.") == [3, 2, 1, 0]


def test_rows_side_by_side_and_shared_layers():
    xlm = XLMModel(XLMConfig(emb_dim=8, n_layers=3, n_heads=2, vocab_size=11, n_words=11))
    depths = layer_depths(xlm)
    for part in ("attentions.{}.q_lin", "layer_norm1.{}", "ffns.{}.lin1", "layer_norm2.{}"):
        assert [depths[part.format(i) + ".weight"] for i in range(3)] == [1, 2, 3], part
    albert = AlbertModel(AlbertConfig(**TEXT, embedding_size=8))
    names = ["embeddings.", "encoder.embedding_hidden_mapping_in.", "encoder.albert_layer_groups.0.", "pooler."]
    assert above(albert, *names) == [2, 2, 1, 0]


def test_what_feeds_the_blocks_is_below_them():
    sizes = {"num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2, "conv_dim": [8] * 7}
    text = {key: value for key, value in TEXT.items() if key != "max_position_embeddings"}
    model = Wav2Vec2Model(Wav2Vec2Config(**text, **sizes, feat_extract_norm="layer"))
    found = {name.split(".")[0]: depth for name, depth in layer_depths(model).items()}
    assert found["feature_extractor"] == found["feature_projection"] == found["masked_spec_embed"] == 0
    assert layer_depths(model)["encoder.layers.1.final_layer_norm.weight"] == 2


def test_plain_networks():
    mlp = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2))
    assert above(mlp, "0.", "2.", "4.") == [2, 1, 0]
    blocks = nn.ModuleList(nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4)) for _ in range(3))
    assert above(blocks, "0.", "1.", "2.") == [2, 1, 0]
    small = nn.Sequential(
        nn.Embedding(5, 4), *[transformer_block() for _ in range(2)], nn.LayerNorm(4), nn.Linear(4, 5)
    )
    assert above(small, "0.", "1.", "2.", "3.", "4.") == [3, 2, 1, 0, 0]
    features = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.MaxPool2d(2), nn.Conv2d(4, 4, 3))
    vgg = nn.ModuleDict(
        {"features": features, "classifier": nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))}
    )
    assert above(vgg, "features.0", "features.2", "features.4", "classifier.") == [3, 2, 1, 0]


def test_a_model_without_rows_says_so():
    with pytest.warns(UserWarning, match=r"layer_decay has no effect: ModuleDict has no row of blocks.*group_matcher"):
        scales = layer_scales(nn.ModuleDict({"fc1": nn.Linear(2, 2), "fc2": nn.Linear(2, 2)}), 0.5)
    assert set(scales.values()) == {1.0}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert set(layer_scales(nn.Linear(2, 2), 0.5).values()) == {1.0}


def test_wrappers_do_not_count():
    gpt2 = GPT2Model(GPT2Config(n_layer=2, n_head=2, n_embd=8, vocab_size=11, n_positions=8))
    usual = layer_scales(gpt2, 0.5)
    compiled = nn.DataParallel(copy.deepcopy(gpt2))
    assert layer_scales(compiled, 0.5) == {f"module.{name}": scale for name, scale in usual.items()}
    gpt2.h[0] = nn.DataParallel(gpt2.h[0])
    assert {name.replace("module.", ""): scale for name, scale in layer_scales(gpt2, 0.5).items()} == usual


# -- saying it --------------------------------------------------------------------------------------------------------


def unclear():
    return nn.ModuleDict({"parts": nn.ModuleList([Encoder(2, embed=False), Encoder(3, embed=False)])})


@pytest.mark.parametrize("block", [transformer_block, lambda: nn.Linear(4, 4)], ids=["blocks", "linear"])
@pytest.mark.parametrize("layers", [(2, 3), (3, 3)])
def test_stages_or_towers_is_asked(block, layers):
    model = nn.ModuleList([Encoder(number, embed=False, block=block) for number in layers])
    with pytest.raises(ValueError, match=r"cannot be told apart: '0.layers.0.*' and '1.layers.0.*' may be in stages"):
        create_optimizer_v2(model, "adamw", lr=1e-3, layer_decay=0.5)
    assert set(layer_scales(model, 1.0).values()) == {1.0}


def test_a_matcher_says_it():
    parts = stack_of("parts.0.layers", 2) + stack_of("parts.1.layers", 3)
    norms = ["parts.0.norm", "parts.1.norm"]
    alone = {"blocks": r"^parts\.\d+\.layers\.(\d+)"}
    assert above(unclear(), *parts, *norms, group_matcher=alone) == [3, 2, 3, 2, 1, 0, 0]
    through = {"blocks": [(r"^parts\.(\d+)\.layers\.(\d+)", None), (r"^parts\.(\d+)\.norm", (99999,))]}
    assert above(unclear(), *parts, *norms, group_matcher=through) == [4, 3, 2, 1, 0, 3, 0]

    def from_the_top(name):
        found = re.match(r"parts\.(\d)\.layers\.(\d)", name)
        return 0 if found is None else int(found[2]) - (2, 3)[int(found[1])]

    assert above(unclear(), *parts, *norms, group_matcher=from_the_top) == [2, 1, 3, 2, 1, 0, 0]
    compiled = nn.DataParallel(unclear())
    assert layer_scales(compiled, 0.5, group_matcher=alone)["module.parts.0.layers.0.weight"] == 0.5**3


def test_a_matcher_reaches_every_way_to_groups():
    matcher = {"blocks": r"^parts\.(\d+)\.layers\.(\d+)"}
    given = {"layer_decay": 0.5, "group_matcher": matcher}
    expected = layer_scales(unclear(), 0.5, group_matcher=matcher)
    assert len(set(expected.values())) == 6
    for groups in (
        layer_decay_groups(unclear(), lr=1.0, **given),
        param_groups_options(unclear(), 1.0, **given),
        create_optimizer_v2(unclear(), "adamw", lr=1.0, **given).param_groups,
        create_optimizer_v2(
            unclear(), "adamw", lr=1.0, param_options={"*.norm.bias": {"eps": 1e-3}}, **given
        ).param_groups,
    ):
        pairs = [
            (name, group["lr"])
            for group in groups
            for name in group.get("param_names") or [name for name, _ in group["params"]]
        ]
        assert dict(pairs) == expected


def test_a_matcher_of_a_part_counts_there():
    """As timm's models have one, also inside of a larger model."""

    class Timms(Encoder):
        def group_matcher(self, coarse=False):
            return {"stem": "^embed", "blocks": [(r"^layers\.(\d+)", None), ("^norm", (99999,))]}

    assert above(Timms(2), "embed", *stack_of("layers", 2), "norm") == [2, 1, 0, 0]
    model = nn.Sequential(Timms(2), nn.Linear(4, 2))
    assert above(model, "0.embed", *stack_of("0.layers", 2), "0.norm", "1.") == [3, 2, 1, 1, 0]
    assert above(
        nn.DataParallel(Timms(2)), *(f"module.{name}" for name in ("embed", "layers.0", "layers.1", "norm"))
    ) == [*(2, 1, 0, 0)]


@pytest.mark.parametrize(
    ("matcher", "error", "words"),
    [
        ({"blocks": "(("}, ValueError, r"group_matcher\['blocks'\]: '\(\(' is no regular expression"),
        ({"blocks": 3}, TypeError, r"group_matcher\['blocks'\]=3, expected a regular expression"),
        (["^layers"], TypeError, r"is a list, expected a mapping of regular expressions"),
        (lambda name: "three", TypeError, r"group_matcher gave 'three' for 'parts.0.layers.0.weight'"),
    ],
)
def test_a_matcher_that_is_none_is_refused(matcher, error, words):
    with pytest.raises(error, match=words):
        create_optimizer_v2(unclear(), "adamw", lr=1e-3, layer_decay=0.5, group_matcher=matcher)
    with pytest.raises(ValueError, match=r"group_matcher .* for layer_decay, which is not given"):
        create_optimizer_v2(unclear(), "adamw", lr=1e-3, group_matcher={"blocks": "^parts"})


def test_layers_are_sorted_by_their_numbers():
    names = ["b.10", "b.9", "a", "c", "norm"]
    matcher = {"stem": "^a", "none": None, "blocks": [(r"^b\.(\d+)", None), ("^norm", (99999,))]}
    assert matched_layers(names, matcher) == {"a": 0, "b.9": 1, "b.10": 2, "norm": 2, "c": 3}
    assert matched_layers(names, lambda name: len(name)) == {"a": 0, "c": 0, "b.9": 1, "b.10": 2, "norm": 2}


def test_vit_as_before():
    model = ViTForImageClassification(ViTConfig(**IMAGE))
    names = ["vit.embeddings.", *stack_of("vit.encoder.layer", 4), "vit.layernorm.", "classifier."]
    if not any("encoder.layer.0" in name for name, _ in model.named_parameters()):
        names[1:5] = stack_of("vit.layers", 4)
    assert above(model, *names) == [5, 4, 3, 2, 1, 0, 0]
