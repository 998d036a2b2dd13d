"""QK-clip: what `MuonClip.clip_attention` does to queries and keys, and to the logits."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from cases.muon_clip import peer
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

import hfoptim

HEADS, SIZE, WIDTH = 4, 3, 12


class Attention(nn.Module):
    """Logits of attention: of separate projections, with shared keys, or of a matrix that makes all at once."""

    def __init__(self, kv_heads: int = HEADS, bias: bool = False, fused: str = "") -> None:
        super().__init__()
        self.fused, self.kv_heads = fused, kv_heads
        if fused:
            rows = nn.Linear(WIDTH, 3 * HEADS * SIZE, bias)
            if fused == "c_attn":  # GPT-2's has its outputs in columns
                rows.weight = nn.Parameter(rows.weight.detach().T.clone())
            setattr(self, fused, rows)
        else:
            self.q_proj = nn.Linear(WIDTH, HEADS * SIZE, bias)
            self.k_proj = nn.Linear(WIDTH, kv_heads * SIZE, bias)
            self.v_proj = nn.Linear(WIDTH, kv_heads * SIZE, bias)

    def max_logits(self, x: Tensor) -> Tensor:
        if self.fused:
            made = getattr(self, self.fused)
            weight = made.weight.T if self.fused == "c_attn" else made.weight
            q, k, _ = nn.functional.linear(x, weight, made.bias).chunk(3, -1)
        else:
            q, k = self.q_proj(x), self.k_proj(x)
        q, k = q.view(-1, HEADS, SIZE), k.view(-1, self.kv_heads, SIZE).repeat_interleave(HEADS // self.kv_heads, 1)
        return (torch.einsum("ihd,jhd->hij", q, k) / math.sqrt(SIZE)).amax((1, 2)).detach()


def made(**options: Any) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(3)
    model = nn.ModuleDict({"attn": Attention(**options), "mlp": nn.Linear(WIDTH, WIDTH)}).double()
    for param in model["attn"].parameters():
        param.data *= 8.0
    return model, torch.randn(7, WIDTH, dtype=torch.float64)


@pytest.mark.parametrize("alpha", [0.5, 0.2, 1.0])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"bias": True},
        {"kv_heads": 2, "bias": True},
        {"kv_heads": 1},
        {"fused": "c_attn", "bias": True},
        {"fused": "qkv"},
    ],
    ids=str,
)
def test_logits_come_down_to_the_threshold_and_others_stay(options, alpha):
    model, x = made(**options)
    before = model["attn"].max_logits(x)
    threshold = float(before.median())
    optimizer = hfoptim.MuonClip(model.named_parameters(), qk_clip_threshold=threshold, qk_clip_alpha=alpha)
    optimizer.clip_attention({"attn": before})
    after = model["attn"].max_logits(x)
    torch.testing.assert_close(after, before.clamp(max=threshold), rtol=1e-6, atol=0)
    assert (before > threshold).any()
    assert (before < threshold).any()
    optimizer.clip_attention({"attn": after})
    torch.testing.assert_close(model["attn"].max_logits(x), after, rtol=1e-6, atol=0)


def test_nothing_else_moves():
    model, x = made()
    kept = {name: param.detach().clone() for name, param in model.named_parameters()}
    optimizer = hfoptim.MuonClip(model.named_parameters(), qk_clip_threshold=1e-3)
    optimizer.clip_attention({"attn": model["attn"].max_logits(x)})
    changed = {name for name, param in model.named_parameters() if not torch.equal(param, kept[name])}
    assert changed == {"attn.q_proj.weight", "attn.k_proj.weight"}


def test_steps_and_clips_as_its_peer():
    models = [made()[0] for _ in range(2)]
    names = {"attn.q_proj.weight": "query", "attn.k_proj.weight": "key", "attn.v_proj.weight": None, "mlp.weight": None}
    ours = hfoptim.MuonClip(
        [(name, models[0].get_parameter(name)) for name in names], lr=1e-2, qk_clip_threshold=5.0, weight_decay=0.0
    )
    groups = [
        {"params": [models[1].get_parameter(name)], "use_muon": True, "qk_clip": role, "attention_name": "attn"}
        for name, role in names.items()
    ]
    theirs = peer(groups, lr=1e-2, qk_clip_threshold=5.0)
    x = made()[1]
    for t in range(4):
        for model in models:
            torch.manual_seed(t)
            for name in names:
                param = model.get_parameter(name)
                param.grad = torch.randn_like(param)
        logits = models[0]["attn"].max_logits(x)
        ours.step()
        ours.clip_attention({"attn": logits})
        with theirs.patch:
            theirs.optimizer.step(attention_max_logits={"attn": logits})
        assert (logits > 5.0).any() or t
        for name in names:
            # The peer computes its factors in single precision.
            torch.testing.assert_close(
                models[0].get_parameter(name), models[1].get_parameter(name), rtol=1e-6, atol=1e-6
            )


def test_what_it_cannot_tell_is_refused():
    model, _ = made(kv_heads=2)
    optimizer = hfoptim.MuonClip(model.named_parameters())
    with pytest.raises(
        ValueError, match=r"no queries and keys in 'mlp', expected parameters such as mlp\.q_proj\.weight"
    ):
        optimizer.clip_attention({"mlp": torch.ones(4)})
    for wrong in (torch.ones(5), torch.ones(()), torch.ones(2, 2)):
        with pytest.raises(ValueError, match="one number for each head of the queries"):
            optimizer.clip_attention({"attn": wrong})


def test_sharded_parameters(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        mesh = init_device_mesh("cpu", (1,))
        whole, sharded = made(bias=True)[0], made(bias=True)[0]
        for module in sharded["attn"].children():
            for name, param in list(module.named_parameters()):
                setattr(module, name, nn.Parameter(distribute_tensor(param.detach(), mesh, [Shard(0)])))
        for model in (whole, sharded):
            hfoptim.MuonClip(model.named_parameters(), qk_clip_threshold=1.0).clip_attention(
                {"attn": torch.arange(1.0, HEADS + 1)}
            )
        for name, param in sharded.named_parameters():
            found = param.full_tensor() if isinstance(param, DTensor) else param
            torch.testing.assert_close(found, whole.get_parameter(name), rtol=0, atol=0)
    finally:
        torch.distributed.destroy_process_group()
