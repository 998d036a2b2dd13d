"""What a step found out about parameters, groups and state, kept for the next one.

Sorting parameters into buckets takes longer than stepping small ones, and its outcome is the same step after step. It
is used again only where everything it was made of is still the very same: parameters, their memory, state tensors,
step counts, and the groups' options.

A step of small tensors is Python's time, a microsecond of which for each of them is a tenth of what torch's fused
AdamW takes. So what is compared lies in lists that `map` goes through, and counters are written in their memory.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from operator import is_, itemgetter
from typing import Any

from torch import Tensor

from hfoptim.engine.bucket_step import BucketStep
from hfoptim.engine.counters import Counters
from hfoptim.engine.distributed import dtensor


class LastStep:
    """The buckets of the last step, of plain and real tensors, and everything they were made of.

    Args:
        entries: (group's index, parameter, gradient) of what was stepped.
        work: the buckets.
        states: the optimizer's state.
        options: the groups' options, by `options_of`.
    """

    def __init__(
        self,
        entries: Sequence[tuple[int, Tensor, Tensor]],
        work: list[BucketStep],
        states: Mapping[Tensor, dict[str, Any]],
        options: list[list[Any]],
    ) -> None:
        self.work, self.options = work, options
        self.indices, self.params, grads = zip(*entries, strict=True)
        self.grad_dtypes = [grad.dtype for grad in grads]
        self.known, self.states = list(states), list(states.values())
        places = {param: (item, place) for item in work for place, param in enumerate(item.params)}
        self.rows = [item.bucket.rows[place] for item, place in map(places.__getitem__, self.params)]
        # Meta tensors have no memory; they are there to see what a step would do.
        self.owners = [param for param in self.params if not param.is_meta]
        self.memory = [row.param for row in self.rows if not row.param.is_meta]
        # Tensors of the state by bucket and name.
        self.columns: list[tuple[str, list[dict[str, Any]], Sequence[Tensor]]] = []
        for item in work:
            item.counters = Counters(item.steps)
            own = [states[param] for param in item.params]
            self.columns.append(("step", own, item.steps))
            for i, key in enumerate(item.bucket.plan.keys):
                self.columns.append((key, own, [row.kept[i] for row in item.bucket.rows]))

    def again(
        self,
        entries: Sequence[tuple[int, Tensor, Tensor]],
        states: Mapping[Tensor, dict[str, Any]],
        options: list[list[Any]],
    ) -> list[BucketStep] | None:
        """The buckets with the gradients of the next step; None where parameters would not be sorted like this again.

        Args:
            entries, states, options: as for the class, as they are now.
        """
        if len(entries) != len(self.rows) or options != self.options:
            return None
        indices, params, grads = zip(*entries, strict=True)
        if not (
            indices == self.indices
            and _same(params, self.params)
            and [grad.dtype for grad in grads] == self.grad_dtypes
            and len(states) == len(self.known)
            and _same(states, self.known)
            and _same(states.values(), self.states)
            and self._has_the_same_state()
            and all(map(Tensor.is_set_to, self.memory, self.owners))
            and all(item.counters is not None and item.counters.are(item.t) for item in self.work)
        ):
            return None
        for row, grad in zip(self.rows, grads, strict=True):
            row.grad = grad
        for item in self.work:
            item.advance()
        return self.work

    def _has_the_same_state(self) -> bool:
        try:
            return all(_same(map(itemgetter(key), own), kept) for key, own, kept in self.columns)
        except KeyError:
            return False

    def drop_gradients(self) -> None:
        """Keep no gradient alive."""
        for row in self.rows:
            row.grad = None


def _same(ones: Iterable[Any], others: Iterable[Any]) -> bool:
    """Whether as many objects are the same ones, pair by pair."""
    return all(map(is_, ones, others))


def can_be_kept(work: list[BucketStep]) -> bool:
    """Whether `LastStep` takes these buckets."""
    return not any(item.whole or item.sparse or any(map(_is_special, item.params)) for item in work) and all(
        Counters.take(item.steps) for item in work
    )


def _is_special(param: Tensor) -> bool:
    return param.is_complex() or dtensor.is_dtensor(param)


# Schedules move these numbers. A rule is chosen by whether they are 0, if they matter to the choice at all.
_ZERO_OR_NOT = frozenset({"weight_decay", "momentum", "betas"})


def options_of(groups: Sequence[Mapping[str, Any]], per_step_options: frozenset[str]) -> list[list[Any]]:
    """The groups' entries that the choice of a plan or a backend may depend on."""
    left_out = per_step_options | {"params", "param_names"}
    return [
        [
            value if name not in _ZERO_OR_NOT else _whether_zero(value)
            for name, value in group.items()
            if name not in left_out and not isinstance(value, Tensor)
        ]
        for group in groups
    ]


def _whether_zero(value: Any) -> Any:
    if isinstance(value, (tuple, list)):
        # A tensor stays: to ask it would wait for the device.
        return [each if isinstance(each, Tensor) else each == 0 for each in value]
    return value == 0
