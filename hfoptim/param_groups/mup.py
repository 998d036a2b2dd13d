"""muP and CompleteP: learning rates, weight decay and eps of a large model, from the best ones of a small model."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import nn

from hfoptim.engine.checks import choice, flag, integer, number
from hfoptim.engine.parameter_names import bare_names_of
from hfoptim.param_groups.selection import ParamGroups, decayed_names, head_names, reasons_against, tied_ids

_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")
RULES = ("adam", "sgd")


class Scales(NamedTuple):
    """What the hyper-parameters of a parameter are multiplied by.

    Args:
        lr: its learning rate.
        weight_decay: its weight decay.
        eps: its eps.
    """

    lr: float = 1.0
    weight_decay: float = 1.0
    eps: float = 1.0


class _Shape(NamedTuple):
    """How a parameter grows with the width.

    Args:
        ninf: in how many of its dimensions.
        fan_in: the multiple of the base model's width on the side that is summed over, or on the only one.
        fan_out: that on the other side.
        readout: whether it makes outputs of a size that is not a width: of the language model's and other heads.
    """

    ninf: int
    fan_in: float = 1.0
    fan_out: float = 1.0
    readout: bool = False


@dataclass(frozen=True)
class MuP:
    """From which model to which hyper-parameters are taken over.

    Args:
        base: the width of the base model, or the base model itself, which may be on the device "meta".
        base_depth (default None): its number of blocks, for CompleteP; None: muP alone.
        rule ("adam"): of the optimizer: "adam" for all that normalise the gradient entry by entry, "sgd".
        output_multiplier (False): whether the model divides its outputs by the multiple of the width.
        depth_alpha (1.0): alpha, by which the model multiplies what its blocks add: (blocks / base_depth)^-alpha.

    Raises:
        TypeError, ValueError: a value of the wrong type or out of range.
    """

    base: int | nn.Module
    base_depth: int | None = None
    rule: str = "adam"
    output_multiplier: bool = False
    depth_alpha: float = 1.0

    def __post_init__(self) -> None:
        if not isinstance(self.base, nn.Module):
            object.__setattr__(self, "base", integer("base", self.base, 1))
        if self.base_depth is not None:
            object.__setattr__(self, "base_depth", integer("base_depth", self.base_depth, 1))
        choice("rule", self.rule, RULES)
        flag("output_multiplier", self.output_multiplier)
        object.__setattr__(self, "depth_alpha", number("depth_alpha", self.depth_alpha, 0.0, 1.0, high_open=False))
        if self.base_depth is not None and self.rule != "adam":
            raise ValueError(f"base_depth={self.base_depth} is CompleteP's, whose rules are Adam's; leave it out")

    def scales(self, model: nn.Module) -> dict[str, Scales]:
        """What the hyper-parameters of every parameter are multiplied by, by name."""
        shapes, width = self._shapes(model)
        depth = 1.0 if self.base_depth is None else _config(model, "num_hidden_layers", "base_depth") / self.base_depth
        eps = 1.0 if self.base_depth is None else 1.0 / width
        blocks = depth ** (self.depth_alpha - 1.0)
        short = bare_names_of(model)
        found = {}
        for name, shape in shapes.items():
            lr, decay = self._width_rule(shape)
            inside = _NUMBER.search(short[name])
            found[name] = (
                Scales(lr * blocks, decay, eps * depth**-self.depth_alpha) if inside else Scales(lr, decay, eps)
            )
        return found

    def _width_rule(self, shape: _Shape) -> tuple[float, float]:
        """(learning rate, weight decay): their product with the size of an update is that of the base model."""
        if shape.readout and not self.output_multiplier:
            rate = 1.0 / shape.fan_in
        elif self.rule == "adam":
            rate = 1.0 / shape.fan_in if shape.ninf == 2 else 1.0
        else:
            rate = {0: 1.0, 1: shape.fan_in, 2: shape.fan_out / shape.fan_in}[shape.ninf]
        return rate, 1.0 / rate

    def _shapes(self, model: nn.Module) -> tuple[dict[str, _Shape], float]:
        """How every parameter grows, and the multiple of the width."""
        heads, against = set(head_names(model)), reasons_against(model)
        tied = tied_ids(model)
        output = getattr(model, "get_output_embeddings", lambda: None)()
        makes_logits = {id(param) for param in output.parameters()} if isinstance(output, nn.Module) else set()
        params = dict(model.named_parameters())
        outputs = {name for name, param in params.items() if id(param) in makes_logits} | heads
        readouts = {name for name in outputs if params[name].ndim > 1}
        shared = sorted(name for name in readouts if id(params[name]) in tied)
        if shared and not self.output_multiplier:
            raise ValueError(
                f"{shared[0]} is an embedding and makes the logits, and the two want other learning rates; divide the "
                f"logits by the multiple of the width and give output_multiplier=True, or untie them"
            )
        if isinstance(self.base, nn.Module):
            return self._by_base_model(model, self.base, readouts)
        width = _config(model, "hidden_size", "base") / self.base
        return {
            name: _Shape(2, width, width)
            if name not in against
            else _Shape(0 if name in heads and param.ndim < 2 else 1, width, 1.0, name in readouts)
            for name, param in params.items()
        }, width

    def _by_base_model(self, model: nn.Module, base: nn.Module, readouts: set[str]) -> tuple[dict[str, _Shape], float]:
        short, names = bare_names_of(model), bare_names_of(base)
        shapes = {names[name]: tuple(param.shape) for name, param in base.named_parameters()}
        alike: dict[str, set[tuple[int, ...]]] = {}
        for name, shape in shapes.items():
            alike.setdefault(_NUMBER.sub("*", name), set()).add(shape)
        owners = {id(param): module for module in model.modules() for param in module.parameters(recurse=False)}
        found, widths = {}, set()
        for name, param in model.named_parameters():
            own = shapes.get(short[name])
            others = alike.get(_NUMBER.sub("*", short[name]), set())
            if own is None and len(others) == 1:  # of a block that the base model is too low to have
                (own,) = others
            if own is None or len(own) != param.ndim:
                raise ValueError(f"the base model has no parameter {short[name]!r} of {param.ndim} dimensions")
            grown = [place for place, (size, before) in enumerate(zip(param.shape, own, strict=True)) if size != before]
            if len(grown) > 2:
                raise ValueError(f"{name} grows in {len(grown)} dimensions, from {own} to {tuple(param.shape)}")
            multiples = [param.shape[place] / own[place] for place in grown]
            if type(owners[id(param)]).__name__ == "Conv1D":  # of GPT-2, with the inputs in rows
                multiples.reverse()
            fan_in = multiples[-1] if multiples else 1.0
            readout = name in readouts and len(grown) == 1
            found[name] = _Shape(len(grown), fan_in, multiples[0] if multiples else 1.0, readout)
            widths.add(fan_in)
        widths.discard(1.0)
        if not widths:
            raise ValueError("the model is as wide as the base model: no shape differs")
        return found, max(widths)


def _config(model: nn.Module, name: str, argument: str) -> int:
    """A number of a model's configuration."""
    value = getattr(getattr(model, "config", None), name, None)
    if not isinstance(value, int):
        raise ValueError(
            f"{argument} needs model.config.{name}, which {type(model).__name__} does not have"
            + ("; give the base model itself" if name == "hidden_size" else "")
        )
    return value


def param_groups_mup(
    model: nn.Module,
    base: int | nn.Module,
    lr: float,
    weight_decay: float = 0.0,
    no_weight_decay_list: Iterable[str] = (),
    *,
    rule: str = "adam",
    output_multiplier: bool = False,
    base_depth: int | None = None,
    depth_alpha: float = 1.0,
    eps: float | None = None,
) -> ParamGroups:
    """Groups for muP and CompleteP: the learning rate that was best for a small model is that of a wide or deep one.

    With m the multiple of the base model's width, on the side of a matrix that is summed over, and o on the other:

        Adam    matrices inside the network  lr / m        weight decay m
        SGD     matrices inside the network  lr o / m      weight decay m / o
                embeddings, vectors          lr m          weight decay / m
        both    the head                     lr / m        weight decay m     (Table 3 of the paper)
        all others                           as they are

    With `output_multiplier` the head is as an embedding, which is what the package mup does (Table 8).

    CompleteP (`base_depth`), with d = blocks / base_depth: what is in blocks has lr d^(alpha - 1), which is lr with
    alpha = 1, and eps d^-alpha / m; all others have eps / m (Equation 40 of the paper).

    The rates are half of it. The model's own half: matrices inside the network begin with a variance in proportion to
    1 / m, the head with 1 / m^2 (or at zero; with `output_multiplier` as in the base model, and the outputs divided by
    m); attention divides by the size of a head, not its root, if that grows; with CompleteP what every block adds is
    multiplied by d^-alpha.

    By name and in the Trainer, `mup={"base": 256}` says the same, with these arguments as further entries.

    Args:
        model: its trainable parameters are grouped, each once.
        base: the width of the base model (of `model.config.hidden_size`; matrices, heads and embeddings are told apart
            by module and name, and all widths grow alike), or the base model, made like this one but narrow, which says
            by its shapes what grows. It may be on the device "meta".
        lr: learning rate, the base model's.
        weight_decay (default 0.0): of matrices and higher; not of biases, norms and other vectors.
        no_weight_decay_list (()): names or wildcard patterns of further parameters without decay.
        rule ("adam"): "adam", also for Lion, AdamW and all others that normalise each entry; or "sgd".
        output_multiplier (False): the model divides its outputs by m. Tied embeddings need it.
        base_depth (None): blocks of the base model, for CompleteP, which needs `model.config.num_hidden_layers`.
        depth_alpha (1.0): alpha, CompleteP's; 0.5 is that of Depth-muP.
        eps (None): the base model's, which CompleteP scales; needed with `base_depth`.

    Returns:
        Parameter groups with named parameters, `lr`, `weight_decay` and, for CompleteP, `eps`; where the learning rate
        is scaled with `lr_scale`. The unscaled ones come first.

    Raises:
        ValueError: a number out of range, a width or a depth that is not known, tied embeddings without
            `output_multiplier`, or a base model that does not fit.
        TypeError: a value of the wrong type.

    Source:
        Tensor Programs V, https://arxiv.org/abs/2203.03466; CompleteP, https://arxiv.org/abs/2505.01618; the packages
        microsoft/mup and EleutherAI/nanoGPT-mup.
    """
    rate, decay = number("lr", lr), number("weight_decay", weight_decay)
    if (eps is None) != (base_depth is None):
        raise ValueError("eps and base_depth go together: CompleteP scales the eps of the base model")
    scales = MuP(base, base_depth, rule, output_multiplier, depth_alpha).scales(model)
    decayed = decayed_names(model, no_weight_decay_list)
    found: dict[tuple[float, float, float], dict[str, Any]] = {}
    for name, param in model.named_parameters():
        if not param.requires_grad:
            continue
        scale = scales[name]
        own = decay * scale.weight_decay if name in decayed else 0.0
        group = {"params": [], "lr": rate * scale.lr, "weight_decay": own}
        group |= {} if scale.lr == 1.0 else {"lr_scale": scale.lr}
        group |= {} if eps is None else {"eps": number("eps", eps) * scale.eps}
        found.setdefault((scale.lr, own, scale.eps), group)["params"].append((name, param))
    return [group for _, group in sorted(found.items(), key=lambda item: (item[0][0] != 1.0, item[0]))]


def check_mup(given: Any) -> MuP:
    """What the option `mup` says.

    Raises:
        TypeError, ValueError: it is no mapping of the arguments of `MuP`, or has a wrong value.
    """
    if not isinstance(given, Mapping):
        raise TypeError(f"mup={given!r} is a {type(given).__name__}, expected a mapping such as {{'base': 256}}")
    known = list(MuP.__dataclass_fields__)
    for key in given:
        if key not in known:
            raise ValueError(f"mup has no entry {key!r}; known are {', '.join(known)}")
    if "base" not in given:
        raise ValueError(f"mup={given!r} has no base; write {{'base': 256}} with the width of the base model")
    return MuP(**given)
