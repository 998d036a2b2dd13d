"""plateau: against timm's PlateauLRScheduler and torch's, and exact when resumed."""

from __future__ import annotations

import copy
import io
import pickle
import warnings
from typing import Any

import peers
import pytest
import torch
from lr_trace import make

import schedules
from schedules import create_scheduler_v2, get_scheduler

needs_timm = pytest.mark.skipif(not peers.installed("timm"), reason="timm is not installed")
METRICS = [5.0, 4.0, 4.0, 4.0, 4.1, 3.0, 3.0, 3.0, 3.1, 2.9, 2.9, 2.9, 2.9, 2.9, 2.0, 2.0, 2.0, 1.0, 1.0, 1.0] * 2


def lrs_of(schedule: Any) -> list[float]:
    return [float(group["lr"]) for group in schedule.optimizer.param_groups]


def run(schedule: Any, start: int, stop: int, timm: bool = False) -> list[list[float]]:
    lrs = []
    for n in range(start, stop):
        if timm:
            schedule.step(n + 1, METRICS[n])
        else:
            schedule.step(METRICS[n])
        lrs.append(lrs_of(schedule))
    return lrs


@needs_timm
@pytest.mark.parametrize("noise", [None, 0.2, [0.1, 0.6]])
@pytest.mark.parametrize("mode", ["min", "max"])
@pytest.mark.parametrize(
    "options",
    [
        {"patience_epochs": 1},
        {"patience_epochs": 0, "decay_rate": 0.5, "min_lr": 0.01, "warmup_epochs": 4},
        {"patience_epochs": 2, "decay_rate": 0.7, "warmup_epochs": 3, "warmup_lr": 0.02, "warmup_prefix": True},
    ],
)
def test_plateau_equals_timm(options: dict[str, Any], mode: str, noise: Any) -> None:
    given = {"sched": "plateau", "num_epochs": 40, "plateau_mode": mode, "noise": noise, **options}
    ours, total = create_scheduler_v2(make(0.05, 0.2), **given)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns that it will be removed
        theirs, other_total = peers.load("timm.scheduler.scheduler_factory.create_scheduler_v2")(
            make(0.05, 0.2), **given
        )
    assert total == other_total
    assert lrs_of(ours) == pytest.approx(lrs_of(theirs), rel=1e-12)
    expected = run(theirs, 0, 40, timm=True)
    found = run(ours, 0, 40, timm=True)
    assert found == [pytest.approx(lrs, rel=1e-12) for lrs in expected]
    assert len({lrs[0] for lrs in found}) > 2
    # Without a metric only the noise moves.
    ours.step(41)
    theirs.step(41)
    assert lrs_of(ours) == pytest.approx(lrs_of(theirs), rel=1e-12)
    ours.step_update(99)
    assert lrs_of(ours) == pytest.approx(lrs_of(theirs), rel=1e-12)

    # By name, with our options.
    named = get_scheduler(
        "plateau",
        make(0.05, 0.2),
        None,
        None,
        {
            "mode": mode,
            "patience": options["patience_epochs"],
            "factor": options.get("decay_rate", 0.1),
            "min_lr": options.get("min_lr", 0.0),
            "warmup_epochs": options.get("warmup_epochs", 0),
            "warmup_lr": options.get("warmup_lr", 1e-5),
            "noise_range": None if noise is None else [8] if noise == 0.2 else [4, 24],
        },
    )
    assert run(named, 0, 40) == found


@pytest.mark.parametrize("options", [{"patience": 1}, {"patience": 0, "factor": 0.5, "min_lr": 0.01, "cooldown": 2}])
def test_plateau_without_warmup_and_noise_is_torchs(options: dict[str, Any]) -> None:
    ours = get_scheduler("plateau", make(0.05, 0.2), 0, 0, options)
    reference = torch.optim.lr_scheduler.ReduceLROnPlateau(make(0.05, 0.2), **options)
    assert run(ours, 0, 40) == run(reference, 0, 40)
    assert isinstance(ours, torch.optim.lr_scheduler.ReduceLROnPlateau)


FULL = {
    "patience": 1,
    "factor": 0.7,
    "cooldown": 1,
    "warmup_epochs": 4,
    "warmup_lr": 0.001,
    "noise_range": [6, 30],
    "min_lr": 0.004,
}


def build(*lrs: Any, **options: Any) -> Any:
    return get_scheduler("plateau", make(*(lrs or (0.05, 0.2))), None, None, {**FULL, **options})


@pytest.mark.parametrize("cut", [0, 2, 4, 5, 9, 17, 33])
def test_plateau_resumes_exactly(cut: int) -> None:
    whole = run(build(), 0, 40)
    first = build()
    assert run(first, 0, cut) == whole[:cut]
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    second = build(noise_seed=1)  # the settings are the checkpoint's, as with torch's
    second.load_state_dict(torch.load(file, weights_only=True))
    assert lrs_of(second) == lrs_of(first) == second.get_last_lr()
    assert run(second, cut, 40) == whole[cut:]
    assert run(pickle.loads(pickle.dumps(first)), cut, 40) == whole[cut:]
    assert run(first, cut, 40) == whole[cut:]
    assert len({lrs[0] for lrs in whole}) > 20


@needs_timm
def test_timms_own_plateau_does_not_resume_exactly() -> None:
    def fresh(function: Any) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return function(make(0.05), "plateau", 40, patience_epochs=2, decay_rate=0.5, plateau_mode="min")[0]

    for function, exact in (
        (create_scheduler_v2, True),
        (peers.load("timm.scheduler.scheduler_factory.create_scheduler_v2"), False),
    ):
        whole = run(fresh(function), 0, 20, timm=True)
        first, second = fresh(function), fresh(function)
        run(first, 0, 4, timm=True)
        second.optimizer.load_state_dict(first.optimizer.state_dict())
        second.load_state_dict(first.state_dict())
        assert (run(second, 4, 20, timm=True) == whole[4:]) is exact


@needs_timm
def test_timms_plateau_never_reaches_its_base_after_a_warmup_with_a_fraction() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs, _ = peers.load("timm.scheduler.scheduler_factory.create_scheduler_v2")(
            make(0.1), "plateau", 40, warmup_epochs=2.5, warmup_lr=0.0
        )
    assert run(theirs, 0, 6, timm=True)[-1] == [pytest.approx(0.08)]
    with pytest.raises(ValueError, match="warmup_epochs must be a whole number"):
        create_scheduler_v2(make(0.1), "plateau", 40, warmup_epochs=2.5)


def test_plateau_refuses_foreign_states_and_changes_nothing() -> None:
    schedule = build()
    run(schedule, 0, 9)
    before, lrs = copy.deepcopy(schedule.state_dict()), lrs_of(schedule)
    plain = get_scheduler("reduce_lr_on_plateau", make(0.05, 0.2))
    for foreign, match in (
        (plain, "not the state of this kind of schedule: .*plain_lrs"),
        (build(0.1), "1 param groups"),
    ):
        with pytest.raises(ValueError, match=match):
            schedule.load_state_dict(foreign.state_dict())
    assert schedule.state_dict() == before
    assert lrs_of(schedule) == lrs


def test_plateau_with_tensor_lrs_and_a_frozen_group() -> None:
    tensors = [torch.tensor(0.05), torch.tensor(0.2, dtype=torch.float64), 0.0]
    schedule = build(*tensors)
    reference = run(build(0.05, 0.2, 0.0), 0, 40)
    for mine, other in zip(run(schedule, 0, 40), reference, strict=True):
        assert mine == pytest.approx(other, rel=1e-5)
        assert mine[2] == 0.0
    assert all(group["lr"] is lr for group, lr in zip(schedule.optimizer.param_groups[:2], tensors[:2], strict=True))


def test_plateau_checks_its_options() -> None:
    bad: list[tuple[dict[str, Any], str]] = [
        ({"warmup_epochs": 1.5}, "warmup_epochs must be a whole number"),
        ({"warmup_epochs": 2, "warmup_lr": -0.1}, "warmup_lr must be at least 0"),
        ({"warmup_lr": [0.1]}, "warmup_lr must be a number or 2 numbers"),
        ({"noise_range": [1, 2, 3]}, "noise_range must be where the noise starts"),
        ({"noise_range": [5, 2]}, "noise_range must not stop before it starts"),
        ({"noise_range": 1, "noise_pct": 0}, "noise_pct must be above 0"),
        ({"mode": "best"}, "mode"),
        ({"factor": 1.5}, "(?i)factor"),
    ]
    for options, match in bad:
        with pytest.raises(ValueError, match=match):
            build(**options)
    with pytest.raises(TypeError, match="plateau takes no option 'warmup'; the closest names are"):
        schedules.get_plateau_schedule(make(0.1), warmup=3)
