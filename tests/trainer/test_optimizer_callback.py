"""OptimizerCallback: selects by name before the optimizer is built, or says why it cannot."""

import copy
import gc
import pickle
import weakref

import pytest
import torch
from transformers import Trainer

import hfoptim
from hfoptim.trainer import OptimizerCallback


@pytest.mark.parametrize(
    ("name", "cls"), [("lion", "Lion"), ("AdamW", "Adam"), ("SGD", "SGD"), ("adam-weight-decay", "AdamWeightDecay")]
)
def test_it_chooses_the_optimizer_whatever_optim_says(make_trainer, inner, name, cls):
    trainer = make_trainer(OptimizerCallback(name, lr=1e-3), optim="adamw_torch")
    before = copy.deepcopy(trainer.model.state_dict())
    trainer.train()
    assert type(inner(trainer)) is getattr(hfoptim, cls)
    assert any(not torch.equal(before[key], value) for key, value in trainer.model.state_dict().items())


def test_it_builds_what_the_optimizer_itself_would(make_trainer, inner):
    callback = OptimizerCallback("lion", lr=2e-3, weight_decay=0.3, betas=(0.8, 0.9), caution=True)
    trainer = make_trainer(callback)
    trainer.train()
    decayed, exempt = inner(trainer).param_groups
    for group, decay in ((decayed, 0.3), (exempt, 0.0)):
        assert group["initial_lr"] == 2e-3
        assert group["weight_decay"] == decay
        assert group["betas"] == (0.8, 0.9)
        assert group["caution"] is True


def test_the_learning_curve_is_that_of_the_optimizer_in_a_plain_loop(make_trainer, model, text):
    # Not with Lion: keys have no use for a bias, and it would amplify the rounding of that gradient of 0 to full steps.
    trainer = make_trainer(OptimizerCallback("sgd", lr=0.1, schedule="constant"), max_grad_norm=0.0, max_steps=5)
    trainer.model_accepts_loss_kwargs = False  # so that the loss is the mean that the model itself returns
    for module in trainer.model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    reference = copy.deepcopy(trainer.model)
    batches = []
    collate = trainer.data_collator
    trainer.data_collator = lambda rows: batches.append(collate(rows)) or batches[-1]
    trainer.train()
    optimizer = hfoptim.SGD(reference.parameters(), lr=0.1, momentum=0.9, nesterov=True)
    for batch in batches[:5]:
        reference(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    for ours, theirs in zip(trainer.model.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_biases_and_normalisation_layers_get_no_decay(make_trainer, inner):
    trainer = make_trainer(OptimizerCallback("adamw", lr=1e-3, weight_decay=0.1))
    trainer.create_optimizer()
    names = {param: name for name, param in trainer.model.named_parameters()}
    decayed, exempt = ({names[p] for p in group["params"]} for group in inner(trainer).param_groups)
    assert decayed | exempt == set(names.values())
    assert {name for name in names.values() if name.endswith("bias") or ".ln_" in name} == exempt
    assert "transformer.wte.weight" in decayed


def test_frozen_parameters_are_left_out(make_trainer, inner):
    trainer = make_trainer(OptimizerCallback("lion", lr=1e-3, weight_decay=0.1))
    trainer.model.transformer.wte.weight.requires_grad_(False)
    trainer.create_optimizer()
    held = {id(p) for group in inner(trainer).param_groups for p in group["params"]}
    assert id(trainer.model.transformer.wte.weight) not in held
    assert len(held) == len(list(trainer.model.parameters())) - 1


def test_name_patterns_decide_about_decay_where_given(make_trainer, inner):
    callback = OptimizerCallback(
        "adam_weight_decay", lr=1e-3, weight_decay=0.1, exclude_from_weight_decay=["wte", "wpe"]
    )
    trainer = make_trainer(callback)
    trainer.train()
    names = {param: name for name, param in trainer.model.named_parameters()}
    exempt = {names[p] for g in inner(trainer).param_groups if g["weight_decay"] == 0.0 for p in g["params"]}
    assert exempt == {"transformer.wte.weight", "transformer.wpe.weight"}


# -- schedules --------------------------------------------------------------------------------------------------------


def test_schedule_by_name(make_trainer, watcher):
    callback = OptimizerCallback("sgd", lr=1.0, schedule="polynomial", schedule_kwargs={"lr_end": 0.5, "power": 1.0})
    make_trainer(callback, watcher, lr_scheduler_type="cosine", max_steps=5).train()
    assert [lrs[0] for lrs in watcher.applied] == pytest.approx([1.0, 0.9, 0.8, 0.7, 0.6])
    assert watcher.logged == pytest.approx([1.0, 0.9, 0.8, 0.7, 0.6])


def test_schedule_takes_the_warmup_of_the_arguments_or_its_own(make_trainer, watcher):
    make_trainer(OptimizerCallback("sgd", lr=1.0, schedule="linear"), watcher, warmup_steps=2, max_steps=4).train()
    assert [lrs[0] for lrs in watcher.applied] == pytest.approx([0.0, 0.5, 1.0, 0.5])
    watcher.applied.clear()
    steps = {"num_warmup_steps": 1, "num_training_steps": 11}
    callback = OptimizerCallback("sgd", lr=1.0, schedule="linear", schedule_kwargs=steps)
    make_trainer(callback, watcher, warmup_steps=2, max_steps=4).train()
    assert [lrs[0] for lrs in watcher.applied] == pytest.approx([0.0, 1.0, 0.9, 0.8])


def test_without_a_schedule_the_trainers_own_is_used(make_trainer, watcher):
    make_trainer(OptimizerCallback("sgd", lr=1.0), watcher, lr_scheduler_type="constant", max_steps=2).train()
    assert [lrs[0] for lrs in watcher.applied] == [1.0, 1.0]


def test_a_second_training_makes_a_new_schedule(make_trainer, watcher):
    trainer = make_trainer(OptimizerCallback("sgd", lr=1.0, schedule="linear"), watcher, max_steps=2)
    trainer.train()
    first = trainer.lr_scheduler
    trainer.args.max_steps = 4
    trainer.train()
    assert trainer.lr_scheduler is not first
    assert len(watcher.applied) == 6


@pytest.mark.parametrize("schedule", ["reduce_lr_on_plateau", "plateau", "greedy"])
def test_a_schedule_that_follows_a_metric_gets_it(make_trainer, watcher, schedule):
    kwargs = {"patience": 0, "factor": 0.5}
    callback = OptimizerCallback("sgd", lr=1e-12, schedule=schedule, schedule_kwargs=kwargs)
    trainer = make_trainer(callback, watcher, eval_strategy="steps", eval_steps=1, max_steps=4)
    trainer.train()
    assert trainer.lr_scheduler.last_epoch >= 4
    losses = [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry]
    assert len(losses) == 4
    assert trainer.lr_scheduler.best <= max(losses)


def test_a_schedule_that_follows_a_metric_needs_evaluation(make_trainer):
    callback = OptimizerCallback("sgd", lr=1.0, schedule="reduce_lr_on_plateau")
    with pytest.raises(ValueError, match="follows an evaluation metric; give eval_strategy"):
        make_trainer(callback)


# -- Adafactor, which may set its own learning rate -------------------------------------------------------------------


def test_adafactor_by_name_sets_its_own_learning_rate_and_the_log_shows_it(make_trainer, inner):
    trainer = make_trainer(OptimizerCallback("adafactor"), max_steps=4)
    shown = []
    log = trainer.log

    def log_too(logs, *args, **kwargs):
        if "learning_rate" in logs:
            shown.append((logs["learning_rate"], [inner(trainer).applied_lr(i) for i in range(2)]))
        return log(logs, *args, **kwargs)

    trainer.log = log_too
    trainer.train()
    assert type(inner(trainer)) is hfoptim.Adafactor
    assert len(shown) == 4
    for logged, applied in shown:
        assert logged == applied[0] > 0


def test_adafactor_with_a_learning_rate_follows_it(make_trainer, inner, watcher):
    make_trainer(OptimizerCallback("adafactor", lr=1e-2, schedule="linear"), watcher, max_steps=4).train()
    assert [lrs[0] for lrs in watcher.applied] == pytest.approx([1e-2, 7.5e-3, 5e-3, 2.5e-3])


def test_a_schedule_over_a_learning_rate_that_adafactor_sets_itself_is_refused(make_trainer):
    with pytest.raises(ValueError, match="adafactor with relative_step=True sets its own learning rate"):
        make_trainer(OptimizerCallback("adafactor", schedule="cosine"))
    with pytest.raises(ValueError, match="lr_scheduler_type='cosine' cannot scale"):
        make_trainer(OptimizerCallback("adafactor"), lr_scheduler_type="cosine")
    with pytest.raises(ValueError, match="a warmup cannot scale"):
        make_trainer(OptimizerCallback("adafactor"), warmup_steps=3)


# -- mistakes -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("lionn", {}, "lion"),
        ("lion", {"beta": (0.9, 0.99)}, "betas"),
        ("lion", {"momentum": 0.9}, "momentum"),
        ("lion", {"lr": -1.0}, "lr"),
        ("lion", {"lr": float("nan")}, "lr"),
        ("lion", {"betas": (0.9, 1.0)}, "betas"),
        ("lion", {"lr": "fast"}, "lr must be a number"),
        ("sgd", {"nesterov": 1}, "nesterov must be True or False"),
        ("sgd", {"momentum": 0.0, "nesterov": True}, "momentum"),
        ("lion", {"schedule": "cosin"}, "cosine"),
        ("lion", {"schedule": "cosine", "schedule_kwargs": {"cycles": 2}}, "no option 'cycles'; it has num_cycles"),
        ("lion", {"schedule": "warmup_stable_decay"}, "needs the option 'num_decay_steps'"),
        ("lion", {"schedule_kwargs": {"num_cycles": 2}}, "needs the name of a schedule"),
    ],
)
def test_mistakes_are_raised_when_the_callback_is_made(name, options, words):
    with pytest.raises(ValueError, match=words):
        OptimizerCallback(name, **options)


def test_added_too_late_it_raises_instead_of_doing_nothing(make_trainer):
    trainer = make_trainer()
    trainer.add_callback(OptimizerCallback("lion", lr=1e-3))
    with pytest.raises(RuntimeError, match="added after the Trainer was made, too late to choose its optimizer"):
        trainer.train()


def test_added_too_late_it_raises_even_if_another_trainer_has_it(make_trainer):
    callback = OptimizerCallback("lion", lr=1e-3)
    make_trainer(callback)
    trainer = make_trainer()
    trainer.add_callback(callback)
    with pytest.raises(RuntimeError, match="too late"):
        trainer.train()


def test_a_trainer_with_its_own_create_optimizer_is_told(make_trainer):
    class Stubborn(Trainer):
        def create_optimizer(self, *args):
            if self.optimizer is None:
                self.optimizer = torch.optim.SGD(self.model.parameters(), lr=1e-3)
            return self.optimizer

    trainer = make_trainer(OptimizerCallback("lion", lr=1e-3), trainer_class=Stubborn)
    with pytest.raises(RuntimeError, match=r"chose Lion, but the training starts with SGD: Stubborn\.create_optimizer"):
        trainer.train()


def test_a_second_choice_of_optimizer_is_refused(make_trainer, model):
    network = model()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    schedule = torch.optim.lr_scheduler.ConstantLR(optimizer)
    callback = OptimizerCallback("lion", lr=1e-3, schedule="cosine")
    with pytest.raises(ValueError, match=r"optimizers=\(SGD, ...\); give one of them"):
        make_trainer(callback, own={"model": network, "optimizers": (optimizer, None)})
    with pytest.raises(ValueError, match=r"optimizer_cls_and_kwargs=\(SGD, ...\); give one of them"):
        make_trainer(callback, own={"optimizer_cls_and_kwargs": (torch.optim.SGD, {"lr": 0.1})})
    with pytest.raises(ValueError, match=r"optimizers=\(None, ConstantLR\); give one of them"):
        make_trainer(callback, own={"optimizers": (None, schedule)})
    with pytest.raises(ValueError, match="two optimizers, OptimizerCallback"):
        make_trainer(callback, OptimizerCallback("sgd"))


def test_outside_a_trainer_it_says_so(arguments):
    with pytest.raises(RuntimeError, match=r"work in a transformers.Trainer \(or a subclass of it\) only"):
        OptimizerCallback("lion").on_init_end(arguments(), None, None)


# -- several trainers, copies, memory ---------------------------------------------------------------------------------


def test_it_serves_several_trainers_and_leaves_others_alone(make_trainer, inner):
    callback = OptimizerCallback("lion", lr=1e-3)
    first, second, other = make_trainer(callback), make_trainer(callback), make_trainer()
    for trainer in (first, second, other):
        trainer.train()
    assert type(inner(first)) is type(inner(second)) is hfoptim.Lion
    assert inner(first) is not inner(second)
    assert isinstance(inner(other), torch.optim.AdamW)


def test_it_works_with_model_init(make_trainer, model, inner):
    own = {"model": None, "model_init": lambda: model()}
    trainer = make_trainer(OptimizerCallback("lion", schedule="linear"), own=own, learning_rate=1e-3)
    trainer.train()
    first = inner(trainer)
    trainer.args.learning_rate = 2e-3  # what a hyper-parameter search does between its trials
    trainer.train()
    assert inner(trainer) is not first
    assert [inner(trainer).param_groups[0]["initial_lr"], first.param_groups[0]["initial_lr"]] == [2e-3, 1e-3]


def test_it_can_be_pickled_and_copied():
    callback = OptimizerCallback("lion", lr=1e-3, betas=(0.8, 0.9), schedule="cosine")
    for twin in (pickle.loads(pickle.dumps(callback)), copy.deepcopy(callback)):
        assert repr(twin) == repr(callback)
        assert (twin.choice, twin.schedule, twin.schedule_kwargs) == (callback.choice, "cosine", {})


def test_a_copy_of_a_trainer_makes_its_own_optimizer_and_schedule(make_trainer, inner):
    trainer = make_trainer(OptimizerCallback("lion", lr=1e-3, schedule="linear"))
    twin = copy.deepcopy(trainer)
    for each in (twin, trainer):
        each.train()
    assert type(inner(twin)) is type(inner(trainer)) is hfoptim.Lion
    assert inner(twin).param_groups[0]["params"][0] is not inner(trainer).param_groups[0]["params"][0]
    assert twin.lr_scheduler is not trainer.lr_scheduler


def test_checkpoints_can_be_written_with_it(make_trainer, tmp_path):
    make_trainer(OptimizerCallback("lion", lr=1e-3), save_strategy="steps", save_steps=2).train()
    folder = tmp_path / "out" / "checkpoint-2"
    assert torch.load(folder / "training_args.bin", weights_only=False).optim.value.startswith("adamw_torch")


def test_a_trainer_goes_when_nobody_needs_it(make_trainer):
    def gone(*callbacks):
        trainer = make_trainer(*callbacks)
        witness = weakref.ref(trainer)
        del trainer
        return witness() is None

    gc.collect()
    gc.disable()
    try:
        assert gone(OptimizerCallback("lion")) == gone()
    finally:
        gc.enable()
