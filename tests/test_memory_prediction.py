"""What `predict_memory` and `hfoptim memory` say before there is any memory, beside what is there after a step."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

import hfoptim
from hfoptim.cli import app

OPTIMIZERS = ("adamw", "lion", "sgd", "adafactor", "lamb", "ademamix", "adan", "adam_mini", "muon", "galore_adamw")
FORMATS = {
    "float32": (torch.float32, {}),
    "bfloat16": (torch.bfloat16, {}),
    "8bit": (torch.float32, {"state_dtype": "8bit"}),
    "4bit, master weights": (torch.bfloat16, {"state_dtype": "4bit", "master_weights": 16}),
}


def model(dtype=torch.float32):
    # The second and the third have a length that no block divides, the first is too short to be compressed.
    sizes = {"short": 8, "h.0.odd": 130, "h.1.odd": 130, "h.2.square": 96}
    made = nn.ModuleDict({name.replace(".", "_"): nn.Linear(96, size, dtype=dtype) for name, size in sizes.items()})
    made["short"].weight.requires_grad_(False)
    return made


def measured(made, name, **options):
    optimizer = hfoptim.create_optimizer_v2(made, name, **options)
    for param in made.parameters():
        param.grad = torch.full_like(param, 1e-3) if param.requires_grad else None
    optimizer.step()
    return sum(
        value.numel() * value.element_size()
        for state in optimizer.state.values()
        for key, value in state.items()
        if key != "step"
    )


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_state_is_predicted_to_the_byte(name, form):
    dtype, options = FORMATS[form]
    made = model(dtype)
    before = [param.clone() for param in made.parameters()]
    found = hfoptim.predict_memory(made, name, **options)
    assert found.state_bytes == measured(made, name, **options, foreach=True)
    assert found.state_bytes > 0 or name == "sgd"
    size = dtype.itemsize
    params = list(made.parameters())
    assert found.parameters == sum(p.numel() for p in params) * size
    assert found.gradients == sum(p.numel() for p in params if p.requires_grad) * size
    assert found.buckets == 0
    assert found.step > 0 or name not in ("muon", "galore_adamw")
    assert found.peak == found.parameters + found.gradients + found.state_bytes + found.step
    assert all(p.device.type == "cpu" and p.shape == old.shape for p, old in zip(params, before, strict=True))


def height(function):
    """The most bytes that torch allocates at once while a function runs, beyond what there was before."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiled:
        function()
    events = [e for e in profiled.profiler.kineto_results.events() if e.name() == "[memory]"]
    now = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    return most


def wide_model(dtype=torch.float32):
    # An embedding, matrices that each are more than a stack may have, and small ones, which lie in a stack together.
    made = nn.ModuleDict({"wte": nn.Embedding(1024, 256)})
    for index in range(2):
        made[f"h_{index}"] = nn.ModuleDict(
            {
                "up": nn.Linear(256, 1536),
                "down": nn.Linear(1536, 256),
                "gate": nn.Linear(256, 256),
                "low": nn.Linear(256, 64),
            }
        )
    return made.to(dtype)


ALL = [pytest.param(name, form, marks=pytest.mark.slow) for name in OPTIMIZERS for form in FORMATS]


@pytest.mark.parametrize(
    ("name", "form"),
    [("galore_adamw", "8bit"), *(each for each in ALL if each.values != ("galore_adamw", "8bit"))],
)
def test_the_peak_of_a_step_is_predicted_to_five_percent(name, form):
    dtype, options = FORMATS[form]
    made = wide_model(dtype)
    found = hfoptim.predict_memory(made, name, device="cpu", **options)
    optimizer = hfoptim.create_optimizer_v2(made, name, **options)
    for param in made.parameters():
        param.grad = torch.full_like(param, 1e-3)
    optimizer.step()
    optimizer.step()
    rest = found.peak - found.step
    measured = rest + height(optimizer.step)
    assert found.peak == pytest.approx(measured, rel=0.05)
    if name in ("galore_adamw", "muon"):
        assert measured > 1.02 * rest


def test_where_no_step_can_be_foretold_an_upper_bound_is_said():
    made = wide_model()
    on_cpu = hfoptim.predict_memory(made, "muon", device="cpu")
    bound = hfoptim.predict_memory(made, "muon", device="cuda")
    sharded = hfoptim.predict_memory(made, "muon", device="cpu", ranks=2, strategy="fsdp")
    assert bound.step == 9 * 4 * sum(p.numel() for n, p in made.named_parameters() if p.ndim == 2 and n[0] == "h")
    assert on_cpu.step < sharded.step < bound.step
    assert all(param.grad is None for param in made.parameters())


def test_ranks():
    made = model()
    alone = hfoptim.predict_memory(made, "adamw")
    ddp = hfoptim.predict_memory(made, "adamw", ranks=4, strategy="ddp")
    assert ddp == alone._replace(buckets=alone.gradients)
    sharded = hfoptim.predict_memory(made, "adamw", ranks=4, strategy="fsdp")
    rows = [(8, 96), (130, 96), (130, 96), (96, 96)]
    own = sum(-(-rows // 4) * (columns + 1) for rows, columns in rows)
    assert sharded.parameters == 4 * own
    assert sharded.gradients == 4 * (own - 2 * 96)
    assert sharded.state == {"exp_avg": sharded.gradients, "exp_avg_sq": sharded.gradients}
    # Factors of columns are the same on every rank, and GaLore's basis.
    assert hfoptim.predict_memory(made, "adafactor", ranks=4, strategy="fsdp").state["exp_avg_sq_col"] == 4 * 3 * 96
    assert hfoptim.predict_memory(made, "adamw", gradient_release=True).gradients == 4 * 130 * 96


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"ranks": 2}, "ranks=2: say how they share"),
        ({"ranks": 0, "strategy": "ddp"}, "ranks"),
        ({"strategy": "zero"}, "strategy='zero' is none of 'ddp', 'fsdp'"),
        ({"opt": "lookahead_adamw"}, "lookahead_adamw goes around another optimizer"),
        ({"opt": "lbfgs"}, "lbfgs"),
    ],
)
def test_what_cannot_be_said(options, words):
    with pytest.raises(ValueError, match=words):
        hfoptim.predict_memory(model(), **{"opt": "adamw", **options})


def test_the_command(tmp_path):
    from transformers import GPT2Config

    config = GPT2Config(
        n_layer=1, n_embd=64, n_head=2, vocab_size=128, n_positions=16, architectures=["GPT2LMHeadModel"]
    )
    config.save_pretrained(tmp_path)
    said = ["memory", str(tmp_path), "--optim", "lion", "--dtype", "bfloat16", "--state-dtype", "8bit"]
    out = CliRunner().invoke(app, [*said, "master_weights=16", "--ranks", "2", "--strategy", "ddp"]).stdout
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in out.splitlines() if line.startswith("│")]
    assert [row[0] for row in rows] == [
        *("parameters", "gradients", "DDP's buckets", "state exp_avg", "state exp_avg_scale", "state remainder"),
        *("the step itself", "together"),
    ]
    assert [row[2] for row in rows[:3]] == ["2.000"] * 3
    assert 1.0 < float(rows[3][2]) < 1.2  # biases and norms keep theirs in float32
    assert rows[5][2] == "2.000"
    failed = CliRunner().invoke(app, [*said[:4], "--dtype", "int8"])
    assert (failed.exit_code, "--dtype int8 is no dtype of parameters" in failed.stderr) == (2, True)
