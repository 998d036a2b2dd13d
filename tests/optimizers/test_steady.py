"""What a step keeps for the next one is used only while it is true."""

import copy
import weakref

import pytest
import torch
from harness import feed, parameters

import hfoptim
from hfoptim.engine import counters
from hfoptim.engine.backends import compiled

LAYOUTS = ("vector", "matrix", "conv", "large")
LOOP, KERNELS = {"foreach": False}, {"fused": True}
BACKENDS = [
    pytest.param(LOOP, id="loop"),
    pytest.param({"foreach": True}, id="foreach"),
    pytest.param(
        KERNELS,
        id="kernels",
        marks=pytest.mark.skipif(compiled.missing() is not None, reason=f"needs {compiled.missing()}"),
    ),
]


def pair(options=LOOP):
    """Two equal optimizers: one goes on as it is, the other forgets after every step."""
    made = []
    for _ in range(2):
        params = parameters(LAYOUTS, torch.float64)
        groups = [
            {"params": [params["vector"], params["large"]], "lr": 0.02},
            {"params": [params["matrix"], params["conv"]]},
        ]
        made.append((params, hfoptim.AdamW(groups, weight_decay=0.1, **options)))
    return made


def both(made, t, only=None, change=None):
    for place, (params, optimizer) in enumerate(made):
        if place == 1:
            optimizer._last_step = None
        feed(params, t, only=only)
        if change is not None:
            change(params)
        optimizer.step()


def assert_equal(made):
    (one, first), (two, second) = made
    for name in one:
        assert torch.equal(one[name], two[name]), name
        for key, value in first.state[one[name]].items():
            assert torch.equal(value, second.state[two[name]][key]), (name, key)


def change_data(params, optimizer):
    params["matrix"].data = params["matrix"].data.clone() * 0.5


def change_state(params, optimizer):
    optimizer.state[params["conv"]]["exp_avg"] = torch.ones_like(params["conv"])


def clear_state(params, optimizer):
    optimizer.state[params["large"]].clear()


def replace_state(params, optimizer):
    optimizer.state[params["large"]] = {}


def set_step(params, optimizer):
    optimizer.state[params["vector"]]["step"].fill_(7.0)


def set_step_in_its_memory(params, optimizer):
    optimizer.state[params["vector"]]["step"].numpy()[...] = 7.0


def change_step_data(params, optimizer):
    optimizer.state[params["vector"]]["step"].data = torch.tensor(7.0)


def replace_step(params, optimizer):
    optimizer.state[params["conv"]]["step"] = torch.tensor(7.0)


def share_memory(params, optimizer):
    """All of it moves to elsewhere, and the tensors stay the same objects."""
    for param, state in optimizer.state.items():
        for tensor in (param, *state.values()):
            tensor.share_memory_()


def change_state_data(params, optimizer):
    state = optimizer.state[params["conv"]]["exp_avg"]
    state.data = state.data.clone() + 1.0


def swap_state(params, optimizer):
    state = optimizer.state[params["conv"]]
    state["exp_avg"], state["exp_avg_sq"] = state["exp_avg_sq"], state["exp_avg"].abs()


def change_strides(params, optimizer):
    params["matrix"].grad = None
    params["matrix"].data = params["matrix"].data.T.contiguous().T


def change_option(params, optimizer):
    optimizer.param_groups[0]["caution"] = True


def change_numbers(params, optimizer):
    optimizer.param_groups[1].update(lr=0.3, weight_decay=0.0, betas=(0.5, 0.9), eps=1e-3)


def reload(params, optimizer):
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))


def add_group(params, optimizer):
    params["more"] = torch.nn.Parameter(torch.ones(3, dtype=torch.float64))
    optimizer.add_param_group({"params": [params["more"]]})


def swap_parameter(params, optimizer):
    params["vector"] = torch.nn.Parameter(params["vector"].detach().clone())
    optimizer.param_groups[0]["params"][0] = params["vector"]


CHANGES = [
    *(change_data, change_state, clear_state, replace_state, set_step, change_option, change_numbers),
    *(reload, add_group, swap_parameter, set_step_in_its_memory, change_step_data, replace_step, share_memory),
    *(change_state_data, swap_state, change_strides),
]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
@pytest.mark.parametrize("options", BACKENDS)
def test_changes_between_steps_are_seen(change, options):
    made = pair(options)
    for t in (1, 2):
        both(made, t)
    for params, optimizer in made:
        change(params, optimizer)
    for t in (3, 4, 5):
        both(made, t)
    assert_equal(made)


@pytest.mark.parametrize("options", BACKENDS)
def test_other_parameters_with_gradients(options):
    made = pair(options)
    for t, only in enumerate([None, ["vector"], ["matrix", "conv"], None, ["vector"], ["vector"], None], start=1):
        both(made, t, only)
    assert_equal(made)


@pytest.mark.parametrize("options", BACKENDS)
def test_gradients_of_another_dtype_or_layout(options):
    def lie_otherwise(params):
        params["conv"].grad = params["conv"].grad.contiguous(memory_format=torch.channels_last)

    made = pair(options)
    for t in range(1, 6):
        both(made, t, change=lie_otherwise if t == 3 else None)
    assert_equal(made)


@pytest.mark.skipif(
    not hasattr(torch.Tensor, "grad_dtype"), reason="gradients have their parameter's dtype in this torch"
)
@pytest.mark.parametrize("options", [{"foreach": True}, {"fused": True}], ids=str)
def test_a_gradient_of_another_dtype_is_not_read_as_one_of_the_last_steps(options):
    mine, other = parameters(LAYOUTS), parameters(LAYOUTS)
    cached = hfoptim.AdamW(list(mine.items()), lr=0.02, **options)
    loop = hfoptim.AdamW(list(other.items()), lr=0.02, foreach=False)
    dtypes = (torch.float32, torch.float32, torch.float64, torch.float64, torch.float32)
    for t, dtype in enumerate(dtypes, start=1):
        feed(mine, t, follow=other)
        feed(other, t)
        for param in mine.values():
            param.grad_dtype = None  # any
            param.grad = param.grad.to(dtype)
        cached.step()
        loop.step()
        for name, param in mine.items():
            torch.testing.assert_close(param, other[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("foreach", [False, True])
def test_memory_that_becomes_that_of_another_dtype_is_not_read_as_before(foreach):
    # float16 and bfloat16 numbers are as long: the parameter's memory, shape and strides stay as they are.
    def run(converted):
        made = []
        params = parameters(("matrix", "vector"), torch.float16)
        optimizer = hfoptim.SGD(list(params.items()), lr=0.1, kahan_sum=False, foreach=foreach)
        for t in range(1, 5):
            if t == 3:
                for param in params.values():
                    bfloat16 = param.detach().to(torch.bfloat16)
                    if converted:
                        param.grad = None
                        param.data = param.data.view(torch.bfloat16).copy_(bfloat16)
                    made.append(torch.nn.Parameter(bfloat16))
                if not converted:
                    params = dict(zip(params, made, strict=True))
                    optimizer = hfoptim.SGD(list(params.items()), lr=0.1, kahan_sum=False, foreach=foreach)
            feed(params, t)
            optimizer.step()
        return params

    ours, theirs = run(True), run(False)
    for name, param in theirs.items():
        assert torch.equal(ours[name], param), name


def test_counters_of_another_kind_count_on():
    """As somebody may have written them into the state; the engine's own are float32 numbers on the CPU."""
    made = pair()
    both(made, 1)
    for _, optimizer in made:
        for state in optimizer.state.values():
            state["step"] = state["step"].double()
    for t in (2, 3, 4):
        both(made, t)
        assert made[0][1]._last_step is None
    assert_equal(made)
    assert {int(state["step"]) for state in made[0][1].state.values()} == {4}


def test_counters_count_in_their_memory():
    steps = [torch.tensor(3.0) for _ in range(5)]
    assert counters.Counters.take(steps)
    counted = counters.Counters(steps)
    assert counted.are(3)
    counted.set(4)
    assert [step.item() for step in steps] == [4.0] * 5
    assert counted.are(4)
    steps[2] += 1
    assert not counted.are(4)
    for other in (torch.tensor([3.0]), torch.tensor(3), torch.tensor(3.0).double(), torch.empty((), device="meta")):
        assert not counters.Counters.take([steps[0], other])


@pytest.mark.parametrize("options", BACKENDS)
def test_a_gradient_with_gaps_is_that_of_one_step(options):
    """Kernels leave such a row to the loop, for that step alone: the next ones are those of a run without it."""

    def leave_gaps(params):
        whole = torch.zeros(*params["large"].shape, 2, dtype=torch.float64)
        whole[..., 0] = params["large"].grad
        params["large"].grad = whole[..., 0]

    made = pair(options)
    for t in range(1, 6):
        both(made, t, change=leave_gaps if t == 3 else None)
    assert_equal(made)


def test_a_failed_step_counts_for_nothing(monkeypatch):
    made = pair()
    both(made, 1)
    both(made, 2)
    params, optimizer = made[0]
    feed(params, 3)
    with monkeypatch.context() as patch:
        patch.setattr(optimizer, "_run", lambda *args: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            optimizer.step()
    for t in (3, 4):
        both(made, t)
    assert_equal(made)


def test_gradients_are_not_kept_alive():
    params, optimizer = pair()[0]
    for t in (1, 2, 3):
        feed(params, t)
        grads = [weakref.ref(param.grad) for param in params.values()]
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        assert not any(grad() is not None for grad in grads)


def test_the_second_step_sorts_nothing(monkeypatch):
    params, optimizer = pair()[0]
    feed(params, 1)
    optimizer.step()
    monkeypatch.setattr(optimizer, "_collect", None)
    for t in (2, 3):
        feed(params, t)
        optimizer.param_groups[0]["lr"] = 0.1 / t
        optimizer.step()


def test_copies_start_afresh():
    params, optimizer = pair()[0]
    feed(params, 1)
    optimizer.step()
    assert copy.deepcopy(optimizer)._last_step is None
    assert "_last_step" not in optimizer.__getstate__()
