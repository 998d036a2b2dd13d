"""Optimizers of installed packages by name: made, stepped, trained with, and their checkpoints read by ours."""

from __future__ import annotations

import importlib.util
import io
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments

import hfoptim
from hfoptim.providers import PROVIDERS

# Kernels for GPUs, what needs a DeepSpeed engine, and what DeepSpeed has on the CPU of a machine with a GPU only.
NOT_HERE = ("ds_fused_", "ds_onebit_", "ds_zero_one_", "ds_cpu_adagrad", "ds_cpu_lion", "flashoptim_", "fused")
# bitsandbytes 0.50: these classes keep one momentum where the update wants two.
BROKEN = ("bnb_ademamix32bit", "bnb_paged_ademamix32bit")
# For matrices, sparse gradients, closures: tests/test_providers.py.
SPECIAL = ("torch_muon", "torch_sparse_adam", "torch_lbfgs")


def names(*providers: str) -> list[str]:
    return [
        str(name)
        for provider in providers
        for name in hfoptim.list_optimizers(provider=provider)
        if not name.startswith(NOT_HERE) and name not in (*BROKEN, *SPECIAL)
    ]


def needs(name: str) -> None:
    provider = hfoptim.get_optimizer_info(name).provider
    if not next(each for each in PROVIDERS if each.name == provider).installed:
        pytest.skip(f"{provider} is not installed; make test-providers has it")
    if name.startswith("ds_cpu") and importlib.util.find_spec("ninja") is None:
        pytest.skip("DeepSpeed compiles its kernels with ninja")


class Net(nn.Module):
    """One matrix that is large enough for 8 bits, a norm, and a head."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body, self.norm, self.head = nn.Linear(80, 80), nn.LayerNorm(80), nn.Linear(80, 4)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.norm(self.body(x)))
        return out


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        optimizer.zero_grad()
        model(torch.randn(8, 80, generator=generator)).square().mean().backward()
        optimizer.step()


@pytest.mark.parametrize("name", names("bitsandbytes", "torchao", "deepspeed"))
def test_it_is_made_over_our_groups_and_steps(name: str) -> None:
    needs(name)
    model = Net()
    optimizer = hfoptim.create_optimizer_v2(model, name, lr=1e-3, weight_decay=0.1)
    by_decay = {group["weight_decay"]: len(group["params"]) for group in optimizer.param_groups}
    assert by_decay == {0.1: 2, 0.0: 4}
    before = [param.detach().clone() for param in model.parameters() if param.any()]
    train(model, optimizer, range(2))
    # What is 0 stays so where a step is a share of a weight's norm.
    assert not any(torch.equal(a, b) for a in before for b in model.parameters() if a.shape == b.shape and a.ndim > 1)


@pytest.mark.parametrize(
    ("name", "kind"),
    [("ds_onebit_adam", "OneBitAdam"), ("ds_zero_one_adam", "ZeroOneAdam"), ("ds_onebit_lamb", "OneBitLamb")],
)
def test_one_bit_optimizers_say_what_they_need(name: str, kind: str) -> None:
    """Where DeepSpeed asserts that processes were started, or fails on the first parameter."""
    needs(name)
    with pytest.raises(ValueError, match=rf"{name} needs DeepSpeed's engine, as its option `deepspeed`.*{kind}"):
        hfoptim.create_optimizer_v2(Net(), name, lr=1e-3)


@pytest.mark.parametrize("name", BROKEN)
def test_what_bitsandbytes_itself_cannot_do(name: str) -> None:
    """When this fails, bitsandbytes has mended it, and the name moves up."""
    needs(name)
    model = Net()
    with pytest.raises(RuntimeError, match="shape"):
        train(model, hfoptim.create_optimizer_v2(model, name), range(1))


@pytest.mark.parametrize("name", ["bnb_adamw8bit", "bnb_lion8bit", "ao_adamw8bit", "ao_adamw4bit", "ds_cpu_adam"])
def test_patterns_and_options_of_the_package_arrive(name: str) -> None:
    needs(name)
    optimizer = hfoptim.create_optimizer_v2(
        Net(), name, lr=1e-3, weight_decay=0.1, betas=(0.8, 0.9), param_options={"body.*": {"lr_scale": 0.5}}
    )
    # torchao keeps a float32 tensor.
    assert {round(float(group["lr"]), 9) for group in optimizer.param_groups} == {1e-3, 5e-4}
    assert {tuple(group["betas"]) for group in optimizer.param_groups} == {(0.8, 0.9)}
    with pytest.raises(ValueError, match=f"state_dtype='8bit' is an option of hfoptim's own optimizers; {name} is"):
        hfoptim.create_optimizer_v2(Net(), name, state_dtype="8bit")


# -- in a Trainer -----------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def _enabled() -> Iterator[None]:
    hfoptim.enable()
    yield
    hfoptim.disable()


def trained(tmp_path: Any, optim: str, resume: str | None = None, **given: Any) -> Trainer:
    torch.manual_seed(0)
    config = GPT2Config(n_layer=1, n_head=2, n_embd=32, vocab_size=16, n_positions=8, bos_token_id=0, eos_token_id=0)
    tokens = ((torch.arange(32) % 16)[:, None] + 3 * torch.arange(8)) % 16
    usual = {"output_dir": str(tmp_path), "use_cpu": True, "report_to": [], "disable_tqdm": True, "logging_steps": 1}
    args = TrainingArguments(optim=optim, max_steps=6, save_steps=3, seed=7, **{**usual, **given})
    trainer = Trainer(
        GPT2LMHeadModel(config), args, train_dataset=[{"input_ids": row, "labels": row} for row in tokens]
    )
    trainer.train(resume_from_checkpoint=resume)
    return trainer


@pytest.mark.parametrize(
    "name",
    [
        "bnb_adamw8bit",
        "BNB-Lion8bit",
        "bnb_ademamix8bit",
        "bnb_paged_adamw8bit",
        "bnb_sgd",
        "ao_adamw8bit",
        "ds_cpu_adam",
    ],
)
def test_it_trains_by_string_with_weight_decay_and_resumes(name: str, tmp_path: Any) -> None:
    needs(name)
    given = {"learning_rate": 0.1 if name == "bnb_sgd" else 2e-3, "weight_decay": 0.1}
    trainer = trained(tmp_path, name, **given)
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < losses[0]
    inner = trainer.optimizer.optimizer
    assert type(inner) is hfoptim.get_optimizer_info(name).opt_class
    assert {group["weight_decay"] for group in inner.param_groups} == {0.1, 0.0}
    assert float(inner.param_groups[0]["initial_lr"]) == pytest.approx(given["learning_rate"])
    weights = [param.detach().clone() for param in trainer.model.parameters()]
    # From its third step on once more, with the state that was saved there.
    again = trained(tmp_path, name, resume=str(tmp_path / "checkpoint-3"), **given)
    again_weights = list(again.model.parameters())
    assert all(torch.equal(a, b) for a, b in zip(weights, again_weights, strict=True))


def test_options_arrive_by_optim_args(tmp_path: Any) -> None:
    needs("bnb_adamw8bit")
    trainer = trained(tmp_path, "bnb_adamw8bit", optim_args="min_8bit_size=16,betas=(0.8,0.9)", learning_rate=1e-3)
    inner = trainer.optimizer.optimizer
    assert inner.args.min_8bit_size == 16
    assert inner.param_groups[0]["betas"] == (0.8, 0.9)
    with pytest.raises(ValueError, match=r"bnb_adamw8bit has no option 'min_8bit_sze'.*min_8bit_size"):
        TrainingArguments(str(tmp_path), optim="bnb_adamw8bit", optim_args="min_8bit_sze=16")


# -- their checkpoints in ours -------------------------------------------------------------------------------------

# bitsandbytes' options -> ours with the same equations.
SAME = {
    "bnb_adamw": "adamw",
    "bnb_adam": "adam",
    "bnb_lion": "lion",
    "bnb_ademamix": "ademamix",
    "bnb_sgd": "momentum",
    "bnb_rmsprop": "rmsprop",
    "bnb_adagrad": "adagrad",
    "ds_cpu_adam": "adamw",
    "ao_adamw8bit": "adamw",
}


def saved(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    read: dict[str, Any] = torch.load(file, weights_only=False)
    return read


def pair(theirs: str, ours: str, **options: Any) -> tuple[nn.Module, Any, nn.Module, Any]:
    """Both optimizers over the same weights, theirs with some steps taken, and ours with their state."""
    model, other = Net(), Net()
    decay = 0.0 if ours == "adam" else 0.1
    first = hfoptim.create_optimizer_v2(model, theirs, lr=1e-2, weight_decay=decay, **options)
    train(model, first, range(4))
    other.load_state_dict(model.state_dict())
    second = hfoptim.create_optimizer_v2(other, ours, lr=5e-2, weight_decay=decay)
    second.load_state_dict(saved(first))
    return model, first, other, second


def way(model: nn.Module, before: Mapping[str, Tensor], other: nn.Module) -> float:
    """How far two models are apart, as a share of the longest way that one went."""
    apart = max(float((a - b).abs().max()) for a, b in zip(model.parameters(), other.parameters(), strict=True))
    return apart / max(float((p.detach() - before[n]).abs().max()) for n, p in model.named_parameters())


@pytest.mark.parametrize("theirs", SAME)
def test_training_goes_on_from_their_checkpoint(theirs: str) -> None:
    needs(theirs)
    model, first, other, second = pair(theirs, SAME[theirs])
    assert float(second.param_groups[0]["lr"]) == pytest.approx(1e-2)
    before = {name: param.detach().clone() for name, param in model.named_parameters()}
    train(model, first, range(4, 12))
    train(other, second, range(4, 12))
    # Theirs goes on in 8 bits, where it has any, and ours in 32.
    assert way(model, before, other) < (0.1 if "8bit" in theirs else 1e-4)


@pytest.mark.parametrize("theirs", [name for name in SAME if name.startswith("bnb_")])
def test_states_of_8_bits_are_decoded_as_they_are_there(theirs: str) -> None:
    needs(theirs)
    from bitsandbytes.functional import dequantize_blockwise

    _, first, other, second = pair(theirs + "8bit", SAME[theirs])
    state = first.state[next(p for g in first.param_groups for p in g["params"] if p.shape == (80, 80))]
    loaded = second.state[other.body.weight]
    for number in "12" if "state2" in state else "1":
        codes, scales = state[f"state{number}"], state[f"absmax{number}"]
        assert codes.dtype == torch.uint8
        parts = zip(codes, scales, strict=True) if scales.ndim == 2 else [(codes, scales)]
        for part, of_part in parts:
            wanted = dequantize_blockwise(part, absmax=of_part, code=state[f"qmap{number}"], blocksize=256)
            assert any(torch.equal(wanted, value) for name, value in loaded.items() if value.shape == wanted.shape)


def test_another_algorithms_state_is_refused() -> None:
    needs("bnb_lion")
    for theirs, ours, message in (
        ("bnb_lion", "adamw", "not one of Adam: it has the state exp_avg, step here"),
        ("bnb_adamw8bit", "lion", "not one of Lion: it has the state exp_avg, state2, step here"),
        ("bnb_lamb8bit", "lamb", r"not one of Lamb .* bitsandbytes, .* AdamW with updates .* \(max_unorm\)"),
        ("bnb_lamb32bit", "lambc", r"not one of Lamb .* bitsandbytes, .* AdamW with updates .* \(max_unorm\)"),
        ("bnb_lars8bit", "lars", r"not one of Lars .* bitsandbytes, .* SGD with steps of lr max_unorm"),
        ("bnb_sgd", "nlars", r"not one of Lars .* bitsandbytes, .* SGD with steps of lr max_unorm"),
        ("bnb_pytorchlars", "lars", r"not one of Lars: .*max_unorm"),
    ):
        with pytest.raises(ValueError, match=message):
            pair(theirs, ours)
    model = Net()
    theirs_with_decay = hfoptim.create_optimizer_v2(model, "bnb_adam", weight_decay=0.1)
    train(model, theirs_with_decay, range(1))
    with pytest.raises(ValueError, match=r"not one of Adam: group \d has decoupled_weight_decay=True"):
        hfoptim.create_optimizer_v2(model, "adam", weight_decay=0.1).load_state_dict(saved(theirs_with_decay))
