"""What only Adam-mini has: blocks that go by the parameters' names."""

from __future__ import annotations

import copy
import logging

import peers
import pytest
import test_invariants
import torch
from cases import Entry, Variant
from cases.adam_mini import NAMED
from harness import SMALL, assert_goes_on_like, assert_moved, assert_same, parameters, through_disk, train, values

import hfoptim
from hfoptim.engine.backends import compiled

MODEL = {"dim": 4, "n_heads": 2}  # heads of 8 entries


def after_a_step(named, cls=hfoptim.AdamMini, **options):
    """Shapes of the second moments, by name."""
    params = [param for _, param in named]
    optimizer = cls(named, **{**MODEL, **options})
    for param in params:
        param.grad = torch.ones_like(param)
    optimizer.step()
    moments = {}
    for name, param in named:
        state = optimizer.state[param]
        assert state["m"].shape == param.shape
        assert len(state) == 3
        moments[name] = tuple((state["v"] if "v" in state else state["vmean"]).shape)
    return moments


def tensors(shapes):
    return [(name, torch.nn.Parameter(torch.ones(shape))) for name, shape in shapes.items()]


@pytest.mark.parametrize(
    ("name", "shape", "blocks"),
    [
        ("model.embed_tokens.weight", (9, 4), (9, 1)),
        ("lm_head.weight", (9, 4), (9, 1)),
        ("transformer.wte.weight", (9, 4), (9, 1)),
        ("layers.0.self_attn.q_proj.weight", (4, 4), (2, 1)),
        ("layers.0.self_attn.k_proj.weight", (2, 4), (1, 1)),
        ("encoder.attention.self.Query.weight", (4, 4), (2, 1)),
        ("attention.query_key_value.weight", (12, 4), (6, 1)),
        ("layers.0.self_attn.v_proj.weight", (2, 4), (2, 1)),
        ("layers.0.self_attn.o_proj.weight", (4, 4), (4, 1)),
        ("blocks.0.attn.proj.weight", (4, 4), (4, 1)),
        ("h.0.mlp.c_fc.weight", (4, 16), (4, 1)),
        ("layers.0.FEED_FORWARD.w1.weight", (16, 4), (16, 1)),
        ("layers.0.self_attn.q_proj.bias", (4,), (4,)),
        ("bias", (3, 2), (3, 2)),
        ("norm.weight", (4,), ()),
        ("conv.weight", (4, 3, 2, 2), ()),
        ("anything", (4, 3), ()),
        # Where the authors' package fails.
        ("embeddings.LayerNorm.weight", (4,), ()),
        ("q_proj.scale", (4,), ()),
        ("patch_embed.proj.weight", (4, 3, 2, 2), (4, 1)),
        ("q_proj.conv", (4, 2, 2), (2, 1)),
    ],
)
def test_the_name_decides_what_a_block_is(name, shape, blocks):
    assert after_a_step(tensors({name: shape})) == {name: blocks}


def test_without_names_a_row_is_a_block():
    unnamed = [torch.nn.Parameter(torch.ones(shape)) for shape in ((5, 3), (4, 3, 2), (7,), ())]
    optimizer = hfoptim.AdamMini(unnamed, lr=0.1, weight_decay=0.1)
    for param in unnamed:
        param.grad = torch.randn(param.shape, generator=torch.Generator().manual_seed(0))
    optimizer.step()
    assert [tuple(optimizer.state[p]["vmean"].shape) for p in unnamed] == [(5, 1), (4, 1), (), ()]
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.1]
    named = torch.nn.Parameter(torch.ones(5, 3))
    named.grad = unnamed[0].grad
    hfoptim.AdamMini([("mlp", named)], lr=0.1, weight_decay=0.1).step()
    assert_same(named, unnamed[0])


def test_a_subclass_may_have_other_names():
    class Mine(hfoptim.AdamMini):
        mlp_names = hfoptim.AdamMini.mlp_names | {"dense"}
        wqk_names = frozenset({"att"})
        adam_block_names = frozenset({"bias", "norm"})

    shapes = {"dense": (4, 2), "mlp": (4, 2), "att": (4, 4), "query": (3, 3), "norm": (4,)}
    blocks = {"dense": (4, 1), "mlp": (4, 1), "att": (2, 1), "query": (), "norm": (4,)}
    assert after_a_step(tensors(shapes), Mine) == blocks


def test_norms_and_biases_are_not_decayed():
    shapes = {"mlp.weight": (3, 2), "mlp.bias": (3,), "ln_f.weight": (3,), "LayerNorm.weight": (3,), "other": (3,)}
    optimizer = hfoptim.AdamMini(tensors(shapes), weight_decay=0.1)
    assert {n: group["weight_decay"] for group in optimizer.param_groups for n in group["param_names"]} == {
        "mlp.weight": 0.1,
        "other": 0.1,
        "mlp.bias": 0.0,
        "ln_f.weight": 0.0,
        "LayerNorm.weight": 0.0,
    }
    # Also in a group with a decay of its own, which keeps its other numbers.
    optimizer.add_param_group({"params": tensors({"next": (2, 2), "next.bias": (2,)}), "lr": 0.5, "weight_decay": 0.3})
    assert [(g["lr"], g["weight_decay"]) for g in optimizer.param_groups[2:]] == [(0.5, 0.3), (0.5, 0.0)]
    only = hfoptim.AdamMini(tensors({"bias": (2,)}), weight_decay=0.1)
    assert [group["weight_decay"] for group in only.param_groups] == [0.0]


def test_heads_that_do_not_fit_are_refused_by_name():
    with pytest.raises(ValueError, match=r"'q_proj\.weight' has 36 entries.*dim\^2 / n_heads = 8"):
        hfoptim.AdamMini(tensors({"q_proj.weight": (6, 6)}), **MODEL)
    with pytest.raises(ValueError, match=r"'k_proj\.weight' has 36 entries.*131072"):
        hfoptim.AdamMini(tensors({"k_proj.weight": (6, 6)}))
    optimizer = hfoptim.AdamMini(tensors({"mlp": (6, 6)}), **MODEL)
    with pytest.raises(ValueError, match=r"'q_proj\.weight' has 36 entries"):
        optimizer.add_param_group({"params": tensors({"q_proj.weight": (6, 6)})})
    assert len(optimizer.param_groups) == 1
    for options, message in (
        ({"dim": 4, "n_heads": 3}, "dim=4 squared is not divisible by n_heads=3"),
        ({"dim": 4, "n_heads": 4, "n_kv_heads": 3}, "n_kv_heads=3 does not divide n_heads=4"),
        ({"dim": 4.5}, r"dim=4\.5 is not a whole number"),
    ):
        with pytest.raises(ValueError, match=message):
            hfoptim.AdamMini(tensors({"mlp": (6, 6)}), **options)
    with pytest.raises(TypeError, match="model_sharding='yes'"):
        hfoptim.AdamMini(tensors({"mlp": (6, 6)}), model_sharding="yes")


def test_blocks_are_logged_if_verbose(caplog):
    shapes = {"embed": (3, 2), "q_proj": (4, 4), "q_proj.bias": (4,), "norm": (4,)}
    with caplog.at_level(logging.INFO, logger="hfoptim"):
        hfoptim.AdamMini(tensors(shapes), verbose=False, **MODEL)
        assert not caplog.messages
        hfoptim.AdamMini(tensors(shapes), **MODEL)
    assert caplog.messages == [
        "embed (3, 2): one second moment per row",
        "q_proj (4, 4): one second moment per head",
        "q_proj.bias (4,): Adam",
        "norm (4,): one second moment",
    ]


# -- checkpoints of the authors' package -----------------------------------------------------------------------------


def authors(params, **options):
    try:
        return peers.load("adam_mini.Adam_mini")(params.items(), verbose=False, **options)
    except peers.MissingPeer as missing:
        pytest.skip(str(missing))


@pytest.mark.parametrize("stepped", [3, 0], ids=["stepped", "fresh"])
def test_a_checkpoint_of_the_authors_goes_on_identically(stepped):
    other, mine = parameters(NAMED, torch.float64), parameters(NAMED, torch.float64, seed=1)
    theirs = authors(other, lr=1e-2, betas=(0.8, 0.9), eps=1e-4, weight_decay=0.2, **MODEL)
    train(theirs, other, range(1, 1 + stepped))
    # In another order, which goes by names.
    ours = hfoptim.AdamMini(list(reversed(mine.items())), **MODEL)
    ours.load_state_dict(through_disk(theirs.state_dict()))
    assert [(g["lr"], g["betas"], g["eps"]) for g in ours.param_groups] == [(1e-2, (0.8, 0.9), 1e-4)] * 2
    assert [g["weight_decay"] for g in ours.param_groups] == [0.2, 0.0]
    with torch.no_grad():
        for name, param in mine.items():
            param.copy_(other[name])
    start = values(other)
    assert_goes_on_like(ours, mine, theirs, other, range(4, 14), 1e-10)
    assert_moved(other, start)


def test_a_checkpoint_of_the_authors_that_does_not_fit_is_refused():
    params = parameters(("matrix", "vector"))
    theirs = authors(params)
    train(theirs, params, range(1, 3))
    saved = theirs.state_dict()
    with pytest.raises(ValueError, match="here parameters have none"):
        hfoptim.AdamMini(list(params.values())).load_state_dict(saved)
    with pytest.raises(ValueError, match="has no parameter 'other'"):
        hfoptim.AdamMini([("matrix", params["matrix"]), ("other", params["vector"])]).load_state_dict(saved)
    optimizer = hfoptim.AdamMini(list(params.items()))
    changed = copy.deepcopy(saved)
    changed["param_groups"][1]["lr"] = 0.5
    with pytest.raises(ValueError, match="more than one lr"):
        optimizer.load_state_dict(changed)
    changed = copy.deepcopy(saved)
    changed["state"][0]["m"] = torch.zeros(5, 4)
    with pytest.raises(ValueError, match="shape"):
        optimizer.load_state_dict(changed)
    assert not any(optimizer.state.values())


# -- the invariants, with other blocks than whole tensors ------------------------------------------------------------


class ByName(hfoptim.AdamMini):
    """All kinds of blocks on the usual parameters."""

    mlp_names = frozenset({"matrix", "row", "column", "conv", "gaps", "large", "expanded"})
    wqk_names = frozenset({"transposed", "channels", "mixed"})
    adam_block_names = frozenset({"vector", "one"})


HEADS = {"dim": 3, "n_heads": 3}  # of 3 entries, which all of those are made of
BY_NAME = Entry("adam_mini", ByName, {}, [], {})
VARIANT = Variant({"weight_decay": 0.1, **HEADS}, complex=False)


def test_all_kinds_of_blocks_are_there():
    params = parameters()
    optimizer = test_invariants.build(BY_NAME, VARIANT, params)
    train(optimizer, params, range(1, 2))
    shapes = {name: tuple(optimizer.state[param].get("vmean", torch.ones(2)).shape) for name, param in params.items()}
    kinds = {"matrix": (5, 1), "conv": (4, 1), "transposed": (5, 1), "channels_last": (40, 1), "scalar": ()}
    assert shapes == {**shapes, **kinds, "vector": (2,), "one": (2,), "mixed": (24, 1), "gaps": (6, 1)}


@pytest.mark.parametrize("piece", [None, 20], ids=["whole", "pieces"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_foreach_equals_the_loop(dtype, piece, monkeypatch):
    test_invariants.test_foreach_equals_the_loop(BY_NAME, VARIANT, dtype, piece, monkeypatch)


@pytest.mark.parametrize(
    "holds",
    [
        test_invariants.test_a_parameter_steps_alike_alone_and_among_others,
        test_invariants.test_dtypes_and_devices_are_kept,
        test_invariants.test_gradients_are_left_as_they_were,
        test_invariants.test_maximize_is_descent_on_the_negated_gradient,
        test_invariants.test_state_dict_round_trip_is_exact,
        test_invariants.test_deepcopy_goes_on_alike_and_apart,
        test_invariants.test_pickle_goes_on_alike,
        test_invariants.test_a_parameter_without_entries_is_harmless,
    ],
)
def test_holds_for_all_kinds_of_blocks(holds):
    holds(BY_NAME, VARIANT)


def test_resuming_equals_going_on_bit_for_bit():
    test_invariants.test_resuming_equals_going_on_bit_for_bit(BY_NAME, VARIANT, torch.bfloat16)


@pytest.mark.slow  # test_compiled.py has the kernel that does not go by names
@pytest.mark.skipif(compiled.missing() is not None, reason=f"compiling needs {compiled.missing()}")
def test_the_compiled_step_equals_the_loops():
    mine, other = parameters((*SMALL, "large")), parameters((*SMALL, "large"))
    fused = test_invariants.build(BY_NAME, VARIANT, mine, fused=True)
    loop = test_invariants.build(BY_NAME, VARIANT, other, foreach=False)
    assert_goes_on_like(fused, mine, loop, other, range(1, 5), 1e-5)
