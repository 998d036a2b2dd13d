"""What OptimizerMonitor and OptimizerCallback(log=...) put into the Trainer's log."""

from __future__ import annotations

import copy
import gc
import math
import pickle
import weakref
from types import SimpleNamespace

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import Trainer, TrainerCallback

import hfoptim
from hfoptim.trainer import OptimizerCallback, OptimizerMonitor, monitor
from hfoptim.training.step_metrics import MEASURED


def logged(trainer, prefix="optimizer/"):
    """(step, numbers of ours by key) of every entry of the log that has a loss."""
    return [
        (entry["step"], {key.removeprefix(prefix): v for key, v in entry.items() if key.startswith(prefix)})
        for entry in trainer.state.log_history
        if "loss" in entry
    ]


class Snapshots(TrainerCallback):
    """The parameters before and after each step and the gradients it is taken with, group by group, in float64."""

    def __init__(self):
        self.steps = []

    def on_pre_optimizer_step(self, args, state, control, optimizer=None, **kwargs):
        params = [group["params"] for group in optimizer.param_groups]
        grads = [[p.grad.detach().double().clone() for p in group] for group in params]
        self.steps.append({"before": self.values(params), "grads": grads})
        self.steps[-1]["lr"] = [group["lr"] for group in optimizer.param_groups]

    def on_optimizer_step(self, args, state, control, optimizer=None, **kwargs):
        self.steps[-1]["after"] = self.values([group["params"] for group in optimizer.param_groups])

    def values(self, groups):
        return [[p.detach().double().clone() for p in group] for group in groups]


def norm(tensors):
    return math.sqrt(sum(t.square().sum().item() for t in tensors))


def by_hand(step):
    """What the log should say of a step of two groups."""
    found = {}
    both = {"": [0, 1], "/group_0": [0], "/group_1": [1]}
    for name, groups in both.items():
        before, after, grads = ([t for i in groups for t in step[of][i]] for of in ("before", "after", "grads"))
        moved = norm([a - b for a, b in zip(after, before, strict=True)])
        found[f"grad_norm{name}"] = norm(grads)
        found[f"update_rms{name}"] = moved / math.sqrt(sum(t.numel() for t in before))
        found[f"update_to_weight{name}"] = moved / norm(before)
    return {**found, "lr/group_0": step["lr"][0], "lr/group_1": step["lr"][1]}


# -- the numbers ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", ["callback", "beside it", "transformers' own"])
def test_the_numbers_are_those_of_the_steps_that_are_logged(make_trainer, version):
    snapshots = Snapshots()
    names = ("lr", "grad_norm", "update_rms", "update_to_weight")
    callbacks = {
        "callback": [OptimizerCallback("adamw", lr=1e-2, weight_decay=0.1, log=names)],
        "beside it": [OptimizerMonitor(*names), OptimizerCallback("adamw", lr=1e-2, weight_decay=0.1)],
        "transformers' own": [OptimizerMonitor(*names)],
    }[version]
    trainer = make_trainer(
        *callbacks, snapshots, max_steps=6, logging_steps=2, gradient_accumulation_steps=2, max_grad_norm=0.5
    )
    trainer.train()
    assert [step for step, _ in logged(trainer)] == [2, 4, 6]
    for step, numbers in logged(trainer):
        assert numbers == pytest.approx(by_hand(snapshots.steps[step - 1]), rel=1e-5)
        assert all(type(value) is float for value in numbers.values())
        # What the optimizer was given, after clipping; the Trainer's own is from before.
        assert numbers["grad_norm"] <= 0.5
    own = [entry["grad_norm"] for entry in trainer.state.log_history if "grad_norm" in entry]
    assert min(own) > 0.5


def test_trust_ratios(make_trainer):
    snapshots = Snapshots()
    options = {"lr": 0.1, "weight_decay": 0.1, "trust_coeff": 0.02, "eps": 0.0}
    trainer = make_trainer(OptimizerCallback("lars", log=("trust_ratio",), **options), snapshots, max_steps=3)
    trainer.train()
    for (_, numbers), step in zip(logged(trainer), snapshots.steps, strict=True):
        ratios = [
            0.02 * param.norm().item() / (grad.norm().item() + 0.1 * param.norm().item())
            for param, grad in zip(step["before"][0], step["grads"][0], strict=True)
        ]  # the other group, without decay, takes plain steps
        expected = {"min": min(ratios), "mean": sum(ratios) / len(ratios), "max": max(ratios)}
        assert numbers == pytest.approx({f"trust_ratio_{name}": value for name, value in expected.items()}, rel=1e-5)


def test_the_estimate_of_prodigy(make_trainer, inner):
    trainer = make_trainer(OptimizerCallback("prodigy", lr=1.0, log="d"), max_steps=4, lr_scheduler_type="constant")
    trainer.train()
    found = [numbers for _, numbers in logged(trainer)]
    assert found[-1] == {f"d{key}": inner(trainer).param_groups[0]["d"] for key in ("", "_lr/group_0", "_lr/group_1")}
    assert found[0]["d"] < found[-1]["d"]


def test_the_share_of_clipped_steps(make_trainer):
    # At a learning rate of nothing the gradients, clipped or not, are those of one model.
    every = make_trainer(OptimizerCallback("sgd", lr=1e-9), max_steps=9)
    every.train()
    norms = [entry["grad_norm"] for entry in every.state.log_history if "grad_norm" in entry]
    limit = sum(sorted(norms)[4:6]) / 2
    trained = make_trainer(
        OptimizerCallback("sgd", lr=1e-9, log="clipped_share"), max_steps=9, logging_steps=3, max_grad_norm=limit
    )
    trained.train()
    shares = [sum(norm > limit for norm in norms[i : i + 3]) / 3 for i in (0, 3, 6)]
    assert [numbers for _, numbers in logged(trained)] == [{"clipped_share": share} for share in shares]
    assert 0 < sum(shares) < 3


def test_the_log_of_a_resumed_training_is_that_of_an_unbroken_one(make_trainer, tmp_path):
    def trainer(**given):
        callback = OptimizerCallback("lamb", lr=1e-2, weight_decay=0.1, log=True)
        return make_trainer(callback, max_steps=6, logging_steps=2, save_strategy="steps", save_steps=4, **given)

    whole = trainer(output_dir=str(tmp_path / "whole"))
    whole.train()
    resumed = trainer(output_dir=str(tmp_path / "resumed"))
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-4"))
    assert len(logged(whole)) == 3
    assert logged(resumed) == logged(whole)
    # Watching changes nothing.
    quiet = make_trainer(OptimizerCallback("lamb", lr=1e-2, weight_decay=0.1), max_steps=6)
    quiet.train()
    for ours, theirs in zip(whole.model.parameters(), quiet.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)


# -- when -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def measurements(monkeypatch):
    """How many steps were measured."""
    made = []

    class Counted(monitor.StepMeasurement):
        def __init__(self, *args):
            made.append(args)
            super().__init__(*args)

    monkeypatch.setattr(monitor, "StepMeasurement", Counted)
    return made


def test_without_asking_nothing_is_logged_and_nothing_done(make_trainer, measurements):
    for log in (None, False):
        trainer = make_trainer(OptimizerCallback("adamw", log=log))
        trainer.train()
        assert [numbers for _, numbers in logged(trainer)] == [{}] * 4
        assert "log" not in vars(trainer)
    assert not measurements


def test_only_steps_that_are_logged_are_measured(make_trainer, measurements):
    trainer = make_trainer(OptimizerMonitor(), max_steps=7, logging_steps=3, logging_first_step=True)
    trainer.train()
    assert [step for step, _ in logged(trainer)] == [1, 3, 6]
    assert all("update_rms" in numbers for _, numbers in logged(trainer))
    assert len(measurements) == 3
    measurements.clear()
    make_trainer(OptimizerMonitor("lr", "clipped_share")).train()
    assert not measurements


@pytest.mark.parametrize("given", [{"num_train_epochs": 2, "max_steps": -1}, {"max_steps": 4}])
def test_once_an_epoch(make_trainer, measurements, given):
    # 8 batches make 3 steps, the last of which is short; or the training ends inside of an epoch.
    trainer = make_trainer(
        OptimizerMonitor("grad_norm"), logging_strategy="epoch", gradient_accumulation_steps=3, **given
    )
    trainer.train()
    expected = [3, 6] if "num_train_epochs" in given else [3, 4]
    assert [(step, len(numbers)) for step, numbers in logged(trainer)] == [(step, 3) for step in expected]
    assert len(measurements) == 2


class AtTheThird(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        control.should_log = state.global_step == 3


def test_a_log_that_nobody_could_foresee_has_what_needs_no_measuring(make_trainer):
    trainer = make_trainer(OptimizerMonitor(), AtTheThird(), logging_steps=10, max_steps=5, max_grad_norm=0.1)
    trainer.train()
    ((step, numbers),) = logged(trainer)
    assert step == 3
    assert set(numbers) == {"lr/group_0", "lr/group_1", "clipped_share"}
    assert numbers["clipped_share"] == 1.0
    # The learning rate of the step, not that of the next one.
    assert numbers["lr/group_0"] == trainer.state.log_history[0]["learning_rate"]


# -- where it is seen -------------------------------------------------------------------------------------------------


def test_tensorboard_shows_them(make_trainer, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    trainer = make_trainer(
        OptimizerCallback("lamb", lr=1e-2, log=True), report_to=["tensorboard"], max_steps=4, logging_steps=2
    )
    trainer.train()
    (events,) = {path.parent for path in (tmp_path / "out").rglob("events.out.tfevents.*")}
    board = EventAccumulator(str(events)).Reload()
    for key in logged(trainer)[0][1]:
        drawn = [(point.step, point.value) for point in board.Scalars(f"train/optimizer/{key}")]
        assert drawn == [(step, pytest.approx(numbers[key])) for step, numbers in logged(trainer)]
    assert {"lr/group_0", "trust_ratio_mean", "clipped_share"} <= set(logged(trainer)[0][1])


class Talkative(Trainer):
    """A trainer with a log of its own, like those of trl."""

    def log(self, logs, *args, **kwargs):
        super().log({**logs, "extra": len(logs)}, *args, **kwargs)

    def compute_loss(self, *args, **kwargs):
        self.log({"inside": 1.0})
        return super().compute_loss(*args, **kwargs)


def test_a_trainer_with_a_log_of_its_own(make_trainer):
    trainer = make_trainer(OptimizerMonitor("lr"), trainer_class=Talkative, max_steps=2)
    trainer.train()
    entries = trainer.state.log_history
    assert [set(entry) - {"epoch", "step"} for entry in entries if "inside" in entry] == [{"inside", "extra"}] * 2
    assert [entry["extra"] for entry in entries if "loss" in entry] == [5, 5]


# -- trainers, copies, mistakes ---------------------------------------------------------------------------------------


def test_one_monitor_serves_several_trainings(make_trainer):
    callback = OptimizerCallback("lion", lr=1e-3, log=("lr", "grad_norm", "clipped_share"))
    trained = []
    for each in (callback, callback, pickle.loads(pickle.dumps(callback)), copy.deepcopy(callback)):
        trained.append(make_trainer(each))
        trained[-1].train()
    first, once = trained[0], logged(trained[0])
    assert all(logged(trainer) == once for trainer in trained)
    first.train()
    assert len(logged(first)) == len(once)
    assert sum(isinstance(c, monitor._Watch) for c in first.callback_handler.callbacks) == 1
    (watch,) = (c for c in first.callback_handler.callbacks if isinstance(c, monitor._Watch))
    watch.training = monitor._Training(first, ("lr",), True)
    assert pickle.loads(pickle.dumps(watch)).training is None


class Stop(TrainerCallback):
    def on_optimizer_step(self, args, state, control, **kwargs):
        if state.global_step == 2:
            raise KeyboardInterrupt


def test_a_training_that_was_cut_short_leaves_nothing_behind(make_trainer, inner):
    trainer = make_trainer(OptimizerCallback("lamb", lr=1e-3, log=True), Stop(), max_steps=4, logging_steps=3)
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    trainer.remove_callback(Stop)
    trainer.train()
    assert [step for step, _ in logged(trainer)] == [3]
    assert not inner(trainer)._optimizer_step_pre_hooks
    assert inner(trainer).report is None


def test_a_trainer_goes_when_nobody_needs_it(make_trainer):
    trainer = make_trainer(OptimizerCallback("lion", lr=1e-3, log=True))
    trainer.train()
    model, gone = weakref.ref(trainer.model), weakref.ref(trainer)
    del trainer
    gc.collect()
    assert gone() is None
    assert model() is None


def test_unknown_quantities(make_trainer):
    with pytest.raises(ValueError, match="log: there is no quantity 'trust_ratios'; did you mean 'trust_ratio'"):
        OptimizerCallback("lion", log=("lr", "trust_ratios"))
    with pytest.raises(ValueError, match="quantities: there is no quantity 'gradnorm'; did you mean 'grad_norm'"):
        OptimizerMonitor("gradnorm")
    with pytest.raises(ValueError, match="asks for nothing"):
        OptimizerCallback("lion", log=())
    with pytest.raises(TypeError, match="expected True, a name or several names"):
        OptimizerCallback("lion", log=3)


def test_two_monitors_are_refused(make_trainer):
    trainer = make_trainer(OptimizerCallback("lion", lr=1e-3, log=True), OptimizerMonitor("lr"))
    with pytest.raises(ValueError, match="two monitors of its optimizer"):
        trainer.train()


def test_what_a_training_has_not_is_left_out_and_said_if_it_was_asked_for(make_trainer, messages):
    everything = make_trainer(OptimizerCallback("sgd", lr=0.1, log=True), max_grad_norm=0.0, max_steps=1)
    everything.train()
    ((_, numbers),) = logged(everything)
    assert {key.partition("/")[0] for key in numbers} == {"lr", *MEASURED} - {"trust_ratio"}
    assert messages() == []
    names = ("trust_ratio", "d", "clipped_share", "lr")
    asked = make_trainer(OptimizerCallback("sgd", lr=0.1, log=names), max_grad_norm=0.0, max_steps=1)
    asked.train()
    assert set(logged(asked)[0][1]) == {"lr/group_0", "lr/group_1"}
    assert messages() == [
        "optimizer/trust_ratio not logged: SGD, with these options, scales no tensor by one",
        "optimizer/d not logged: SGD does not estimate its step size",
        "optimizer/clipped_share not logged: max_grad_norm=0.0 clips nothing",
    ]


def test_gradient_release_leaves_no_norms(make_trainer, messages):
    callback = OptimizerCallback("lion", lr=1e-3, gradient_release=True, log=True)
    trainer = make_trainer(callback, max_grad_norm=0.0, max_steps=2)
    trainer.train()
    assert [set(numbers) for _, numbers in logged(trainer)] == [{"lr/group_0", "lr/group_1"}] * 2
    assert [message for message in messages() if "not logged" in message] == [
        "optimizer/grad_norm, optimizer/update_rms, optimizer/update_to_weight, optimizer/zero_updates, "
        "optimizer/lost_updates not logged: gradient_release=True takes the step inside of backward and frees the "
        "gradients"
    ]


def test_deepspeed_leaves_the_learning_rate(messages):
    class Mine(SimpleNamespace):
        """What is asked of a trainer; unlike its parent it can be referred to weakly."""

    optimizer = hfoptim.Lion([torch.nn.Parameter(torch.zeros(2))])
    args = SimpleNamespace(should_log=True, max_grad_norm=1.0)
    trainer = Mine(optimizer=optimizer, is_deepspeed_enabled=True, args=args)
    training = monitor._Training(trainer, ("lr", "grad_norm", "clipped_share"), True)
    assert training.quantities == {"lr"}
    assert [message.partition(":")[0] for message in messages()] == [
        "optimizer/grad_norm, optimizer/clipped_share not logged"
    ]


class Spoil(TrainerCallback):
    """Puts a NaN into one gradient of the second step."""

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        if state.global_step == 1:
            model.transformer.h[0].mlp.c_fc.weight.grad[0, 0] = math.nan


def test_gradients_that_are_no_numbers_are_named(make_trainer, messages):
    given = {"max_steps": 2, "logging_steps": 1}
    make_trainer(OptimizerCallback("lion", lr=1e-3, log=["nonfinite_gradients"]), **given).train()
    assert messages() == []
    trainer = make_trainer(OptimizerCallback("lion", lr=1e-3, log=["nonfinite_gradients"]), Spoil(), **given)
    trainer.train()
    assert [numbers for _, numbers in logged(trainer)] == [{"nonfinite_gradients": 0.0}, {"nonfinite_gradients": 1.0}]
    (message,) = messages()
    assert message == (
        "gradients with infinite or undefined entries up to step 2, of 1 parameters: transformer.h.0.mlp.c_fc.weight"
    )


def test_lost_updates_of_a_bfloat16_model(make_trainer, model):
    shares = {}
    for lr in (1e-1, 1e-7):
        callback = OptimizerCallback("lion", lr=lr, weight_decay=0.0, log=["lost_updates"])
        trainer = make_trainer(callback, own={"model": model().bfloat16()}, max_steps=1)
        trainer.train()
        shares[lr] = logged(trainer)[0][1]["lost_updates"]
    assert shares[1e-1] < 0.05
    assert shares[1e-7] > 0.5


def test_what_becomes_of_every_parameter_is_told(make_trainer, caplog):
    callback = OptimizerCallback("adamw", lr=1e-3, weight_decay=0.1)
    with pytest.raises(RuntimeError, match="has made no optimizer yet"):
        callback.describe()
    trainer = make_trainer(callback, max_steps=1)
    caplog.set_level("DEBUG", logger="hfoptim")
    trainer.train()
    found = {each.name: each for each in callback.describe()}
    assert found.keys() == dict(trainer.model.named_parameters()).keys()
    assert (found["transformer.wte.weight"].weight_decay, found["transformer.ln_f.bias"].weight_decay) == (0.1, 0.0)
    assert str(callback.describe()).splitlines()[0].split()[:2] == ["parameter", "times"]
    said = [record.getMessage() for record in caplog.records if record.levelname == "DEBUG"]
    assert any("transformer.h.*.mlp.c_fc.weight" in message and "weight decay" in message for message in said)
    copy.deepcopy(callback)
