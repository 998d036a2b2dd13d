"""Every optimizer follows its author's code or a named peer, step by step."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import peers
import pytest
import torch
from cases import ENTRIES, Entry, Reference
from following import STEPS, side_by_side
from harness import SMALL, assert_follows, assert_moved, feed, parameters

import hfoptim

# `make test` takes the runs that show most of the peers and values of options, and short ones; `make test-all` all of
# them, in full.
FEW_RUNS, FEW_STEPS, LEFT_OUT = 6, 15, {*SMALL} - {"scalar", "vector", "matrix", "conv", "gaps"}


def _label(options: dict[str, Any]) -> str:
    return ",".join(
        f"{k}={v if isinstance(v, (int, float, tuple, list, type(None))) else '...'}" for k, v in options.items()
    )


def _runs(entry: Entry) -> list[tuple[Reference, dict[str, Any]]]:
    return [(reference, options) for reference in entry.references for options in reference.runs]


def _few_runs(entry: Entry) -> list[tuple[Reference, dict[str, Any]]]:
    """Each time the run with most that no run before has shown."""
    left, chosen, seen = _runs(entry), [], set()

    def shown(run: tuple[Reference, dict[str, Any]]) -> set[str]:
        return {f"{key}={value!r}" for key, value in run[1].items()} | {run[0].who}

    while left and len(chosen) < FEW_RUNS:
        best = max(left, key=lambda run: len(shown(run) - seen))
        if not shown(best) - seen:
            break
        chosen.append(best)
        seen |= shown(best)
    return chosen


def _params(of: Callable[[Entry], list[tuple[Reference, dict[str, Any]]]]) -> list[Any]:
    return [
        pytest.param(entry, reference, options, id=f"{entry.name}-{reference.who.split('.')[0]}-{_label(options)}")
        for entry in ENTRIES
        for reference, options in of(entry)
    ]


def follow(
    entry: Entry, reference: Reference, ours: dict[str, Any], theirs: dict[str, Any], steps: int = STEPS
) -> None:
    """Run our optimizer with `ours` and the peer with what `theirs` means to it, on the same gradients."""
    try:
        both = side_by_side(entry.cls, reference, ours, theirs, steps)
    except peers.MissingPeer as missing:
        pytest.skip(str(missing))
    assert_follows(both.ours, both.theirs, both.start, reference.tolerance)
    assert_moved(both.peers_params, both.start)


@pytest.mark.parametrize(("entry", "reference", "options"), _params(_few_runs))
def test_follows_its_reference(entry, reference, options):
    layouts = tuple(name for name in reference.layouts if name not in LEFT_OUT)
    follow(entry, dataclasses.replace(reference, layouts=layouts), options, options, FEW_STEPS)


@pytest.mark.slow
@pytest.mark.parametrize(("entry", "reference", "options"), _params(_runs))
def test_follows_its_reference_at_every_step(entry, reference, options):
    follow(entry, reference, options, options)


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda e: e.name)
def test_the_comparison_notices_a_slightly_different_number(entry):
    # A second moment decayed at another rate, a millionth of a learning rate: each must be seen. Not at the first step,
    # at which ADOPT does not move.
    reference = entry.references[0]
    options = reference.runs[-1]
    for name in ("lr", "learning_rate", "clip_threshold"):
        if isinstance(options.get(name), float):
            with pytest.raises(AssertionError, match="differs by"):
                follow(entry, reference, {**options, name: options[name] * (1 + 1e-6)}, options, steps=2)
            return
    pytest.fail("no option to change")


def test_every_optimizer_of_the_registry_has_a_reference():
    classes = {hfoptim.get_optimizer_info(name).opt_class for name in hfoptim.list_optimizers()} - {torch.optim.LBFGS}
    tested = {entry.name: entry.cls for entry in ENTRIES if entry.references}
    assert classes == {hfoptim.get_optimizer_info(name).opt_class for name in tested}
    assert all(issubclass(cls, hfoptim.get_optimizer_info(name).opt_class) for name, cls in tested.items())


def test_every_reference_can_be_loaded_where_the_peers_are_installed():
    # A peer that vanished would turn its comparisons into skips; where the others are installed, it has to be, too.
    names = sorted({reference.who for entry in ENTRIES for reference in entry.references})
    missing = [name for name in names if not peers.installed(name)]
    for name in set(names) - set(missing):
        assert isinstance(peers.load(name), type), name
    assert not {"keras", "lion_pytorch", "optimi", "torch", "transformers"} & {n.split(".")[0] for n in missing}
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)}")


def test_first_and_second_float32_steps_are_as_exact_as_float32_can_be():
    # 1 - 0.999 in float32 is off by 1e-5: moments formed from it would be, too.
    for cls in (hfoptim.Adam, hfoptim.AdamW):
        single, double = parameters(("vector", "matrix")), parameters(("vector", "matrix"), torch.float64)
        for name in single:
            with torch.no_grad():
                double[name].copy_(single[name])
        optimizers = [cls(list(params.values()), betas=(0.9, 0.9999)) for params in (single, double)]
        for t in (1, 2):
            feed(single, t)
            for name, param in single.items():
                double[name].grad = param.grad.double()
            for optimizer in optimizers:
                optimizer.step()
            for name, param in single.items():
                for key in ("exp_avg", "exp_avg_sq"):
                    one, two = optimizers[0].state[param][key], optimizers[1].state[double[name]][key]
                    torch.testing.assert_close(one.double(), two, rtol=1e-6, atol=0.0)
