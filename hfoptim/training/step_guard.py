"""One decision on all ranks before a step: it is taken everywhere or nowhere, and what a rank lacks is said by name."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from datetime import timedelta
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch import distributed as dist
from torch.optim import Optimizer

from hfoptim.engine import checks
from hfoptim.engine.distributed import dtensor, flattened
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

    Args:
        optimizer: any torch.optim.Optimizer whose steps are yours to call; Accelerate's wrapper, too.
        nonfinite (default "raise"): what becomes of a step where a gradient of any rank has an infinite or undefined
            entry: "raise", or "skip" on all ranks. Gradients of a GradScaler are unscaled first.
        differing (default "raise"): what becomes of a step for which some ranks have a gradient of a parameter and
            others have none: "raise", "skip", or "allow", for parameters that differ between ranks, such as experts.
        process_group (default None): the ranks; None: all.
        timeout (default None): seconds that the ranks wait for each other before a step; None: as the group does.

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
        for name, given, known in (("nonfinite", nonfinite, _NONFINITE), ("differing", differing, _DIFFERING)):
            if given not in known:
                raise ValueError(f"{name}={given!r} is none of {', '.join(map(repr, known))}")
        if timeout is not None and not checks.number("timeout", timeout) > 0:
            raise ValueError(f"timeout={timeout!r} must be above 0, in seconds")
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
        # How many agreements this rank has come to, and how many steps were not taken.
        self._count = 0
        self.skipped = 0
        self._same_parameters()

    def step(self, *, loss: Tensor | float | None = None) -> bool:
        """Take the optimizer's step, if all ranks agree on it.

        Args:
            loss: handed to `optimizer.step`, for optimizers that depend on it.

        Returns:
            Whether it was taken.

        Raises:
            RuntimeError: gradients that are not finite or differ, where that is to raise, with the same words on all
                ranks, and nothing changed; or a rank did not come.
        """
        if not self.agree():
            return False
        given: dict[str, Any] = {} if loss is None else {"loss": loss}
        self.optimizer.step(**given)
        return True

    @torch.no_grad()
    def agree(self) -> bool:
        """Whether all ranks are to take the step to come; for those who call it themselves.

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
        return True

    def _decide(self, way: str, said: str) -> bool:
        if way == "raise":
            raise RuntimeError(f"{said}: no rank has taken the step")
        self.skipped += 1
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
            raise ValueError(f"the ranks have other numbers of parameters: {counts}")
        for each in zip(*every, strict=True):
            if len(set(each)) > 1:
                ways = [f"{', '.join(map(str, way[1:3]))}, {'trained' if way[3] else 'frozen'}" for way in each]
                said = "; ".join(f"{way} on rank {rank}" for rank, way in zip(self._ranks, ways, strict=True))
                raise ValueError(f"{each[0][0]} is not the same parameter everywhere: {said}")

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
        try:
            self._arrive()
            work = dist.all_gather(all_of_them, mine, group=self._group, async_op=True)
            if self._timeout is None:
                work.wait()
            else:
                work.wait(self._timeout)
        except RuntimeError as error:
            self._missing(error)
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

    def _key(self, rank: int) -> str:
        return f"hfoptim.StepGuard/{'-'.join(map(str, self._ranks))}/{rank}"

    def _arrive(self) -> None:
        """Leave word of having come, for a rank that waits in vain."""
        dist.distributed_c10d._get_default_store().set(self._key(dist.get_rank()), str(self._count))

    def _missing(self, error: Exception) -> NoReturn:
        """Say which ranks have not come."""
        gone = {}
        try:
            store = dist.distributed_c10d._get_default_store()
            for rank in self._ranks:
                came = int(store.get(self._key(rank))) if store.check([self._key(rank)]) else 0
                if came < self._count:
                    gone[rank] = came
        except (RuntimeError, ValueError):
            raise RuntimeError(
                f"the ranks could not agree on step {self._count}, and the store that knows who came is gone, with the "
                f"rank that kept it: {error}"
            ) from error
        if not gone:
            raise RuntimeError(f"a rank has ended while the ranks agreed on step {self._count}: {error}") from error
        last = ", ".join(str(came) for came in gone.values())
        raise RuntimeError(
            f"{_ranks_of([*gone])} did not come to agreement {self._count} before a step (the last one there: {last})"
            f": {error}"
        ) from error


def _digest(value: Any) -> int:
    """63 bits that are the same on every rank for the same value."""
    return int.from_bytes(hashlib.blake2b(repr(value).encode(), digest_size=8).digest(), "big") >> 1


def _ranks_of(ranks: list[int]) -> str:
    return f"rank {ranks[0]}" if len(ranks) == 1 else f"ranks {', '.join(map(str, ranks))}"
