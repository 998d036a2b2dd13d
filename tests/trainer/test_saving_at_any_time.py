"""Whatever is saved in mid-training, and whoever saves it: the average of schedule-free, and training goes on.

The average comes from the authors' package, in a loop of its own over the batches that the Trainer saw.
"""

import copy
from functools import partial

import pytest
import schedulefree
import torch
from safetensors.torch import load_file
from transformers import GPT2LMHeadModel, TrainerCallback

import hfoptim
from hfoptim.trainer import EvaluationWeights, OptimizerCallback

STEPS, WINDOW, LR = 5, 2, 1e-2
USUAL = {
    "max_steps": STEPS,
    "gradient_accumulation_steps": WINDOW,
    "learning_rate": LR,
    "lr_scheduler_type": "constant",
    "max_grad_norm": 0.0,
}
EVENTS = ["on_step_begin", "on_substep_end", "on_pre_optimizer_step", "on_optimizer_step", "on_step_end", "on_log"]


class Busy(TrainerCallback):
    """Does something at each of these events: `work(trainer, steps, at)`."""

    def __init__(self, events, work):
        for at in events:
            setattr(self, at, partial(self._event, work, at))

    def _event(self, work, at, args, state, control, **kwargs):
        if state.global_step < STEPS:
            # The Trainer counts after `on_optimizer_step`.
            work(self.trainer, state.global_step + (at == "on_optimizer_step"), at)


class Recorder:
    """A collator that keeps what it made."""

    def __init__(self):
        self.batches = []

    def __call__(self, rows):
        batch = {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
        self.batches.append(batch)
        return batch


@pytest.fixture
def quiet(model, text):
    """A model without dropout, and text whose first label, which nothing predicts, is left out."""
    made = model()
    for module in made.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    rows = [{**row, "labels": torch.cat([torch.tensor([-100]), row["labels"][1:]])} for row in text]
    return {"model": made, "train_dataset": rows, "eval_dataset": rows[:4]}


def by_callback(make_trainer, own, callbacks, given):
    return make_trainer(OptimizerCallback("adamw_schedule_free"), *callbacks, own=own, **given)


def by_name(make_trainer, own, callbacks, given):
    return make_trainer(*callbacks, own=own, optim="adamw_schedule_free", **given)


def by_hand(make_trainer, own, callbacks, given):
    """The fourth way of docs/trainer.md, where nothing of hfoptim would run by itself."""
    optimizer = hfoptim.AdamWScheduleFree(own["model"].parameters(), lr=LR)
    own = {**own, "optimizers": (optimizer, None)}
    return make_trainer(EvaluationWeights(), *callbacks, own=own, **given)


def by_transformers(make_trainer, own, callbacks, given):
    return make_trainer(EvaluationWeights(), *callbacks, own=own, optim="schedule_free_adamw", **given)


WAYS = [by_callback, by_name, by_hand, by_transformers]


def run(way, make_trainer, quiet, events=(), work=None, **given):
    recorder, busy = Recorder(), Busy(events, work)
    own = {**copy.deepcopy(quiet), "data_collator": recorder}
    trainer = way(make_trainer, own, [busy], {**USUAL, **given})
    busy.trainer = trainer
    trainer.train()
    return trainer, recorder.batches


def averages(model, batches, lr=LR):
    """x after 0, 1, 2, ... steps by the package schedulefree, and y, where training goes on."""
    model = copy.deepcopy(model)
    optimizer = schedulefree.AdamWScheduleFree(model.parameters(), lr=lr)
    xs, ys = [], []
    for step in range(STEPS + 1):
        optimizer.eval()
        xs.append(copy.deepcopy(model.state_dict()))
        optimizer.train()
        ys.append(copy.deepcopy(model.state_dict()))
        if step < STEPS:
            window = batches[step * WINDOW : (step + 1) * WINDOW]
            whole = {name: torch.cat([batch[name] for batch in window]) for name in window[0]}
            model(**whole).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    return xs, ys


def distance(saved, state):
    return max((value - state[name]).abs().max().item() for name, value in saved.items())


def check_saved(folder, steps, reference):
    xs, ys = reference
    saved = load_file(folder / "model.safetensors")
    assert distance(saved, xs[steps]) < 5e-5
    if steps >= 2:
        assert distance(saved, ys[steps]) > 2e-4
        assert all(distance(saved, xs[other]) > 2e-4 for other in range(STEPS + 1) if other != steps)


def same(one, other):
    left, right = one.optimizer.state_dict(), other.optimizer.state_dict()
    assert all(torch.equal(a, b) for a, b in zip(one.model.parameters(), other.model.parameters(), strict=True))
    for index, state in left["state"].items():
        assert state.keys() == right["state"][index].keys()
        assert all(torch.equal(torch.as_tensor(v), torch.as_tensor(right["state"][index][k])) for k, v in state.items())


def save_model(trainer, folder):
    trainer.save_model(str(folder))


def push_to_hub(trainer, folder):
    trainer.args.output_dir = str(folder)
    trainer.hub_model_id, trainer.is_world_process_zero = "someone/something", lambda: False  # so that nothing is sent
    trainer.push_to_hub()


def save_checkpoint(trainer, folder):
    trainer.args.output_dir = str(folder)
    trainer._save_checkpoint(trainer.model, trial=None)
    next(folder.glob("checkpoint-*/model.safetensors")).rename(folder / "model.safetensors")


def each_was_seen(seen, events):
    assert all(len([steps for steps, at in seen if at == event]) >= STEPS - 1 for event in events), seen


@pytest.mark.parametrize("way", WAYS)
def test_a_user_saves_the_model(names, make_trainer, quiet, tmp_path, way):
    plain, batches = run(way, make_trainer, quiet)
    reference = averages(quiet["model"], batches)
    seen = []

    def work(trainer, steps, at):
        before = [p.clone() for p in trainer.model.parameters()]
        save_model(trainer, tmp_path / f"{at} {steps}")
        assert way is by_transformers or all(map(torch.equal, before, trainer.model.parameters())), at
        seen.append((steps, at))

    busy, _ = run(way, make_trainer, quiet, EVENTS, work)
    each_was_seen(seen, EVENTS)
    for steps, at in seen:
        check_saved(tmp_path / f"{at} {steps}", steps, reference)
    if way is by_transformers:  # schedulefree's own switch there and back rounds
        assert distance(busy.model.state_dict(), plain.model.state_dict()) < 5e-5
    else:
        same(plain, busy)
    busy.save_model(str(tmp_path / "end"))
    check_saved(tmp_path / "end", STEPS, reference)


SOME = ["on_substep_end", "on_pre_optimizer_step", "on_step_end"]


@pytest.mark.parametrize("save", [push_to_hub, save_checkpoint])
def test_a_user_saves_in_another_way(make_trainer, quiet, tmp_path, save):
    plain, batches = run(by_callback, make_trainer, quiet)
    reference = averages(quiet["model"], batches)
    seen = []

    def work(trainer, steps, at):
        save(trainer, tmp_path / f"{at} {steps}")
        seen.append((steps, at))
        assert all(group["train_mode"] for group in trainer.optimizer.param_groups), at

    busy, _ = run(by_callback, make_trainer, quiet, SOME, work)
    each_was_seen(seen, SOME)
    for steps, at in seen:
        check_saved(tmp_path / f"{at} {steps}", steps, reference)
    same(plain, busy)


def test_a_checkpoint_that_a_user_asked_for_resumes_exactly(make_trainer, quiet, tmp_path):
    whole, _ = run(by_callback, make_trainer, quiet)

    def work(trainer, steps, at):
        if steps == 3:
            trainer.args.output_dir = str(tmp_path)
            trainer._save_checkpoint(trainer.model, trial=None)

    run(by_callback, make_trainer, quiet, ["on_log"], work)
    resumed = make_trainer(OptimizerCallback("adamw_schedule_free"), own=copy.deepcopy(quiet), **USUAL)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    same(whole, resumed)


@pytest.mark.parametrize("method", ["evaluate", "predict"])
def test_a_user_evaluates(make_trainer, quiet, method):
    plain, batches = run(by_callback, make_trainer, quiet)
    xs, _ = averages(quiet["model"], batches)
    losses = {}

    def work(trainer, steps, at):
        if method == "evaluate":
            losses[steps, at] = trainer.evaluate()["eval_loss"]
        else:
            losses[steps, at] = trainer.predict(trainer.eval_dataset).metrics["test_loss"]

    busy, _ = run(by_callback, make_trainer, quiet, SOME, work)
    each_was_seen(losses, SOME)
    same(plain, busy)
    rows = {name: torch.stack([row[name] for row in quiet["eval_dataset"]]) for name in quiet["eval_dataset"][0]}
    for (steps, at), loss in losses.items():
        model = GPT2LMHeadModel(quiet["model"].config).eval()
        model.load_state_dict(xs[steps])
        assert loss == pytest.approx(model(**rows).loss.item(), abs=1e-4), at


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_a_training_that_was_broken_off_is_saved_right(make_trainer, quiet, tmp_path, error):
    _, batches = run(by_callback, make_trainer, quiet)
    reference = averages(quiet["model"], batches)

    def work(trainer, steps, at):
        if steps == 3:
            raise error("stop")

    trainers = []
    keep = lambda *given: trainers.append(by_callback(*given)) or trainers[0]  # noqa: E731
    with pytest.raises(error):
        run(keep, make_trainer, quiet, ["on_step_end"], work)
    trainers[0].save_model(str(tmp_path / "broken"))
    check_saved(tmp_path / "broken", 3, reference)


WRAPPED = {
    hfoptim.Lookahead: OptimizerCallback("lookahead_adamw_schedule_free", lookahead_k=2),
    hfoptim.CombinedOptimizer: OptimizerCallback("lion", param_options={"*.h.*": {"optimizer": "adamw_schedule_free"}}),
}


@pytest.mark.parametrize("wrapper", WRAPPED)
def test_others_around_it_or_beside_it(make_trainer, quiet, tmp_path, wrapper):
    way = lambda make, own, callbacks, given: make(WRAPPED[wrapper], *callbacks, own=own, **given)  # noqa: E731
    plain, _ = run(way, make_trainer, quiet)
    seen = []

    def work(trainer, steps, at):
        save_model(trainer, tmp_path / str(steps))
        training = copy.deepcopy(trainer.model.state_dict())
        trainer.optimizer.eval()
        saved = load_file(tmp_path / str(steps) / "model.safetensors")
        assert distance(saved, trainer.model.state_dict()) == 0
        assert steps < 2 or distance(saved, training) > 2e-4
        trainer.optimizer.train()
        seen.append(steps)

    busy, _ = run(way, make_trainer, quiet, ["on_log"], work)
    assert len(seen) == STEPS - 1
    assert isinstance(getattr(busy.optimizer, "optimizer", None), wrapper)
    same(plain, busy)


def test_optimizers_without_modes_are_left_alone(make_trainer, quiet, tmp_path):
    trainer = make_trainer(EvaluationWeights(), OptimizerCallback("lion"), own=quiet, **USUAL)
    trainer.train()
    trainer.save_model(str(tmp_path))
    assert distance(load_file(tmp_path / "model.safetensors"), trainer.model.state_dict()) == 0
