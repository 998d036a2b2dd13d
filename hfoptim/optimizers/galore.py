"""GaLore: AdamW and Adafactor whose moments are those of a projected gradient."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import KW_ONLY
from typing import Any

from torch import Tensor

from hfoptim.engine import Group, Name, Scalars, hyper
from hfoptim.optimizers.adafactor import Adafactor
from hfoptim.optimizers.adam import AdamW
from hfoptim.optimizers.shared.low_rank import ANY_SIDED, Finish, LowRank, Projection


def _scale(group: Group) -> Scalars:
    return {"scale": group["scale"]}


def galore(
    projection: Projection, grad: Tensor, low: Tensor, update: Tensor, basis: Sequence[Tensor], h: Any
) -> tuple[Tensor]:
    """The update of the projected gradient, projected back and scaled."""
    return (projection.up(update * h.scale, basis),)


_GALORE = Finish(galore, dict, _scale)


_SCALE: float = hyper(0.25, "factor of the update that is projected back")


class GaLoreAdamW(LowRank, AdamW):
    """AdamW whose moments for matrices are those of a gradient of low rank: projected on its singular vectors.

    With G the gradient of a matrix P of r rows and c columns, r >= c, t the step; for r < c the same of the transposed:

        B = the leading `rank` right singular vectors of G, in rows    (where t - 1 is a multiple of update_proj_gap)
        R = G B^T
        M = beta1 M + (1 - beta1) R
        V = beta2 V + (1 - beta2) R^2
        U = sqrt(1 - beta2^t) / (1 - beta1^t) M / (sqrt(V) + eps)
        P = P - lr scale U B
        P = P - lr weight_decay P

    What has no projection is stepped by `AdamW`. M and V go on in the new subspace as they were. `rank` in groups is as
    galore_torch has it, `[{"params": others}, {"params": matrices, "rank": 128, "scale": 0.25}]`; given to the
    constructor it is for the matrices inside the network. The name "galore_adamw" has transformers' rank of 128.
    Kernels of convolutions count as matrices with a row for each output. State: `ortho_matrix` (B), with "full"
    `ortho_matrix_left` and `ortho_matrix_right`; `exp_avg` (M) and `exp_avg_sq` (V), of r rows and `rank` columns, also
    in 8 or 4 bits. Layer by layer it steps with `gradient_release=True`.

    Differs from galore_torch 1.0 in that the singular vectors of a gradient in double precision are computed in that,
    not in float32, and that a gradient with numbers that are not finite raises no error. pytorch_optimizer 4.1 renews
    the subspace one step earlier, but for the first. `GaLoreProjectorTensor`, of galore_torch's repository, is not
    here: it projects back the gradient itself and not the update.

    Source:
        Zhao et al., arXiv 2403.03507; https://github.com/jiaweizzhao/GaLore.
    """

    hidden_matrices = True
    finish = _GALORE
    names = (
        Name("galore_adamw", options={"rank": 128}, aliases=("galore",)),
        Name("galore_adamw_8bit", "GaLore with moments of 8 bits", options={"rank": 128, "state_dtype": "8bit"}),
    )
    _: KW_ONLY
    scale: float = _SCALE
    proj_type: str = ANY_SIDED


class GaLoreAdafactor(LowRank, Adafactor):
    """Adafactor whose moments for matrices are those of a gradient of low rank: projected on its singular vectors.

    With G the gradient of a matrix P, B and R = G B^T its subspace and projection as in `GaLoreAdamW`, and
    `Adafactor`'s step for R with the root mean square of P:

        M = the step a U of Adafactor for R
        P = P - scale M B - a weight_decay P

    What has no projection is stepped by `Adafactor`, whose options and state these are, with `rank`,
    `update_proj_gap`, `scale` and `proj_type` as in `GaLoreAdamW`. transformers takes it with
    `scale_parameter=False, relative_step=False`, as the name "galore_adafactor" does, with a rank of 128.

    Source:
        Zhao et al., arXiv 2403.03507; https://github.com/jiaweizzhao/GaLore.
    """

    hidden_matrices = True
    finish = _GALORE
    names = (
        Name("galore_adafactor", options={"rank": 128, "lr": 1e-3, "scale_parameter": False, "relative_step": False}),
    )
    _: KW_ONLY
    scale: float = _SCALE
    proj_type: str = ANY_SIDED
