"""Adam-mini: Adam with one second moment per block of a parameter, such as a row or an attention head."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import KW_ONLY
from functools import cache
from typing import Any, ClassVar

from torch import Size, Tensor

from hfoptim.engine import ELEMENT, TENSOR, Name, Rule, ema, hyper, nonnegative, rule, scalar, zeros, zeros_over
from hfoptim.engine.parameter_names import aligned, bare, difference
from hfoptim.optimizers.shared.exempt_by_name import ExemptByName
from hfoptim.optimizers.shared.moments import corrected, moments_step

logger = logging.getLogger(__name__)

_UNDECAYED = ("norm", "ln", "bias")


# Passes over memory, in tensors of the parameter's size:
#   the mean square: read grad                                                  1
#   update: read grad, param, m; write param, m                                 5
# A row or head that stays in a cache between the two spares the second reading of grad: 5 in all.
def _step(mean_square: Any, grad: Any, m: Any, vmean: Any, h: Any) -> tuple[Any, Any, Any]:
    """Adam's step with a second moment that the entries of a block share."""
    vmean = ema(vmean, mean_square, h.alpha2)
    m = ema(m, grad, h.alpha1)
    return m * (vmean.sqrt() + h.eps).reciprocal(), m, vmean


@rule(TENSOR, per_step=corrected, m=zeros, vmean=scalar)
def by_tensor(grad: Any, param: Any, m: Any, vmean: Any, h: Any) -> tuple[Any, Any, Any]:
    """One second moment."""
    return _step(grad.square().mean(), grad, m, vmean, h)


by_entry = rule(ELEMENT, per_step=corrected, m=zeros, v=nonnegative)(moments_step)


def _by_row(shape: Callable[[Size], tuple[int, int]]) -> Rule:
    """The rule with one second moment per row of the parameter in another shape."""

    def fn(grad: Any, param: Any, m: Any, vmean: Any, h: Any) -> tuple[Any, Any, Any]:
        return _step(grad.square().mean(-1, keepdim=True), grad, m, vmean, h)

    fn.__name__ = "by_row"
    return rule(TENSOR, per_step=corrected, shape=shape, m=zeros, vmean=zeros_over(-1))(fn)


# Not a rule per number of rows: all matrices share one, and its kernels.
by_row = _by_row(lambda shape: (shape[0], math.prod(shape[1:])))


@cache
def by_head(size: int) -> Rule:
    """The rule with one second moment per `size` entries, the size of an attention head."""
    return _by_row(lambda shape: (math.prod(shape) // size, size))


class AdamMini(ExemptByName):
    """Adam with one second moment per row, head or tensor, chosen by the parameter's name: half of Adam's state.

    With g the gradient, p the parameter, t the step, and mean_block over each block of p:

        m = beta1 m + (1 - beta1) g
        v = beta2 v + (1 - beta2) mean_block(g^2)
        p = p - lr m / (1 - beta1^t) / (sqrt(v / (1 - beta2^t)) + eps) - lr weight_decay p

    What a block is, by the first line that applies; "name has" means anywhere in the name, in any case:

        name has bias                                                   an entry: Adam
        no matrix (less than two dimensions)                            the tensor
        no name                                                         a row
        name has q_proj, k_proj, query, key, wq, wk                     dim^2 / n_heads entries: a head
        name has embed, embd, wte, lm_head, output, final_layer,
            v_proj, value, wv, o_proj, wo, attn.proj,
            mlp, linear, feed_forward                                   a row
        any other                                                       the tensor

    A row is one entry of the first dimension. Parameters named norm, ln or bias are not decayed; they form a group of
    their own beside the group they were given in. The parts of names are attributes of the class, as in the authors'
    package, which a subclass may replace: `adam_block_names`, `wqk_names`, `embd_names`, `output_names`, `wv_names`,
    `attn_proj_names`, `mlp_names`.

    State: `m`, as large as the parameter; `vmean` (v), one number per block, or `v` for biases. A state_dict of the
    authors' package loads where parameters have names.

    Follows the authors' package 1.1.1, which knows no parameters without names, and fails on vectors and convolutions
    whose names have one of the parts above, biases apart; here the table holds for them, too. The package keeps state
    in the parameter's dtype, here it is float32 at least. pytorch_optimizer has Adam for embeddings and the output, and
    one block per tensor for v, o and mlp.

    Raises:
        ValueError: a query or key that is not made of whole heads.
        TypeError: a complex parameter.

    Source:
        Zhang et al., arXiv 2406.16793; zyushun/Adam-mini 1.1.1.
    """

    rule = by_tensor

    adam_block_names: ClassVar[frozenset[str]] = frozenset({"bias"})
    wqk_names: ClassVar[frozenset[str]] = frozenset({"k_proj", "q_proj", "wq", "wk", "query", "key"})
    embd_names: ClassVar[frozenset[str]] = frozenset({"embed", "embd", "wte"})
    output_names: ClassVar[frozenset[str]] = frozenset({"lm_head", "output", "final_layer"})
    wv_names: ClassVar[frozenset[str]] = frozenset({"v_proj", "wv", "value"})
    attn_proj_names: ClassVar[frozenset[str]] = frozenset({"o_proj", "wo", "attn.proj"})
    mlp_names: ClassVar[frozenset[str]] = frozenset({"feed_forward", "linear", "mlp"})

    peer_state = dict.fromkeys(("head_per_gpu", "neuron_per_gpu", "reduced", "block_numel"))
    names = (Name("adam_mini"),)
    lr: float = hyper(1e-3, "learning rate")
    betas: tuple[float, float] = hyper((0.9, 0.999), "decay rates of m and v")
    eps: float = hyper(1e-8, "added to the root of v")
    weight_decay: float = hyper(0.0, "decoupled weight decay, per step and unit of lr")
    _: KW_ONLY
    model_sharding: bool | None = hyper(
        None, "accepted for code written for the authors' package, which ignores it, too", in_group=False
    )
    dim: int = hyper(2048, "width of the model, for the size of a head", low=1)
    n_heads: int = hyper(32, "attention heads of the model", low=1)
    n_kv_heads: int | None = hyper(None, "heads of keys and values, where they are fewer: a divisor of n_heads", low=1)
    verbose: bool = hyper(True, "log the blocks of every parameter, at level INFO")

    def check_group(self, group: dict[str, Any]) -> None:
        super().check_group(group)
        dim, n_heads, n_kv_heads = group["dim"], group["n_heads"], group["n_kv_heads"]
        if dim * dim % n_heads:
            raise ValueError(f"dim={dim} squared is not divisible by n_heads={n_heads}; give those of the model")
        if n_kv_heads is not None and n_heads % n_kv_heads:
            raise ValueError(f"n_kv_heads={n_kv_heads} does not divide n_heads={n_heads}")

    def exempt(self, names: Sequence[str | None]) -> set[str | None]:
        return {name for name in names if name is not None and _contains(name, _UNDECAYED)}

    def check_added(self, group: dict[str, Any]) -> None:
        for param in group["params"]:
            blocks, name = self.rule_for(param, group), self.name_of(param, group)
            if group["verbose"] and name is not None:
                logger.info("%s %s: %s", name, tuple(param.shape), _DESCRIBED.get(blocks, "one second moment per head"))

    def rule_for(self, param: Tensor, group: dict[str, Any]) -> Rule:
        name = self.name_of(param, group)
        if name is not None and _contains(name, self.adam_block_names):
            return by_entry
        if param.ndim < 2:
            return by_tensor
        if name is None:
            return by_row
        if _contains(name, self.wqk_names):
            size = group["dim"] ** 2 // group["n_heads"]
            if param.numel() % size:
                raise ValueError(
                    f"{name!r} has {param.numel()} entries, which are no whole heads of dim^2 / n_heads = {size}; give "
                    f"the model's width as dim and its number of attention heads as n_heads; if this is no query or "
                    f"key, make a subclass with other wqk_names"
                )
            return by_head(size)
        by_rows = (self.embd_names, self.output_names, self.wv_names, self.attn_proj_names, self.mlp_names)
        return by_row if any(_contains(name, parts) for parts in by_rows) else by_tensor

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over a state_dict of this optimizer or of the authors' package, as `RuleOptimizer.load_state_dict`."""
        super().load_state_dict(_regrouped(state_dict, self.param_groups))

    def adapt_loaded(self, param: Tensor, state: dict[str, Any], group: dict[str, Any]) -> dict[str, Any]:
        # The package keeps sizes beside its state, and the momentum of a query or key by heads.
        if "head_per_gpu" in state and state["m"].numel() == param.numel():
            state["m"] = state["m"].reshape(param.shape)
        return state


def _contains(name: str, parts: Collection[str]) -> bool:
    name = bare(name).lower()
    return any(part in name for part in parts)


_DESCRIBED = {by_entry: "Adam", by_row: "one second moment per row", by_tensor: "one second moment"}


def _regrouped(state_dict: Any, groups: list[dict[str, Any]]) -> Any:
    """A state_dict of the authors' package, which has a group per parameter, in our groups; any other as it is.

    Raises:
        ValueError: parameters without names, or a name that the state_dict has not.
    """
    saved = state_dict.get("param_groups") if isinstance(state_dict, dict) else None
    if not saved or not all({"name", "beta1", "beta2"} <= group.keys() for group in saved):
        return state_dict
    by_name = {group["name"]: group for group in saved}
    ours = [name.lower() for group in groups for name in group.get("param_names", ())]
    theirs = aligned(ours, by_name)
    if theirs is None:
        missing, _ = difference(ours, by_name)
        what = f"no parameter {missing[0]!r}" if missing else "a group per name, here parameters have none"
        raise ValueError(f"the state_dict, of the package adam_mini, has {what}")
    regrouped = []
    for group in groups:
        own = [by_name[theirs[name.lower()]] for name in group["param_names"]]
        for key in ("lr", "beta1", "beta2", "eps", "weight_decay"):
            if len({float(each[key]) for each in own}) > 1:
                raise ValueError(
                    f"the state_dict, of the package adam_mini, has more than one {key} for one group here"
                )
        numbers = {key: own[0][key] for key in ("lr", "eps", "weight_decay")}
        numbers |= {key: group[key] for key in ("dim", "n_heads", "n_kv_heads", "verbose")}
        betas = (own[0]["beta1"], own[0]["beta2"])
        regrouped.append({**numbers, "betas": betas, "params": [key for each in own for key in each["params"]]})
    return {**state_dict, "param_groups": regrouped}
