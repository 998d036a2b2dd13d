"""What the tests of resuming compare, bit for bit."""

from __future__ import annotations

import torch
from transformers import TrainerCallback

# Options with which a schedule has something to do in a few steps, and those it needs.
SCHEDULES = {
    "cosine_with_restarts": {"num_cycles": 2},
    "polynomial": {"power": 2.0},
    "inverse_sqrt": {"timescale": 3},
    "cosine_with_min_lr": {"min_lr_rate": 0.1},
    "cosine_warmup_with_min_lr": {"min_lr_rate": 0.1, "warmup_lr_rate": 0.2},
    "warmup_stable_decay": {"num_decay_steps": 4},
    "reduce_lr_on_plateau": {"patience": 0, "factor": 0.5, "threshold": 10.0, "threshold_mode": "abs"},
    "greedy": {"patience": 0, "factor": 0.5, "min_lr": 1e-9},
    "constant_factor": {"factor": 0.5, "total_iters": 3},
    "cosine_annealing_with_warm_restarts": {"T_0": 2},
    "cosine_annealing_with_warmup": {"first_cycle_steps": 4},
    "cosine_with_cycles": {"cycle_steps": 3, "cycle_limit": 3, "noise_range": [0, 7]},
    "cyclic": {"step_size_up": 2, "base_lr": 1e-3},
    "exponential": {"gamma": 0.8},
    "infinite": {"num_cooldown_steps": 3},
    "linear_factor": {"total_iters": 6},
    "inverse_time": {"decay_steps": 3, "decay_rate": 1.0},
    "piecewise_interpolate": {"boundaries_and_scales": {4: 0.3}},
    "multiplicative": {"factor": 0.8},
    "multistep": {"milestones": [5, 6], "noise_range": [0, 7]},
    "plateau": {"patience": 0, "factor": 0.5, "threshold": 10.0, "threshold_mode": "abs", "noise_range": [0, 7]},
    "poly": {"noise_range": [0, 7]},
    "power": {"batch_size": 8, "sequence_length": 8, "num_decay_steps": 4},
    "proportion": {"schedule": "cosine", "max_value": 1.0, "min_value": 0.1},
    "sequential": {"schedules": ["linear", "cosine"], "milestones": [5]},
    "step": {"decay_steps": 2, "noise_range": [0, 7]},
    "tanh": {"cycle_steps": 3, "cycle_limit": 3, "noise_range": [0, 7]},
}
# A warm-up over the break for those that are constant after it.
WARMUPS = {"constant_with_warmup": 6, "warmup_lr": 6}


class SaveAt(TrainerCallback):
    """Saves one checkpoint, after one step."""

    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        control.should_save = state.global_step == self.step


def tensors(state):
    """A state_dict's content, flat, for comparison."""
    for index, values in sorted(state["state"].items()):
        for name, value in sorted(values.items()):
            # Those of LBFGS are lists of tensors.
            parts = enumerate(value) if isinstance(value, list) else [("", value)]
            yield from ((f"{index}.{name}{number}", part) for number, part in parts)
    for index, group in enumerate(state["param_groups"]):
        for name, value in sorted(group.items()):
            if name != "differentiable":  # torch's own, which it adds whenever it loads something
                yield f"group {index}.{name}", value


def same(one, other):
    """Two lists of names and values are the same, bit for bit."""
    assert [name for name, _ in one] == [name for name, _ in other]
    for (name, left), (_, right) in zip(one, other, strict=True):
        if isinstance(left, torch.Tensor):
            assert left.dtype == right.dtype, name
            assert torch.equal(left, right), name
        else:
            assert left == right, name


def parameters(trainer):
    return sorted(trainer.model.state_dict().items())


def history(entries):
    """What was logged of the training: step, learning rate, loss, norm of the gradient."""
    return [
        (each["step"], each["learning_rate"], each["loss"], each.get("grad_norm")) for each in entries if "loss" in each
    ]


def same_end(one, other):
    """Two trainings came to the same end on the same way, with the same state."""
    same_way(one, other)
    same(list(tensors(one.optimizer.state_dict())), list(tensors(other.optimizer.state_dict())))
    assert one.lr_scheduler.state_dict() == other.lr_scheduler.state_dict()
    assert [g["lr"] for g in one.optimizer.param_groups] == [g["lr"] for g in other.optimizer.param_groups]


def same_way(one, other):
    """Two trainings had the same learning rates, losses and gradients, and ended with the same parameters."""
    assert one.state.global_step == other.state.global_step
    same(parameters(one), parameters(other))
    steps = [entry[0] for entry in history(one.state.log_history)]
    assert steps == list(range(1, one.state.global_step + 1))
    assert history(one.state.log_history) == history(other.state.log_history)
