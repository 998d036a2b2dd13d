"""Lightning: automatic optimization hands over a closure making all gradients, and saves optimizers and schedules."""

from __future__ import annotations

import contextlib
import warnings

import pytest
import torch
from torch import nn

import hfoptim
import schedules
from hfoptim import SAM
from hfoptim.engine import RuleOptimizer, unwrap, unwrap_all

lightning = pytest.importorskip("lightning", reason="make test-trainers has it")

BATCHES = 4


def batches():
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(3, 4, generator=generator) for _ in range(BATCHES)]


class Net(lightning.LightningModule):  # type: ignore[name-defined]
    """A small regression.

    Args:
        make: `(module) -> what configure_optimizers returns`.
        second_order: whether gradients need a graph.
    """

    def __init__(self, make, second_order=False):
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 4), nn.Tanh())
        self.head = nn.Linear(4, 2)
        self.make, self.second_order = make, second_order
        self.rates, self.losses = [], []

    def loss(self, batch):
        return (self.head(self.body(batch)) - batch[:, :2]).square().mean()

    def training_step(self, batch, batch_idx):
        loss = self.loss(batch)
        self.losses.append(loss.item())
        return loss

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", self.loss(batch))

    def backward(self, loss):
        loss.backward(create_graph=self.second_order)

    def configure_optimizers(self):
        return self.make(self)

    def on_train_batch_end(self, *_):
        self.rates.append([group["lr"] for group in self.trainer.optimizers[0].param_groups])


def fit(net, path=None, epochs=2, validate=False, **options):
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    trainer = lightning.Trainer(
        max_epochs=epochs, accelerator="cpu", devices=1, enable_checkpointing=False, **quiet, **options
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # few workers, few batches
        loaders = [torch.utils.data.DataLoader(each, batch_size=None) for each in (batches(), batches()[:1])]
        trainer.fit(net, loaders[0], loaders[1] if validate else None, ckpt_path=path)
    return trainer


def weights(net):
    return {name: param.detach().clone() for name, param in net.named_parameters()}


def assert_equal(ours, theirs):
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        assert torch.equal(ours[name], value), name


def plain(net, optimizer, epochs=2, step=None, around=contextlib.nullcontext):
    """The same steps in a loop of one's own."""
    for _ in range(epochs):
        for batch in batches():

            def closure(batch=batch):
                optimizer.zero_grad()
                with around():
                    loss = net.loss(batch)
                net.backward(loss)
                return loss

            if step is not None:
                step(closure)
            else:
                closure()
                optimizer.step()


def halves(optimizer, closure):
    """A step of SAM by hand."""
    closure()
    optimizer.first_step(zero_grad=True)
    closure()
    optimizer.second_step()


# -- names -------------------------------------------------------------------------------------------------------------


# How many epochs it takes until the head's bias moves, of optimizers that gather gradients first, or step by nothing.
WAITING = {"adashift": 3, "radam_schedule_free": 2}
OPTIONS = {"sara": {"threshold": 1.0, "lr": 1e-2}}  # all weights are near zero by that


# sparse_adam takes no dense gradients.
@pytest.mark.parametrize(
    "name", [*hfoptim.list_optimizers(exclude_filters=["sparse_adam"]), "lookahead_adamw", "sam_sgd"]
)
def test_every_name_steps_as_in_a_loop_of_ones_own(name):
    info = hfoptim.get_optimizer_info(name)

    def make(net):
        return hfoptim.create_optimizer_v2(net, name, **OPTIONS.get(name, {}))

    ours, theirs = Net(make, info.second_order), Net(make, info.second_order)
    start = weights(ours)
    epochs = WAITING.get(name, 1)
    trainer = fit(ours, epochs=epochs)
    optimizer = make(theirs)
    # Lightning tells the loss by the closure.
    needs_loss = any(each.needs_loss for each in unwrap_all(optimizer, RuleOptimizer))
    step = optimizer.step if name == "lbfgs" or needs_loss else None
    if name == "sam_sgd":
        step = lambda closure: halves(optimizer, closure)  # noqa: E731
    plain(theirs, optimizer, epochs, step)
    assert_equal(weights(ours), weights(theirs))
    assert trainer.global_step == epochs * BATCHES
    assert not torch.equal(start["head.bias"], ours.head.bias)


# -- SAM ---------------------------------------------------------------------------------------------------------------


def sam(net):
    return SAM(net.parameters(), "adamw", lr=1e-2, rho=0.1)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_sam_takes_both_gradients_from_the_closure(precision):
    ours, theirs = Net(sam), Net(sam)
    trainer = fit(ours, precision=precision)
    optimizer = sam(theirs)
    cast = contextlib.nullcontext
    if precision == "bf16-mixed":
        cast = lambda: torch.autocast("cpu", dtype=torch.bfloat16)  # noqa: E731
    plain(theirs, optimizer, 2, lambda closure: halves(optimizer, closure), cast)
    assert_equal(weights(ours), weights(theirs))
    assert trainer.global_step == 2 * BATCHES
    assert len(ours.losses) == 4 * BATCHES


def test_sam_with_clipping_and_a_schedule():
    def make(net):
        optimizer = sam(net)
        schedule = schedules.get_scheduler("linear", optimizer, num_warmup_steps=2, num_training_steps=2 * BATCHES)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    ours, theirs = Net(make), Net(make)
    fit(ours, gradient_clip_val=0.1)
    made = make(theirs)
    optimizer, schedule = made["optimizer"], made["lr_scheduler"]["scheduler"]

    def step(closure):
        def clipped():
            closure()
            torch.nn.utils.clip_grad_norm_(theirs.parameters(), 0.1)

        halves(optimizer, clipped)
        schedule.step()

    plain(theirs, optimizer, 2, step)
    assert_equal(weights(ours), weights(theirs))
    assert ours.rates[-1] == [0.0]


def test_sam_refuses_gradients_of_earlier_batches():
    with pytest.raises(RuntimeError, match=r"gradients of earlier batches.*accumulate_grad_batches=1"):
        fit(Net(sam), accumulate_grad_batches=2)


def test_sam_leaves_a_batch_out_for_which_training_step_returns_none():
    class Skipping(Net):
        def training_step(self, batch, batch_idx):
            return None if batch_idx % 2 else super().training_step(batch, batch_idx)

    ours, theirs = Skipping(sam), Net(sam)
    fit(ours, epochs=1)
    optimizer = sam(theirs)
    for batch in batches()[::2]:

        def closure(batch=batch):
            optimizer.zero_grad()
            theirs.loss(batch).backward()

        halves(optimizer, closure)
    assert_equal(weights(ours), weights(theirs))


@pytest.mark.parametrize("way", ["halves", "backward_before", "closure"])
def test_sam_by_hand_in_manual_optimization(way):
    class Manual(Net):
        def __init__(self, make):
            super().__init__(make)
            self.automatic_optimization = False

        def training_step(self, batch, batch_idx):
            optimizer = self.optimizers()
            assert isinstance(optimizer, SAM)

            def closure():
                if way == "closure":
                    optimizer.zero_grad()
                loss = self.loss(batch)
                self.manual_backward(loss)
                return loss

            if way == "closure":
                optimizer.step(closure)
                return
            optimizer.zero_grad()
            if way == "halves":
                halves(optimizer, closure)
            else:
                closure()
                optimizer.step(closure)

    ours, theirs = Manual(sam), Net(sam)
    fit(ours)
    optimizer = sam(theirs)
    plain(theirs, optimizer, 2, lambda closure: halves(optimizer, closure))
    assert_equal(weights(ours), weights(theirs))


def test_sam_in_fabric():
    fabric = lightning.Fabric(accelerator="cpu", devices=1)
    ours, theirs = Net(sam), Net(sam)
    inner = sam(ours)
    _, optimizer = fabric.setup(nn.Sequential(ours.body, ours.head), inner)
    assert unwrap(optimizer, SAM) is inner
    plain(ours, optimizer, 2, optimizer.step)
    other = sam(theirs)
    plain(theirs, other, 2, lambda closure: halves(other, closure))
    assert_equal(weights(ours), weights(theirs))


# -- resuming ----------------------------------------------------------------------------------------------------------


def curve(name, **options):
    def schedule(optimizer):
        return schedules.get_scheduler(
            name, optimizer, num_warmup_steps=2, num_training_steps=4 * BATCHES, scheduler_specific_kwargs=options
        )

    return schedule


def in_a_row(optimizer):
    # The second one still waits when the checkpoint is written.
    members = [curve("constant_with_warmup")(optimizer), curve("cosine")(optimizer)]
    return torch.optim.lr_scheduler.SequentialLR(optimizer, members, milestones=[3 * BATCHES])


def chained(optimizer):
    return torch.optim.lr_scheduler.ChainedScheduler([curve("linear")(optimizer), curve("cosine")(optimizer)])


SCHEDULES = {
    "cosine": curve("cosine"),
    "wsd": curve("warmup_stable_decay", num_decay_steps=4),
    "restarts": curve("cosine_with_restarts", num_cycles=2),
    "sequential": in_a_row,
    "chained": chained,
}


def resumed_equals_whole(make, tmp_path, cls=Net, **options):
    whole = cls(make)
    fit(whole, epochs=4, **options)
    first = cls(make)
    fit(first, epochs=2, **options).save_checkpoint(tmp_path / "half.ckpt")
    second = cls(make)
    with torch.no_grad():
        for param in second.parameters():
            param.zero_()
    fit(second, tmp_path / "half.ckpt", epochs=4, **options)
    assert second.rates == whole.rates[2 * BATCHES :]
    assert_equal(weights(second), weights(whole))
    return whole


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_resumed_run_has_the_same_learning_rates_and_bits(name, tmp_path):
    def make(net):
        optimizer = hfoptim.create_optimizer_v2(net, "adamw", lr=1e-2)
        schedule = SCHEDULES[name](optimizer)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    whole = resumed_equals_whole(make, tmp_path)
    assert len({tuple(rates) for rates in whole.rates}) > BATCHES


@pytest.mark.parametrize("name", ["reduce_lr_on_plateau", "greedy", "plateau"])
def test_a_schedule_that_follows_a_metric_gets_it_and_resumes(name, tmp_path):
    options = {} if name == "greedy" else {"scheduler_specific_kwargs": {"patience": 0, "threshold": 10.0}}

    def make(net):
        optimizer = hfoptim.create_optimizer_v2(net, "lion", lr=1e-2)
        schedule = schedules.get_scheduler(name, optimizer, **options)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "monitor": "val_loss"}}

    whole = resumed_equals_whole(make, tmp_path, validate=True)
    assert name == "greedy" or whole.rates[-1] < whole.rates[0]


@pytest.mark.parametrize("name", ["sam_adamw", "lookahead_lion", "muon", "prodigy", "adafactor", "lbfgs"])
def test_an_optimizer_goes_on_from_a_checkpoint(name, tmp_path):
    resumed_equals_whole(lambda net: hfoptim.create_optimizer_v2(net, name), tmp_path)


# -- optimizers with a will of their own -------------------------------------------------------------------------------


def schedule_free(net):
    return hfoptim.create_optimizer_v2(net, "schedule_free_adamw", lr=1e-2)


class ScheduleFree(Net):
    """Puts the optimizer into the mode of what comes next."""

    def on_train_epoch_start(self):
        self.optimizers().train()

    def on_validation_epoch_start(self):
        self.optimizers().eval()

    def on_validation_epoch_end(self):
        self.seen = weights(self)
        self.optimizers().train()


def test_modes_of_schedule_free_are_switched_through_lightnings_wrapper(tmp_path):
    ours, theirs = ScheduleFree(schedule_free), Net(schedule_free)
    fit(ours, validate=True, num_sanity_val_steps=0)
    optimizer = schedule_free(theirs)
    plain(theirs, optimizer)
    assert_equal(weights(ours), weights(theirs))
    optimizer.eval()
    assert_equal(ours.seen, weights(theirs))
    resumed_equals_whole(schedule_free, tmp_path, ScheduleFree, validate=True, num_sanity_val_steps=0)


# -- groups that come later --------------------------------------------------------------------------------------------


class Tuned(Net):
    """A head first, a backbone from epoch 1 on."""

    def __init__(self, make):
        super().__init__(make)
        self.backbone = self.body


class ScheduledFinetuning(lightning.pytorch.callbacks.BackboneFinetuning):  # type: ignore[name-defined]
    def finetune_function(self, module, epoch, optimizer):
        if epoch == self.unfreeze_backbone_at_epoch:
            super().finetune_function(module, epoch, optimizer)
            module.lr_schedulers().take_on()
        elif epoch > self.unfreeze_backbone_at_epoch:
            self.make_trainable(module.backbone)


def head_alone(net):
    optimizer = hfoptim.create_optimizer_v2(net.head.parameters(), "lion", lr=1e-2)
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": curve("cosine")(optimizer), "interval": "step"}}


def test_a_backbone_joins_the_schedule_when_it_is_unfrozen(tmp_path):
    ours, theirs = Tuned(head_alone), Net(head_alone)
    start = weights(theirs)
    fit(ours, epochs=4, callbacks=[ScheduledFinetuning(1, backbone_initial_lr=2e-3)])
    made = head_alone(theirs)
    optimizer, schedule = made["optimizer"], made["lr_scheduler"]["scheduler"]
    rates = []

    def step(closure):
        optimizer.step(closure)
        schedule.step()
        rates.append([group["lr"] for group in optimizer.param_groups])

    plain(theirs, optimizer, 1, step)
    assert torch.equal(start["body.0.weight"], theirs.body[0].weight)
    optimizer.add_param_group({"params": list(theirs.body.parameters()), "lr": 2e-3})
    schedule.take_on()
    plain(theirs, optimizer, 3, step)
    assert ours.rates == rates
    assert all(low == pytest.approx(0.2 * high, rel=1e-12) for high, low in rates[BATCHES:])
    assert_equal({name: value for name, value in weights(ours).items() if "backbone" not in name}, weights(theirs))
    assert not torch.equal(start["body.0.weight"], theirs.body[0].weight)


def test_a_run_whose_backbone_has_joined_goes_on_from_a_checkpoint(tmp_path):
    def callbacks():
        return [ScheduledFinetuning(1, backbone_initial_lr=2e-3)]

    whole = Tuned(head_alone)
    fit(whole, epochs=4, callbacks=callbacks())
    first = Tuned(head_alone)
    fit(first, epochs=2, callbacks=callbacks()).save_checkpoint(tmp_path / "half.ckpt")
    second = Tuned(head_alone)
    fit(second, tmp_path / "half.ckpt", epochs=4, callbacks=callbacks())
    assert second.rates == whole.rates[2 * BATCHES :]
    assert_equal(weights(second), weights(whole))


class Released(Net):
    """Steps inside of backward."""

    def on_train_start(self):
        hfoptim.prepare_for_gradient_release(self, self.optimizers())


def adamw(net):
    return hfoptim.create_optimizer_v2(net, "adamw", lr=1e-2)


def test_gradient_release_steps_as_without_it_and_refuses_accumulation():
    ours, theirs = Released(adamw), Net(adamw)
    fit(ours)
    plain(theirs, adamw(theirs))
    assert_equal(weights(ours), weights(theirs))
    assert all(param.grad is None for param in ours.parameters())
    with pytest.raises(RuntimeError, match=r"second gradient before optimizer\.step"):
        fit(Released(adamw), accumulate_grad_batches=2)


def test_the_optimizer_itself_is_found_in_lightnings_wrapper():
    net = Net(lambda net: hfoptim.Lookahead(adamw(net)))
    trainer = fit(net, epochs=1)
    wrapper = net.optimizers()
    assert wrapper is not trainer.optimizers[0]
    assert unwrap(wrapper, hfoptim.Lookahead) is trainer.optimizers[0]
    assert unwrap(wrapper, RuleOptimizer) is trainer.optimizers[0].optimizer
