"""Options of other libraries' optimizers: those that say what holds here anyway, and what the others are called.

torch.optim, timm, optimi, pytorch_optimizer, bitsandbytes, apex and Keras.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from hfoptim.engine.checks import closest, unavailable

# Flags of torch's signatures: False is what holds here, and what to do in place of True.
FLAGS = {
    "capturable": (
        "steps are counted on the host, and a CUDA graph would repeat one; leave it out, and take fused=True for few "
        "launches"
    ),
    "differentiable": "steps are taken without a gradient; leave it out, or take the class of torch.optim that has it",
    "amsgrad": "this class keeps no largest second moment; adam, adamw, adam_weight_decay and novograd have it",
}

_DECAY = (
    *("decouple_wd", "decouple", "decoupled", "no_prox"),
    *("decoupled_weight_decay", "weight_decouple", "decoupled_decay"),
)
# An option's names here, of which a class has one or none.
_CALLED = {
    **dict.fromkeys((*_DECAY, "adam_w_mode"), _DECAY),
    "adam_wd": ("no_prox",),
    **dict.fromkeys(("fixed_decay", "decoupled_wd"), ("decouple_lr",)),
    "cautious_wd": ("cautious_weight_decay",),
    "ams_bound": ("amsgrad", "amsbound"),
    "schedule_decay": ("momentum_decay",),
    **dict.fromkeys(("learning_rate", "eta"), ("lr",)),
    **dict.fromkeys(("wd", "weight_decay_rate", "l2"), ("weight_decay",)),
    **dict.fromkeys(("beta1", "beta2", "beta_1", "beta_2", "b1", "b2", "beta"), ("betas", "momentum")),
    "momentum": ("betas",),
    **dict.fromkeys(("epsilon", "epsilon1", "eps1"), ("eps",)),
    **dict.fromkeys(
        ("bias_correction", "correct_bias", "use_bias_correction", "debias"),
        ("bias_correction", "correct_bias", "use_bias_correction"),
    ),
    "cautious": ("caution",),
    **dict.fromkeys(("use_gc", "gc", "centralize_gradients"), ("gradient_centralization",)),
    **dict.fromkeys(("agc", "agc_clipping_value", "agc_clip_val", "clip_factor"), ("adaptive_clip",)),
    **dict.fromkeys(("use_triton", "triton"), ("fused",)),
    **dict.fromkeys(("optim_bits", "bits", "quantize"), ("state_dtype",)),
    "master_weight_bits": ("master_weights",),
    **dict.fromkeys(("trust_coefficient", "trust_coef"), ("trust_coeff",)),
    **dict.fromkeys(("max_grad_norm", "grad_clip_norm", "clip_grad_norm"), ("max_grad_norm", "global_clipnorm")),
    "use_nesterov": ("nesterov",),
    "k": ("lookahead_k",),
    "la_steps": ("lookahead_k",),
    "la_alpha": ("lookahead_alpha",),
}
_BITSANDBYTES = "what it tunes is fixed here; the option is state_dtype='8bit' or '4bit'"
# What to do where an option has no counterpart.
_ADVICE = {
    **FLAGS,
    "decouple_lr": "adam, adamw, adan, lion and sgd have it",
    "max_lr": "it belongs to decouple_lr, which adam, adamw, adan, lion and sgd have",
    "fixed_decay": "decay that lr does not multiply is decouple_lr=True of adam, adamw, adan, lion and sgd",
    **dict.fromkeys(
        (*_DECAY, "adam_w_mode"),
        "where weight decay enters is fixed here, the equations in the docstring show it; leave it out",
    ),
    **dict.fromkeys(("is_paged", "percentile_clipping", "block_wise", "min_8bit_size"), _BITSANDBYTES),
    "set_grad_none": "zero_grad() removes gradients",
}


def hint(option: str, known: Iterable[str]) -> str:
    """A phrase that says what to write in place of an option that is not known.

    Args:
        option: its name.
        known: the names that are.
    """
    known = list(known)
    called = [name for name in _CALLED.get(option, ()) if name in known]
    if called:
        return f"here it is called {called[0]!r}"
    return _ADVICE.get(option) or closest(option, known)


def without_flags(owner: str, given: Mapping[str, Any], known: Iterable[str]) -> dict[str, Any]:
    """The options given without torch's flags that are False, which says what holds here anyway.

    Args:
        owner: whose options they are, for errors.
        given: the options.
        known: the names that are known.

    Raises:
        TypeError: an option is unknown, or such a flag is no bool.
        ValueError: such a flag is True.
    """
    known = list(known)
    kept = dict(given)
    for option in given:
        if option in known:
            continue
        if option not in FLAGS:
            raise TypeError(f"{owner} has no option {option!r}; {hint(option, known)}")
        unavailable(option, kept.pop(option), FLAGS[option])
    return kept
