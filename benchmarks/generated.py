"""Generated Triton kernels put in by hand, whatever the device is: on a CPU in Triton's interpreter, on meta tensors to
be counted, with a launcher that launches nothing to be compiled for a device that is not there.

The engine's own choice takes them on GPUs alone, and tries each on the device before it trusts it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch

from hfoptim.engine import backends
from hfoptim.engine.backends import products, trial, triton
from hfoptim.engine.backends.backend import Backend
from hfoptim.engine.backends.matrix import MatrixKernels
from hfoptim.engine.codegen.triton import drawing
from hfoptim.engine.codegen.triton.scalars import Arithmetic
from hfoptim.engine.plan import Plan
from hfoptim.optimizers.shared import newton_schulz


class Anywhere(triton.Triton):
    """The engine's backend for GPUs, for all devices."""

    def supports(self, plan: Plan, device: torch.device) -> str | None:
        return None


GENERATED = Anywhere(False, backends.LOOP, backends.FOREACH)
# Around the products of matrices.
AROUND = Anywhere(False, backends.LOOP, backends.MATRIX)
MATRIX = MatrixKernels(AROUND, backends.MATRIX)


@contextmanager
def put_in() -> Iterator[None]:
    """Optimizers take their steps by generated kernels meanwhile, untried; with foreach=False by the loop."""

    def choose(group: Mapping[str, Any], *_: Any) -> tuple[Backend, ...]:
        return (backends.LOOP,) if group["foreach"] is False else (MATRIX, GENERATED)

    with (
        mock.patch.object(backends, "choose", choose),
        mock.patch.object(newton_schulz, "keeps_dtype", return_value=False),
        mock.patch.object(trial, "problem", return_value=None),
        mock.patch.object(Arithmetic, "problem", return_value=None),
        mock.patch.object(triton, "DEVICES", ("cpu", "meta")),
        mock.patch.object(drawing, "problem", return_value=None),
        mock.patch.object(products, "problem", return_value=None),
    ):
        yield
