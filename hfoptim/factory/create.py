"""Optimizers made by name, for a model or for parameters."""

from __future__ import annotations

import dataclasses
import logging
import warnings
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.optim.optimizer import ParamsT

from hfoptim import schedules
from hfoptim.engine.checks import integer, number, strings
from hfoptim.engine.distributed import flattened
from hfoptim.factory.grouped import check_grouping, group_params, make_grouped, take_grouping
from hfoptim.param_groups.group_matcher import GroupMatcher
from hfoptim.param_groups.selection import (
    decay_groups,
    decayed_names,
    layer_decay_groups,
    layer_scales,
    matching,
    split_hidden_matrices,
    undecayed,
)
from hfoptim.registry.lookup import (
    canonical_name,
    complete_groups,
    dummy,
    finds_matrices,
    get_optimizer_info,
    option_names,
    resolve_options,
)
from hfoptim.registry.recommended import say_taken, take_recommended, warn_if_far

if TYPE_CHECKING:
    from hfoptim.optimizers.adam_weight_decay import AdamWeightDecay

logger = logging.getLogger(__name__)


def create_optimizer_v2(
    model_or_params: nn.Module | ParamsT,
    opt: str = "sgd",
    lr: float | str | None = None,
    weight_decay: float = 0.0,
    momentum: float | None = None,
    foreach: bool | None = None,
    filter_bias_and_bn: bool = True,
    fallback_list: Collection[str] = (),
    fallback_no_weight_decay: bool = False,
    layer_decay: float | None = None,
    layer_decay_min_scale: float = 0.0,
    layer_decay_no_opt_scale: float | None = None,
    param_group_fn: Callable[[nn.Module], Iterable[Any]] | None = None,
    head_lr: float | None = None,
    param_options: Mapping[str, Mapping[str, Any]] | None = None,
    group_matcher: GroupMatcher | None = None,
    mup: Mapping[str, Any] | None = None,
    **kwargs: Any,
) -> Optimizer:
    """Create an optimizer by name, for a model or for parameters. The signature is timm's, and a little more.

    Parameters of a model are grouped by the first of these that applies: `param_group_fn`; `head_lr`, `param_options`
    and `mup`, with `layer_decay`; `layer_decay`; `weight_decay`; else one group. The groups are timm's, in its order,
    with named parameters; but learning rates come scaled, since no schedule of torch or transformers would do it, and
    layers are counted in models of all kinds. For an optimizer of hidden matrices such as Muon each of these groups,
    but not those of `param_group_fn`, is divided by `use_muon`.

    Args:
        model_or_params: a model, or parameters, named parameters or parameter groups, which are used as they are.
        opt (default "sgd"): the optimizer's name.
        lr (None): learning rate; None takes the optimizer's own default, "recommended" what a source trains with for
            `task` ("finetune", which is the default, "pretrain" or "lora"), see `hfoptim info`; the log says which. It
            warns once of one that is 30 times outside of what all sources train with.
        weight_decay (0.0): weight decay.
        momentum (None): for optimizers that have one, ignored by others. None takes the default of the name:
            0.9 for "sgd", "momentum" and timm's other names.
        foreach (None): engine option, see `RuleOptimizer`.
        filter_bias_and_bn (True): biases, norms and other vectors of a model are not decayed. What
            `model.no_weight_decay()` names is not in either case.
        fallback_list (()): names or patterns of parameters that an optimizer of hidden matrices shall not take for
            such; of no effect on others.
        fallback_no_weight_decay (False): what `model.no_weight_decay()` names is none of these matrices either.
        layer_decay (None): learning rates of a model shrink by this factor with every layer from the top down. Layers
            are those of `model.group_matcher()`, as timm's models have it, else see `param_groups.layers.layer_places`.
        layer_decay_min_scale (0.0): least factor.
        layer_decay_no_opt_scale (None): parameters whose factor is below it are frozen (`requires_grad` False).
        param_group_fn (None): makes the parameter groups from the model.
        head_lr (None): learning rate of the model's head, see `hfoptim.param_groups.head_names`.
        param_options (None): options of the parameters that patterns of names match, another optimizer among them; see
            `Grouping`. Another optimizer begins with its own defaults, lr and weight decay included.
        group_matcher (None): which layer a parameter is of, see `hfoptim.param_groups.group_matcher.matched_layers`.
        mup (None): the width of the model whose learning rate this is, `{"base": 256}`, see `param_groups_mup`, whose
            arguments are further entries. (eps is the optimizer's.)
        **kwargs: further options of the optimizer, checked against its signature. `eps` and `betas`, which timm's
            scripts give to all of them, draw a warning where there are none.

    Returns:
        The optimizer; with several, a `CombinedOptimizer` of them, the one named here first.

    Raises:
        ValueError: unknown name or option, a value out of range, no parameters, `head_lr` or `param_options` without a
            model or with `param_group_fn`, a pattern that decides nothing, no head, layers that cannot be told apart,
            or a 1-bit optimizer of DeepSpeed's without its engine.
        ImportError: the optimizer is of a package that is not installed.

    Source:
        timm 1.0.31, `timm.optim.create_optimizer_v2`.
    """
    weight_decay = number("weight_decay", weight_decay)
    momentum = None if momentum is None else number("momentum", momentum)
    info, known = get_optimizer_info(opt), option_names(opt)
    if info.outside and info.not_in_trainer and kwargs.get("deepspeed") is None:
        raise ValueError(f"{opt} needs {info.not_in_trainer}")
    given = {"lr": lr, "foreach": foreach}
    options: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    if weight_decay or "weight_decay" in known:
        options["weight_decay"] = weight_decay
    if momentum is not None and "momentum" in known:
        options["momentum"] = momentum
    options, taken = take_recommended(opt, {**options, **_without_unused(opt, kwargs, known)})
    if taken is not None:
        logger.warning(say_taken(opt, taken))
    options = resolve_options(opt, options)
    warn_if_far(opt, options)
    said = {"layer_decay": layer_decay, "group_matcher": group_matcher, "mup": mup}
    grouping, _ = take_grouping(opt, {"head_lr": head_lr, "param_options": param_options, **said})
    layer_decay = grouping.layer_decay
    by_name = grouping.head_lr is not None or bool(grouping.param_options or grouping.mup)
    fallback_list = strings("fallback_list", fallback_list)
    create: Callable[..., Optimizer] = info.opt_class
    params: Any = model_or_params
    if not isinstance(model_or_params, nn.Module) or param_group_fn is not None:
        if by_name:
            raise ValueError(
                "head_lr, param_options and mup group the parameters of a model by their names; give the model, and no "
                "param_group_fn"
            )
        if param_group_fn is not None and isinstance(model_or_params, nn.Module):
            params = param_group_fn(model_or_params)
        return flattened.unflattened(create(complete_groups(opt, params, options), **options))
    model = model_or_params
    if layer_decay is not None and layer_decay_no_opt_scale:
        least = number("layer_decay_no_opt_scale", layer_decay_no_opt_scale)
        _freeze(model, layer_scales(model, layer_decay, layer_decay_min_scale, group_matcher), least)
    fallback = matching(model, fallback_list) | (undecayed(model) if fallback_no_weight_decay else set())
    if by_name:
        chosen = {canonical_name(opt): options, **{other: resolve_options(other, {}) for other in grouping.others}}
        check_grouping(grouping, chosen)
        grouping = dataclasses.replace(grouping, min_scale=layer_decay_min_scale)
        decayed = decayed_names(model, (), filter_bias_and_bn)
        create, params, options = make_grouped(group_params(model, decayed, grouping, chosen, fallback), chosen)
        return create(params, **options)
    if layer_decay is not None:
        top = _own_lr(info.opt_class, options)
        if top is None:
            raise ValueError(f"layer_decay={layer_decay!r} scales a learning rate, and {opt} sets its own; give lr")
        params = layer_decay_groups(
            *(model, weight_decay, (), filter_bias_and_bn, layer_decay, top, layer_decay_min_scale, group_matcher)
        )
    elif weight_decay:
        params = decay_groups(model, weight_decay, (), filter_bias_and_bn)
    else:
        params = [(name, param) for name, param in model.named_parameters() if param.requires_grad]
    if finds_matrices(opt, options):
        grouped = all(isinstance(entry, dict) for entry in params)
        params = split_hidden_matrices(model, params if grouped else [{"params": params}], fallback)
    return flattened.unflattened(create(params, **options))


def _without_unused(opt: str, options: Mapping[str, Any], known: Collection[str]) -> dict[str, Any]:
    """Options without those that timm leaves out for an optimizer that has none of the kind."""
    unused = {name: value for name, value in options.items() if name in ("eps", "betas") and name not in known}
    for name, value in unused.items():
        warnings.warn(f"{opt} has no {name}, so {name}={value!r} is left out", stacklevel=3)
    return {name: value for name, value in options.items() if name not in unused}


def _freeze(model: nn.Module, scales: Mapping[str, float], least: float) -> None:
    for name, param in model.named_parameters():
        if scales[name] < least:
            param.requires_grad_(False)


def _own_lr(cls: type[Optimizer], options: dict[str, Any]) -> float | None:
    """The learning rate an optimizer would start with; for a named matrix, as some need."""
    lr: float | None = dummy(cls, options).defaults["lr"]
    return lr


# What transformers leaves out of weight decay ("LayerNorm", "layer_norm", "bias"), in the spellings of PyTorch models:
# input_layernorm, final_norm, ln_f.
_NOT_DECAYED = ("(?i)norm", r"(^|\.)ln_", "bias")


def create_optimizer(
    model_or_params: nn.Module | ParamsT,
    init_lr: float,
    num_train_steps: int,
    num_warmup_steps: int,
    min_lr_ratio: float = 0.0,
    adam_beta1: float = 0.9,
    adam_beta2: float = 0.999,
    adam_epsilon: float = 1e-8,
    adam_clipnorm: float | None = None,
    adam_global_clipnorm: float | None = None,
    weight_decay_rate: float = 0.0,
    power: float = 1.0,
    include_in_weight_decay: list[str] | None = None,
) -> tuple[AdamWeightDecay, LRScheduler]:
    """Adam with weight decay and a schedule of warm-up and decay: transformers' TensorFlow function in PyTorch.

    The learning rate at step t, with w warm-up steps out of n and e = init_lr min_lr_ratio:

        init_lr t / w                                          for t < w
        e + (init_lr - e) (1 - (t - w) / (n - w))^power        up to n, then e

    Args:
        model_or_params: a model, or named parameters; plain parameters only without weight decay.
        init_lr: learning rate after warm-up.
        num_train_steps: optimizer steps in all.
        num_warmup_steps: optimizer steps of warm-up, at most num_train_steps.
        min_lr_ratio (default 0.0): last learning rate, as a share of init_lr.
        adam_beta1 (0.9), adam_beta2 (0.999), adam_epsilon (1e-8): Adam's.
        adam_clipnorm (None): largest norm of each gradient.
        adam_global_clipnorm (None): largest norm of all gradients together.
        weight_decay_rate (0.0): decoupled weight decay of everything but biases and norms.
        power (1.0): of the decay; 1 is linear.
        include_in_weight_decay (None): regular expressions of names to decay all the same.

    Returns:
        (optimizer, schedule), ready for `Trainer(optimizers=...)`.

    Raises:
        ValueError: a value out of range, more warm-up than steps, or weight decay without names.

    Source:
        transformers 4.34, `optimization_tf.create_optimizer`.
    """
    init_lr, min_lr_ratio = number("init_lr", init_lr), number("min_lr_ratio", min_lr_ratio)
    weight_decay_rate = number("weight_decay_rate", weight_decay_rate)
    num_train_steps = integer("num_train_steps", num_train_steps, 0)
    num_warmup_steps = integer("num_warmup_steps", num_warmup_steps, 0)
    if num_warmup_steps > num_train_steps:
        raise ValueError(f"num_warmup_steps={num_warmup_steps} is more than num_train_steps={num_train_steps}")
    from hfoptim.optimizers.adam_weight_decay import AdamWeightDecay

    optimizer = AdamWeightDecay(
        model_or_params,
        learning_rate=init_lr,
        beta_1=adam_beta1,
        beta_2=adam_beta2,
        epsilon=adam_epsilon,
        weight_decay_rate=weight_decay_rate,
        include_in_weight_decay=include_in_weight_decay if weight_decay_rate else None,
        exclude_from_weight_decay=_NOT_DECAYED if weight_decay_rate else None,
        clipnorm=adam_clipnorm,
        global_clipnorm=adam_global_clipnorm,
    )
    curve: Any = schedules.PolynomialDecay(
        initial_learning_rate=init_lr,
        decay_steps=num_train_steps - num_warmup_steps,
        end_learning_rate=init_lr * min_lr_ratio,
        power=power,
    )
    if num_warmup_steps:
        curve = schedules.WarmUp(init_lr, curve, num_warmup_steps)
    return optimizer, curve.scheduler(optimizer)
