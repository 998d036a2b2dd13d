"""GradientAccumulator on one process: results, precision, memory, saving."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path

import pytest
import torch
from ragged import make_model, ragged_batch, state_of, token_loss, tokens_in
from torch import Tensor, nn
from torch.nn import functional as F

from hfoptim.training.accumulator import GradientAccumulator
from hfoptim.training.gradient_sums import GradientSums


def grads_of(model: nn.Module) -> list[Tensor | None]:
    return [None if p.grad is None else p.grad.clone() for p in model.parameters()]


# The documented TensorFlow class


def test_behaves_like_the_documented_tensorflow_class() -> None:
    accumulator = GradientAccumulator(reduction="sum")
    with pytest.raises(ValueError, match="call the accumulator first"):
        _ = accumulator.gradients
    accumulator([torch.tensor([1.0, 2.0])])
    accumulator([torch.tensor([-2.0, 1.0])])
    accumulator([torch.tensor([-1.0, 2.0])])
    with pytest.raises(ValueError, match="Expected 1 gradients, got 2"):
        accumulator([torch.tensor([1.0, 1.0]), torch.tensor([2.0, 2.0])])
    assert accumulator.step == 3
    assert [g.tolist() for g in accumulator.gradients] == [[-2.0, 5.0]]
    accumulator.reset()
    assert accumulator.step == 0
    assert [g.tolist() for g in accumulator.gradients] == [[0.0, 0.0]]


def test_mean_over_calls_is_the_default() -> None:
    accumulator = GradientAccumulator()
    for value in (1.0, 2.0, 6.0):
        accumulator((torch.tensor([value]),))
    assert accumulator.gradients[0].tolist() == [3.0]
    assert accumulator.total_weight == 3


@pytest.mark.parametrize(("reduction", "expected"), [("mean", (3 * 1.0 + 1 * 5.0) / 4), ("sum", 3 * 1.0 + 1 * 5.0)])
@pytest.mark.parametrize("wrap", [int, float, torch.tensor])
def test_weights(reduction: str, expected: float, wrap: type) -> None:
    accumulator = GradientAccumulator(reduction=reduction)
    accumulator([torch.tensor(1.0)], weight=wrap(3))
    accumulator([torch.tensor(5.0)], weight=wrap(1))
    assert accumulator.gradients[0].item() == expected
    assert accumulator.total_weight == 4


# One big batch


@pytest.mark.parametrize("hand_over", ["take", "list", "dict"])
def test_ragged_windows_equal_the_big_batch(hand_over: str) -> None:
    """Windows of unequal token counts, the last one shorter, one micro-batch without a token (its loss is NaN)."""
    windows = [[[7, 2], [1, 1], [5, 6]], [[3, 7], [0, 0], [7, 7]], [[4, 1]]]
    model = make_model()
    accumulator = GradientAccumulator(model if hand_over == "take" else None)
    for number, lengths in enumerate(windows):
        batches = [ragged_batch(part, seed=10 * number + i) for i, part in enumerate(lengths)]
        model.zero_grad()
        token_loss(model, *(torch.cat(side) for side in zip(*batches, strict=True))).backward()
        expected = grads_of(model)

        model.zero_grad()
        for tokens, labels in batches:
            token_loss(model, tokens, labels).backward()
            if hand_over == "take":
                accumulator(weight=tokens_in(labels))
                assert all(p.grad is None for p in model.parameters())
            else:
                named = {name: p.grad for name, p in model.named_parameters()}
                accumulator(named if hand_over == "dict" else list(named.values()), weight=tokens_in(labels))
                model.zero_grad()
        assert accumulator.step == len(batches)
        accumulator.apply_to(None if hand_over == "take" else model)
        for got, want in zip(grads_of(model), expected, strict=True):
            torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-14)
        accumulator.reset()


def test_training_with_it_equals_training_on_the_big_batch() -> None:
    """Five steps, where momentum and clipping would show any gradient that is off or left over."""
    losses: dict[str, list[float]] = {}
    for way in ("big", "accumulated"):
        model = make_model()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9)
        accumulator = GradientAccumulator(model)
        losses[way] = []
        for step in range(5):
            batches = [ragged_batch(lengths, seed=step) for lengths in ([7, 1], [2, 3], [1, 1])]
            big = [torch.cat(side) for side in zip(*batches, strict=True)]
            losses[way].append(token_loss(model, *big).item())
            if way == "big":
                optimizer.zero_grad()
                token_loss(model, *big).backward()
                torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1)
            else:
                for tokens, labels in batches:
                    token_loss(model, tokens, labels).backward()
                    accumulator(weight=tokens_in(labels))
                norm = torch.nn.utils.clip_grad_norm_(accumulator.apply_to(), 0.1)
                assert norm > 0.1  # or else clipping was not part of the test
            optimizer.step()
            accumulator.reset()
    assert losses["big"] == pytest.approx(losses["accumulated"], rel=1e-12)
    assert losses["big"][-1] < losses["big"][0]


def test_gradients_of_torch_func() -> None:
    model = make_model()
    params = {name: p.detach() for name, p in model.named_parameters()}
    tokens, labels = ragged_batch([3, 7], seed=0)

    def loss(params: dict[str, Tensor]) -> Tensor:
        logits = torch.func.functional_call(model, params, (tokens,))
        return F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100)

    gradients = torch.func.grad(loss)(params)
    accumulator = GradientAccumulator()
    accumulator(gradients)
    accumulator({name: 3 * gradients[name] for name in reversed(gradients)})  # the order of a dict does not matter
    result = accumulator.gradients
    assert list(result) == list(gradients)
    for name, gradient in gradients.items():
        torch.testing.assert_close(result[name], 2 * gradient)


# Precision and memory


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("weight", [None, 2, torch.tensor(2)])
def test_low_precision_gradients_add_up_in_float32(dtype: torch.dtype, weight: float | Tensor | None) -> None:
    param = nn.Parameter(torch.zeros(3, dtype=dtype))
    accumulator = GradientAccumulator([param], reduction="sum")
    for _ in range(1000):
        param.grad = torch.full((3,), 0.01, dtype=dtype)
        accumulator(weight=weight)
    exact = 1000 * torch.full((3,), 0.01, dtype=dtype).float() * (1 if weight is None else 2)
    assert accumulator.gradients[0].dtype == torch.float32
    torch.testing.assert_close(accumulator.gradients[0], exact, rtol=1e-5, atol=0)
    accumulator.apply_to()
    assert param.grad is not None
    assert param.grad.dtype == dtype
    assert torch.equal(param.grad, accumulator.gradients[0].to(dtype))


@pytest.mark.parametrize(
    ("dtype", "sums"), [(torch.float64, torch.float64), (torch.complex64, torch.complex64), (torch.complex128,) * 2]
)
@pytest.mark.parametrize("weights", [(None, None), (1, 3)])
def test_wide_and_complex_gradients(dtype: torch.dtype, sums: torch.dtype, weights: tuple[int | None, ...]) -> None:
    first, second = torch.randn(2, 5, dtype=dtype)
    accumulator = GradientAccumulator()
    accumulator([first], weight=weights[0])
    accumulator([second], weight=weights[1])
    assert accumulator.gradients[0].dtype == sums
    expected = (first + second) / 2 if weights[0] is None else (first + 3 * second) / 4
    torch.testing.assert_close(accumulator.gradients[0], expected)


def test_buffers_are_allocated_once_and_old_values_never_come_back() -> None:
    a, b = nn.Parameter(torch.zeros(3)), nn.Parameter(torch.zeros(2))
    accumulator = GradientAccumulator([("a", a), ("b", b)])
    pointers = set()
    for _ in range(3):
        for value in (1.0, 3.0):
            a.grad, b.grad = torch.full_like(a, value), torch.full_like(b, value)
            accumulator(weight=2)
        assert [g.unique().item() for g in accumulator.gradients] == [2.0, 2.0]
        pointers.add(tuple(buffer.data_ptr() for buffer in accumulator._sums.buffers))
        accumulator.reset()
    assert len(pointers) == 1
    a.grad = torch.full_like(a, float("inf"))
    accumulator()
    accumulator.reset()
    a.grad = torch.ones_like(a)
    accumulator()
    values = accumulator.gradients
    assert values[0].tolist() == [1.0, 1.0, 1.0]
    assert values[1] is None


def test_the_callers_gradients_are_neither_changed_nor_kept() -> None:
    gradient = torch.ones(3, requires_grad=True) * 2  # with a graph, as create_graph=True makes them
    accumulator = GradientAccumulator()
    accumulator([gradient], weight=torch.tensor(2.0, requires_grad=True))
    accumulator([gradient], weight=torch.tensor(2.0, requires_grad=True))
    assert gradient.tolist() == [2.0, 2.0, 2.0]
    (result,) = accumulator.gradients
    assert not result.requires_grad
    result.zero_()
    assert accumulator.gradients[0].tolist() == [2.0, 2.0, 2.0]


@pytest.mark.parametrize("weighted", [False, True])
def test_the_host_never_waits_for_the_device(weighted: bool) -> None:
    """Meta tensors have no values: reading one raises, as a host synchronisation would."""
    with torch.device("meta"):
        model = nn.Linear(3, 2).bfloat16()
        weight = torch.tensor(5) if weighted else None
    with pytest.raises(RuntimeError):
        torch.ones((), device="meta").item()
    accumulator = GradientAccumulator(model)
    for _ in range(2):
        for _ in range(3):
            model(torch.ones(4, 3, device="meta", dtype=torch.bfloat16)).sum().backward()
            accumulator(weight=weight)
        assert [g.dtype for g in accumulator.gradients] == [torch.float32] * 2
        accumulator.apply_to()
        accumulator.reset()


@pytest.mark.parametrize("values", [(2.0, 1.0), (0.0, 3.0), (3.0, 0.0), (0.0, 0.0)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.complex64])
def test_weights_on_the_device_give_what_weights_on_the_host_give(
    values: tuple[float, float], dtype: torch.dtype
) -> None:
    """A weight on an accelerator stays a tensor; here the same code runs on the CPU. Weight 0 comes with NaN."""
    host, device = GradientSums(["a"]), GradientSums(["a"])
    for value in values:
        gradient = torch.randn(4).to(dtype) if value else torch.full((4,), float("nan"), dtype=dtype)
        host.add([gradient], value)
        device.add([gradient], torch.tensor(value, dtype=torch.float64))
    for mean in (True, False):
        want, got = host.local(mean=mean)[0], device.local(mean=mean)[0]
        torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-6)
        assert not got.isnan().any()
    assert isinstance(device.total, Tensor)
    assert device.total.item() == host.total == sum(values)


# None, layouts, other parameters


def test_none_stays_none_until_a_call_brings_a_gradient() -> None:
    params = [nn.Parameter(torch.zeros(2)) for _ in range(3)]
    params[2].grad = torch.ones(2)
    accumulator = GradientAccumulator()
    accumulator([torch.ones(2), None, None])
    accumulator([torch.ones(2), torch.ones(2), None])
    assert [None if g is None else g.tolist() for g in accumulator.gradients] == [[1.0, 1.0], [0.5, 0.5], None]
    assert accumulator.apply_to(params) == params[:2]
    assert params[2].grad is None
    accumulator.reset()
    accumulator([None, torch.ones(2), None])
    assert accumulator.gradients[0] is None


def test_tied_frozen_and_channels_last_parameters() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4, 4), nn.Linear(4, 4))
    model[3].weight = model[2].weight
    model[3].bias.requires_grad_(False)
    model = model.to(memory_format=torch.channels_last)
    accumulator = GradientAccumulator(model)
    inputs = torch.randn(2, 3, 3, 3).to(memory_format=torch.channels_last)
    model(inputs).sum().backward()
    expected = grads_of(model)
    accumulator()
    model(inputs).sum().backward()
    accumulator()
    applied = accumulator.apply_to()
    assert len(applied) == 4  # convolution (2), tied weight once, bias; the frozen bias has none
    assert model[3].bias.grad is None
    for got, want in zip(grads_of(model), expected, strict=True):
        torch.testing.assert_close(got, want)
    assert model[0].weight.grad.is_contiguous(memory_format=torch.channels_last)


def test_parameters_in_every_form() -> None:
    model = make_model()
    gradients = {name: torch.ones_like(p) for name, p in model.named_parameters()}
    named = [model, model.named_parameters(), dict(reversed(list(model.named_parameters())))]
    for form in [*named, model.parameters(), list(model.parameters())]:
        accumulator = GradientAccumulator(form)
        accumulator(gradients if any(form is one for one in named) else gradients.values())
        model.zero_grad()
        accumulator.apply_to()
        assert all(torch.equal(p.grad, torch.ones_like(p)) for p in model.parameters())
    accumulator = GradientAccumulator()
    accumulator({name: i * g for i, (name, g) in enumerate(gradients.items())})
    for form in (model, dict(reversed(list(model.named_parameters())))):
        accumulator.apply_to(form)
        assert [p.grad.unique().item() for p in model.parameters()] == [0.0, 1.0, 2.0, 3.0, 4.0]


# Windows without a token


@pytest.mark.parametrize("weight", [0, 0.0, torch.tensor(0)])
def test_a_window_without_a_token_gives_zero_not_nan(weight: float | Tensor) -> None:
    param = nn.Parameter(torch.ones(3))
    accumulator = GradientAccumulator([param])
    for _ in range(2):
        param.grad = torch.full((3,), float("nan"))
        accumulator(weight=weight)
    assert accumulator.total_weight == 0
    accumulator.apply_to()
    assert param.grad.tolist() == [0.0, 0.0, 0.0]


# Saving


@pytest.mark.parametrize("weighted", [False, True])
def test_resuming_in_the_middle_of_a_window_is_bit_for_bit(weighted: bool, tmp_path: Path) -> None:
    def micro_batches(accumulator: GradientAccumulator, model: nn.Module, which: range) -> None:
        for i in which:
            tokens, labels = ragged_batch([i + 1, 2], seed=i)
            token_loss(model, tokens, labels).backward()
            accumulator(weight=tokens_in(labels) if weighted else None)

    model = make_model(torch.bfloat16)
    whole = GradientAccumulator(model)
    micro_batches(whole, model, range(2))
    torch.save(whole.state_dict(), tmp_path / "state.pt")
    micro_batches(whole, model, range(2, 5))

    resumed = GradientAccumulator(model)
    resumed.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert resumed.step == 2
    micro_batches(resumed, model, range(2, 5))
    assert state_of(resumed) == state_of(whole)
    for got, want in zip(resumed.gradients, whole.gradients, strict=True):
        assert got.dtype == torch.float32
        assert torch.equal(got, want)


def test_state_is_loaded_by_name() -> None:
    a, b = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(2))
    first = GradientAccumulator([("a", a), ("b", b)])
    first([torch.ones(2), 2 * torch.ones(2)])
    second = GradientAccumulator([("b", b), ("a", a)])
    second.load_state_dict(first.state_dict())
    assert [g.tolist() for g in second.gradients] == [[2.0, 2.0], [1.0, 1.0]]
    empty = GradientAccumulator()
    empty.load_state_dict(first.state_dict())
    assert [g.tolist() for g in empty.gradients] == [[1.0, 1.0], [2.0, 2.0]]


def test_a_state_of_something_else_raises_and_changes_nothing() -> None:
    accumulator = GradientAccumulator()
    accumulator([torch.ones(2), None])
    good, before = accumulator.state_dict(), state_of(accumulator)
    bad = [
        ({}, "lacks"),
        ({**good, "reduction": "sum"}, "reduction 'sum'"),
        ({**good, "names": ["0", "2"]}, "missing \\['1'\\], unknown \\['2'\\]"),
        ({**good, "sums": [torch.ones(3), None]}, "shape"),
        ({**good, "sums": [torch.ones(2).double(), None]}, "dtype"),
        ({**good, "sums": [torch.ones(2)]}, "2 names \\('0', '1'\\) for 1 sums"),
    ]
    for state, message in bad:
        with pytest.raises(ValueError, match=message):
            accumulator.load_state_dict(state)
        assert state_of(accumulator) == before


def test_deepcopy_and_pickle() -> None:
    model = make_model()
    accumulator = GradientAccumulator(model)
    token_loss(model, *ragged_batch([3], seed=0)).backward()
    accumulator(weight=3)
    pair = (model, accumulator)
    for other_model, other in (copy.deepcopy(pair), pickle.loads(pickle.dumps(pair))):
        assert state_of(other) == state_of(accumulator)
        token_loss(other_model, *ragged_batch([2], seed=1)).backward()
        other(weight=2)
        assert (other.step, accumulator.step) == (2, 1)
        other.apply_to()
        assert all(p.grad is not None for p in other_model.parameters())
        assert all(p.grad is None for p in model.parameters())
