"""Where each rank of a run is, so that one that waits in vain can say for whom."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, NoReturn

from torch import distributed as dist

# Seconds in which the ranks that are alive notice that something is wrong, after the first of them.
GRACE = 3.0
_EVERY = 0.05
# What messages of gloo have in them, whose errors are of no class of their own.
_WORDS = ("gloo", "timed out", "pair closure", "connection closed", "connection reset")

# Of each set of ranks, how many there have been: all ranks make them alike, and so know which one is meant.
_made: Counter[tuple[int, ...]] = Counter()


@dataclass(frozen=True)
class _Word:
    """What a rank has said last: how often it has spoken, whether it is in a stage or failed there, and why."""

    count: int = 0
    state: str = "in"
    stage: str = ""
    why: str = ""


class Attendance:
    """Lets ranks leave word of where they are in the store by which they found each other, one short message a stage.

    A file store (`init_method="file://..."`) is left alone: where a rank is killed while it writes there, whatever is
    asked of the store afterwards never ends. Then nobody is named.

    Args:
        ranks: the ranks, by their numbers in the run; all of them make it, in one order where there are several.
    """

    def __init__(self, ranks: list[int]) -> None:
        self._ranks = ranks
        self._count = 0
        self._stages: Counter[str] = Counter()
        self._store = _store() if len(ranks) > 1 else None
        if self._store is not None:
            _made[tuple(ranks)] += 1
            self._prefix = f"hfoptim.Attendance/{_made[tuple(ranks)]}/{'-'.join(map(str, ranks))}"

    @contextmanager
    def at(self, stage: str) -> Iterator[None]:
        """A stage that all ranks go through, together.

        Args:
            stage: what it is called; numbers are put behind it, as they come.

        Raises:
            RuntimeError: the ranks could not do in it what they do together; with the numbers of those that were not
                there, did not come out, or failed, and with what they failed. What else is raised in it passes, once
                the others have been told.
        """
        self._stages[stage] += 1
        stage = f"{stage} {self._stages[stage]}"
        try:
            self._count += 1
            self._say("in", stage)
            yield
        except BaseException as error:
            if not (isinstance(error, RuntimeError) and _of_the_ranks(error)):
                self._try_to_say("failed", stage, f"{type(error).__name__}: {error}")
                raise
            self._try_to_say("waits", stage)
            self._name(stage, error)

    def _name(self, stage: str, error: Exception) -> NoReturn:
        """Say which ranks it was."""
        if len(self._ranks) > 1 and self._store is None:
            raise RuntimeError(
                f"a rank did not come to {stage}, or has ended there; which one, a file store cannot be asked "
                f"(init_method='env://' has another one): {error}"
            ) from error
        try:
            found = self._others()
        except (RuntimeError, ValueError):
            raise RuntimeError(
                f"the ranks could not go through {stage} together, and the store that knows who came is gone, with the "
                f"rank that kept it: {error}"
            ) from error
        said = [f"{_numbers([r])} failed in {word.stage}: {word.why}" for r, word in found if word.state == "failed"]
        late = [(rank, word) for rank, word in found if word.state == "in" and word.count < self._count]
        inside = [rank for rank, word in found if word.state == "in" and word.count == self._count]
        for rank, word in late:
            said.append(f"{_numbers([rank])} did not come to {stage} (last in {word.stage or 'none'})")
        if inside:
            said.append(f"{_numbers(inside)} did not come out of {stage}")
        raise RuntimeError(f"{'; '.join(said) or f'a rank has ended in {stage}'}: {error}") from error

    def _others(self) -> list[tuple[int, _Word]]:
        """What the other ranks have said last, once all have noticed or one says that it failed, or after a while."""
        others, end = [rank for rank in self._ranks if rank != dist.get_rank()], time.monotonic() + GRACE
        while True:
            words = [(rank, self._word(rank)) for rank in others]
            behind = any(word.state == "in" and word.count <= self._count for _, word in words)
            if not behind or any(word.state == "failed" for _, word in words) or time.monotonic() > end:
                return words
            time.sleep(_EVERY)

    def _word(self, rank: int) -> _Word:
        assert self._store is not None
        key = f"{self._prefix}/{rank}"
        return _Word(*json.loads(self._store.get(key))) if self._store.check([key]) else _Word()

    def _say(self, state: str, stage: str, why: str = "") -> None:
        if self._store is not None:
            self._store.set(f"{self._prefix}/{dist.get_rank()}", json.dumps([self._count, state, stage, why[:500]]))

    def _try_to_say(self, *said: str) -> None:
        with suppress(RuntimeError):  # what is wrong is being raised already
            self._say(*said)


def _store() -> Any:
    """The store of the default group; None for one in a file."""
    store: Any = dist.distributed_c10d._get_default_store()
    inner = store
    while isinstance(inner, dist.PrefixStore):
        inner = inner.underlying_store
    return None if isinstance(inner, dist.FileStore) else store


def _of_the_ranks(error: RuntimeError) -> bool:
    """Whether an error is of what ranks do together, and not of one rank: by its class, or as gloo words it."""
    said = str(error).lower()
    return isinstance(error, dist.DistError) or any(word in said for word in _WORDS)


def _numbers(ranks: list[int]) -> str:
    return f"rank {ranks[0]}" if len(ranks) == 1 else f"ranks {', '.join(map(str, ranks))}"
