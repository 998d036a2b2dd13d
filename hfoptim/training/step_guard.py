"""One decision on all ranks before a step: it is taken everywhere or nowhere, and what a rank lacks is said by name."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from contextlib import AbstractContextManager
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist
from torch.optim import Optimizer

from hfoptim.engine import checks, unwrap_all
from hfoptim.engine.distributed import dtensor, flattened
from hfoptim.engine.optimizer import EngineOptimizer
from hfoptim.engine.unwrapping import note_skipped
from hfoptim.training.attendance import Attendance
from hfoptim.training.step_metrics import nonfinite

_NONFINITE, _DIFFERING = ("raise", "skip"), ("raise", "skip", "allow")


class StepGuard:
    """Takes an optimizer's steps once all ranks have agreed on them.

    A step in which ranks wait for each other hangs, or mixes what does not belong together, where one of them lacks a
    gradient that the others have; and a NaN that one rank alone sees makes it alone skip, or go on. Here all ranks tell
    each other before a step what gradients they have and whether these are finite, in one all-gather of three numbers,
    and decide alike: step, skip, or raise with the names of the parameter and of the ranks.

        guard = hfoptim.StepGuard(optimizer, nonfinite="skip", timeout=60)
        for batch in batches:
            model(**batch).loss.backward()
            guard.step()                        # in the place of optimizer.step()
            optimizer.zero_grad()

    On one process it decides alone. The decision is read from the device, for which the host waits. Parameters are told
    apart by their place in the groups, so every rank must have the same; the constructor makes sure of it, with
    gradients or without, and so is for all ranks to call.

    A rank that fails, is killed or stuck in a backward pass is found by those that wait for it there, once the group's
    own timeout is over or its connection is closed. Said by name where the pass is told:

            with guard.during("backward pass"):
                loss.backward()

    With clipping, ask before it, as the norm of gradients with a NaN makes all of them NaN:

            if guard.agree():
                torch.nn.utils.clip_grad_norm_(params, 1.0)
                with guard.during("step"):
                    optimizer.step()
                schedule.step()

    With Accelerate's wrapper `step` does nothing while gradients are accumulated, and a step that was left out counts
    as one that was skipped for an overflow: `accelerator.optimizer_step_was_skipped`, and a prepared schedule waits.
    In a Trainer: `hfoptim.GuardSteps`.

    Args:
        optimizer: any torch.optim.Optimizer whose steps are yours to call; Accelerate's wrapper, too.
        nonfinite (default "raise"): what becomes of a step where a gradient of any rank has an infinite or undefined
            entry: "raise", or "skip" on all ranks. Gradients of a GradScaler are unscaled first.
        differing (default "raise"): what becomes of a step for which some ranks have a gradient of a parameter and
            others have none: "raise", "skip", or "allow", for parameters that differ between ranks, such as experts.
        process_group (default None): the ranks; None: all.
        timeout (default None): seconds that the ranks wait for each other before a step; None: as the group does.

    `skipped` counts the steps that were left out, and `reason` says why the last one was.

    Raises:
        ValueError: a choice that there is none of, parameters that FSDP1 or DeepSpeed has flattened (which rank has a
            gradient says nothing then), gradient release, or ranks with other parameters, or with others frozen.
        TypeError: no optimizer.
        RuntimeError: a rank did not come.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        *,
        nonfinite: str = "raise",
        differing: str = "raise",
        process_group: dist.ProcessGroup | None = None,
        timeout: float | None = None,
    ) -> None:
        if not isinstance(optimizer, Optimizer):
            raise TypeError(
                f"optimizer={optimizer!r} is a {type(optimizer).__name__}, expected a torch.optim.Optimizer"
            )
        self.check(nonfinite, differing, timeout)
        groups = optimizer.param_groups
        if flattened.Given().flattener(groups[0]) is not None:
            raise ValueError(
                "StepGuard compares the gradients of ranks parameter by parameter, and FSDP1 or DeepSpeed has "
                "flattened the parameters; take FSDP2 (fully_shard), or leave it out"
            )
        if any(group.get("gradient_release") for group in groups):
            raise ValueError(
                "gradient_release=True takes the steps inside of backward, where ranks cannot agree on them"
            )
        self.optimizer = optimizer
        self.nonfinite, self.differing = nonfinite, differing
        self._timeout = None if timeout is None else timedelta(seconds=float(timeout))
        self._many = dist.is_available() and dist.is_initialized() and dist.get_world_size(process_group) > 1
        self._group = process_group
        self._ranks = dist.get_process_group_ranks(process_group or dist.group.WORLD) if self._many else [0]
        self._attendance = Attendance(self._ranks)
        # How many agreements this rank has come to.
        self._count = 0
        self.skipped, self.reason = 0, ""
        self._same_parameters()

    @staticmethod
    def check(nonfinite: str, differing: str, timeout: float | None) -> None:
        """Raise a ValueError for choices that there are none of, a TypeError for a timeout that is no number."""
        for name, given, known in (("nonfinite", nonfinite, _NONFINITE), ("differing", differing, _DIFFERING)):
            if given not in known:
                raise ValueError(f"{name}={given!r} is none of {', '.join(map(repr, known))}")
        if timeout is not None and not checks.number("timeout", timeout) > 0:
            raise ValueError(f"timeout={timeout!r} must be above 0, in seconds")

    def step(self, *, loss: Tensor | float | None = None) -> bool:
        """Take the optimizer's step, if all ranks agree on it.

        Args:
            loss: handed to `optimizer.step`, for optimizers that depend on it.

        Returns:
            Whether it was taken.

        Raises:
            RuntimeError: gradients that are not finite or differ, where that is to raise, with the same words on all
                ranks, and nothing changed; or a rank did not come, or ended in the step.
        """
        accelerates: Any = getattr(self.optimizer, "gradient_state", None)
        if accelerates is not None and not accelerates.sync_gradients:
            return False
        if not self.agree():
            return False
        given: dict[str, Any] = {} if loss is None else {"loss": loss}
        with self.during("step"):
            self.optimizer.step(**given)
        return True

    def during(self, stage: str) -> AbstractContextManager[None]:
        """A context for what all ranks do together, in which those that wait in vain say for whom.

        Args:
            stage: what it is called; its number is put behind it.

        Raises:
            RuntimeError: in it: a rank has failed there (and with what), has not come, or has not come out. The others
                notice when the connection is closed, or after the timeout of their process group.
        """
        return self._attendance.at(stage)

    @torch.no_grad()
    def agree(self) -> bool:
        """Whether all ranks are to take the step to come; for those who call it themselves.

        Where they are not, what optimizers were told for it (losses, curvature) is dropped.

        Raises:
            RuntimeError: as `step`.
        """
        named = self._named()
        has = [param.grad is not None for _, param in named]
        local = [dtensor.local(param.grad.detach()) for _, param in named if param.grad is not None]
        places = [place for place, there in enumerate(has) if there]
        bad = torch.stack([each.to(local[0].device) for each in nonfinite(local)]).tolist() if local else []
        first = next((place for place, wrong in zip(places, bad, strict=True) if wrong), -1)
        told = self._gather([_digest(has), first])
        if self.differing != "allow" and len({digest for digest, _ in told}) > 1:
            return self._decide(self.differing, self._of_differing([name for name, _ in named], has))
        wrong = {rank: place for rank, (_, place) in zip(self._ranks, told, strict=True) if place >= 0}
        if wrong:
            name = named[min(wrong.values())][0]
            also = " and others" if len(set(wrong.values())) > 1 else ""
            return self._decide(self.nonfinite, f"the gradient of {name}{also} is not finite on {_ranks_of([*wrong])}")
        note_skipped(self.optimizer, False)
        return True

    def _decide(self, way: str, said: str) -> bool:
        if way == "raise":
            raise RuntimeError(f"{said}: no rank has taken the step")
        self.skipped += 1
        self.reason = said
        for inner in unwrap_all(self.optimizer, EngineOptimizer):
            inner.drop_step()
        note_skipped(self.optimizer, True)
        return False

    def _named(self) -> list[tuple[str, Tensor]]:
        return [
            (checks.parameter_name(group, index, position), param)
            for index, group in enumerate(self.optimizer.param_groups)
            for position, param in enumerate(group["params"])
        ]

    def _same_parameters(self) -> None:
        """Raise where the ranks have not the same parameters, or have others frozen."""
        own = [(name, str(p.dtype), tuple(p.shape), p.requires_grad) for name, p in self._named()]
        told = self._gather([_digest(own)])
        if self.differing == "allow" or len({digest for (digest,) in told}) == 1:
            return
        every = self._objects(own)
        if len({len(each) for each in every}) > 1:
            counts = ", ".join(f"{len(each)} on rank {rank}" for rank, each in zip(self._ranks, every, strict=True))
            raise ValueError(f"the ranks have other numbers of parameters: {counts}{self._of_lacking(every)}")
        for each in zip(*every, strict=True):
            if len(set(each)) > 1:
                ways = [f"{', '.join(map(str, way[1:3]))}, {'trained' if way[3] else 'frozen'}" for way in each]
                said = "; ".join(f"{way} on rank {rank}" for rank, way in zip(self._ranks, ways, strict=True))
                raise ValueError(f"{each[0][0]} is not the same parameter everywhere: {said}")

    def _of_lacking(self, every: list[list[tuple[Any, ...]]]) -> str:
        """A parameter that some ranks lack, where parameters have names."""
        if not all(group.get("param_names") for group in self.optimizer.param_groups if group["params"]):
            return ""
        names = [{name for name, *_ in each} for each in every]
        first = min(set.union(*names) - set.intersection(*names), default=None)
        lacking = [rank for rank, each in zip(self._ranks, names, strict=True) if first not in each]
        return "" if first is None else f"; {first} is not there, or frozen, on {_ranks_of(lacking)}"

    def _of_differing(self, names: list[str], has: list[bool]) -> str:
        """Which parameter has a gradient on some ranks alone."""
        every = self._objects([name for name, there in zip(names, has, strict=True) if there])
        name = next(name for name in names if len({name in each for each in every}) > 1)
        with_one = [rank for rank, each in zip(self._ranks, every, strict=True) if name in each]
        without = [rank for rank in self._ranks if rank not in with_one]
        return f"{name} has a gradient on {_ranks_of(with_one)} and none on {_ranks_of(without)}"

    # -- what the ranks tell each other -----------------------------------------------------------------------------

    def _gather(self, own: Sequence[int]) -> list[list[int]]:
        """What each rank tells, by its place in the group."""
        self._count += 1
        if not self._many:
            return [list(own)]
        device = dtensor.local(self.optimizer.param_groups[0]["params"][0]).device
        mine = torch.tensor([self._count, *own], device=device)
        all_of_them = [torch.empty_like(mine) for _ in self._ranks]
        with self._attendance.at("agreement"):
            work = dist.all_gather(all_of_them, mine, group=self._group, async_op=True)
            if self._timeout is None:
                work.wait()
            else:
                work.wait(self._timeout)
        told = [each.tolist() for each in all_of_them]
        counts = {rank: count for rank, (count, *_) in zip(self._ranks, told, strict=True)}
        if len(set(counts.values())) > 1:
            said = ", ".join(f"{count} by rank {rank}" for rank, count in counts.items())
            raise RuntimeError(f"the ranks have called StepGuard another number of times: {said}")
        return [each for _, *each in told]

    def _objects(self, own: Any) -> list[Any]:
        every: list[Any] = [None] * len(self._ranks)
        dist.all_gather_object(every, own, group=self._group)
        return every


def _digest(value: Any) -> int:
    """63 bits that are the same on every rank for the same value."""
    return int.from_bytes(hashlib.blake2b(repr(value).encode(), digest_size=8).digest(), "big") >> 1


def _ranks_of(ranks: list[int]) -> str:
    return f"rank {ranks[0]}" if len(ranks) == 1 else f"ranks {', '.join(map(str, ranks))}"
