"""Our schedules in torch's SequentialLR and ChainedScheduler, resumed by the Trainer and by Accelerate."""

import pytest
import torch
from accelerate import Accelerator
from resuming import SaveAt, history, parameters, same
from torch.optim.lr_scheduler import ChainedScheduler, CosineAnnealingLR, ExponentialLR, SequentialLR

import hfoptim
import schedules

STEPS, BREAK = 8, 5


def sequence(optimizer):
    """Ours over, torch's running, ours waiting at the break."""
    members = [
        schedules.get_linear_schedule_with_warmup(optimizer, 2, 9),
        CosineAnnealingLR(optimizer, 6),
        schedules.get_scheduler("rex", optimizer, 0, 5, {"min_lr": 1e-4}),
    ]
    return SequentialLR(optimizer, members, [3, 6])


def chain(optimizer):
    """What ours wrote is not what the optimizer has."""
    return ChainedScheduler([schedules.get_cosine_schedule_with_warmup(optimizer, 2, 9), ExponentialLR(optimizer, 0.7)])


@pytest.mark.parametrize("composite", [sequence, chain])
def test_the_trainer_goes_on_where_it_was(composite, make_trainer, model, text, tmp_path):
    def train(resume):
        network = model(seed=int(resume))
        optimizer = hfoptim.create_optimizer_v2(network, "adamw", lr=1e-2)
        own = {"model": network, "train_dataset": text[:12], "optimizers": (optimizer, composite(optimizer))}
        extra = [] if resume else [SaveAt(BREAK)]
        given = {"max_steps": STEPS, "per_device_train_batch_size": 2, "output_dir": str(tmp_path / "run")}
        trainer = make_trainer(*extra, own=own, **given)
        trainer.train(resume_from_checkpoint=resume)
        return trainer

    whole, resumed = train(False), train(True)
    entries = history(whole.state.log_history)
    assert len({lr for _, lr, _, _ in entries}) > 5
    assert history(resumed.state.log_history)[-(STEPS - BREAK) :] == entries[BREAK:]
    same(parameters(resumed), parameters(whole))


@pytest.mark.parametrize("composite", [sequence, chain])
def test_accelerate_goes_on_where_it_was(composite, tmp_path):
    def prepared():
        torch.manual_seed(0)
        network = torch.nn.Linear(3, 2)
        optimizer = hfoptim.create_optimizer_v2(network, "lion", lr=1e-2)
        accelerator = Accelerator(cpu=True)
        return accelerator, *accelerator.prepare(network, optimizer, composite(optimizer))

    def advance(network, optimizer, schedule, steps):
        lrs = []
        for _ in range(steps):
            network(torch.ones(4, 3)).square().mean().backward()
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            lrs.append(optimizer.param_groups[0]["lr"])
        return lrs, [param.detach().clone() for param in network.parameters()]

    accelerator, *first = prepared()
    advance(*first, BREAK)
    accelerator.save_state(str(tmp_path / "state"))
    lr = first[1].param_groups[0]["lr"]
    whole, weights = advance(*first, STEPS - BREAK)

    accelerator, *second = prepared()
    accelerator.load_state(str(tmp_path / "state"))
    assert second[1].param_groups[0]["lr"] == lr
    resumed, others = advance(*second, STEPS - BREAK)
    assert resumed == whole
    assert all(torch.equal(one, other) for one, other in zip(weights, others, strict=True))
