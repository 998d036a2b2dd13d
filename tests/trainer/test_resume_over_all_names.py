"""For every name: N + M steps equal N steps, a checkpoint, and M more in another trainer, bit for bit.

With dropout, shuffling, gradient accumulation, warm-up, clipping and weight decay, so that everything random and
everything counted has to come back, and over the end of an epoch. One uninterrupted training writes the checkpoint on
its way and is what the resumed ones, by name and with the callback, are compared with. How long all of this took is
printed at the end of the tests.
"""

import pytest
import torch
from resuming import SCHEDULES, WARMUPS, SaveAt, history, parameters, same_end
from safetensors.torch import load_file
from tiers import names_by_kind, one_of_each_kind

import hfoptim
import schedules
from hfoptim.optimizers.shared.adapters import Adapters
from hfoptim.trainer import OptimizerCallback

STEPS, BREAK = 7, 4  # an epoch has 3
USUAL = {
    "max_steps": STEPS,
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 2,
    "weight_decay": 0.1,
    "max_grad_norm": 0.5,
    "warmup_steps": 2,
    "learning_rate": 1e-2,
}
# Those of adapters are in test_peft_and_seq2seq.py.
OPTIMIZERS = [
    info.name
    for info in map(hfoptim.get_optimizer_info, hfoptim.list_optimizers())
    if info.needs is None and not issubclass(info.opt_class, Adapters)
]
# Those that must not get the learning rate above.
LEARNING_RATES = {"prodigy": 1.0, "sgd": 1.0, "momentum": 1.0}
# Optimizers around optimizers, and other forms of state and of low-precision parameters.
FORMS = {
    "lookahead_lion": ("lookahead_lion", {"lookahead_k": 3}, torch.float32),
    "lookahead_sgd pullback": (
        "lookahead_sgd",
        {"lookahead_k": 3, "lookahead_pullback_momentum": "pullback"},
        torch.float32,
    ),
    "lion 8bit": ("lion", {"state_dtype": "8bit"}, torch.float32),
    "adamw 4bit": ("adamw", {"state_dtype": "4bit"}, torch.float32),
    "adamw bfloat16 state": ("adamw", {"state_dtype": "bfloat16"}, torch.float32),
    "muon bfloat16 state": ("muon", {"state_dtype": "bfloat16"}, torch.bfloat16),
    "lion without kahan": ("lion", {"kahan_sum": False}, torch.bfloat16),
    "adamw stochastic": ("adamw", {"stochastic_rounding": True}, torch.bfloat16),
    "adamw 8bit stochastic": ("adamw", {"state_dtype": "8bit", "stochastic_rounding": True}, torch.bfloat16),
    "adamw master 8": ("adamw", {"master_weights": 8}, torch.bfloat16),
    "lion master 16": ("lion", {"master_weights": 16}, torch.bfloat16),
    "adafactor momentum": ("adafactor", {"beta1": 0.9}, torch.bfloat16),
    "adam maximize": ("adam", {"maximize": True, "decouple_lr": True}, torch.float32),
    "lion caution": ("lion", {"caution": True}, torch.float32),
    "lion compiled": ("lion", {"fused": True}, torch.float32),
    "adamw loop": ("adamw", {"foreach": False}, torch.float32),
}


@pytest.fixture
def train(names, make_trainer, model, text, tmp_path):
    """Trains, from the start with a checkpoint on the way or from that checkpoint, by name or with the callback."""

    def run(name, options=None, *, resume, callback, dtype=torch.float32, schedule="cosine", callbacks=(), **given):
        # A resumed training begins with other weights than the one it continues.
        network = model(seed=int(resume)).to(dtype)
        own = {"model": network, "train_dataset": text[:12]}
        given = {**USUAL, "output_dir": str(tmp_path / "run"), **given}
        extra = [*callbacks] if resume else [*callbacks, SaveAt(BREAK)]
        if callback:
            kwargs = given.pop("lr_scheduler_kwargs", None)
            extra.append(OptimizerCallback(name, schedule=schedule, schedule_kwargs=kwargs, **(options or {})))
        else:
            given |= {"optim": f"hfoptim_{name}", "lr_scheduler_type": f"hfoptim_{schedule}", "optim_args": options}
        trainer = make_trainer(*extra, own=own, **given)
        trainer.train(resume_from_checkpoint=resume)
        return trainer

    return run


@pytest.fixture
def resumes_exactly(train, tmp_path):
    """Checks one combination; returns the learning rates of the training."""

    def check(name, *options, by_callback=(False, True), **given):
        whole = train(name, *options, resume=False, callback=by_callback[0], **given)
        broken = load_file(tmp_path / "run" / f"checkpoint-{BREAK}" / "model.safetensors")
        end = dict(parameters(whole))
        assert any(not torch.equal(end[key], value) for key, value in broken.items()), "nothing moved after the break"
        for callback in by_callback:
            resumed = train(name, *options, resume=True, callback=callback, **given)
            same_end(whole, resumed)
        return [entry[1] for entry in history(whole.state.log_history)]

    return check


# In `make test` one optimizer of each kind; `make test-all` takes every name.
@pytest.mark.parametrize("name", names_by_kind(OPTIMIZERS))
def test_every_optimizer(resumes_exactly, name):
    resumes_exactly(name, by_callback=(False,), learning_rate=LEARNING_RATES.get(name, 1e-2))


def test_what_was_begun_by_name_goes_on_with_the_callback(resumes_exactly):
    resumes_exactly("lion", by_callback=(False, True))


@pytest.mark.parametrize("name", names_by_kind(OPTIMIZERS))
def test_every_optimizer_with_bfloat16_parameters(resumes_exactly, name):
    rate = LEARNING_RATES.get(name, 1e-2)
    resumes_exactly(name, by_callback=(True,), dtype=torch.bfloat16, learning_rate=rate)


@pytest.mark.parametrize("form", FORMS)
def test_wrappers_and_forms_of_state(resumes_exactly, form):
    name, options, dtype = FORMS[form]
    resumes_exactly(name, options, by_callback=(False,), dtype=dtype)


# Of others, by a metric, with momentum, with noise.
OWN_KINDS = {"sequential", "proportion", "reduce_lr_on_plateau", "cyclic", "multistep"}


def kind_of_schedule(name):
    """What the Trainer and a checkpoint have to do with: what it is given, and whose it is."""
    info = schedules.get_schedule_info(name)
    given = info.needs_warmup, info.needs_total, info.needs_metric
    return name if name in OWN_KINDS else (*given, info.factory.__module__)


# That every schedule resumes is shown in test_schedules_resume.py, without a Trainer.
@pytest.mark.parametrize("name", one_of_each_kind(schedules.list_schedules(), kind_of_schedule, str))
def test_every_schedule(resumes_exactly, name):
    info, options = schedules.get_schedule_info(name), SCHEDULES.get(name, {})
    missing = [option for option in info.required_kwargs if option not in options]
    assert not missing, f"the schedule {name} needs {missing}: add them to SCHEDULES in resuming.py"
    given = {"lr_scheduler_kwargs": options, "warmup_steps": WARMUPS.get(name, 2)}
    if info.needs_metric:
        given |= {"eval_strategy": "steps", "eval_steps": 1}
    rates = resumes_exactly("sgd", schedule=name, by_callback=(False,), **given)
    if name != "constant":
        assert len(set(rates[BREAK - 1 :])) > 1, f"{name} does nothing after the break: give it options in resuming.py"


# Those that need a second gradient are in test_second_pass.py.
@pytest.mark.parametrize("name", ["sparse_adam"])
def test_what_the_model_has_to_give_is_refused(names, arguments, name):
    with pytest.raises(ValueError, match="which the Trainer does not give"):
        arguments(optim=f"hfoptim_{name}")
    with pytest.raises(ValueError, match="which the Trainer does not give"):
        OptimizerCallback(name)


def test_no_entry_of_the_tables_above_is_stale():
    assert {*LEARNING_RATES} <= {*OPTIMIZERS}
    assert {*SCHEDULES, *WARMUPS, *OWN_KINDS} <= {*schedules.list_schedules()}
