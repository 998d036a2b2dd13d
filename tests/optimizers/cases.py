"""One entry per optimizer: the options it is tested with, and the peers it follows. A new optimizer joins by one entry.

Every test of this folder runs over ENTRIES.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import peers
import torch
from harness import SMALL
from torch import Tensor

import hfoptim
import schedules

Options = dict[str, Any]


def grid(**choices: list[Any]) -> list[Options]:
    """Every combination of the choices."""
    return [dict(zip(choices, values, strict=True)) for values in itertools.product(*choices.values())]


def _same(options: Options) -> Options:
    return dict(options)


@dataclass(frozen=True)
class Reference:
    """A peer that an optimizer follows step by step.

    Args:
        who: full name of the peer's class.
        runs: our options, one run each.
        translate: our options -> the peer's.
        make: `(who, named parameters, options)` -> the peer.
        dtype: what the peer computes in.
        layouts: names of the parameters it can do.
        tolerance: largest difference, as a share of the movement since the start.
        lr_moves: whether lr changes from step to step; not where the optimizer sets its own.
    """

    who: str
    runs: list[Options]
    translate: Callable[[Options], Options] = _same
    make: Callable[[str, dict[str, Tensor], Options], Any] | None = None
    dtype: torch.dtype = torch.float64
    layouts: tuple[str, ...] = SMALL
    tolerance: float = 1e-10
    lr_moves: bool = True

    def build(self, params: dict[str, Tensor], options: Options) -> Any:
        if self.make is not None:
            return self.make(self.who, params, self.translate(options))
        return peers.load(self.who)(list(params.values()), **self.translate(options))


@dataclass(frozen=True)
class Checkpoint:
    """A peer whose state_dict loads, and the options of ours and of the peer under which both go on alike."""

    who: str
    ours: Options
    theirs: Options


@dataclass(frozen=True)
class Variant:
    """Options under which the invariants are tested.

    Args:
        options: of the constructor.
        lr: learning rate for the tests that change it; None where the optimizer sets its own.
        complex: whether complex parameters are taken.
        alone: whether a parameter's step depends on nothing but its own history.
        compiled: whether the compiled runner is tested with it; a kernel costs seconds.
        layouts: of the parameters in the compiled test.
    """

    options: Options = field(default_factory=dict)
    lr: float | None = 1e-2
    complex: bool = True
    alone: bool = True
    compiled: bool = False
    layouts: tuple[str, ...] = (*SMALL, "large")


@dataclass(frozen=True)
class Entry:
    """An optimizer of the catalogue.

    Args:
        name: in the registry.
        cls: its class.
        variants: by a short name.
        references: the peers it follows.
        checkpoints: the peers whose state_dict it takes.
        numbers: hyper-parameters that must be finite numbers, with a value out of range for each.
    """

    name: str
    cls: type[torch.optim.Optimizer]
    variants: dict[str, Variant]
    references: list[Reference]
    numbers: dict[str, Any]
    checkpoints: list[Checkpoint] = field(default_factory=list)


BETAS = [(0.9, 0.999), (0.5, 0.0), (0.0, 0.9)]


def _without(*names: str, **extra: Any) -> Callable[[Options], Options]:
    return lambda options: {k: v for k, v in options.items() if k not in names} | extra


def _timm_adafactor(options: Options) -> Options:
    out = {k: v for k, v in options.items() if k not in ("relative_step", "beta1")}
    out["eps"], out["eps_scale"] = options.get("eps", (1e-30, 1e-3))
    out["betas"] = None if options.get("beta1") is None else (options["beta1"], 0.0)
    return out


def _keras(who: str, params: dict[str, Tensor], options: Options) -> peers.KerasAdam:
    include, exclude = options.pop("include_in_weight_decay", None), options.pop("exclude_from_weight_decay", None)
    rate = options.pop("weight_decay_rate", None)
    return peers.KerasAdam(
        list(params.items()),
        options.pop("learning_rate"),
        peers.decayed_by_name(include, exclude),
        weight_decay=rate or None,
        **options,
    )


ADAMW = Entry(
    "adamw",
    hfoptim.AdamW,
    variants={
        "decay": Variant({"weight_decay": 0.1}, compiled=True),
        "no_correction": Variant({"correct_bias": False, "lr": 1e-2}),
        "caution": Variant({"caution": True, "weight_decay": 0.1}, complex=False),
    },
    references=[
        Reference(
            "galore_torch.adamw.AdamW",
            grid(lr=[1e-2], betas=BETAS, eps=[1e-6, 1e-2], weight_decay=[0.0, 0.25], correct_bias=[True, False]),
            _without(no_deprecation_warning=True),
        ),
    ],
    numbers={"lr": -1e-3, "eps": -1e-8, "weight_decay": -0.1},
    checkpoints=[
        Checkpoint(
            "galore_torch.adamw.AdamW",
            {},
            {"lr": 1e-2, "betas": (0.8, 0.99), "eps": 1e-4, "weight_decay": 0.2, "no_deprecation_warning": True},
        ),
        Checkpoint(
            "galore_torch.adamw.AdamW",
            {},
            {"lr": 1e-2, "weight_decay": 0.2, "correct_bias": False, "no_deprecation_warning": True},
        ),
        # torch adds eps elsewhere and decays before the update: the same numbers without both.
        Checkpoint("torch.optim.AdamW", {}, {"lr": 1e-2, "betas": (0.8, 0.99), "eps": 0.0, "weight_decay": 0.0}),
    ],
)

_TORCH_ADAM = grid(lr=[1e-2], betas=BETAS, eps=[1e-8, 1e-2], weight_decay=[0.0, 0.25]) + grid(
    lr=[1e-2], betas=[(0.9, 0.999)], eps=[1e-8], weight_decay=[0.0, 0.25], maximize=[True]
)

ADAM = Entry(
    "adam",
    hfoptim.Adam,
    variants={
        "l2": Variant({"weight_decay": 0.1}),
        "decoupled": Variant({"weight_decay": 0.1, "decouple_wd": True}, compiled=True),
        "fully_decoupled": Variant({"weight_decay": 1e-3, "decouple_lr": True, "max_lr": 0.02}),
        "maximize": Variant({"weight_decay": 0.1, "maximize": True}),
        "caution": Variant({"caution": True}, complex=False, compiled=True, layouts=("matrix", "large")),
    },
    references=[
        Reference("torch.optim.Adam", _TORCH_ADAM, _without(foreach=False)),
        Reference(
            "torch.optim.AdamW",
            [{**o, "decouple_wd": True} for o in _TORCH_ADAM],
            _without("decouple_wd", foreach=False),
        ),
        Reference(
            "optimi.Adam",
            grid(lr=[1e-2], betas=[(0.9, 0.99), (0.5, 0.9)], eps=[1e-6, 1e-2], weight_decay=[0.0, 0.2])
            + grid(lr=[1e-2], weight_decay=[0.2], decouple_wd=[True, False])
            + grid(lr=[1e-2], weight_decay=[0.0, 0.02], decouple_lr=[True], decouple_wd=[True, False])
            + grid(lr=[1e-2], weight_decay=[0.02], decouple_lr=[True], max_lr=[0.03]),
            _without(foreach=False, triton=False),
        ),
        Reference(
            "timm.optim.adamw.AdamWLegacy",
            grid(
                lr=[1e-2],
                caution=[True],
                decouple_wd=[True],
                eps=[1e-8],
                weight_decay=[0.0, 0.25],
                maximize=[True, False],
            ),
            _without("decouple_wd", foreach=False, betas=(0.9, 0.99)),
        ),
    ],
    numbers={"lr": -1e-3, "eps": -1e-8, "weight_decay": -0.1, "max_lr": -1.0},
    checkpoints=[
        Checkpoint(
            "torch.optim.Adam",
            {"betas": (0.9, 0.9)},
            {"lr": 1e-2, "betas": (0.8, 0.99), "eps": 1e-4, "weight_decay": 0.2},
        ),
        Checkpoint(
            "torch.optim.AdamW",
            {"decouple_wd": True},
            {"lr": 1e-2, "betas": (0.8, 0.99), "eps": 1e-4, "weight_decay": 0.2},
        ),
        Checkpoint("torch.optim.Adam", {}, {"lr": 1e-2, "maximize": True}),
    ],
)

SGD = Entry(
    "sgd",
    hfoptim.SGD,
    variants={
        "momentum": Variant({"lr": 1e-2, "momentum": 0.9, "dampening": 0.3, "weight_decay": 0.1}),
        "plain": Variant({"lr": 1e-2}),
        "nesterov": Variant({"lr": 1e-2, "momentum": 0.9, "nesterov": True, "weight_decay": 0.1}, compiled=True),
    },
    references=[
        Reference(
            "torch.optim.SGD",
            grid(lr=[1e-2], momentum=[0.0, 0.9], dampening=[0.0, 0.4], weight_decay=[0.0, 0.25], maximize=[False, True])
            + grid(lr=[1e-2], momentum=[0.5, 0.9], nesterov=[True], weight_decay=[0.0, 0.25], maximize=[False, True]),
            _without(foreach=False),
        ),
    ],
    numbers={"lr": -1e-3, "momentum": -0.1, "dampening": -0.1, "weight_decay": -0.1},
    checkpoints=[
        Checkpoint(
            "torch.optim.SGD",
            {},
            {"lr": 1e-2, "momentum": 0.9, "dampening": 0.3, "weight_decay": 0.1},
        ),
        Checkpoint("torch.optim.SGD", {}, {"lr": 1e-2, "momentum": 0.9, "nesterov": True}),
        Checkpoint("torch.optim.SGD", {"momentum": 0.5}, {"lr": 1e-2, "weight_decay": 0.1}),
    ],
)

_LION = grid(lr=[1e-2], betas=[(0.9, 0.99), (0.5, 0.0), (0.0, 0.9)], weight_decay=[0.0, 0.25])

LION = Entry(
    "lion",
    hfoptim.Lion,
    variants={
        "decay": Variant({"weight_decay": 0.1}, lr=1e-3, compiled=True),
        "caution": Variant({"caution": True}, lr=1e-3, complex=False),
    },
    references=[
        Reference("lion_pytorch.Lion", _LION),
        Reference(
            "timm.optim.lion.Lion",
            grid(lr=[1e-2], weight_decay=[0.0, 0.25], caution=[False, True], maximize=[False, True]),
            _without(foreach=False),
        ),
        Reference("optimi.Lion", _LION, _without(decouple_lr=False, foreach=False, triton=False)),
    ],
    numbers={"lr": -1e-3, "weight_decay": -0.1},
)

_ADAFACTOR_STEPS = (
    [{"relative_step": True, "warmup_init": w, "scale_parameter": s} for w in (False, True) for s in (False, True)],
    [{"relative_step": False, "lr": 1e-2, "scale_parameter": s} for s in (False, True)],
)
_ADAFACTOR_REST = grid(beta1=[None, 0.9], weight_decay=[0.0, 0.1], clip_threshold=[1.0, 0.3], decay_rate=[-0.8, -0.3])
_ADAFACTOR_SHAPES = ("scalar", "vector", "matrix", "conv", "transposed", "gaps")
_FACTORING = ("scalar", "one", "vector", "matrix", "wide", "narrow", "conv", "conv_wide", "stack", "transposed")

ADAFACTOR = Entry(
    "adafactor",
    hfoptim.Adafactor,
    variants={
        "relative": Variant({}, lr=None, complex=False, compiled=True, layouts=("vector", "matrix", "row", "large")),
        "warmup": Variant({"warmup_init": True, "beta1": 0.9, "weight_decay": 0.1}, lr=None, complex=False),
        "lr": Variant({"lr": 1e-2, "relative_step": False, "scale_parameter": False}, complex=False),
        "timm": Variant(
            {"lr": 1e-2, "relative_step": False, "min_dim_size_to_factor": 4, "weight_decay": 0.1}, complex=False
        ),
    },
    references=[
        Reference(
            "transformers.Adafactor",
            [{**s, **r} for s in _ADAFACTOR_STEPS[0] for r in _ADAFACTOR_REST],
            layouts=_ADAFACTOR_SHAPES,
            lr_moves=False,
        ),
        Reference(
            "transformers.Adafactor",
            [{**s, **r} for s in _ADAFACTOR_STEPS[1] for r in _ADAFACTOR_REST],
            layouts=_ADAFACTOR_SHAPES,
        ),
        Reference("transformers.Adafactor", [{"eps": (1e-3, 0.5), "lr": 1e-2, "relative_step": False}]),
        # timm scales relative steps only.
        Reference(
            "timm.optim.adafactor.Adafactor",
            grid(
                min_dim_size_to_factor=[16],
                scale_parameter=[True, False],
                warmup_init=[True, False],
                beta1=[None, 0.8],
                weight_decay=[0.0, 0.1],
            ),
            _timm_adafactor,
            layouts=_FACTORING,
            lr_moves=False,
        ),
        Reference(
            "timm.optim.adafactor.Adafactor",
            grid(
                lr=[1e-2],
                relative_step=[False],
                scale_parameter=[False],
                min_dim_size_to_factor=[16, 4],
                beta1=[None, 0.8],
                weight_decay=[0.0, 0.1],
                eps=[(1e-30, 1e-3), (1e-2, 1e-3)],
            ),
            _timm_adafactor,
            layouts=_FACTORING,
        ),
    ],
    numbers={
        "lr": -1e-3,
        "clip_threshold": -1.0,
        "decay_rate": 0.5,
        "beta1": 1.0,
        "weight_decay": -0.1,
        "eps_scale": -1.0,
        "min_dim_size_to_factor": -1,
    },
    checkpoints=[
        Checkpoint("transformers.Adafactor", {}, {}),
        Checkpoint(
            "transformers.Adafactor",
            {"lr": 1e-3, "relative_step": False},
            {"lr": 1e-2, "relative_step": False, "beta1": 0.9, "weight_decay": 0.1, "clip_threshold": 0.5},
        ),
        Checkpoint("transformers.Adafactor", {}, {"warmup_init": True, "scale_parameter": False, "beta1": 0.7}),
    ],
)

_KERAS = grid(learning_rate=[1e-2], amsgrad=[False, True], weight_decay_rate=[0.0, 0.25])
_PATTERNS = [
    {"exclude_from_weight_decay": ["vector", "^sca.*r$"]},
    {"include_in_weight_decay": ["matrix"], "exclude_from_weight_decay": ["."]},
]
_RATE = schedules.WarmUp(1e-2, schedules.PolynomialDecay(1e-2, 20, 1e-4), 5)

ADAM_WEIGHT_DECAY = Entry(
    "adam_weight_decay",
    hfoptim.AdamWeightDecay,
    variants={
        "decay": Variant({"weight_decay_rate": 0.1, "exclude_from_weight_decay": ["vector"]}),
        "amsgrad": Variant({"amsgrad": True, "clipvalue": 0.5, "weight_decay_rate": 0.1}),
        "clipnorm": Variant({"clipnorm": 0.5}, complex=False),
        "global_clipnorm": Variant({"global_clipnorm": 0.5}, alone=False, compiled=True),
        "schedule": Variant({"learning_rate": _RATE, "weight_decay_rate": 0.1}, lr=None, alone=False),
    },
    references=[
        Reference("keras.optimizers.Adam", _KERAS, make=_keras),
        Reference(
            "keras.optimizers.Adam", grid(learning_rate=[1e-2], beta_1=[0.5], beta_2=[0.9], epsilon=[1e-2]), make=_keras
        ),
        Reference(
            "keras.optimizers.Adam",
            [
                {"learning_rate": 1e-2, "weight_decay_rate": 0.25, "amsgrad": a, **clip}
                for a in (False, True)
                for clip in ({"clipnorm": 0.5}, {"clipvalue": 0.2}, {"global_clipnorm": 0.7}, {"global_clipnorm": 1e6})
            ],
            make=_keras,
            tolerance=1e-7,  # Keras takes max(norm, limit) in float32
        ),
        Reference(
            "keras.optimizers.Adam",
            [{"learning_rate": 1e-2, "weight_decay_rate": 0.25, **patterns} for patterns in _PATTERNS],
            make=_keras,
        ),
        Reference(
            "keras.optimizers.Adam",
            [{"learning_rate": _RATE, "weight_decay_rate": 0.25}],
            make=_keras,
            lr_moves=False,
        ),
    ],
    numbers={
        "learning_rate": -1e-3,
        "beta_1": 1.0,
        "beta_2": -0.1,
        "epsilon": -1e-8,
        "weight_decay_rate": -0.1,
        "clipnorm": -1.0,
        "clipvalue": -1.0,
        "global_clipnorm": -1.0,
    },
)

ENTRIES = [ADAMW, ADAM, SGD, LION, ADAFACTOR, ADAM_WEIGHT_DECAY]
