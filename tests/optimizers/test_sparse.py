"""Sparse gradients: rows that a batch has not looked up stay, numbers are torch's, and what cannot be is said."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from harness import assert_same, through_disk
from torch import nn

import hfoptim
from hfoptim.training import gradient_release

ROWS, WIDTH = 20, 7
# Ours, torch's, and options.
PAIRS = {
    "sparse_adam": (hfoptim.SparseAdam, torch.optim.SparseAdam, {"lr": 1e-2}),
    "sparse_adam-maximize": (
        hfoptim.SparseAdam,
        torch.optim.SparseAdam,
        {"lr": 1e-2, "betas": (0.5, 0.9), "eps": 1e-2, "maximize": True},
    ),
    "sgd": (hfoptim.SGD, torch.optim.SGD, {"lr": 1e-2}),
    "sgd-maximize": (hfoptim.SGD, torch.optim.SGD, {"lr": 1e-2, "maximize": True}),
    "adagrad": (hfoptim.Adagrad, torch.optim.Adagrad, {"lr": 1e-2, "lr_decay": 0.1, "initial_accumulator_value": 0.1}),
}
every_pair = pytest.mark.parametrize("pair", PAIRS)


def table(dtype=torch.float64, rows=ROWS, width=WIDTH, bag=False, **options):
    torch.manual_seed(0)
    kind = nn.EmbeddingBag if bag else nn.Embedding
    return kind(rows, width, sparse=True, dtype=dtype, **options)


def batch(t):
    """Rows looked up at step `t`, some more than once; none at step 3."""
    g = torch.Generator().manual_seed(t)
    count = 0 if t == 3 else 8
    return torch.randint(0, ROWS, (count,), generator=g), torch.randn(count, WIDTH, generator=g, dtype=torch.float64)


def backward(module, t):
    indices, weights = batch(t)
    module.zero_grad()
    if isinstance(module, nn.EmbeddingBag):
        offsets = torch.arange(0, len(indices), 2)
        (module(indices, offsets) * weights[::2].to(module.weight.dtype)).sum().backward()
    else:
        (module(indices) * weights.to(module.weight.dtype)).sum().backward()


def run(module, optimizer, steps):
    for t in steps:
        backward(module, t)
        optimizer.step()
    return module.weight.detach().clone()


@every_pair
@pytest.mark.parametrize("bag", [False, True], ids=["embedding", "bag"])
@pytest.mark.parametrize("foreach", [None, False], ids=["foreach", "loop"])
def test_numbers_are_torchs(pair, bag, foreach):
    ours, theirs, options = PAIRS[pair]
    mine, other = table(bag=bag, **({"mode": "sum"} if bag else {})), table(bag=bag, **({"mode": "sum"} if bag else {}))
    assert torch.equal(mine.weight, other.weight)
    start = mine.weight.detach().clone()
    a, b = ours(mine.named_parameters(), foreach=foreach, **options), theirs(other.parameters(), **options)
    steps = [t for t in range(1, 31) if not (bag and t == 3)]
    for t in steps:
        backward(mine, t)
        backward(other, t)
        a.step()
        b.step()
        assert (mine.weight - other.weight).abs().max() <= 1e-12 * (other.weight - start).abs().max() + 1e-15, t
    assert (mine.weight != start).any()


@every_pair
@pytest.mark.parametrize("shape", [(), (5,), (4, 3), (3, 2, 2)], ids=str)
def test_entries_of_any_number_of_dimensions_and_uncoalesced_ones(pair, shape):
    ours, theirs, options = PAIRS[pair]
    g = torch.Generator().manual_seed(1)
    first = torch.randn(shape, generator=g, dtype=torch.float64)
    mine, other = (nn.Parameter(first.clone()) for _ in range(2))
    a, b = ours([mine], **options), theirs([other], **options)
    for _ in range(6):
        grad = torch.randn(shape, generator=g, dtype=torch.float64) * (torch.rand(shape, generator=g) > 0.5)
        sparse = grad.to_sparse()
        if shape:  # each entry twice, by halves
            sparse = torch.sparse_coo_tensor(
                torch.cat([sparse.indices()] * 2, 1), torch.cat([sparse.values() / 2] * 2), shape, check_invariants=True
            )
        for param, optimizer in ((mine, a), (other, b)):
            param.grad = sparse.clone()
            optimizer.step()
            assert param.grad._nnz() == sparse._nnz()
    torch.testing.assert_close(mine, other, rtol=1e-13, atol=1e-14)
    assert not torch.equal(mine.detach(), first)


@every_pair
def test_rows_without_a_gradient_stay_and_so_does_their_state(pair):
    ours, _, options = PAIRS[pair]
    module = table()
    optimizer = ours(module.parameters(), **options)
    run(module, optimizer, range(1, 5))
    weight, state = module.weight.detach().clone(), copy.deepcopy(optimizer.state[module.weight])
    backward(module, 5)
    optimizer.step()
    seen = torch.zeros(ROWS, dtype=torch.bool)
    seen[batch(5)[0]] = True
    assert 0 < seen.sum() < ROWS
    assert torch.equal(module.weight[~seen], weight[~seen])
    assert (module.weight[seen] != weight[seen]).all()
    for name, value in optimizer.state[module.weight].items():
        if value.ndim:
            assert torch.equal(value[~seen], state[name][~seen]), name
            assert not torch.equal(value[seen], state[name][seen]), name


def test_a_step_is_the_rule_on_those_rows_written_out():
    """SparseAdam's numbers: bias corrections go by the parameter's steps, and eps is added to the plain root."""
    module = table()
    optimizer = hfoptim.SparseAdam(module.parameters(), lr=0.1, betas=(0.9, 0.99), eps=1e-3)
    run(module, optimizer, range(1, 3))
    state = optimizer.state[module.weight]
    weight, m, v = (t.detach().clone() for t in (module.weight, state["exp_avg"], state["exp_avg_sq"]))
    backward(module, 4)
    grad = module.weight.grad.to_dense()
    optimizer.step()
    row = int(batch(4)[0][0])
    m, v = 0.9 * m[row] + 0.1 * grad[row], 0.99 * v[row] + 0.01 * grad[row] ** 2
    step = 0.1 * math.sqrt(1 - 0.99**3) / (1 - 0.9**3)
    torch.testing.assert_close(
        module.weight[row].detach(), weight[row] - step * m / (v.sqrt() + 1e-3), rtol=1e-12, atol=0
    )


def test_a_step_allocates_what_the_rows_take_and_not_a_table():
    module = table(torch.float32, rows=200_000, width=32)
    optimizer = hfoptim.SparseAdam(module.parameters())

    def step():
        module.zero_grad()
        module(torch.arange(0, 200_000, 4_000)).sum().backward()
        optimizer.step()

    step()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        step()
    largest = max(event.cpu_memory_usage for event in profile.events())
    assert 0 < largest < 200_000 * 32 * 4 / 10


def test_state_in_fewer_bits_follows():
    def moved(**options):
        module = table(torch.float32, rows=ROWS, width=256)
        start = module.weight.detach().clone()
        optimizer = hfoptim.SparseAdam(module.parameters(), lr=1e-2, **options)
        for t in range(1, 9):
            module.zero_grad()
            (module(batch(t)[0]) * torch.randn(1, 256, generator=torch.Generator().manual_seed(t))).sum().backward()
            optimizer.step()
        return module.weight.detach() - start, optimizer.state[module.weight]

    exact, _ = moved()
    for form, dtype, most in (
        ("bfloat16", torch.bfloat16, 0.05),
        ("8bit", torch.uint8, 0.15),
        ("4bit", torch.uint8, 0.6),
    ):
        found, state = moved(state_dtype=form)
        assert state["exp_avg"].dtype == dtype
        assert 0 < (found - exact).norm() < most * exact.norm(), form
        assert torch.equal(found == 0, exact == 0)


@pytest.mark.parametrize("options", [{}, {"master_weights": 16}, {"stochastic_rounding": True}], ids=str)
def test_bfloat16_tables(options):
    module, exact = table(torch.bfloat16), table(torch.float32)
    with torch.no_grad():
        exact.weight.copy_(module.weight)
    start = exact.weight.detach().clone()
    run(module, hfoptim.SparseAdam(module.parameters(), lr=1e-2, **options), range(1, 20))
    run(exact, hfoptim.SparseAdam(exact.parameters(), lr=1e-2), range(1, 20))
    assert module.weight.dtype == torch.bfloat16
    far = (module.weight.float() - exact.weight).abs().max()
    assert far <= 0.05 * (exact.weight - start).abs().max() + exact.weight.abs().max() / 128


@every_pair
def test_a_run_that_resumes_goes_on_bit_for_bit_also_through_gradient_release(pair):
    ours, _, options = PAIRS[pair]
    whole, first = table(torch.float32), table(torch.float32)
    run(whole, a := ours(whole.named_parameters(), **options), range(1, 9))
    run(first, b := ours(first.named_parameters(), **options), range(1, 5))
    second = table(torch.float32)
    second.load_state_dict(first.state_dict())
    c = ours(second.named_parameters(), **options)
    c.load_state_dict(through_disk(b.state_dict()))
    gradient_release.prepare_for_gradient_release(second, c)
    for t in range(5, 9):
        backward(second, t)
        c.step()
    assert_same(second.weight, whole.weight)
    assert_same(c.state_dict()["state"], a.state_dict()["state"])


@every_pair
def test_checkpoints_go_both_ways(pair):
    ours, theirs, options = PAIRS[pair]
    # Ours keep the count of steps as a float32 tensor, with which torch's SparseAdam computes bias corrections.
    for begin, go_on, kept in ((theirs, ours, 1e-12), (ours, theirs, 1e-4)):
        mine, other = table(), table()
        run(mine, a := begin(mine.parameters(), **options), range(1, 6))
        other.load_state_dict(mine.state_dict())
        b = go_on(other.parameters(), **options)
        b.load_state_dict(through_disk(a.state_dict()))
        start = mine.weight.detach().clone()
        far = run(mine, a, range(6, 12)) - run(other, b, range(6, 12))
        assert far.abs().max() <= kept * (mine.weight - start).abs().max()


def test_dense_and_sparse_gradients_step_in_one_sgd_and_take_turns():
    def model():
        torch.manual_seed(0)
        return nn.Sequential(nn.Embedding(ROWS, WIDTH, sparse=True), nn.Linear(WIDTH, 3)).double()

    mine, other = model(), model()
    ours, theirs = hfoptim.SGD(mine.named_parameters(), lr=0.1), torch.optim.SGD(other.parameters(), lr=0.1)
    for t in range(1, 9):
        for net, optimizer in ((mine, ours), (other, theirs)):
            net[0].sparse = t % 3 > 0
            net.zero_grad()
            net(batch(t)[0]).pow(2).sum().backward()
            optimizer.step()
    for a, b in zip(mine.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-13, atol=1e-14)


def test_one_optimizer_of_two_for_tables_and_the_rest():
    net = nn.Sequential(nn.Embedding(ROWS, WIDTH, sparse=True), nn.Linear(WIDTH, 3))
    whole = hfoptim.CombinedOptimizer(
        [hfoptim.SparseAdam(net[0].parameters(), lr=1e-2), hfoptim.AdamW(net[1].parameters(), lr=1e-2)]
    )
    losses = []
    for _ in range(20):
        whole.zero_grad()
        loss = (net(torch.arange(6)) - 1.0).pow(2).mean()
        loss.backward()
        whole.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.8 * losses[0]


def test_a_gradient_scaler():
    module, plain = table(torch.float32), table(torch.float32)
    optimizer = hfoptim.SparseAdam(module.parameters(), lr=1e-2)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    for t in range(1, 7):
        if t == 3:
            continue
        indices, weights = batch(t)
        module.zero_grad()
        scaler.scale((module(indices) * weights.float()).sum() * (math.inf if t == 4 else 1.0)).backward()
        scaler.step(optimizer)
        scaler.update()
    run(plain, hfoptim.SparseAdam(plain.parameters(), lr=1e-2), [1, 2, 5, 6])
    torch.testing.assert_close(module.weight, plain.weight)


@pytest.mark.parametrize(
    "around",
    [torch.inference_mode, lambda: torch.autocast("cpu", torch.bfloat16), torch.enable_grad],
    ids=["inference_mode", "autocast", "enable_grad"],
)
def test_what_is_switched_on_around_a_step_changes_nothing(around):
    module, plain = table(torch.float32), table(torch.float32)
    optimizer, other = (hfoptim.SparseAdam(each.parameters(), lr=1e-2) for each in (module, plain))
    for t in range(1, 5):
        backward(module, t)
        backward(plain, t)
        with around():
            optimizer.step()
        other.step()
    assert_same(module.weight, plain.weight)
    assert_same(optimizer.state_dict()["state"], other.state_dict()["state"])


# -- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda p: hfoptim.Lion(p), "Lion does not take; sparse_adam does, and adagrad and sgd with momentum=0"),
        (lambda p: hfoptim.Adam(p), "sparse_adam does"),
        (lambda p: hfoptim.SGD(p, momentum=0.9), "sgd with momentum=0"),
        (lambda p: hfoptim.SGD(p, weight_decay=0.1), r"weight_decay=0\.1, which moves every row; set it to 0"),
        (lambda p: hfoptim.Adagrad(p, weight_decay=0.1), r"weight_decay=0\.1"),
        (lambda p: hfoptim.SparseAdam(p, caution=True), "caution=True, which looks at the whole parameter"),
        (lambda p: hfoptim.SparseAdam(p, gradient_centralization=True), "gradient_centralization=True"),
        (lambda p: hfoptim.SparseAdam(p, adaptive_clip=0.1), r"adaptive_clip=0\.1"),
        (lambda p: hfoptim.SparseAdam(p, state_dtype="8bit"), "state_dtype='8bit' for the shape"),
    ],
)
def test_what_needs_every_row_is_refused_by_name_and_nothing_has_changed(make, said):
    module = table(torch.float32, rows=600)
    optimizer = make(module.named_parameters())
    before = module.weight.detach().clone()
    backward(module, 1)
    with pytest.raises(TypeError, match=r"parameter 'weight' has a sparse gradient .*" + said):
        optimizer.step()
    assert torch.equal(module.weight, before)
    assert not optimizer.state


def test_dense_gradients_and_complex_parameters():
    net = nn.Sequential(nn.Embedding(ROWS, WIDTH, sparse=True), nn.Linear(WIDTH, 3))
    optimizer = hfoptim.SparseAdam(net.named_parameters())
    net(torch.arange(3)).sum().backward()
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(TypeError, match=r"parameter '1.weight' has a dense gradient, and SparseAdam takes sparse ones"):
        optimizer.step()
    assert_same(net.state_dict(), before)
    spectrum = nn.Parameter(torch.ones(3, 2, dtype=torch.complex64))
    spectrum.grad = torch.ones_like(spectrum).to_sparse()
    with pytest.raises(TypeError, match="for a complex parameter"):
        hfoptim.SparseAdam([spectrum]).step()


def test_it_says_what_it_needs_and_the_trainer_refuses_it():
    assert hfoptim.get_optimizer_info("SparseAdam").needs.startswith("sparse gradients")
    assert hfoptim.get_optimizer_info("sgd").needs is None
    with pytest.raises(ValueError, match="sparse_adam needs sparse gradients"):
        hfoptim.OptimizerCallback("sparse_adam")
    with pytest.raises(TypeError, match="looks at more than single entries"):
        hfoptim.engine.Rule(lambda grad, param, h: (grad,), hfoptim.engine.TENSOR, sparse=True)
