"""Gradient accumulation over micro-batches: exact for ragged batches, in float32, one all-reduce per window."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel

from hfoptim.engine.ambient import leave_undisturbed
from hfoptim.engine.parameter_names import bare_names_of, listed
from hfoptim.training.gradient_release import is_released
from hfoptim.training.gradient_sums import GradientSums, check_same_kind, checked_weight, is_sharded, same_names

Gradients: TypeAlias = Iterable[Tensor | None] | Mapping[str, Tensor | None]
Parameters: TypeAlias = nn.Module | Mapping[str, Tensor] | Iterable[Tensor] | Iterable[tuple[str, Tensor]]

_STATE_KEYS = ("reduction", "step", "applied", "weighted", "as_dict", "weight", "names", "sums")


class GradientAccumulator:
    r"""Adds up the gradients of several micro-batches into the gradient of one big batch.

    A *window* is what happens between two calls of :meth:`reset`: some calls of the accumulator, one per
    micro-batch, then :meth:`apply_to` and the optimizer's step. With micro-batches :math:`i` on processes :math:`r`,
    gradients :math:`g` and weights :math:`w` (1 where none is given) the result is

    .. math::
        G_{mean} = \frac{\sum_r \sum_i w_{ri} g_{ri}}{\sum_r \sum_i w_{ri}}, \qquad
        G_{sum} = \sum_r \sum_i w_{ri} g_{ri}.

    When each :math:`g` belongs to a loss averaged over its micro-batch and :math:`w` is the number of tokens (or
    samples) in that average, :math:`G_{mean}` is the gradient of the loss averaged over all tokens of the window on
    all processes, however unequal the micro-batches are. Sums are kept in float32 for gradients of 16 and 32 bits and
    in float64 for float64 (complex alike), in buffers that are allocated once and used again in every window.

    In a plain loop::

        accumulator = GradientAccumulator(model)
        for window in windows:                              # a window is a list of micro-batches
            for batch in window:
                model(**batch).loss.backward()
                accumulator(weight=num_tokens(batch))       # takes p.grad and clears it
            torch.nn.utils.clip_grad_norm_(accumulator.apply_to(), 1.0)
            optimizer.step()
            accumulator.reset()                             # a new window; clears p.grad

    With several processes (DistributedDataParallel, also through Accelerate) each process accumulates on its own and
    ``apply_to`` adds the processes up, with one all-reduce per device and dtype. Keep DDP from reducing as well: run
    forward and backward under ``with accumulator.no_sync():`` (``accelerator.no_sync(model)`` does the same).
    Processes may have different numbers of micro-batches, even none. Accelerate's own ``accumulate`` and
    ``gradient_accumulation_steps`` must then stay unused. BatchNorm statistics are not broadcast under ``no_sync``.
    Gradients of FSDP2 are reduced already: they work unweighted, with ``sync=False``.

    Args:
        params: Where ``accumulator()`` takes ``p.grad`` from: a module, parameters, or (name, parameter) pairs.
            None (default): gradients are handed to each call, and the first call fixes their number.
        reduction: "mean" (default) or "sum", as above. The TensorFlow class is "sum" without weights.
        sync: Whether ``apply_to`` adds up the processes. None (default): yes if ``params`` is or holds a
            DistributedDataParallel module, no if there is one process; otherwise ``apply_to`` asks for a decision,
            since it cannot see whether the gradients are reduced already. True promises that they are not.
        process_group: The processes to add up. None (default): those of the DDP module, else all.

    Raises:
        TypeError: If ``params`` holds something that is no tensor.
        ValueError: If ``params`` is empty or holds a parameter twice, if ``reduction`` is unknown, if ``sync=False``
            is asked of a DDP module, or if several DDP modules have different process groups and none is given.

    Source: the documented behaviour of ``GradientAccumulator`` in transformers v4.34, ``optimization_tf``: ``step``,
    ``gradients``, the call, ``reset``. New here: mean, weights, float32 sums, ``p.grad``, ``apply_to``, processes.
    """

    def __init__(
        self,
        params: Parameters | None = None,
        *,
        reduction: str = "mean",
        sync: bool | None = None,
        process_group: dist.ProcessGroup | None = None,
    ) -> None:
        if reduction not in ("mean", "sum"):
            raise ValueError(f"reduction must be 'mean' or 'sum', not {reduction!r}.")
        self._reduction = reduction
        self._module = params if isinstance(params, nn.Module) else None
        modules = params.modules() if isinstance(params, nn.Module) else ()
        self._replicas = [module for module in modules if isinstance(module, DistributedDataParallel)]
        if self._replicas and sync is False:
            raise ValueError("sync=False with a DistributedDataParallel module would let its processes drift apart.")
        if process_group is None and len({id(replica.process_group) for replica in self._replicas}) > 1:
            raise ValueError("process_group must be given: params holds DDP modules of several groups.")
        self._sync = sync
        self._process_group = process_group
        self._sums: GradientSums | None = None  # None until the names are known
        self._params: list[Tensor] | None = None
        if params is not None:
            names, self._params = _listed(params)
            self._sums = GradientSums(names)
        self._as_dict = False
        self._step = 0
        self._applied = False
        self._weighted = False

    @property
    def step(self) -> int:
        """Number of calls (micro-batches) in this window, on this process."""
        return self._step

    @property
    def total_weight(self) -> float | Tensor:
        """Sum of this window's weights on this process, or of its calls when unweighted.

        A 0-d tensor if a weight was a tensor on an accelerator. When it is zero on all processes (a window without a
        single token) the accumulated gradient is zero, not NaN; look here to skip the optimizer's step.
        """
        return 0.0 if self._sums is None else self._sums.total

    @property
    def gradients(self) -> list[Tensor | None] | dict[str, Tensor | None]:
        """The accumulated gradients of this process only: new tensors in float32 (float64), each time it is read.

        In the order of the calls, or a dict if they were dicts. None for a gradient that did not come in this window.
        Between ``reset`` and the next call: zeros.

        Raises:
            ValueError: Before the first call.
        """
        if self._sums is None or (not self._step and not any(b is not None for b in self._sums.buffers)):
            raise ValueError("There are no gradients yet: call the accumulator first.")
        if self._step:
            values = self._sums.local(mean=self._reduction == "mean")
        else:
            values = [None if buffer is None else torch.zeros_like(buffer) for buffer in self._sums.buffers]
        return dict(zip(self._sums.names, values, strict=True)) if self._as_dict else values

    @leave_undisturbed
    @torch.no_grad()
    def __call__(self, gradients: Gradients | None = None, weight: float | Tensor | None = None) -> None:
        """Adds one micro-batch. A call that raises changes nothing.

        Args:
            gradients: Tensors or None, as a sequence or as a dict from name to tensor; they are not modified. None
                (default): ``p.grad`` of the parameters given to the constructor, which are then set to None.
            weight: Tokens or samples that the micro-batch's loss was averaged over, >= 0. A tensor (0-d) is not read
                by the host if it is on an accelerator. A micro-batch of weight 0 counts as zero even where its
                gradient is NaN. None (default) in every call of a window: all count alike.

        Raises:
            TypeError: If a gradient is no tensor, or ``weight`` no number.
            ValueError: If the number or names of the gradients, a shape, dtype, or device differ from the calls
                before or from the parameters; if a gradient is sparse; if weighted and unweighted calls meet in a
                window; if ``weight`` is negative, not finite or not 0-d; if no parameter has a gradient.
            RuntimeError: If the window was applied and not yet reset, if DDP has already reduced the gradients, or if
                they are released as soon as they are there (``prepare_for_gradient_release``).
        """
        if self._applied:
            raise RuntimeError("This window was applied: call reset() before the next one.")
        if self._step and self._weighted != (weight is not None):
            raise ValueError("weight must be given in every call of a window or in none.")
        # DDP notes at each forward whether the backward to come is to reduce.
        if any(replica.require_forward_param_sync for replica in self._replicas) and self._world_size() > 1:
            raise RuntimeError(
                "DistributedDataParallel has already averaged these gradients, and apply_to would reduce them again: "
                "run forward and backward under `with accumulator.no_sync():`."
            )
        amount = checked_weight(weight)
        sums, grads = self._read(gradients)
        sums.check(grads, self._params)
        if any(is_sharded(grad) for grad in grads) and (self._sync or weight is not None):
            raise ValueError("DTensor gradients are reduced already: they take no weight, and sync must be False.")

        sums.add(grads, amount)
        self._sums = sums
        self._as_dict = isinstance(gradients, Mapping)
        self._step += 1
        self._weighted = weight is not None
        if gradients is None:
            self._clear_grads()

    @leave_undisturbed
    @torch.no_grad()
    def apply_to(self, params: Parameters | None = None) -> list[Tensor]:
        """Puts the result of the window into ``p.grad``, in the parameter's dtype, replacing what is there.

        Adds up the processes first where ``sync`` says so; every process must then call it, also one without a
        micro-batch. Where no process has a gradient for a parameter, ``p.grad`` becomes None. The host waits for the
        device only on a process that lacks a gradient of its own, to learn whether another one has it.

        Args:
            params: Module, parameters, (name, parameter) pairs or a dict, in the order of the gradients (by name if
                the calls were dicts). None (default): the parameters given to the constructor.

        Returns:
            The parameters that now have a gradient, for ``clip_grad_norm_``.

        Raises:
            ValueError: If nothing was accumulated, or if ``params`` does not match the gradients.
            RuntimeError: If there are several processes and ``sync`` was not decided.
        """
        sync = self._decide_sync()
        targets = self._targets(params)
        if self._sums is None and sync:
            self._sums = GradientSums([str(i) for i in range(len(targets))])
        if self._sums is None or not (self._step or sync):
            raise ValueError("There is nothing to apply: call the accumulator first.")
        if sync:
            values = self._sums.over_processes(targets, mean=self._reduction == "mean", group=self._group())
        else:
            values = self._sums.local(mean=self._reduction == "mean")
        for param, value in zip(targets, values, strict=True):
            param.grad = None if value is None else value.to(param.dtype)
        self._applied = True
        return [param for param, value in zip(targets, values, strict=True) if value is not None]

    def reset(self) -> None:
        """Starts a new window. Keeps the buffers; sets ``p.grad`` of the constructor's parameters to None."""
        if self._sums is not None:
            self._sums.clear()
        self._step = 0
        self._applied = self._weighted = False
        self._clear_grads()

    @contextmanager
    def no_sync(self) -> Iterator[None]:
        """Context for forward and backward in which DDP does not reduce gradients. Does nothing without DDP."""
        with ExitStack() as stack:
            for replica in self._replicas:
                stack.enter_context(replica.no_sync())
            yield

    def state_dict(self) -> dict[str, Any]:
        """A copy of this process's state, to go on in the middle of a window."""
        sums = self._sums or GradientSums(())
        return {
            "reduction": self._reduction,
            "step": self._step,
            "applied": self._applied,
            "weighted": self._weighted,
            "as_dict": self._as_dict,
            "weight": sums.total,
            "names": list(sums.names),
            "sums": [None if value is None else value.clone() for value in sums.current()],
        }

    @leave_undisturbed
    @torch.no_grad()
    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Goes on where :meth:`state_dict` was taken. Sums move to the device of their parameter or buffer.

        Raises:
            ValueError: If it is no state of an accumulator, or one of another reduction, or of other names, shapes
                or dtypes. The accumulator is then unchanged.
        """
        if missing := [key for key in _STATE_KEYS if key not in state_dict]:
            raise ValueError(f"state_dict is not one of a GradientAccumulator: it lacks {missing}.")
        if state_dict["reduction"] != self._reduction:
            raise ValueError(f"state_dict has reduction {state_dict['reduction']!r}, this one {self._reduction!r}.")
        names, values = state_dict["names"], state_dict["sums"]
        if len(names) != len(values):
            raise ValueError(f"state_dict has {len(names)} names ({listed(map(repr, names))}) for {len(values)} sums.")
        loaded = dict(zip(names, values, strict=True))
        sums = self._sums or (GradientSums(list(loaded)) if loaded else None)
        if sums is not None:
            saved = same_names("The gradients of state_dict", loaded, sums.names)
            values = [loaded[saved[name]] for name in sums.names]
            sums.check(values, self._params, moved=True)
            sums.load(values, state_dict["weight"], self._params)
        self._sums = sums
        self._step, self._as_dict = state_dict["step"], state_dict["as_dict"]
        self._applied, self._weighted = state_dict["applied"], state_dict["weighted"]

    def _read(self, gradients: Gradients | None) -> tuple[GradientSums, list[Tensor | None]]:
        """The call's gradients in the order of the first call, and the sums that they go to."""
        if gradients is None:
            return self._take()
        if isinstance(gradients, Tensor):
            raise TypeError("gradients must be a sequence or a dict of tensors, not one tensor.")
        if isinstance(gradients, Mapping):
            sums = self._sums or GradientSums(list(gradients))
            given = same_names("The gradients", gradients, sums.names)
            grads = [gradients[given[name]] for name in sums.names]
        elif self._as_dict and self._params is None:
            raise TypeError("gradients must be a dict, as in the calls before.")
        else:
            grads = list(gradients)
            sums = self._sums or GradientSums([str(i) for i in range(len(grads))])
        if len(grads) != len(sums.names):
            raise ValueError(f"Expected {len(sums.names)} gradients, got {len(grads)}.")
        if not grads:
            raise ValueError("gradients must not be empty.")
        return sums, grads

    def _take(self) -> tuple[GradientSums, list[Tensor | None]]:
        """p.grad of the constructor's parameters, once it is sure that they are the same and not reduced yet."""
        if self._params is None or self._sums is None:
            raise ValueError("gradients must be given: the accumulator was made without parameters.")
        if self._module is not None:
            names, params = _listed(self._module)
            same_names("The module's parameters", names, self._sums.names)
            replaced = [name for name, now, then in zip(names, params, self._params, strict=True) if now is not then]
            if replaced:
                raise ValueError(f"The module's parameters {replaced} were replaced: make a new accumulator.")
        if any(map(is_released, self._params)):
            raise RuntimeError(
                "Gradient release has used and freed the gradients, so they cannot be accumulated: call "
                "remove_gradient_release(model) first."
            )
        grads = [param.grad for param in self._params]
        if all(grad is None for grad in grads):
            raise ValueError("No parameter has a gradient: call backward() before the accumulator.")
        return self._sums, grads

    def _targets(self, params: Parameters | None) -> list[Tensor]:
        """The parameters to write to, in the order of the gradients."""
        if params is None:
            if self._params is None:
                raise ValueError("params must be given: the accumulator was made without parameters.")
            return self._params
        names, targets = _listed(params)
        if self._sums is None:
            return targets
        known = self._sums.names
        if self._as_dict or not any(name.isdigit() for name in (*names, *known)):  # positions are no names
            given = same_names("params", names, known)
            by_name = dict(zip(names, targets, strict=True))
            targets = [by_name[given[name]] for name in known]
        if len(targets) != len(known):
            raise ValueError(f"params must be {len(known)} tensors, one for each gradient, not {len(targets)}.")
        for name, param, value in zip(known, targets, self._sums.current(), strict=True):
            if value is not None:
                check_same_kind(f"Parameter {name!r}", param, value)
        return targets

    def _clear_grads(self) -> None:
        for param in self._params or ():
            param.grad = None

    def _group(self) -> dist.ProcessGroup | None:
        return (
            self._replicas[0].process_group if self._process_group is None and self._replicas else self._process_group
        )

    def _world_size(self) -> int:
        return dist.get_world_size(self._group()) if dist.is_available() and dist.is_initialized() else 1

    def _decide_sync(self) -> bool:
        world_size = self._world_size()
        if self._sync is None and world_size > 1 and not self._replicas:
            raise RuntimeError(
                f"There are {world_size} processes: give the accumulator the DistributedDataParallel module, or say "
                "sync=True (gradients are those of one process) or sync=False (they are reduced already)."
            )
        return world_size > 1 and self._sync is not False


def _listed(params: Parameters) -> tuple[list[str], list[Tensor]]:
    """Names and tensors. Names are positions where none are given, and those without wrappers (DDP, compile)."""
    items: Iterable[Any]
    if isinstance(params, nn.Module):
        short = bare_names_of(params)
        items = ((short[name], param) for name, param in params.named_parameters())
    elif isinstance(params, Tensor):
        raise TypeError("params must be a module or an iterable of parameters, not one tensor.")
    else:
        items = params.items() if isinstance(params, Mapping) else params
    pairs = [item if isinstance(item, tuple) else (str(i), item) for i, item in enumerate(items)]
    for name, param in pairs:
        if not isinstance(param, Tensor):
            raise TypeError(f"params must hold tensors, but {name!r} is {type(param).__name__}.")
    if not pairs:
        raise ValueError("params holds no parameter.")
    if len({id(param) for _, param in pairs}) < len(pairs) or len({name for name, _ in pairs}) < len(pairs):
        raise ValueError("params holds a parameter or a name twice.")
    return [name for name, _ in pairs], [param for _, param in pairs]
