"""SparseAdam."""

from __future__ import annotations

from hfoptim.engine import ELEMENT, Decay, Name, Rule, RuleOptimizer, hyper
from hfoptim.optimizers.shared.moments import adam_state, folded, moments_step

sparse_adam = Rule(moments_step, ELEMENT, adam_state(amsgrad=False), folded, sparse=True)


class SparseAdam(RuleOptimizer):
    """Adam for sparse gradients: rows of an embedding that a batch did not look up stay, and so do their moments.

    With g the gradient, p the parameter, t the step of the parameter, for the entries that g has:

        m = beta1 m + (1 - beta1) g
        v = beta2 v + (1 - beta2) g^2
        p = p - lr sqrt(1 - beta2^t) / (1 - beta1^t) m / (sqrt(v) + eps)

    For `nn.Embedding(..., sparse=True)` and `nn.EmbeddingBag`. Its numbers are torch.optim.SparseAdam's: the bias
    corrections go by the steps of the parameter, also for a row that comes for the first time, and eps is added to the
    plain root. Adam with the same gradients made dense is another method: it moves every row at every step, by what is
    left of its moments. A step costs what the rows of the gradient cost; the two moments are as large as the table.

    State: `exp_avg` (m), `exp_avg_sq` (v). A state_dict of torch.optim.SparseAdam loads. Options that need the whole
    tensor are refused with the gradient, and so are dense gradients, as in torch; `hfoptim.CombinedOptimizer` makes one
    optimizer of this and of another for the other parameters. torch's `clip_grad_norm_` takes no sparse gradients.

    Raises:
        TypeError: from `step()`, a dense gradient, or a sparse one of a parameter that is complex or sharded, or with
            an option that needs all of it.

    Source:
        Kingma and Ba, arXiv 1412.6980; torch.optim.SparseAdam.
    """

    rule = sparse_adam
    decay = Decay.NONE
    sparse_only = True
    names = (Name("sparse_adam"),)
    lr: float = hyper(1e-3, "learning rate")
    betas: tuple[float, float] = hyper((0.9, 0.999), "decay rates of m and v")
    eps: float = hyper(1e-8, "added to the root of v")
