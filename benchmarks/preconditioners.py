"""What SOAP and Shampoo cost by the interval of their preconditioner, beside pytorch_optimizer's classes.

    OMP_NUM_THREADS=1 python benchmarks/preconditioners.py [--layers 2] [--width 384] [--repeats 5]

Both kinds of steps are timed, ours and the peer's in turn: one that makes new bases or roots, and one that does not. A
step with interval k is the mean of k - 1 of the second and one of the first.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from typing import Any, NamedTuple

import measure
import pytorch_optimizer
import torch

import hfoptim

INTERVALS = (1, 10, 100)
NEVER = 10**9


class Pair(NamedTuple):
    """Two classes that do the same.

    Args:
        ours, theirs: the classes.
        intervals: the options that set the interval of each.
        options: of ours.
        their_options: of theirs.
    """

    ours: Callable[..., Any]
    theirs: Callable[..., Any]
    intervals: tuple[str, str]
    options: dict[str, Any]
    their_options: dict[str, Any]


PAIRS = {
    "soap": Pair(hfoptim.SOAP, pytorch_optimizer.SOAP, ("precondition_frequency",) * 2, {}, {}),
    "shampoo": Pair(hfoptim.Shampoo, pytorch_optimizer.Shampoo, ("preconditioning_compute_steps",) * 2, {}, {}),
    "distributed_shampoo": Pair(
        hfoptim.DistributedShampoo,
        pytorch_optimizer.ScalableShampoo,
        ("precondition_frequency", "preconditioning_compute_steps"),
        {"grafting": "sgd", "betas": (0.9, 0.999), "max_preconditioner_dim": 512, "start_preconditioning_step": 1},
        {"graft_type": 1, "block_size": 512, "start_preconditioning_step": 1},
    ),
}


def times_of(pair: Pair, shapes: measure.Shapes, repeats: int) -> dict[str, float]:
    """Median seconds of steps with and without new bases or roots, ours and the peer's."""
    steps = {}
    for who, cls, interval, options in (
        ("ours", pair.ours, pair.intervals[0], pair.options),
        ("theirs", pair.theirs, pair.intervals[1], pair.their_options),
    ):
        for kind, every in (("with", 1), ("without", NEVER)):
            params = measure.Parameters(shapes)
            optimizer = cls(params.tensors, lr=1e-4, **{interval: every}, **options)
            for _ in range(2):  # in the first ones state is made
                optimizer.step()
            steps[f"{who} {kind}"] = optimizer.step
    return {label: statistics.median(times) for label, times in measure.in_turn(steps, repeats).items()}


def main(layers: int, width: int, repeats: int) -> None:
    shapes = {name: shape for name, shape in measure.gpt2_shapes(layers, width).items() if ".h." in name}
    print(
        f"{layers} layers of GPT-2, width {width}, {torch.get_num_threads()} thread, medians of {repeats}; milliseconds"
    )
    print("| optimizer | interval | ours | pytorch_optimizer | times as long |")
    print("| --- | ---: | ---: | ---: | ---: |")
    for name, pair in PAIRS.items():
        found = times_of(pair, shapes, repeats)
        for every in INTERVALS:
            ours, theirs = (
                1000 * (found[f"{who} with"] + (every - 1) * found[f"{who} without"]) / every
                for who in ("ours", "theirs")
            )
            print(f"| {name} | {every} | {ours:.0f} | {theirs:.0f} | {theirs / ours:.2f} |", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    for option, value in (("layers", 2), ("width", 384), ("repeats", 5)):
        parser.add_argument(f"--{option}", type=int, default=value)
    main(**vars(parser.parse_args()))
