"""MuonClip: Muon, and queries and keys scaled down where the logits of attention grow too large."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import KW_ONLY

import torch
from torch import Tensor

from hfoptim.engine import Group, Name, here, hyper, local
from hfoptim.engine.parameter_names import bare
from hfoptim.optimizers.muon import Muon
from hfoptim.optimizers.shared.spectral import LR_SCALES

# What modules that make queries, keys, and both and values one after the other, are called.
_QUERY = re.compile(r"q|query|q_proj|wq|q_lin|to_q")
_KEY = re.compile(r"k|key|k_proj|wk|k_lin|to_k")
_FUSED = re.compile(r"c_attn|w?qkv|qkv_proj|in_proj_(weight|bias)")


class MuonClip(Muon):
    """Muon, and queries and keys scaled down where the logits of attention have grown above a threshold (QK-clip).

    Matrices take Muon's step, by default without nesterov and with the factor that lets lr and weight decay be AdamW's:

        B = momentum B + (1 - momentum) G
        P = P - lr s NewtonSchulz(B) - lr weight_decay P,  s = 0.2 sqrt(max(r, c))

    After `step()`, `clip_attention(max_logits)` is called by whoever knows the logits: the attention, a callback. With
    x the largest logit before softmax of a head, tau = `qk_clip_threshold`, a = `qk_clip_alpha`:

        f = min(1, tau / x)
        W_q = f^a W_q,  W_k = f^(1 - a) W_k            of that head, biases as well

    Where several heads share their keys, these are scaled by f^(1 - a) of the head with the least f, and each of its
    queries by what is then left to make its own logits f times theirs. A head within the threshold stays as it was.

    Without a call of `clip_attention` this is Muon. Everything else is `Muon`'s: names, options, state.

    Raises:
        ValueError: no hidden matrix among the parameters, one with fewer than two dimensions, or parameters that need
            names and have none.
        TypeError: a complex matrix.

    Source:
        Kimi Team, Kimi K2, arXiv 2507.20534, algorithm 1; pytorch_optimizer 4.1's MuonClip, which is given the logits
        in `step` and knows projections by labels of their groups. MLA's shared rotary keys, whose queries alone are
        scaled there, are not told apart here.
    """

    hidden_matrices = True
    names = (Name("muonclip"),)  # type: ignore[assignment]
    nesterov: bool = hyper(False, "look one step ahead")
    adjust_lr_fn: str | None = hyper(
        "match_rms_adamw",
        'the factor s; None is "original", the last two are sqrt(r / c) and 1 / sqrt(c)',
        choices=LR_SCALES,
    )
    _: KW_ONLY
    qk_clip_threshold: float = hyper(100.0, "the largest logit that is left alone", above=0.0, in_peers=False)
    qk_clip_alpha: float = hyper(0.5, "the queries' share of the scaling", most=1.0, in_peers=False)

    @torch.no_grad()
    def clip_attention(self, max_logits: Mapping[str, Tensor]) -> None:
        """Scale queries and keys of attention layers whose logits have grown above the threshold.

        Args:
            max_logits: for the name of each attention module ("model.layers.0.self_attn") the largest logit before
                softmax of each of its heads, over all micro-batches and ranks. Modules that are not named are left
                alone.

        Raises:
            ValueError: no queries and keys in a module of that name, or a number of heads that does not divide them.
        """
        named = [
            (bare(self.name_of(param, group) or ""), param, group)
            for group in self.param_groups
            for param in group["params"]
        ]
        for module, logits in max_logits.items():
            inside = f"{bare(module)}."
            own = [(name.removeprefix(inside), *rest) for name, *rest in named if name.startswith(inside)]
            self._clip(module, logits.detach(), own)

    def _clip(self, module: str, logits: Tensor, own: list[tuple[str, Tensor, Group]]) -> None:
        queries: list[tuple[Tensor, int, int]] = []
        keys: list[tuple[Tensor, int, int]] = []
        options: Group = self.defaults
        for name, param, group in own:
            first, _, kind = name.partition(".")
            if kind not in ("weight", "bias", ""):
                continue
            found = queries if _QUERY.fullmatch(first) else keys if _KEY.fullmatch(first) else None
            if _FUSED.fullmatch(first):
                span = _third(name, param)
                queries.append((param, 0, span))
                keys.append((param, span, span))
            elif found is not None:
                found.append((param, 0, param.shape[0]))
            else:
                continue
            options = group
        if not queries or not keys:
            raise ValueError(f"no queries and keys in {module!r}, expected parameters such as {module}.q_proj.weight")
        of_queries, of_keys = _factors(module, logits, queries[0][2], keys[0][2], options)
        for spans, factors in ((queries, of_queries), (keys, of_keys)):
            for param, start, size in spans:
                _scale(param, start, size, factors)


def _third(name: str, param: Tensor) -> int:
    """The length of the queries in a parameter that makes queries, keys and values, one after the other."""
    longest = max(param.shape)
    if longest % 3 or (param.ndim == 2 and longest != 3 * min(param.shape)):
        raise ValueError(f"{name} of shape {tuple(param.shape)} is no queries, keys and values of equal size")
    return longest // 3


def _factors(module: str, logits: Tensor, queries: int, keys: int, group: Group) -> tuple[Tensor, Tensor]:
    """What every head of queries, and every head of keys, is multiplied by."""
    heads = logits.numel()
    if logits.ndim != 1 or not heads or queries % heads or keys % (queries // heads) or queries % keys:
        raise ValueError(
            f"{module!r} has queries of size {queries} and keys of size {keys}, which logits of shape "
            f"{tuple(logits.shape)} do not divide; expected one number for each head of the queries"
        )
    most = group["qk_clip_threshold"]
    factor = most / logits.double().clamp(most, torch.finfo(torch.float32).max).view(keys * heads // queries, -1)
    of_keys = factor.amin(dim=1, keepdim=True) ** (1.0 - group["qk_clip_alpha"])
    return (factor / of_keys).flatten(), of_keys.flatten()


def _scale(param: Tensor, start: int, size: int, factors: Tensor) -> None:
    """Multiply a part of the outputs that a parameter makes, head by head."""
    dim = int(param.ndim == 2 and param.shape[1] == 3 * param.shape[0])  # GPT-2 has them in columns
    dtype = torch.promote_types(param.dtype, torch.float32)
    whole = torch.ones(param.shape[dim], dtype=dtype, device=param.device)
    whole[start : start + size] = factors.to(whole).repeat_interleave(size // len(factors))
    whole = whole.view(*whole.shape, *[1] * (param.ndim - 1 - dim))
    local(param).mul_(here(whole.expand(param.shape), param))
