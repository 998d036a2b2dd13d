"""The catalogue as a table: one entry for every name an optimizer can be chosen by."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch.optim import LBFGS, Optimizer

from hfoptim.optimizers import (
    SGD,
    Adafactor,
    Adagrad,
    Adahessian,
    Adam,
    AdamMini,
    AdamW,
    AdamWeightDecay,
    AdamWScheduleFree,
    Adan,
    AdEMAMix,
    Adopt,
    Lamb,
    Lars,
    Lion,
    Muon,
    NvNovoGrad,
    Prodigy,
)
from hfoptim.wrappers import SAM, Lookahead, Wrapper


@dataclass(frozen=True)
class OptimInfo:
    """What the registry knows of an optimizer.

    Args:
        name: canonical name.
        opt_class: its class.
        description: one line.
        source: where the algorithm is published.
        defaults: arguments bound to this name that differ from the class's own defaults.
        aliases: other names it answers to.
        hidden_matrices: whether it treats the matrices inside a network unlike its other parameters, and is to be told
            which they are by a group's `use_muon`.
        needs_closure: whether `step` needs a closure that computes the loss again. transformers' Trainer has none.
        second_order: whether gradients need a graph: `loss.backward(create_graph=True)`. The Trainer makes none.
    """

    name: str
    opt_class: type[Optimizer]
    description: str
    source: str
    defaults: Mapping[str, Any] = field(default_factory=dict)
    aliases: tuple[str, ...] = ()
    hidden_matrices: bool = False
    needs_closure: bool = False
    second_order: bool = False

    @property
    def needs(self) -> str | None:
        """What its steps need and transformers' Trainer does not give."""
        if self.needs_closure:
            return "a closure that computes the loss again: step(closure)"
        return "gradients with a graph: loss.backward(create_graph=True)" if self.second_order else None


@dataclass(frozen=True)
class WrapperInfo:
    """What the registry knows of an optimizer around an optimizer: chosen by `<name>_<name of an optimizer>`.

    Args:
        name: what goes in front of the optimizer's name.
        wrapper: its class.
        description, source, needs_closure: as for optimizers.
    """

    name: str
    wrapper: type[Wrapper]
    description: str
    source: str
    needs_closure: bool = False


WRAPPERS = (
    WrapperInfo(
        "lookahead",
        Lookahead,
        "weights that follow slowly, and pull back every 6 steps",
        "https://arxiv.org/abs/1907.08610",
    ),
    WrapperInfo(
        "sam",
        SAM,
        "gradients from the worst point near the weights; its step needs a closure",
        "https://arxiv.org/abs/2010.01412",
        needs_closure=True,
    ),
)

ENTRIES = (
    OptimInfo(
        "adafactor",
        Adafactor,
        "Adam with a second moment factored into rows and columns, step sizes relative to the parameter",
        "https://arxiv.org/abs/1804.04235",
    ),
    OptimInfo(
        "adagrad",
        Adagrad,
        "Steps divided by the root of the sum of all squared gradients",
        "https://jmlr.org/papers/v12/duchi11a.html",
        {"eps": 1e-8},
    ),
    OptimInfo(
        "adahessian",
        Adahessian,
        "Adam with the diagonal of the Hessian in place of the gradient's square; gradients need a graph",
        "https://arxiv.org/abs/2006.00719",
        second_order=True,
    ),
    OptimInfo(
        "adam",
        Adam,
        "Adaptive moments, with L2, decoupled or fully decoupled weight decay",
        "https://arxiv.org/abs/1412.6980",
    ),
    OptimInfo(
        "adam_mini",
        AdamMini,
        "Adam with one second moment per row, head or tensor, chosen by the parameter's name",
        "https://arxiv.org/abs/2406.16793",
    ),
    OptimInfo(
        "adam_weight_decay",
        AdamWeightDecay,
        "Keras' Adam with decoupled decay chosen by parameter name and gradient clipping",
        "https://arxiv.org/abs/1711.05101",
    ),
    OptimInfo(
        "adamuon",
        Muon,
        "Muon divided entry by entry by the root of its own second moment, AdamW for everything else",
        "https://arxiv.org/abs/2507.11005",
        {"algo": "adamuon", "adjust_lr_fn": "match_rms_adamw"},
        hidden_matrices=True,
    ),
    OptimInfo(
        "adamw",
        AdamW,
        "Adam with decoupled weight decay, transformers' numbers",
        "https://arxiv.org/abs/1711.05101",
    ),
    OptimInfo(
        "adamw_schedule_free",
        AdamWScheduleFree,
        "AdamW with an average of the weights in place of a learning-rate schedule",
        "https://arxiv.org/abs/2405.15682",
        aliases=("schedule_free_adamw",),
    ),
    OptimInfo(
        "adan",
        Adan,
        "Adam with Nesterov's momentum from the change of the gradient, proximal weight decay",
        "https://arxiv.org/abs/2208.06677",
    ),
    OptimInfo(
        "adanw",
        Adan,
        "Adan with AdamW's weight decay",
        "https://arxiv.org/abs/2208.06677",
        {"no_prox": True},
    ),
    OptimInfo(
        "ademamix",
        AdEMAMix,
        "Adam with a second, much slower momentum",
        "https://arxiv.org/abs/2409.03137",
    ),
    OptimInfo(
        "adopt",
        Adopt,
        "Adam that keeps the current gradient out of its own normalisation, with L2",
        "https://arxiv.org/abs/2411.02853",
    ),
    OptimInfo(
        "adoptw",
        Adopt,
        "ADOPT with decoupled weight decay",
        "https://arxiv.org/abs/2411.02853",
        {"decoupled": True},
    ),
    OptimInfo(
        "lamb",
        Lamb,
        "Adam whose update has the norm of the parameter, tensor by tensor",
        "https://arxiv.org/abs/1904.00962",
    ),
    OptimInfo(
        "lambc",
        Lamb,
        "LAMB with trust ratios of 1 at most",
        "https://arxiv.org/abs/1904.00962",
        {"trust_clip": True},
    ),
    OptimInfo(
        "larc",
        Lars,
        "LARS with step sizes of the learning rate at most, with momentum",
        "https://arxiv.org/abs/1708.03888",
        {"momentum": 0.9, "trust_clip": True},
    ),
    OptimInfo(
        "lars",
        Lars,
        "Gradient descent whose step is a share of the parameter's norm, tensor by tensor, with momentum",
        "https://arxiv.org/abs/1708.03888",
        {"momentum": 0.9},
    ),
    OptimInfo(
        "lbfgs",
        LBFGS,
        "Limited-memory quasi-Newton method of torch.optim; its step needs a closure",
        "https://doi.org/10.1007/BF01589116",
        needs_closure=True,
    ),
    OptimInfo(
        "lion",
        Lion,
        "Sign of an interpolated momentum; one state tensor",
        "https://arxiv.org/abs/2302.06675",
    ),
    OptimInfo(
        "momentum",
        SGD,
        "Stochastic gradient descent with heavy-ball momentum",
        "https://doi.org/10.1016/0041-5553(64)90137-5",
        {"momentum": 0.9, "nesterov": False},
    ),
    OptimInfo(
        "muon",
        Muon,
        "Momentum made orthogonal for the matrices inside a network, AdamW for everything else",
        "https://arxiv.org/abs/2502.16982",
        {"adjust_lr_fn": "match_rms_adamw"},
        hidden_matrices=True,
    ),
    OptimInfo(
        "nadamuon",
        Muon,
        "AdaMuon with NAdamW for everything else",
        "https://arxiv.org/abs/2507.11005",
        {"algo": "adamuon", "adjust_lr_fn": "match_rms_adamw", "fallback": "nadamw"},
        hidden_matrices=True,
    ),
    OptimInfo(
        "nlarc",
        Lars,
        "LARC with Nesterov momentum",
        "https://arxiv.org/abs/1708.03888",
        {"momentum": 0.9, "nesterov": True, "trust_clip": True},
    ),
    OptimInfo(
        "nlars",
        Lars,
        "LARS with Nesterov momentum",
        "https://arxiv.org/abs/1708.03888",
        {"momentum": 0.9, "nesterov": True},
    ),
    OptimInfo(
        "nmuon",
        Muon,
        "Muon with NAdamW for everything else",
        "https://arxiv.org/abs/2502.16982",
        {"adjust_lr_fn": "match_rms_adamw", "fallback": "nadamw"},
        hidden_matrices=True,
    ),
    OptimInfo(
        "novograd",
        NvNovoGrad,
        "Momentum of gradients divided by their norm, tensor by tensor",
        "https://arxiv.org/abs/1905.11286",
        aliases=("nvnovograd",),
    ),
    OptimInfo(
        "prodigy",
        Prodigy,
        "Adam that estimates its own step size; lr stays at 1",
        "https://arxiv.org/abs/2306.06101",
    ),
    OptimInfo(
        "sgd",
        SGD,
        "Stochastic gradient descent with Nesterov momentum",
        "https://proceedings.mlr.press/v28/sutskever13.html",
        {"momentum": 0.9, "nesterov": True},
        aliases=("nesterov",),
    ),
)
