"""Which matrices a parameter of a transformers model holds: queries, keys and values in one, packed gates, heads.

A projection that makes several things at once is several matrices in one parameter, each with singular values of its
own. Where they lie follows from the model's configuration; this is the table of it, by `config.model_type`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple

from torch import nn

from hfoptim.engine.parameter_names import bare

ROWS, COLUMNS = -2, -1


# Names of matrices that make queries, keys and values at once, one after the other.
_FUSED_QKV = re.compile(r"(^|[._])(c_attn|w?qkv|in_proj_weight)([._]|$)", re.IGNORECASE)


def is_fused_qkv(name: str, rows: int, columns: int) -> bool:
    """Whether a matrix is queries, keys and values, by its name and sides: three parts of the longer one."""
    return max(rows, columns) == 3 * min(rows, columns) and _FUSED_QKV.search(bare(name)) is not None


class Division(NamedTuple):
    """How a parameter is divided into matrices.

    Args:
        sizes: those of the parts, one after the other. Where they add up to a fraction of the side, they repeat, and
            equal parts of all repeats are one matrix: queries, keys and values that go head by head.
        dim: which side is divided, `ROWS` or `COLUMNS`.
    """

    sizes: tuple[int, ...]
    dim: int = ROWS

    def by_head(self, length: int, head: int) -> Division:
        """The same with every head a matrix of its own.

        Args:
            length: of the side.
            head: the side of a head. What is no multiple of it stays whole.
        """
        once = [size for part in self.sizes for size in ((head,) * (part // head) if part % head == 0 else (part,))]
        return Division(tuple(once) * (length // sum(self.sizes)), self.dim)


Config = Any
Parts = Callable[[Config], Division | None]


def _width(config: Config) -> int:
    return int(config.hidden_size)


def _head(config: Config) -> int:
    own = getattr(config, "head_dim", None) or getattr(config, "d_kv", None)
    return int(own or _width(config) // config.num_attention_heads)


def _halves(config: Config, dim: int = ROWS) -> Division | None:
    """A gate, and below it what it lets through; of how many rows only the parameter says."""
    return Division((), dim)


def _interleaved_columns(config: Config) -> Division:
    return Division((1, 1), COLUMNS)


def _grouped_qkv(config: Config) -> Division:
    """All queries, then fewer keys and values."""
    queries, others = config.num_attention_heads, config.num_key_value_heads or config.num_attention_heads
    return Division((queries * _head(config), others * _head(config), others * _head(config)))


def _head_by_head(config: Config) -> Division:
    """The query, key and value of one head, then those of the next."""
    return Division((_head(config),) * 3)


def _thirds(config: Config, dim: int = ROWS) -> Division:
    return Division((_width(config),) * 3, dim)


def _falcon(config: Config) -> Division:
    head, heads = _head(config), config.num_attention_heads
    if config.new_decoder_architecture:
        return Division((heads // config.num_kv_heads * head, head, head))
    return Division((_width(config), head, head)) if config.multi_query else _head_by_head(config)


def _gpt_bigcode(config: Config) -> Division:
    return Division((_width(config), _head(config), _head(config))) if config.multi_query else _head_by_head(config)


def _codegen(config: Config) -> Division:
    """Queries, values and keys of a quarter of the heads, four times."""
    return Division((_width(config) // 4,) * 3)


def _latent_and_rotary(config: Config) -> Division:
    return Division((config.kv_lora_rank, config.qk_rope_head_dim))


def _keys_and_values(config: Config) -> Division:
    return Division((config.qk_nope_head_dim, config.v_head_dim))


def _query_and_gate(config: Config) -> Division:
    return Division((_head(config), _head(config)))


def _delta_net(config: Config) -> Division:
    """Of a head of keys the query, the key, and the values and gates of its heads of values."""
    values = config.linear_num_value_heads // config.linear_num_key_heads * config.linear_value_head_dim
    return Division((config.linear_key_head_dim, config.linear_key_head_dim, values, values))


def _delta_net_rates(config: Config) -> Division:
    return Division((config.linear_num_value_heads // config.linear_num_key_heads,) * 2)


def _delta_net_qkv(config: Config) -> Division:
    keys = config.linear_num_key_heads * config.linear_key_head_dim
    return Division((keys, keys, config.linear_num_value_heads * config.linear_value_head_dim))


_GATED = {"gate_up_proj": _halves}
_LATENT = {"kv_a_proj_with_mqa": _latent_and_rotary, "kv_b_proj": _keys_and_values}
_NEXT = {"in_proj_qkvz": _delta_net, "in_proj_ba": _delta_net_rates, "q_proj": _query_and_gate}
_NEXT_5 = {"in_proj_qkv": _delta_net_qkv, "q_proj": _query_and_gate}

# By model type, the parameters that are several matrices: the last part of their names, without `weight`.
FUSED: Mapping[str, Mapping[str, Parts]] = {
    "bloom": {"query_key_value": _head_by_head},
    "codegen": {"qkv_proj": _codegen},
    "deepseek_v2": {**_LATENT, **_GATED},
    "deepseek_v3": {**_LATENT, **_GATED},
    "falcon": {"query_key_value": _falcon},
    "glm": _GATED,
    "glm4": _GATED,
    "glm4_moe": _GATED,
    "gpt2": {"c_attn": partial(_thirds, dim=COLUMNS)},
    "gpt_bigcode": {"c_attn": _gpt_bigcode},
    "gpt_neox": {"query_key_value": _head_by_head},
    "gpt_oss": {"gate_up_proj": _interleaved_columns},
    "granitemoe": _GATED,
    "llama4_text": {"gate_up_proj": partial(_halves, dim=COLUMNS)},
    "mixtral": _GATED,
    "mpt": {"Wqkv": _thirds},
    "olmoe": _GATED,
    "persimmon": {"query_key_value": _head_by_head},
    "phi3": {"qkv_proj": _grouped_qkv, **_GATED},
    "phimoe": _GATED,
    "qwen2_moe": _GATED,
    "qwen3_5_moe_text": {**_NEXT_5, **_GATED},
    "qwen3_5_text": _NEXT_5,
    "qwen3_moe": _GATED,
    "qwen3_next": {**_NEXT, **_GATED},
}

# What the projections of queries, keys and values are called where each is a parameter of its own.
_PROJECTIONS = frozenset({"q_proj", "k_proj", "v_proj", "query", "key", "value", "q", "k", "v"})
# What has heads among the fused ones, of those with heads of one size.
_WITH_HEADS = frozenset({"c_attn", "query_key_value", "qkv_proj", "Wqkv", *_PROJECTIONS})


def divisions(model: nn.Module, per_head: bool = False) -> dict[int, Division]:
    """How the parameters of a model that are several matrices are divided, by their ids.

    Args:
        model: a model of transformers, or one around it.
        per_head (default False): every head of queries, keys and values is a matrix of its own (arXiv 2602.15763).

    Returns:
        Those of the families in `FUSED`, but for queries, keys and values that are divided by name (`is_fused_qkv`);
        with `per_head` also of projections that are only queries, keys or values.
    """
    found: dict[int, Division] = {}
    for name, param, config in _parameters(model, "", None):
        division = _division(name, tuple(param.shape), config, per_head)
        if division is not None:
            found[id(param)] = division
    return found


def _parameters(module: nn.Module, name: str, config: Config) -> Iterator[tuple[str, nn.Parameter, Config]]:
    """The parameters with the last part of their names, and the configuration of the model that they are in."""
    own = getattr(module, "config", None)
    config = own if isinstance(getattr(own, "model_type", None), str) else config
    for key, param in module.named_parameters(recurse=False):
        yield name if key == "weight" else key, param, config
    for key, child in module.named_children():
        yield from _parameters(child, key, config)


def _division(name: str, shape: tuple[int, ...], config: Config, per_head: bool) -> Division | None:
    if config is None or len(shape) < 2:
        return None
    parts = FUSED.get(config.model_type, {}).get(name)
    whole = per_head and name in _PROJECTIONS
    division = parts(config) if parts else Division((shape[ROWS],)) if whole else None
    if division is None:
        return None
    length = shape[division.dim]
    division = division if division.sizes else Division((length // 2,) * 2, division.dim)
    heads = per_head and name in _WITH_HEADS and getattr(config, "num_attention_heads", None)
    division = division.by_head(length, _head(config)) if heads else division
    # A quantized or otherwise changed parameter is not what the table is about.
    if len(division.sizes) < 2 or length % sum(division.sizes):
        return None
    by_name = not per_head and division.sizes == (length // 3,) * 3 and is_fused_qkv(name, *shape[-2:])
    return None if by_name else division
