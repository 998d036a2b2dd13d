"""Checkpoints of a Trainer without hfoptim, for the optimizers and schedules that both have: ours go on with them.

The parameters of ours are compared with those of the run that transformers ended itself, by their distance as a share
of the way that run went after the checkpoint.
"""

import copy

import pytest
import torch
from resuming import SCHEDULES, WARMUPS, SaveAt, history, parameters, same_way
from safetensors.torch import load_file
from transformers import TrainerCallback
from transformers.trainer_utils import SchedulerType
from transformers.training_args import OptimizerNames

from hfoptim import registry
from hfoptim.trainer import OptimizerCallback, disable, enable

STEPS, BREAK = 7, 4
USUAL = {
    "max_steps": STEPS,
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 2,
    "weight_decay": 0.1,
    "max_grad_norm": 0.5,
    "warmup_steps": 2,
    "learning_rate": 1e-2,
    "lr_scheduler_type": "cosine",
}
# Theirs, ours, and options that make ours the same formula. Ours keeps no RMS: it is what the parameter has anyway.
PAIRS = [
    ("adamw_torch", "adam", {"decouple_wd": True}),
    ("adamw_torch", "adamw", {}),
    ("adamw_torch", "adamw_hf", {}),
    ("adamw_torch_fused", "adam", {"decouple_wd": True}),
    ("sgd", "sgd", {}),
    ("sgd", "momentum", {}),
    ("adagrad", "adagrad", {}),
    ("rmsprop", "rmsprop", {}),
    ("adafactor", "adafactor", {}),
    ("schedule_free_adamw", "adamw_schedule_free", {}),
    ("schedule_free_radam", "radam_schedule_free", {}),
    ("schedule_free_sgd", "sgd_schedule_free", {}),
]
NOT_KEPT = {"RMS"}
# Largest share: rounding, but for the two whose eps and decay stand in other places (see AdamW). The schedule-free ones
# have hardly moved.
SHARES = {
    ("adamw_hf", torch.float32): 1e-2,
    ("adamw_hf", torch.float64): 1e-2,
    ("radam_schedule_free", torch.float32): 1e-3,
    ("sgd_schedule_free", torch.float32): 1e-3,
    ("radam_schedule_free", torch.float64): 1e-11,
    ("sgd_schedule_free", torch.float64): 1e-12,
}
ROUNDING = {torch.float32: 1e-5, torch.float64: 1e-13}
# Those of theirs that need a package which the tests do without.
OF_OTHER_PACKAGES = {"ademamix", "lomo", "adalomo", "stable_adamw", "grokadamw", "apollo_adamw"}
OF_OTHER_PACKAGES |= {"galore_adamw", "galore_adamw_8bit", "galore_adafactor"}


class Loaded(TrainerCallback):
    """Keeps what the optimizer has loaded."""

    def on_train_begin(self, args, state, control, optimizer=None, **kwargs):
        self.state = copy.deepcopy(optimizer.state_dict())


@pytest.fixture
def train(make_trainer, model, text, tmp_path):
    def run(*callbacks, resume, dtype=torch.float32, **given):
        network = model(seed=int(resume)).to(dtype)
        # The keys' part of this bias has no gradient but rounding, which most of these methods blow up.
        network.transformer.h[0].attn.c_attn.bias.requires_grad_(False)
        own = {"model": network, "train_dataset": text[:12]}
        trainer = make_trainer(*callbacks, own=own, output_dir=str(tmp_path / "run"), **{**USUAL, **given})
        trainer.train(resume_from_checkpoint=resume)
        return trainer

    yield run
    disable()


@pytest.fixture
def both(train):
    """Trains with theirs to the end, and from the checkpoint on the way with ours, by name and with the callback."""

    def run(theirs, ours, options, dtype, schedule="cosine", schedule_kwargs=None, **given):
        given = {"lr_scheduler_kwargs": schedule_kwargs, **given, "dtype": dtype}
        whole = train(SaveAt(BREAK), resume=False, optim=theirs, lr_scheduler_type=schedule, **given)
        callback = OptimizerCallback(ours, schedule=schedule, schedule_kwargs=schedule_kwargs, **options)
        loaded = [Loaded(), Loaded()]
        resumed = [train(callback, loaded[0], resume=True, **given)]
        enable()
        named = {"optim": f"hfoptim_{ours}", "optim_args": options, "lr_scheduler_type": f"hfoptim_{schedule}"}
        resumed.append(train(loaded[1], resume=True, **given, **named))
        return whole, resumed, [each.state for each in loaded]

    return run


# Every pair in the precision that shows the most; in the others those whose state is one of torch's, and is not.
COMBINATIONS = [
    pytest.param(*pair, dtype, id=f"{pair[0]}-{pair[1]}-{dtype}", marks=marks)
    for pair in PAIRS
    for dtype in (torch.float64, torch.float32, torch.bfloat16)
    for marks in [[] if dtype is torch.float64 or pair[1] in ("adamw", "adafactor") else [pytest.mark.slow]]
]


@pytest.mark.parametrize(("theirs", "ours", "options", "dtype"), COMBINATIONS)
def test_every_optimizer_goes_on(both, tmp_path, theirs, ours, options, dtype):
    if theirs.startswith("schedule_free"):
        pytest.importorskip("schedulefree")
    whole, resumed, loaded = both(theirs, ours, options, dtype)
    folder = tmp_path / "run" / f"checkpoint-{BREAK}"
    saved = torch.load(folder / "optimizer.pt", weights_only=True)
    assert bool(saved["state"]) is (theirs != "sgd")  # theirs has no momentum
    for state in loaded:
        assert_taken_over(saved, state)
    if dtype == torch.bfloat16:
        return  # ours keeps what rounding takes from such parameters, theirs does not
    broken = load_file(folder / "model.safetensors")
    for trainer in resumed:
        if theirs.startswith("schedule_free"):
            whole.optimizer.eval()  # as ours leaves the model
        assert [lr for _, lr, _, _ in history(whole.state.log_history)] == [
            lr for _, lr, _, _ in history(trainer.state.log_history)
        ]
        end, other = dict(parameters(whole)), dict(parameters(trainer))
        way = norm(end[name] - broken[name] for name in broken)
        assert norm(end[name] - other[name] for name in broken) <= way * SHARES.get((ours, dtype), ROUNDING[dtype])
        if ours in ("sgd", "momentum"):
            same_way(whole, trainer)


def norm(tensors):
    return sum(tensor.double().square().sum() for tensor in tensors).sqrt().item()


def assert_taken_over(saved, loaded):
    """All state is there, bit for bit, and every option of a group that both have."""
    assert saved["state"].keys() == loaded["state"].keys()
    for index, values in saved["state"].items():
        for name in {*values} - NOT_KEPT:
            value, ours = values[name], loaded["state"][index][name]
            if isinstance(value, torch.Tensor) and value.dtype != torch.bfloat16:  # ours keeps more
                assert value.dtype == ours.dtype, name
            assert torch.equal(torch.as_tensor(value, dtype=ours.dtype), ours), name
    for theirs, ours in zip(saved["param_groups"], loaded["param_groups"], strict=True):
        shared = ({*theirs} & {*ours}) - {"foreach", "fused", "differentiable", "capturable"}
        assert {"lr", "weight_decay", "initial_lr", "params"} <= shared
        assert {name: theirs[name] for name in shared} == {name: ours[name] for name in shared}


@pytest.mark.parametrize("schedule", [member.value for member in SchedulerType])
def test_every_schedule_goes_on(both, schedule):
    # theirs does not hand options on to inverse_sqrt
    options = {} if schedule == "inverse_sqrt" else SCHEDULES.get(schedule, {})
    given = {"warmup_steps": WARMUPS.get(schedule, 2)}
    if schedule in ("reduce_lr_on_plateau", "greedy"):
        given |= {"eval_strategy": "steps", "eval_steps": 1}
    whole, resumed, _ = both("sgd", "sgd", {}, torch.float32, schedule, options, **given)
    for trainer in resumed:
        same_way(whole, trainer)
    rates = {lr for step, lr, _, _ in history(whole.state.log_history) if step >= BREAK}
    assert len(rates) > 1 or schedule == "constant"


def test_no_optimizer_that_both_have_is_left_out():
    known = registry.known_optimizers()
    shared = {member.value for member in OptimizerNames if known.canonical(member.value)}
    assert shared == {theirs for theirs, _, _ in PAIRS if not theirs.startswith("adamw_torch")} | OF_OTHER_PACKAGES
