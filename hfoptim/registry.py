"""Names to optimizers: list them, look them up, create them."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable, Iterable, Mapping
from fnmatch import fnmatch
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.optim.optimizer import ParamsT

import schedules
from hfoptim.catalogue import ENTRIES, WRAPPERS, OptimInfo
from hfoptim.engine import ENGINE_DEFAULTS, RuleOptimizer
from hfoptim.engine.checks import closest
from hfoptim.optimizers import AdamWeightDecay
from hfoptim.param_groups import param_groups_layer_decay, param_groups_weight_decay, split_hidden_matrices
from hfoptim.wrappers import around


def _key(name: str) -> str:
    return name.lower().replace("-", "").replace("_", "")


_INFOS = {info.name: info for info in ENTRIES}
_NAMES = {_key(alias): info.name for info in ENTRIES for alias in (info.name, *info.aliases)}
# What may stand in front of a name.
_WRAPPERS = {info.name: info for info in WRAPPERS}


def canonical_name(name: str) -> str:
    """The registry's spelling of a name given in any case, with `-`, `_` or neither.

    Raises:
        TypeError: not a string.
        ValueError: unknown; the message has the closest names.
    """
    if not isinstance(name, str):
        raise TypeError(f"optimizer name {name!r} is a {type(name).__name__}, expected a string such as 'adamw'")
    key, known = _key(name), [*_INFOS, *_aliases()]
    if key in _NAMES:
        return _NAMES[key]
    for prefix in _WRAPPERS:
        if key.removeprefix(prefix) in _NAMES:
            return f"{prefix}_{_NAMES[key.removeprefix(prefix)]}"
        if key == prefix:
            raise ValueError(f"{name!r} goes around another optimizer; write its name behind: '{prefix}_sgd'")
        if key.startswith(prefix):
            known = [f"{prefix}_{inner}" for inner in known]
    raise ValueError(f"unknown optimizer {name!r}; {closest(name.lower(), known)}")


def _aliases() -> list[str]:
    return [alias for info in ENTRIES for alias in info.aliases]


def get_optimizer_info(name: str) -> OptimInfo:
    """The registry's entry for a name.

    Raises:
        ValueError: unknown name; the message has the closest ones.
    """
    name = canonical_name(name)
    return _INFOS[name] if name in _INFOS else _wrapped(*name.split("_", 1))


@functools.cache
def _wrapped(prefix: str, name: str) -> OptimInfo:
    """The entry of an optimizer with another one around it."""
    info, around_it = _INFOS[name], _WRAPPERS[prefix]
    return dataclasses.replace(
        info,
        name=f"{prefix}_{name}",
        opt_class=around(around_it.wrapper, info.opt_class),
        description=f"{around_it.wrapper.__name__} around {name}: {around_it.description}",
        source=around_it.source,
        aliases=(),
        needs_closure=info.needs_closure or around_it.needs_closure,
    )


def _engine_class(opt_class: type[Optimizer]) -> type[RuleOptimizer] | None:
    """The class that runs on the engine: this one, or the one inside it; None for an optimizer of torch's."""
    inner: type[Optimizer] = getattr(opt_class, "inner", opt_class)
    return inner if issubclass(inner, RuleOptimizer) else None


def list_optimizers(
    filter: str | list[str] = "", exclude_filters: list[str] | None = None, with_description: bool = False
) -> list[str] | list[tuple[str, str]]:
    """Names of the optimizers there are, sorted.

    Args:
        filter (default ""): a pattern or several, with the wildcards `*`, `?`, `[...]`; one without wildcards matches
            every name that contains it. Empty: all.
        exclude_filters (None): patterns of names to leave out.
        with_description (False): give (name, description) pairs.

    Returns:
        The names, or pairs.
    """
    include = [filter] if isinstance(filter, str) else list(filter) or [""]
    names = [name for name in sorted(_INFOS) if any(_matches(name, pattern) for pattern in include)]
    names = [name for name in names if not any(_matches(name, pattern) for pattern in exclude_filters or ())]
    return [(name, _INFOS[name].description) for name in names] if with_description else names


def _matches(name: str, pattern: str) -> bool:
    pattern = pattern.lower().replace("-", "_")
    return fnmatch(name, pattern) if set(pattern) & set("*?[") else pattern in name


def get_optimizer_class(name: str, bind_defaults: bool = True) -> type[Optimizer] | functools.partial[Optimizer]:
    """The class of an optimizer.

    Args:
        name: its name.
        bind_defaults (default True): give a partial with the arguments that the name stands for ("sgd": momentum 0.9,
            nesterov), where there are any.

    Returns:
        The class, or a partial of it.

    Raises:
        ValueError: unknown name; the message has the closest ones.
    """
    info = get_optimizer_info(name)
    return functools.partial(info.opt_class, **info.defaults) if bind_defaults and info.defaults else info.opt_class


def option_names(name: str) -> list[str]:
    """The options an optimizer takes, its own first, then the engine's, where it runs on that."""
    opt_class = get_optimizer_info(name).opt_class
    parameters = inspect.signature(opt_class).parameters.values()
    own = [p.name for p in parameters if p.name != "params" and p.kind is not p.VAR_KEYWORD]
    return [*own, *ENGINE_DEFAULTS] if _engine_class(opt_class) else own


def check_options(name: str, options: Mapping[str, Any]) -> None:
    """Check that an optimizer takes all the options given.

    Raises:
        ValueError: it does not; the message names the option and the closest ones.
    """
    known = option_names(name)
    for option in options:
        if option not in known:
            raise ValueError(f"{canonical_name(name)} has no option {option!r}; {closest(option, known)}")


def resolve_options(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments to construct an optimizer with that is chosen by name: the name's own, then the given ones.

    Raises:
        ValueError: unknown name or option.
    """
    info = get_optimizer_info(name)
    check_options(name, options)
    engine_class = _engine_class(info.opt_class)
    following = engine_class.defaults_by_name(options) if engine_class else {}
    return {**info.defaults, **following, **options}


def create_optimizer_v2(
    model_or_params: nn.Module | ParamsT,
    opt: str = "sgd",
    lr: float | None = None,
    weight_decay: float = 0.0,
    momentum: float | None = None,
    foreach: bool | None = None,
    filter_bias_and_bn: bool = True,
    layer_decay: float | None = None,
    param_group_fn: Callable[[nn.Module], Iterable[Any]] | None = None,
    **kwargs: Any,
) -> Optimizer:
    """Create an optimizer by name, for a model or for parameters. The signature is timm's.

    Parameters of a model are grouped by the first of these that applies: `param_group_fn`; `layer_decay`;
    `weight_decay` with `filter_bias_and_bn`; else one group. For an optimizer of hidden matrices such as Muon each of
    these groups, but not those of `param_group_fn`, is divided by `use_muon`.

    Args:
        model_or_params: a model, or parameters, named parameters or parameter groups, which are used as they are.
        opt (default "sgd"): the optimizer's name.
        lr (None): learning rate; None takes the optimizer's own default.
        weight_decay (0.0): weight decay.
        momentum (None): for optimizers that have one, ignored by others. None takes the optimizer's own default, or
            0.9 where that is 0.
        foreach (None): engine option, see `RuleOptimizer`.
        filter_bias_and_bn (True): biases, norms and other vectors of a model are not decayed.
        layer_decay (None): learning rates of a model shrink by this factor with every layer from the top down.
        param_group_fn (None): makes the parameter groups from the model.
        **kwargs: further options of the optimizer, checked against its signature.

    Returns:
        The optimizer.

    Raises:
        ValueError: unknown name or option, a value out of range, or no parameters.

    Source:
        timm 1.0, `timm.optim.create_optimizer_v2`.
    """
    info, known = get_optimizer_info(opt), option_names(opt)
    cls = info.opt_class
    given = {"lr": lr, "foreach": foreach}
    options: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    if weight_decay or "weight_decay" in known:
        options["weight_decay"] = weight_decay
    if "momentum" in known:
        own = inspect.signature(cls).parameters["momentum"].default
        options["momentum"] = momentum if momentum is not None else own or 0.9
    options = resolve_options(opt, {**options, **kwargs})
    params: Any = model_or_params
    if isinstance(model_or_params, nn.Module):
        model = model_or_params
        if param_group_fn is not None:
            params = param_group_fn(model)
        elif layer_decay is not None:
            top = _own_lr(cls, options)
            if top is None:
                raise ValueError(f"layer_decay={layer_decay!r} scales a learning rate, and {opt} sets its own; give lr")
            params = param_groups_layer_decay(model, weight_decay, (), filter_bias_and_bn, layer_decay, top)
        elif weight_decay and filter_bias_and_bn:
            params = param_groups_weight_decay(model, weight_decay)
        else:
            params = [(name, param) for name, param in model.named_parameters() if param.requires_grad]
        if info.hidden_matrices and param_group_fn is None:
            grouped = all(isinstance(entry, dict) for entry in params)
            params = split_hidden_matrices(model, params if grouped else [{"params": params}])
    create: Callable[..., Optimizer] = cls
    return create(params, **options)


def _own_lr(cls: Callable[..., Optimizer], options: dict[str, Any]) -> float | None:
    """The learning rate an optimizer would start with; for a named matrix, as some need."""
    lr: float | None = cls([("weight", nn.Parameter(torch.zeros(2, 2)))], **options).defaults["lr"]
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
    if num_warmup_steps > num_train_steps:
        raise ValueError(f"num_warmup_steps={num_warmup_steps} is more than num_train_steps={num_train_steps}")
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
