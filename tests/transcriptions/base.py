"""What a transcription has: arrays in double precision, a step count, options, and one update per tensor."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


class Transcription:
    """A method as its paper prints it, over arrays.

    A subclass has `update`, for methods that treat each tensor by itself, or `step` where tensors decide together.

    Args:
        params: float64 arrays by name; `params` of the transcription holds what became of them.
        options: of the method, by the names that this package has for them. There are no defaults.
    """

    def __init__(self, params: dict[str, Array], **options: Any) -> None:
        self.params = {name: np.array(x) for name, x in params.items()}
        self.state: dict[str, SimpleNamespace] = {name: self.start(x) for name, x in params.items()}
        self.options = SimpleNamespace(**options)
        self.t = 0

    def start(self, x: Array) -> SimpleNamespace:
        """The state before the first step: two averages of zeros."""
        return SimpleNamespace(m=np.zeros_like(x), v=np.zeros_like(x))

    def step(self, grads: dict[str, Array], lr: float, loss: float) -> None:
        """One step with the gradients by name, a learning rate, and the loss where the method looks at it."""
        self.t += 1
        for name, g in grads.items():
            self.params[name] = self.update(self.params[name], g, self.state[name], lr)

    def update(self, x: Array, g: Array, s: SimpleNamespace, lr: float) -> Array:
        """The parameter after the step."""
        raise NotImplementedError

    def decayed(self, x: Array, g: Array, lr: float) -> tuple[Array, Array]:
        """Parameter and gradient after weight decay, by the options that pytorch_optimizer has beside the papers."""
        if not self.options.weight_decouple:
            return x, g + self.options.weight_decay * x
        rate = self.options.weight_decay * (1.0 if self.options.fixed_decay else lr)
        return x - rate * x, g
