"""The options every optimizer takes from the engine: one table, from which checks, checkpoints and texts follow."""

from __future__ import annotations

import math
import textwrap
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from hfoptim.engine import checks


@dataclass(frozen=True)
class Option:
    """One option of the engine.

    Args:
        default: its default.
        doc: what it does.
        of_run: whether it says how a run computes and keeps its numbers, which a checkpoint does not bring along; else
            it belongs to the mathematics, and a checkpoint does.
        values: all that it may be.
        numbers: whether it may be any other number above 0, too.
    """

    default: Any
    doc: str
    of_run: bool = True
    values: tuple[Any, ...] = (True, False)
    numbers: bool = False

    def checked(self, name: str, value: Any) -> Any:
        """`value` as Python's own.

        Raises:
            TypeError: something else than True, False or, where it is one of the values, None.
            ValueError: none of the names or numbers that are known.
        """
        if self.numbers and value is not None:
            return checks.number(name, value, math.ulp(0.0))
        if True in self.values and not (isinstance(value, str) and any(isinstance(each, str) for each in self.values)):
            checks.flag(name, value, optional=None in self.values)
            return value
        value = value if isinstance(value, Tensor) else checks.plain(value)
        # A tensor or a bool compares equal to a number.
        if type(value) not in {type(known) for known in self.values} or value not in self.values:
            raise ValueError(f"{name}={value!r} is unknown, expected one of {', '.join(map(repr, self.values))}")
        return value


# Name -> option, in the order in which texts have them.
OPTIONS = {
    "maximize": Option(False, "ascend instead of descend", of_run=False),
    "foreach": Option(
        None,
        "True for the multi-tensor backend, False for one tensor at a time. With `fused` None too, one compiled "
        "kernel from 100,000 parameters or some 20 tensors on (a tensor counts as 5,000 parameters; on a GPU from "
        "1 million on) where a compiler is at hand, else the multi-tensor backend",
        values=(None, True, False),
    ),
    "fused": Option(
        None,
        "True for one compiled kernel (g++ or clang++; on a GPU Triton)",
        values=(None, True, False),
    ),
    "caution": Option(
        False,
        "drop the entries of the update that point against the gradient, and scale the others up (Cautious "
        'Optimizers, arXiv 2411.16085). "momentum": those of the momentum, before weight decay and trust ratio, as '
        "timm does, for the optimizers in which that is something else",
        of_run=False,
        values=(False, True, "momentum"),
    ),
    "cautious_weight_decay": Option(
        False,
        "decoupled weight decay of those entries alone that the update does not move away from 0 (Cautious Weight "
        "Decay, arXiv 2510.12402)",
        of_run=False,
    ),
    "corrected_weight_decay": Option(
        False,
        "decoupled weight decay times lr / max_lr, so that it falls with the square of lr (AdamC, arXiv 2506.02285). "
        "`max_lr` of a group is the peak of its schedule: the lr that it starts with, unless it is given",
        of_run=False,
    ),
    "gradient_centralization": Option(
        False,
        "take the mean away from the gradient of each row (output channel) of parameters with two and more dimensions "
        "(arXiv 2004.01461)",
        of_run=False,
    ),
    "adaptive_clip": Option(
        None,
        "largest norm of a row's gradient, as a share of the row's own, vectors whole: 0.01, for example (adaptive "
        "gradient clipping, arXiv 2102.06171). None does not clip",
        of_run=False,
        values=(None, 0.01),
        numbers=True,
    ),
    "orthograd": Option(
        False,
        "keep of each parameter's gradient what is at right angles to the parameter, at the norm that it had "
        "(OrthoGrad, arXiv 2501.04697)",
        of_run=False,
    ),
    "hyperball": Option(
        False,
        "give the update of parameters with two and more dimensions the norm lr times the parameter's, and the "
        "parameter the norm that it had, in place of decoupled weight decay (Hyperball, arXiv 2606.16899)",
        of_run=False,
    ),
    "kahan_sum": Option(
        None,
        "keep what rounding takes from float16 and bfloat16 parameters and add it at the next step. None: for such "
        "parameters, yes, unless `stochastic_rounding` or `master_weights` is chosen",
        values=(None, True, False),
    ),
    "stochastic_rounding": Option(False, "round bfloat16 parameters up or down by chance, right on average"),
    "master_weights": Option(
        None,
        "keep so many more bits (8 or 16) of bfloat16 parameters; with 16 they are exact float32 weights",
        values=(None, 8, 16),
    ),
    "state_dtype": Option(
        "float32",
        'how state of a parameter\'s shape is kept: "float32", "bfloat16", or in blocks with a scale each, "8bit" '
        'or "4bit". State of parameters with fewer than 4096 entries stays float32',
        values=("float32", "bfloat16", "8bit", "4bit"),
    ),
    "state_rounding": Option(
        None,
        'how it is rounded, "nearest" or "stochastic". None: stochastic for bfloat16, nearest for 8bit and 4bit',
        values=(None, "nearest", "stochastic"),
    ),
    "gradient_release": Option(
        False,
        "step each parameter inside of backward and free its gradient at once, once "
        "`hfoptim.prepare_for_gradient_release(model, optimizer)` was called; `step` then only ends a step",
    ),
    "distribute_matrices": Option(
        False,
        "under DDP, step each matrix of a rule that looks at whole matrices (Muon, SOAP, Shampoo, ...) on one rank, "
        "which alone keeps its state, and send the others the new weights; `step` and `state_dict` are then called on "
        "every rank",
    ),
}
ENGINE_DEFAULTS: dict[str, Any] = {name: option.default for name, option in OPTIONS.items()}
# What belongs to the run that loads a checkpoint, and not to the checkpoint.
OF_THE_RUN = frozenset(name for name, option in OPTIONS.items() if option.of_run)

# Of each of these sets one may be chosen.
_EXCLUSIVE = (
    ("foreach", "fused"),
    ("kahan_sum", "stochastic_rounding", "master_weights"),
    ("gradient_release", "distribute_matrices"),
)


def check_options(group: dict[str, Any]) -> None:
    """Put the engine's options into a group as Python's own values.

    Raises:
        TypeError, ValueError: as `Option.checked`; or options that exclude each other.
    """
    for name, option in OPTIONS.items():
        group[name] = option.checked(name, group[name])
    for names in _EXCLUSIVE:
        chosen = [f"{name}={group[name]!r}" for name in names if group[name]]
        if len(chosen) > 1:
            raise ValueError(f"{' and '.join(chosen)} exclude each other; give one of them")


def documentation(indent: int = 4) -> str:
    """The options as entries of a docstring's section of arguments, with so many spaces before each."""
    return "\n".join(
        textwrap.fill(
            f"{name} (default {_shown(option.default)}): {option.doc}.",
            120,
            initial_indent=" " * indent,
            subsequent_indent=" " * (indent + 4),
            break_on_hyphens=False,
        )
        for name, option in OPTIONS.items()
    )


def table_row(name: str) -> str:
    """An option's row in the tables of README.md and docs/."""
    return f"| `{name}` | `{_shown(OPTIONS[name].default)}` | {OPTIONS[name].doc} |"


def _shown(value: Any) -> str:
    return f'"{value}"' if isinstance(value, str) else repr(value)
