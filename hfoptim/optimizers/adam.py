"""Adam and its weight-decay variants: one step, two placements of eps, two classes."""

from __future__ import annotations

from dataclasses import KW_ONLY
from typing import Any, ClassVar

from torch import Tensor

from hfoptim.engine import ELEMENT, Decay, Name, Rule, hyper
from hfoptim.optimizers.shared.clipping import CLIPPING_THRESHOLD, clipped_by_rms
from hfoptim.optimizers.shared.decoupling import DECOUPLE_LR, MAX_LR, FullyDecoupling
from hfoptim.optimizers.shared.moments import adam_state, corrected, folded, moments_step
from hfoptim.optimizers.shared.peer_flags import TORCH_ADAM

adam = Rule(moments_step, ELEMENT, adam_state(amsgrad=False), corrected)
adam_amsgrad = Rule(moments_step, ELEMENT, adam_state(amsgrad=True), corrected)
adamw = Rule(moments_step, ELEMENT, adam_state(amsgrad=False), folded)
adamw_amsgrad = Rule(moments_step, ELEMENT, adam_state(amsgrad=True), folded)

_AMSGRAD = hyper(False, "divide by the largest v so far (AMSGrad)", in_peers=False)


class AdamW(FullyDecoupling):
    """Adam with decoupled weight decay, with the signature and the numbers of transformers.AdamW.

    With g the gradient, p the parameter, t the step:

        m = beta1 m + (1 - beta1) g
        v = beta2 v + (1 - beta2) g^2;  with amsgrad, w = max(w, v) takes its place below
        p = p - lr sqrt(1 - beta2^t) / (1 - beta1^t) m / (sqrt(v) + eps)
        p = p - lr weight_decay p                               (decouple_lr: - lr / max_lr weight_decay p, with it)

    Differs from torch.optim.AdamW in two places: eps is added before the bias correction of v, and the decay sees the
    parameter after the update. `Adam(decouple_wd=True)` has torch's placement of both, and is what the name "adamw"
    stands for; this class is "adamw_hf". State: `exp_avg` (m), `exp_avg_sq` (v), `max_exp_avg_sq` (w) with amsgrad; a
    state_dict of torch.optim.AdamW or transformers.AdamW loads.

    Source:
        Loshchilov and Hutter, arXiv 1711.05101; transformers 4.34, `optimization.AdamW`.
    """

    decay = Decay.DECOUPLED_AFTER
    peer_flags = TORCH_ADAM
    names: ClassVar[tuple[Name, ...]] = (Name("adamw_hf"),)
    lr: float = hyper(1e-3, "learning rate")
    betas: tuple[float, float] = hyper((0.9, 0.999), "decay rates of m and v")
    eps: float = hyper(1e-6, "added to the root of v")
    weight_decay: float = hyper(0.0, "decoupled weight decay, per step and unit of lr")
    correct_bias: bool = hyper(True, "False leaves out the bias corrections, as the original BERT did", in_peers=False)
    no_deprecation_warning: bool = hyper(
        False, "accepted for code written for transformers; there is nothing to warn of", in_group=False
    )
    _: KW_ONLY
    decouple_lr: bool = DECOUPLE_LR
    max_lr: float | None = MAX_LR
    amsgrad: bool = _AMSGRAD

    def rule_for(self, param: Tensor, group: dict[str, Any]) -> Rule:
        return adamw_amsgrad if group["amsgrad"] else adamw


class Adam(FullyDecoupling):
    """Adam with L2, decoupled or fully decoupled weight decay, with the options of optimi.Adam.

    With g the gradient, p the parameter, t the step:

        g = g + weight_decay p                                  (L2, the default)
        m = beta1 m + (1 - beta1) g
        v = beta2 v + (1 - beta2) g^2;  with amsgrad, w = max(w, v) takes its place below
        u = m / (1 - beta1^t) / (sqrt(v / (1 - beta2^t)) + eps)
        p = p - lr u
        p = p - lr u - lr weight_decay p                        (decouple_wd: AdamW as in torch)
        p = p - lr u - lr / max_lr weight_decay p               (decouple_lr)

    With `clipping_threshold`, u is divided by max(1, rms(g / (sqrt(v / (1 - beta2^t)) + eps)) / clipping_threshold),
    timm's, after StableAdamW (arXiv 2304.13013); the decay is not.

    By name it has torch's defaults: "adam" those of torch.optim.Adam, "adamw" those of torch.optim.AdamW. "flashadamw"
    is the latter with `state_dtype="8bit"` and `master_weights=8`, FlashOptim's choice of memory (its codes and blocks
    are others than here); its `master_weight_bits` of 24 and 32 are `master_weights` of 8 and 16, its `quantize=False`
    is `state_dtype="float32"`.

    State: `exp_avg` (m), `exp_avg_sq` (v), `max_exp_avg_sq` (w) with amsgrad, in torch's form: state_dicts of
    torch.optim.Adam and AdamW load, here and there. (optimi keeps m and v divided by their bias corrections: the same
    parameters, another checkpoint.) Those of bitsandbytes' Adam and AdamW, torchao's and DeepSpeed's load, too.

    Source:
        Kingma and Ba, arXiv 1412.6980; amsgrad: Reddi, Kale and Kumar, arXiv 1904.09237; options after optimi.Adam 0.3.
    """

    decay = Decay.COUPLED
    decoupled_by = "decouple_wd"
    peer_flags = {**TORCH_ADAM, "bias_correction": True}  # DeepSpeed's
    peer_state = {"state1": "exp_avg", "state2": "exp_avg_sq"}  # of bitsandbytes
    names = (
        Name("adam", "Adam, with the defaults of torch.optim.Adam", options={"betas": (0.9, 0.999), "eps": 1e-8}),
        Name(
            "amsgrad",
            "Adam that divides by the largest second moment so far",
            "https://arxiv.org/abs/1904.09237",
            {"betas": (0.9, 0.999), "eps": 1e-8, "amsgrad": True},
        ),
        Name(
            "adamw",
            "Adam with decoupled weight decay: torch.optim.AdamW (that of transformers is adamw_hf)",
            "https://arxiv.org/abs/1711.05101",
            {"betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 1e-2, "decouple_wd": True},
            ("adamw_legacy",),
        ),
        Name(
            "flashadamw",
            "AdamW with 8-bit state, and 24 bits of bfloat16 weights: FlashOptim's defaults",
            "https://arxiv.org/abs/2602.23349",
            {
                "betas": (0.9, 0.999),
                "eps": 1e-8,
                "weight_decay": 1e-2,
                "decouple_wd": True,
                "state_dtype": "8bit",
                "master_weights": 8,
            },
        ),
        Name(
            "cadamw",
            "AdamW that drops entries of the update which point against the gradient",
            "https://arxiv.org/abs/2411.16085",
            {"betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 1e-2, "decouple_wd": True, "caution": True},
        ),
        Name(
            "adamc",
            "AdamW with weight decay that falls with the square of lr",
            "https://arxiv.org/abs/2506.02285",
            {
                "betas": (0.9, 0.999),
                "eps": 1e-8,
                "weight_decay": 1e-2,
                "decouple_wd": True,
                "corrected_weight_decay": True,
            },
        ),
        Name(
            "cadamc",
            "adamc with caution",
            "https://arxiv.org/abs/2506.02285",
            {
                "betas": (0.9, 0.999),
                "eps": 1e-8,
                "weight_decay": 1e-2,
                "decouple_wd": True,
                "caution": True,
                "corrected_weight_decay": True,
            },
        ),
    )
    lr: float = hyper(1e-3, "learning rate")
    betas: tuple[float, float] = hyper((0.9, 0.99), "decay rates of m and v")
    weight_decay: float = hyper(0.0, "coefficient of the decay that the two following options select")
    eps: float = hyper(1e-6, "added to the bias-corrected root of v")
    decouple_wd: bool = hyper(False, "decoupled weight decay", in_peers=False)
    decouple_lr: bool = DECOUPLE_LR
    max_lr: float | None = MAX_LR
    _: KW_ONLY
    triton: bool | None = hyper(
        None, "optimi's name for `fused`; on a GPU the compiled kernels are Triton's", in_group=False
    )
    amsgrad: bool = _AMSGRAD
    clipping_threshold: float | None = CLIPPING_THRESHOLD

    def rule_for(self, param: Tensor, group: dict[str, Any]) -> Rule:
        rule = adam_amsgrad if group["amsgrad"] else adam
        return rule if group["clipping_threshold"] is None else clipped_by_rms(rule)

    def from_arguments(self, given: dict[str, Any]) -> dict[str, Any]:
        if given["triton"] is not None and given["fused"] is not None:
            raise ValueError(
                f"triton={given['triton']!r} and fused={given['fused']!r} name one option; give one of them"
            )
        return {**given, "fused": given["fused"] if given["triton"] is None else given["triton"]}
