"""Weight decay, betas, momentum and others by a curve: values, names, errors, checkpoints, and whether steps obey."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import pytest
import torch
from torch import nn

import hfoptim
import schedules
from hfoptim import prepare_for_gradient_release
from hfoptim.engine.backends import compiled
from hfoptim.engine.codegen import native
from schedules import absolute, cosine, linear, schedule_hyperparameter

CURVE = linear(10).floor(0.2)


def params(count: int = 3, dtype: torch.dtype = torch.float32) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(5, 4, generator=generator, dtype=torch.float64).to(dtype)) for _ in range(count)]


def make(cls: Any = torch.optim.AdamW, **options: Any) -> Any:
    """An optimizer with three groups: a decay of its own, none, and the optimizer's."""
    first, second, third = params()
    groups = [{"params": [first], "weight_decay": 0.5}, {"params": [second], "weight_decay": 0.0}, {"params": [third]}]
    return cls(groups, **{"lr": 0.01, "weight_decay": 0.1, **options})


def decays(optimizer: Any) -> list[float]:
    return [group["weight_decay"] for group in optimizer.param_groups]


def step(optimizer: Any, t: int) -> None:
    for index, group in enumerate(optimizer.param_groups):
        for param in group["params"]:
            generator = torch.Generator().manual_seed(97 * t + index)
            param.grad = torch.randn(param.shape, generator=generator, dtype=torch.float64).to(param.dtype)
    optimizer.step()


def through_disk(state: Any) -> Any:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def groups_of(optimizer: Any) -> list[dict[str, Any]]:
    return [{k: copy.copy(v) for k, v in group.items() if k != "params"} for group in optimizer.param_groups]


# -- values ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("joined", [True, False])
def test_each_group_follows_the_curve_from_its_own_value(joined: bool) -> None:
    optimizer = make()
    with_lr = schedules.get_scheduler("cosine", optimizer, 2, 8) if joined else None
    schedule = schedule_hyperparameter(optimizer, "weight_decay", CURVE, with_lr)
    assert (schedule is with_lr) == joined
    lrs = []
    for t in range(14):
        assert decays(optimizer) == [0.5 * CURVE(t), 0.0, 0.1 * CURVE(t)]
        assert schedule.hyperparameters.at(t) == {"weight_decay": dict(enumerate(decays(optimizer)))}
        lrs.append(optimizer.param_groups[0]["lr"])
        step(optimizer, t)
        schedule.step()
    assert [group["initial_weight_decay"] for group in optimizer.param_groups] == [0.5, 0.0, 0.1]
    plain = schedules.get_scheduler("cosine", make(), 2, 8)
    assert isinstance(plain, schedules.ScheduleLR)
    assert lrs == ([plain.lr_at(t)[0] for t in range(14)] if joined else [0.01] * 14)
    assert ("initial_lr" in optimizer.param_groups[0]) == joined


def test_absolute_values() -> None:
    optimizer = make()
    rising = linear(10).between(absolute(0.99), absolute(0.9))
    schedule = schedule_hyperparameter(optimizer, "beta1", rising)
    schedule_hyperparameter(optimizer, "weight_decay", absolute(0.03), schedule)
    for t in range(12):
        expected = 0.9 + 0.09 * min(1.0, t / 10)
        assert [group["betas"] for group in optimizer.param_groups] == [(pytest.approx(expected, rel=1e-12), 0.999)] * 3
        assert decays(optimizer) == pytest.approx([0.03, 0.0, 0.03])  # a group without decay is left without
        schedule.step()


def test_chosen_groups_with_curves_of_their_own() -> None:
    optimizer = make()
    schedule = schedule_hyperparameter(optimizer, "weight_decay", CURVE, groups=[0])
    schedule_hyperparameter(optimizer, "weight_decay", cosine(10), schedule, groups=[2])
    for _ in range(5):
        schedule.step()
    assert decays(optimizer) == [0.5 * CURVE(5), 0.0, 0.1 * cosine(10)(5)]


def test_curves_by_name() -> None:
    optimizer = make()
    options = {"num_warmup_steps": 2, "num_training_steps": 10, "num_cycles": 2}
    schedule = schedule_hyperparameter(optimizer, "weight_decay", ("cosine_with_restarts", options))
    schedule_hyperparameter(optimizer, "eps", "constant", schedule)
    assert [each.name for each in schedule.hyperparameters.all] == ["weight_decay", "eps"]
    for _ in range(5):
        schedule.step()
    curve = schedules.get_curve("cosine_with_restarts", 2, 10, {"num_cycles": 2})
    assert decays(optimizer)[0] == 0.5 * curve(5)


@pytest.mark.parametrize(
    ("cls", "name", "key", "index", "called"),
    [
        (torch.optim.AdamW, "beta1", "betas", 0, "beta1"),
        (torch.optim.AdamW, "betas[1]", "betas", 1, "beta2"),
        (hfoptim.Adan, "beta3", "betas", 2, "beta3"),
        (torch.optim.SGD, "momentum", "momentum", None, "momentum"),
        (hfoptim.Lion, "momentum", "betas", 0, "beta1"),
        (hfoptim.Adafactor, "eps[1]", "eps", 1, "eps[1]"),
        (hfoptim.Adafactor, "decay_rate", "decay_rate", None, "decay_rate"),
        (torch.optim.RMSprop, "alpha", "alpha", None, "alpha"),
    ],
)
def test_names(cls: Any, name: str, key: str, index: int | None, called: str) -> None:
    options: dict[Any, Any] = {torch.optim.SGD: {"momentum": 0.9}, hfoptim.Adafactor: {"relative_step": False}}
    optimizer = cls(params(), lr=0.01, **options.get(cls, {}))
    before = copy.copy(optimizer.param_groups[0][key])
    schedule = schedule_hyperparameter(optimizer, name, schedules.constant(0.5))
    group = optimizer.param_groups[0]
    after = group[key]
    assert type(after) is type(before)
    if index is None:
        assert after == 0.5 * before
    else:
        assert after[index] == 0.5 * before[index]
        assert [*after[:index], *after[index + 1 :]] == [*before[:index], *before[index + 1 :]]
    assert f"initial_{called}" in group
    assert list(schedule.hyperparameters.at(3)) == [called]
    step(optimizer, 0)


def test_a_name_that_only_some_groups_have() -> None:
    optimizer = torch.optim.SGD(params(2), lr=0.1, momentum=0.9)
    optimizer.add_param_group({"params": params(1), "betas": (0.8, 0.9)})
    del optimizer.param_groups[1]["momentum"]
    schedule = schedule_hyperparameter(optimizer, "momentum", schedules.constant(0.5))
    assert optimizer.param_groups[0]["momentum"] == 0.45
    assert optimizer.param_groups[1]["betas"] == (0.4, 0.9)
    schedule_hyperparameter(optimizer, "beta2", schedules.constant(0.5), schedule)
    assert optimizer.param_groups[1]["betas"] == (0.4, 0.45)
    with pytest.raises(ValueError, match="no hyper-parameter 'beta2'"):
        schedule_hyperparameter(optimizer, "beta2", CURVE, groups=[0])
    assert schedule.hyperparameters.at(0) == {"momentum": {0: 0.45, 1: 0.4}, "beta2": {1: 0.45}}


def test_tensors_are_filled_in_place() -> None:
    betas = torch.tensor(0.9), torch.tensor(0.99)
    optimizer = torch.optim.AdamW(params(), lr=torch.tensor(0.1), betas=betas, capturable=True, foreach=False)
    optimizer.param_groups[0]["weight_decay"] = decay = torch.tensor(0.5)
    lr = optimizer.param_groups[0]["lr"]
    schedule = schedule_hyperparameter(optimizer, "beta1", linear(10).floor(0.5))
    schedule_hyperparameter(optimizer, "weight_decay", CURVE, schedule)
    for _ in range(3):
        schedule.step()
    group = optimizer.param_groups[0]
    assert (group["betas"][0] is betas[0], group["weight_decay"] is decay, group["lr"] is lr) == (True, True, True)
    assert float(betas[0]) == pytest.approx(0.9 * 0.85)
    assert float(decay) == pytest.approx(0.5 * CURVE(3))
    state = through_disk(schedule.state_dict())
    schedule.step()
    schedule.load_state_dict(state)
    assert group["betas"][0] is betas[0]
    assert float(betas[0]) == pytest.approx(0.9 * 0.85)


# -- errors ------------------------------------------------------------------------------------------------------------

WRONG: list[tuple[Any, dict[str, Any], type[Exception], str]] = [
    (torch.optim.AdamW, {"name": "weight_dekay"}, ValueError, "closest names are 'weight_decay'"),
    (torch.optim.AdamW, {"name": "beta4"}, ValueError, "closest names are 'beta[12]', 'beta[12]'"),
    (torch.optim.AdamW, {"name": "betas"}, ValueError, "schedule each number by itself"),
    (torch.optim.AdamW, {"name": "betas[2]"}, ValueError, "no hyper-parameter"),
    (torch.optim.AdamW, {"name": "lr"}, ValueError, "get_scheduler"),
    (torch.optim.AdamW, {"name": "params"}, ValueError, "no hyper-parameter"),
    (torch.optim.AdamW, {"name": "initial_lr"}, ValueError, "no hyper-parameter"),
    (torch.optim.AdamW, {"name": "amsgrad"}, ValueError, "False, not a number"),
    (torch.optim.AdamW, {"name": "foreach"}, ValueError, "None, not a number"),
    (torch.optim.AdamW, {"name": 3}, TypeError, "got 3"),
    (hfoptim.Muon, {"name": "ns_steps"}, ValueError, "5, a count; if it is not, give the optimizer 5.0"),
    (hfoptim.Prodigy, {"name": "growth_rate"}, ValueError, "inf, which cannot be scaled"),
    (torch.optim.SGD, {"name": "momentum"}, ValueError, "momentum is 0 in the param groups"),
    (torch.optim.AdamW, {"name": "beta1", "curve": absolute(1.0)}, ValueError, "at step 0: it must stay below 1"),
    (
        torch.optim.AdamW,
        {"name": "beta2", "curve": linear(500).between(absolute(1.5), 1.0)},
        ValueError,
        r"beta2 of param group 0 would be 1\S* at step 1: it must stay below 1",
    ),
    (
        torch.optim.AdamW,
        {"curve": linear(3000).between(absolute(-0.1), 1.0)},
        ValueError,
        "must not be negative",
    ),
    (torch.optim.AdamW, {"name": "momentum", "curve": linear(50)}, ValueError, "at step 50: without momentum"),
    (torch.optim.AdamW, {"curve": CURVE.floor_lr(0.5)}, ValueError, "weight_decay: param group 0: .* above"),
    (torch.optim.AdamW, {"curve": 0.5}, TypeError, "curve must be a name, .* or a curve"),
    (torch.optim.AdamW, {"curve": ("cosine", 3)}, TypeError, "must be a dict, got 3"),
    (torch.optim.AdamW, {"curve": "cosine"}, ValueError, "requires num_training_steps"),
    (torch.optim.AdamW, {"curve": "greedy"}, ValueError, "follows a metric"),
    (torch.optim.AdamW, {"groups": [0, 3]}, ValueError, "from 0 to 0"),
    (torch.optim.AdamW, {"groups": []}, ValueError, "from 0 to 0"),
    (torch.optim.AdamW, {"groups": [0, 0]}, ValueError, "different indices"),
    (torch.optim.AdamW, {"groups": 0}, TypeError, "list of the groups' indices"),
    (torch.optim.AdamW, {"schedule": "cosine"}, TypeError, "schedule must be a ScheduleLR"),
]


@pytest.mark.parametrize(("cls", "given", "error", "message"), WRONG)
def test_errors_leave_the_optimizer_as_it_was(
    cls: Any, given: dict[str, Any], error: type[Exception], message: str
) -> None:
    weights = [("weight", param) for param in params(1)] if cls is hfoptim.Muon else params()
    optimizer = cls(weights, lr=0.1, weight_decay=0.2)
    before = groups_of(optimizer)
    with pytest.raises(error, match=message):
        schedule_hyperparameter(optimizer, **{"name": "weight_decay", "curve": CURVE, **given})
    assert groups_of(optimizer) == before


def test_one_curve_for_one_number_and_one_optimizer() -> None:
    optimizer = make()
    schedule = schedule_hyperparameter(optimizer, "momentum", CURVE)
    with pytest.raises(ValueError, match=r"beta1 of the param groups \[0, 1, 2\] follows a curve already"):
        schedule_hyperparameter(optimizer, "beta1", CURVE, schedule)
    with pytest.raises(ValueError, match="another optimizer"):
        schedule_hyperparameter(make(), "beta2", CURVE, schedule)
    greedy = schedules.get_scheduler("greedy", optimizer, None, None, {"min_lr": 1e-9})
    with pytest.raises(TypeError, match="got GreedyLR"):
        schedule_hyperparameter(optimizer, "beta2", CURVE, greedy)


def test_a_value_out_of_range_later_changes_nothing() -> None:
    late = schedules.constant().then(absolute(2.0), at=5000)
    optimizer = make()
    schedule = schedule_hyperparameter(optimizer, "weight_decay", linear(9000))
    schedule_hyperparameter(optimizer, "beta2", late, schedule)
    schedule.last_epoch = 4998
    schedule.step()
    before = groups_of(optimizer)
    with pytest.raises(ValueError, match="beta2 of param group 0 would be 2 at step 5000"):
        schedule.step()
    assert groups_of(optimizer) == before


# -- checkpoints -------------------------------------------------------------------------------------------------------

OURS = {
    name: hfoptim.get_optimizer_class(name)
    for name in ("adamw", "adam", "lion", "adan", "lamb", "adafactor", "sgd", "muon", "ademamix", "adopt")
}


def scheduled(cls: Any, joined: bool) -> tuple[Any, Any]:
    """An optimizer whose weight decay and momentum follow curves."""
    options: dict[str, Any] = {"lr": 0.01, "weight_decay": 0.1}
    if cls is OURS["adafactor"]:
        options.update(beta1=0.9, relative_step=False)
    if cls in (OURS["sgd"], torch.optim.SGD):
        options["momentum"] = 0.9
    first, second = params(2)
    groups = [{"params": [("a", first)]}, {"params": [("b", second)], "weight_decay": 0.3}]
    optimizer = cls(groups, **options)
    schedule = schedules.get_scheduler("linear", optimizer, 3, 20) if joined else None
    schedule = schedule_hyperparameter(optimizer, "weight_decay", cosine(15), schedule)
    name = "beta1" if cls is OURS["adafactor"] else "momentum"
    schedule_hyperparameter(optimizer, name, linear(12).between(0.5, 1.0), schedule)
    return optimizer, schedule


def run(optimizer: Any, schedule: Any, start: int, stop: int) -> list[Any]:
    seen = []
    for t in range(start, stop):
        step(optimizer, t)
        seen.append(groups_of(optimizer))
        schedule.step()
    return seen


@pytest.mark.parametrize("joined", [True, False])
@pytest.mark.parametrize("cls", [torch.optim.AdamW, torch.optim.SGD, *OURS.values()])
def test_resume_is_exact(cls: Any, joined: bool) -> None:
    whole = scheduled(cls, joined)
    seen = run(*whole, 0, 20)
    first = scheduled(cls, joined)
    assert run(*first, 0, 9) == seen[:9]
    saved = through_disk([each.state_dict() for each in first])
    weights = [param.detach().clone() for group in first[0].param_groups for param in group["params"]]
    for order in ((0, 1), (1, 0)):
        second = scheduled(cls, joined)
        for group, weight in zip(second[0].param_groups, weights, strict=True):
            group["params"][0].data.copy_(weight)
        for index in order:
            second[index].load_state_dict(copy.deepcopy(saved[index]))
        assert groups_of(second[0])[0]["weight_decay"] == groups_of(first[0])[0]["weight_decay"]
        assert second[1].hyperparameters.at(9) == first[1].hyperparameters.at(9)
        assert run(*second, 9, 20) == seen[9:]
        for group, other in zip(whole[0].param_groups, second[0].param_groups, strict=True):
            assert torch.equal(group["params"][0], other["params"][0])
    assert len({each[0]["weight_decay"] for each in seen}) == 16


@pytest.mark.parametrize("cls", [torch.optim.AdamW, hfoptim.Lion])
def test_a_schedule_made_over_a_loaded_optimizer_starts_from_the_initial_values(cls: Any) -> None:
    first = scheduled(cls, joined=True)
    run(*first, 0, 9)
    second = cls([{"params": [each]} for each in params(2)], lr=0.01, weight_decay=0.7)
    second.load_state_dict(first[0].state_dict())
    assert second.param_groups[0]["initial_weight_decay"] == 0.1
    schedule = schedules.ScheduleLR(second, linear(20), last_epoch=8)
    schedule_hyperparameter(second, "weight_decay", cosine(15), schedule)
    assert decays(second) == [0.1 * cosine(15)(9), 0.3 * cosine(15)(9)]


@pytest.mark.parametrize("joined", [True, False])
def test_a_schedule_loaded_alone_restores_the_values(joined: bool) -> None:
    first = scheduled(hfoptim.AdamW, joined)
    run(*first, 0, 9)
    second = scheduled(hfoptim.AdamW, joined)
    for group in second[0].param_groups:
        group["weight_decay"] = 5.0
    second[1].load_state_dict(through_disk(first[1].state_dict()))
    assert groups_of(second[0]) == groups_of(first[0])
    # The initial values are those of the checkpoint, whatever the code says now.
    third = hfoptim.AdamW([{"params": [each]} for each in params(2)], lr=0.01, weight_decay=0.7, betas=(0.8, 0.99))
    schedule = schedules.get_scheduler("linear", third, 3, 20) if joined else None
    schedule = schedule_hyperparameter(third, "weight_decay", cosine(15), schedule)
    schedule_hyperparameter(third, "momentum", linear(12).between(0.5, 1.0), schedule)
    schedule.load_state_dict(first[1].state_dict())
    schedule.step()
    first[1].step()
    assert decays(third) == decays(first[0])


def test_a_pickled_schedule_goes_on() -> None:
    first = scheduled(torch.optim.AdamW, joined=True)
    run(*first, 0, 5)
    schedule = pickle.loads(pickle.dumps(first[1]))
    for _ in range(3):
        schedule.step()
        first[1].step()
    assert decays(schedule.optimizer) == decays(first[0])
    assert schedule.optimizer is not first[0]


@pytest.mark.parametrize("joined", [True, False])
def test_a_foreign_state_is_refused_and_changes_nothing(joined: bool) -> None:
    optimizer, schedule = scheduled(torch.optim.AdamW, joined)
    run(optimizer, schedule, 0, 3)
    before, groups = copy.deepcopy(schedule.state_dict()), groups_of(optimizer)
    other = make()
    alone = schedules.get_scheduler("linear", other, 3, 20) if joined else None
    alone = schedule_hyperparameter(other, "weight_decay", CURVE, alone, groups=[0, 1])
    foreign = alone.state_dict()
    if joined:
        foreign["base_lrs"] = foreign["base_lrs"][:2]
    with pytest.raises(ValueError, match="the state has curves for weight_decay, the schedule for weight_decay, beta1"):
        schedule.load_state_dict(foreign)
    swapped = copy.deepcopy(before)
    swapped["hyperparameters"].reverse()
    with pytest.raises(ValueError, match=r"the state has a curve for beta1 .* the schedule for weight_decay"):
        schedule.load_state_dict(swapped)
    with pytest.raises(ValueError, match="not the state of"):
        schedule.load_state_dict({"last_epoch": 3})
    assert schedule.state_dict() == before
    assert groups_of(optimizer) == groups
    if joined:
        plain = schedules.get_scheduler("linear", scheduled(torch.optim.AdamW, False)[0], 3, 20)
        with pytest.raises(ValueError, match="the schedule for the lr only"):
            plain.load_state_dict(before)


def test_a_state_of_the_lr_alone_takes_the_curves_to_its_step() -> None:
    plain = torch.optim.AdamW(params(2), lr=0.01)
    other = torch.optim.lr_scheduler.LambdaLR(plain, lambda step: 1.0)
    for _ in range(6):
        other.step()
    optimizer, schedule = scheduled(torch.optim.AdamW, joined=True)
    state = other.state_dict()
    state["base_lrs"] = state["_last_lr"] = [0.01, 0.01]
    schedule.load_state_dict(state)
    assert decays(optimizer) == [0.1 * cosine(15)(6), 0.3 * cosine(15)(6)]


def test_going_to_a_step_takes_all_along() -> None:
    optimizer, schedule = scheduled(torch.optim.AdamW, joined=True)
    schedule.go_to(7)
    assert decays(optimizer) == [0.1 * cosine(15)(7), 0.3 * cosine(15)(7)]


def test_a_checkpoint_with_a_foreign_first_value_is_still_refused() -> None:
    adagrad = torch.optim.Adagrad(params(2), lr=0.1)
    for wrong in ("initial_accumulator_value", "initial_nothing"):
        state = hfoptim.AdamW(params(2)).state_dict()
        state["param_groups"][0][wrong] = adagrad.param_groups[0]["initial_accumulator_value"]
        with pytest.raises(ValueError, match=wrong):
            hfoptim.AdamW(params(2)).load_state_dict(state)


# -- steps obey --------------------------------------------------------------------------------------------------------

RUNNERS: list[dict[str, Any]] = [{"foreach": False}, {"foreach": True}]
if compiled.missing() is None:
    RUNNERS.append({"fused": True})


DECAY = linear(3).then(schedules.constant(0.0)).then(linear(9), at=5)


def curves(optimizer: Any, schedule: Any) -> Any:
    """Decay to 0 and up again, both betas: whatever a runner may have remembered of them is wrong at the next step."""
    schedule = schedule_hyperparameter(optimizer, "weight_decay", DECAY, schedule)
    schedule_hyperparameter(optimizer, "beta1", linear(6).between(0.3, 1.0), schedule)
    return schedule_hyperparameter(optimizer, "beta2", linear(6).between(0.5, 1.0), schedule)


@pytest.mark.parametrize("options", RUNNERS, ids=str)
@pytest.mark.parametrize("name", ["adamw", "adam", "lion", "lamb", "adan", "ademamix", "novograd"])
def test_every_runner_obeys_at_the_next_step(name: str, options: dict[str, Any]) -> None:
    """The plain loop with numbers set by hand, in groups made anew, against a schedule."""
    cls = hfoptim.get_optimizer_class(name)
    mine, other, still = (params(4, torch.float64) for _ in range(3))
    optimizer = cls(mine, lr=0.05, weight_decay=0.4, **options)
    schedule = curves(optimizer, schedules.get_scheduler("linear", optimizer, 0, 20))
    by_hand = cls(other, lr=0.05, weight_decay=0.4, foreach=False)
    fixed = cls(still, lr=0.05, weight_decay=0.4, foreach=False)
    for t in range(10):
        if t == 5:  # with decay and without: for LAMB and LARS these are two updates
            kernels = native.compiled()
        beta1, beta2 = linear(6).between(0.3, 1.0)(t), linear(6).between(0.5, 1.0)(t)
        first, second, *rest = fixed.param_groups[0]["betas"]
        by_hand.param_groups[0].update(
            lr=0.05 * (20 - t) / 20,
            weight_decay=0.4 * DECAY(t),
            betas=(first * beta1, second * beta2, *rest),
        )
        for each in (optimizer, by_hand, fixed):
            step(each, t)
        schedule.step()
        for one, two in zip(mine, other, strict=True):
            torch.testing.assert_close(one, two, rtol=1e-9, atol=1e-12)
    assert not torch.allclose(mine[0], still[0], rtol=1e-3)
    assert native.compiled() == kernels, "compiled again for another number"


def test_parameters_are_sorted_anew_only_where_a_number_becomes_0(monkeypatch: pytest.MonkeyPatch) -> None:
    sorted_at, collect = [], hfoptim.engine.RuleOptimizer._collect
    optimizer = hfoptim.Lamb(params(), lr=0.05, weight_decay=0.4, foreach=True)
    schedule = curves(optimizer, None)

    def spy(self: Any, *args: Any) -> Any:
        sorted_at.append(t)
        return collect(self, *args)

    monkeypatch.setattr(hfoptim.engine.RuleOptimizer, "_collect", spy)
    for t in range(8):
        step(optimizer, t)
        schedule.step()
    assert sorted_at == [0, 3, 5]


@pytest.mark.parametrize("foreach", [False, True])
def test_a_compiled_step_of_torch_recompiles_for_no_tensor(foreach: bool) -> None:
    """Betas as tensors are filled, so that torch.compile, which turns floats into constants, has nothing to redo."""
    from torch._dynamo.utils import counters

    options = {"betas": (torch.tensor(0.9), torch.tensor(0.99)), "lr": torch.tensor(0.01)}
    optimizer = torch.optim.AdamW(params(2), foreach=foreach, capturable=True, **options)
    schedule = schedule_hyperparameter(optimizer, "beta1", linear(9).floor(0.5))
    compiled_step = torch.compile(optimizer.step, backend="eager")
    graphs = []
    for _ in range(6):
        for param in optimizer.param_groups[0]["params"]:
            param.grad = torch.ones_like(param)
        compiled_step()
        schedule.step()
        graphs.append(counters["stats"]["unique_graphs"])
    assert graphs[2:] == [graphs[1]] * 4


@pytest.mark.parametrize("name", ["adamw", "lion"])
def test_gradient_release_obeys(name: str) -> None:
    cls = hfoptim.get_optimizer_class(name)

    def train(release: bool) -> list[torch.Tensor]:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 1))
        optimizer = cls(model.parameters(), lr=0.05, weight_decay=0.4, gradient_release=release)
        if release:
            prepare_for_gradient_release(model, optimizer)
        schedule = curves(optimizer, schedules.get_scheduler("cosine", optimizer, 1, 10))
        for t in range(7):
            generator = torch.Generator().manual_seed(t)
            model(torch.randn(6, 4, generator=generator)).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
        return [param.detach() for param in model.parameters()]

    for one, two in zip(train(True), train(False), strict=True):
        assert torch.equal(one, two)
