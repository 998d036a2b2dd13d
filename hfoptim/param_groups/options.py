"""Which parameters get other options than the rest, or another optimizer: by layer, by head, by name."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any, NamedTuple

from torch import nn

from hfoptim.engine.checks import learning_rate, number
from hfoptim.engine.parameter_names import bare_names_of, matched
from hfoptim.param_groups.group_matcher import GroupMatcher, check_matcher
from hfoptim.param_groups.mup import Scales, check_mup
from hfoptim.param_groups.selection import ParamGroups, decayed_names, head_names, layer_scales

OPTIONS = ("layer_decay", "head_lr", "param_options", "group_matcher", "mup")


class Base(NamedTuple):
    """What an optimizer gives parameters that nothing more is said about.

    Args:
        lr: learning rate; None if the optimizer sets its own.
        weight_decay: of the parameters that get any; None if the optimizer has none.
        eps: its eps, where that is one number; None where it is not.
    """

    lr: Any
    weight_decay: float | None
    eps: float | None = None


def check_patterns(param_options: Any) -> None:
    """Raise unless `param_options` is a mapping from patterns to options.

    Raises:
        TypeError: it is not.
        ValueError: a pattern has no options.
    """
    if not isinstance(param_options, Mapping):
        raise TypeError(
            f"param_options={param_options!r} is a {type(param_options).__name__}, expected a mapping such as "
            f"{{'lm_head.*': {{'lr': 1e-3}}}}"
        )
    for pattern, options in param_options.items():
        where = f"param_options[{pattern!r}]"
        if not isinstance(pattern, str) or not isinstance(options, Mapping):
            raise TypeError(f"{where}={options!r}, expected a pattern of names and a mapping such as {{'lr': 1e-3}}")
        if not options:
            raise ValueError(f"{where} is empty, expected options such as {{'lr': 1e-3}}")


@dataclass(frozen=True)
class Grouping:
    """How the parameters of a model differ in their options.

    A parameter's learning rate is the first of these that is there: `lr` of its pattern; `head_lr` if it is the head's;
    its optimizer's, times layer_decay ^ (layers above it). `lr_scale` of its pattern and `mup` multiply the last two.
    Its weight decay is that of its pattern; else its optimizer's, times that of `mup`, or none for biases, norms and
    others that get none.

    Args:
        layer_decay (default None): factor per layer from the top down, in (0, 1].
        head_lr (None): learning rate of the head, >= 0; see `hfoptim.param_groups.head_names`.
        param_options ({}): for patterns of parameter names, with the wildcards `*`, `?` and `[...]`, what the
            parameters get: any option of the optimizer that may differ between groups, `lr_scale` (>= 0) in place of
            `lr`, and `optimizer`, the name of another optimizer. The first pattern that matches a name decides alone.
        group_matcher (None): which layer a parameter is of, for `layer_decay`, where the modules do not tell: regular
            expressions as timm's models have them, or a function from a name to a number; see
            `param_groups.group_matcher.matched_layers`. Without it, see `param_groups.layers.layer_places`.
        mup (None): the width of the model from which learning rates are taken over, `{"base": 256}`, and the other
            arguments of `param_groups.mup.MuP`.
        min_scale (0.0): least factor by layer.

    Raises:
        TypeError: `param_options` is no mapping of mappings, or a value is of the wrong type.
        ValueError: a number out of range, a pattern with nothing, or with both `lr` and `lr_scale`, or a
            `group_matcher` without `layer_decay`.
    """

    layer_decay: float | None = None
    head_lr: float | None = None
    param_options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    group_matcher: GroupMatcher | None = None
    mup: Mapping[str, Any] | None = None
    min_scale: float = 0.0

    def __post_init__(self) -> None:
        set_plain = functools.partial(object.__setattr__, self)
        if self.layer_decay is not None:
            set_plain("layer_decay", number("layer_decay", self.layer_decay, 0.0, 1.0, high_open=False))
        if self.layer_decay == 0.0:
            raise ValueError("layer_decay=0 would freeze all layers but the last, expected a number in (0, 1]")
        if self.head_lr is not None:
            set_plain("head_lr", number("head_lr", self.head_lr))
        if self.group_matcher is not None:
            check_matcher(self.group_matcher)
            if self.layer_decay is None:
                raise ValueError(
                    "group_matcher says which layer a parameter is of, for layer_decay, which is not given"
                )
        if self.mup is not None:
            check_mup(self.mup)
        check_patterns(self.param_options)
        patterns = {pattern: dict(options) for pattern, options in self.param_options.items()}
        set_plain("param_options", patterns)
        for pattern, options in patterns.items():
            where = f"param_options[{pattern!r}]"
            if "lr" in options and "lr_scale" in options:
                raise ValueError(
                    f"{where} has lr={options['lr']!r} and lr_scale={options['lr_scale']!r}; give one of them"
                )
            if options.get("lr") is not None:
                options["lr"] = learning_rate(f"{where}: lr", options["lr"])
            if options.get("lr_scale") is not None:
                options["lr_scale"] = number(f"{where}: lr_scale", options["lr_scale"])

    def __bool__(self) -> bool:
        return bool(self.given)

    @property
    def given(self) -> dict[str, Any]:
        """What was given, by option."""
        return {option: value for option in OPTIONS if (value := getattr(self, option)) not in (None, {})}

    @property
    def others(self) -> list[str]:
        """The names of the optimizers that patterns give their parameters to."""
        return list(dict.fromkeys(o["optimizer"] for o in self.param_options.values() if "optimizer" in o))

    def divide(self, model: nn.Module, decayed: Collection[str], bases: Mapping[str, Base]) -> dict[str, ParamGroups]:
        """The parameter groups of a model.

        Args:
            model: its trainable parameters are grouped, each once.
            decayed: the names of the parameters that get weight decay where no pattern says so.
            bases: the optimizers by name, the main one first.

        Returns:
            Groups with named parameters for each of the optimizers; none for one without parameters. First come those
            without a pattern, the head's after the others, and higher layers before lower ones: the first group is of
            the layer whose learning rate is not scaled. Where it is, `lr_scale` says by how much.

        Raises:
            ValueError: a pattern decides nothing, or there is no head.
        """
        trained = [(name, param) for name, param in model.named_parameters() if param.requires_grad]
        deciding = self._deciding(model, [name for name, _ in trained])
        heads = set() if self.head_lr is None else self._heads(model)
        scales = {} if self.layer_decay is None else self._layer_scales(model)
        by_width = {} if self.mup is None else check_mup(self.mup).scales(model)
        main, places = next(iter(bases)), {name: place for place, name in enumerate(bases)}
        ranks = {pattern: rank for rank, pattern in enumerate(self.param_options)}
        found: dict[tuple[Any, ...], tuple[str, dict[str, Any]]] = {}
        for name, param in trained:
            pattern = deciding.get(name)
            options = {} if pattern is None else dict(self.param_options[pattern])
            optimizer = options.pop("optimizer", main)
            both = scales.get(name), by_width.get(name)
            group = self._options(options, bases[optimizer], name in decayed, name in heads, *both)
            rank = -1 if pattern is None else ranks[pattern]
            key = (
                *(places[optimizer], rank, name in heads, -group.get("lr_scale", 1.0)),
                -group.get("weight_decay", 0.0),
                -(by_width[name].eps if by_width else 1.0),
            )
            found.setdefault(key, (optimizer, {"params": [], **group}))[1]["params"].append((name, param))
        divided: dict[str, ParamGroups] = {name: [] for name in bases}
        for _, (optimizer, group) in sorted(found.items(), key=lambda item: item[0]):
            divided[optimizer].append(group)
        return divided

    def _layer_scales(self, model: nn.Module) -> dict[str, float]:
        decay = self.layer_decay
        return {} if decay is None else layer_scales(model, decay, self.min_scale, self.group_matcher)

    def _options(
        self,
        options: dict[str, Any],
        base: Base,
        decayed: bool,
        head: bool,
        layer_scale: float | None,
        by_width: Scales | None,
    ) -> dict[str, Any]:
        """The options of a parameter's group, from those of its pattern."""
        group = dict(options)
        own = [group.pop("lr_scale", None), None if by_width is None else by_width.lr]
        given = [scale for scale in (*own, None if head else layer_scale) if scale is not None]
        if "lr" not in group and (head or given):
            scale = math.prod(given)
            group["lr"] = (self.head_lr if head else base.lr) * scale
            if not head:
                group["lr_scale"] = scale
        by_width = by_width or Scales()
        if base.weight_decay is not None:
            group.setdefault("weight_decay", base.weight_decay * by_width.weight_decay if decayed else 0.0)
        if base.eps is not None and by_width.eps != 1.0:
            group.setdefault("eps", base.eps * by_width.eps)
        return group

    def _deciding(self, model: nn.Module, trained: list[str]) -> dict[str, str]:
        """For every name that a pattern matches, the pattern that decides."""
        deciding: dict[str, str] = {}
        short = bare_names_of(model)
        for pattern in self.param_options:
            found = matched(pattern, {name: short[name] for name in trained})
            if not found:
                raise ValueError(f"param_options[{pattern!r}] matches no parameter: {_why_nothing(pattern, model)}")
            left = [name for name in found if name not in deciding]
            if not left:
                earlier = " and ".join(dict.fromkeys(repr(deciding[name]) for name in found))
                raise ValueError(
                    f"param_options[{pattern!r}] decides nothing: what it matches is matched by {earlier} before it, "
                    f"and the first pattern decides; put it first"
                )
            deciding.update(dict.fromkeys(left, pattern))
        return deciding

    def _heads(self, model: nn.Module) -> set[str]:
        heads = head_names(model)
        trained = {name for name, param in model.named_parameters() if param.requires_grad}
        if not heads:
            ties = _ties(model)
            tied = f"; {', '.join(f'{name} is tied to {own}' for name, own in ties.items())}" if ties else ""
            raise ValueError(
                f"head_lr={self.head_lr!r}: {type(model).__name__} has no head that could be told from the rest{tied}; "
                f"name the parameters with param_options"
            )
        if not trained & set(heads):
            raise ValueError(f"head_lr={self.head_lr!r}: the head is frozen ({', '.join(heads[:3])})")
        return set(heads)


def param_groups_options(
    model: nn.Module,
    lr: float,
    weight_decay: float = 0.0,
    no_weight_decay_list: Iterable[str] = (),
    layer_decay: float | None = None,
    head_lr: float | None = None,
    param_options: Mapping[str, Mapping[str, Any]] | None = None,
    group_matcher: GroupMatcher | None = None,
) -> ParamGroups:
    """Groups with learning rates and other options by layer, by head and by parameter name, for any torch optimizer.

    The groups that `create_optimizer_v2` and the Trainer make, for an optimizer that one makes by oneself:
    `torch.optim.AdamW(param_groups_options(model, lr=1e-3, head_lr=1e-2), lr=1e-3)`.

    Args:
        model: its trainable parameters are grouped, each once.
        lr: learning rate of the parameters that nothing else is said about.
        weight_decay (default 0.0): of matrices and higher; not of biases, norms and other vectors.
        no_weight_decay_list (()): names or wildcard patterns of further parameters without decay.
        layer_decay (None): factor of lr per layer from the top down, in (0, 1].
        head_lr (None): learning rate of the model's head.
        param_options (None): for patterns of names with shell wildcards, the options of their parameters, which go into
            the groups as they are; `lr_scale` multiplies the learning rate. The first pattern that matches decides.
        group_matcher (None): which layer a parameter is of, for `layer_decay`, see `Grouping`.

    Returns:
        Parameter groups with named parameters, the unscaled learning rate first. Where a learning rate was scaled its
        group has `lr_scale` too, by which timm's own schedulers would multiply once more; those of `schedules` do not.

    Raises:
        ValueError: a number out of range, a pattern that matches nothing or names another optimizer, or no head.
        TypeError: a value of the wrong type.
    """
    base = Base(number("lr", lr), number("weight_decay", weight_decay))
    grouping = Grouping(layer_decay, head_lr, param_options or {}, group_matcher)
    if grouping.others:
        raise ValueError(
            f"param_options names the optimizer {grouping.others[0]!r}, and parameter groups are for one; use "
            f"create_optimizer_v2, or CombinedOptimizer with groups of your own"
        )
    groups = grouping.divide(model, decayed_names(model, no_weight_decay_list), {"": base})[""]
    return [{"lr": base.lr, **group} for group in groups]


def _ties(model: nn.Module) -> dict[str, str]:
    """Other names of parameters that are found at several places, with the name under which they are grouped."""
    own = {id(param): name for name, param in model.named_parameters()}
    everywhere, short = model.named_parameters(remove_duplicate=False), bare_names_of(model)
    return {name: own[id(param)] for name, param in everywhere if short[own[id(param)]] != short[name]}


def _why_nothing(pattern: str, model: nn.Module) -> str:
    short, ties = bare_names_of(model), _ties(model)
    frozen = matched(pattern, {name: short[name] for name, _ in model.named_parameters()})
    if frozen:
        return f"{frozen[0]} is frozen"
    tied = matched(pattern, {name: short[name] for name in ties})
    if tied:
        return ", ".join(f"{name} is tied to {ties[name]}, write that name" for name in tied)
    names = [short[name] for name, _ in model.named_parameters()]
    near = get_close_matches(pattern, names, n=3, cutoff=0.6)
    if near:
        return f"did you mean {' or '.join(map(repr, near))}?"
    words = {word for name in (*names, *(short[name] for name in ties)) for word in name.split(".")}
    for word in re.split(r"[.*?\[\]!]+", pattern):
        near = [] if not word or word in words else get_close_matches(word, words, n=3, cutoff=0.6)
        if near:
            return f"no name has {word!r}, did you mean {' or '.join(map(repr, near))}?"
    return f"names are such as {', '.join(map(repr, names[:3]))}"
