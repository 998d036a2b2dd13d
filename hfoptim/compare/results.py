"""What a comparison has found so far: the records of its runs, kept in `results.json`."""

from __future__ import annotations

import json
import math
import os
import platform
import statistics
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from hfoptim.compare.config import CompareConfig, CompareError

FILE = "results.json"
FORMAT = 2
FINISHED, DIVERGED, FAILED = "finished", "diverged", "failed"


@dataclass
class RunRecord:
    """One training run: one optimizer with one learning rate and one seed.

    Args:
        optimizer: Name of the registry.
        lr: Peak learning rate.
        seed: Seed of the initial weights and of the order of the data.
        options: Further options of the optimizer.
        status: `finished`; `diverged` when a loss was not finite; `failed` when the run raised an error.
        steps: Optimizer steps taken.
        train_loss: Mean training loss of the last tenth of the steps.
        eval_loss: Mean loss per held-out token after the last step.
        step_ms: Median time of `optimizer.step()` in milliseconds.
        state_bytes_per_param: Bytes of the optimizer's state tensors per model parameter.
        wall_seconds: Time of the training, evaluations included.
        train_curve: Training loss of every step; None where it was not finite.
        learning_rates: Learning rate of every step.
        eval_steps: Steps after which the held-out text was evaluated.
        eval_curve: The losses found there.
        error: What a failed run raised.
    """

    optimizer: str
    lr: float
    seed: int
    options: dict[str, Any]
    status: str
    steps: int = 0
    train_loss: float | None = None
    eval_loss: float | None = None
    step_ms: float | None = None
    state_bytes_per_param: float | None = None
    wall_seconds: float = 0.0
    train_curve: list[float | None] = field(default_factory=list)
    learning_rates: list[float] = field(default_factory=list)
    eval_steps: list[int] = field(default_factory=list)
    eval_curve: list[float | None] = field(default_factory=list)
    error: str | None = None

    @property
    def key(self) -> tuple[str, float, int]:
        """What no two runs of a comparison have in common: optimizer, learning rate, seed."""
        return self.optimizer, self.lr, self.seed


@dataclass(frozen=True)
class Point:
    """An optimizer with one learning rate, over its seeds.

    Args:
        lr: Peak learning rate.
        runs: The finished runs, at least one.
    """

    lr: float
    runs: tuple[RunRecord, ...]

    def mean(self, measure: str) -> float:
        """Mean over the seeds of a field of `RunRecord` that holds a number, NaN where one run has none."""
        values = [getattr(run, measure) for run in self.runs]
        return statistics.fmean(math.nan if value is None else value for value in values)

    @property
    def eval_loss(self) -> float:
        """Mean over the seeds."""
        return self.mean("eval_loss")

    @property
    def spread(self) -> float:
        """Standard deviation of the eval loss over the seeds, as of a sample; 0 with one seed."""
        losses = [eval_loss(run) for run in self.runs]
        return statistics.stdev(losses) if len(losses) > 1 else 0.0


@dataclass(frozen=True)
class Summary:
    """An optimizer's line of the table.

    Args:
        optimizer: Name of the registry.
        best: The learning rate with the lowest mean eval loss, of those that finished with every seed run so far; with
            `tune_first`, the lowest with the first seed. None without one.
        notes: What the reader must know to judge the line.
    """

    optimizer: str
    best: Point | None
    notes: list[str]


@dataclass
class Results:
    """All that `results.json` holds. Every change is written at once.

    Args:
        folder: The output folder.
        config: The configuration of all runs.
        environment: Versions and device, see `environment`.
        data: Facts about the text: name, tokens, fingerprint.
        model: Facts about the model: name, parameters, vocabulary.
        runs: The records, in the order of running.
    """

    folder: Path
    config: CompareConfig
    environment: dict[str, Any]
    data: dict[str, Any]
    model: dict[str, Any]
    runs: list[RunRecord] = field(default_factory=list)

    @classmethod
    def load(cls, folder: Path) -> Results:
        """Read the results of an output folder.

        Raises:
            CompareError: There are none, or they cannot be read.
        """
        path = folder / FILE
        if not path.is_file():
            raise CompareError(f"--resume: {folder} holds no {FILE}, so there is nothing to resume; leave --resume out")
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            if data["format"] != FORMAT:
                raise CompareError(f"{path} has format {data['format']}, this version reads format {FORMAT}")
            return cls(
                folder=folder,
                config=CompareConfig.from_json(data["config"]),
                environment=data["environment"],
                data=data["data"],
                model=data["model"],
                runs=[RunRecord(**run) for run in data["runs"]],
            )
        except (KeyError, TypeError, json.JSONDecodeError) as error:
            raise CompareError(f"{path} is not a results file of a comparison: {error!r}") from error

    def save(self) -> None:
        """Write `results.json` in one go: a reader, or a kill, never meets half a file."""
        text = json.dumps(self.to_json(), indent=1, allow_nan=False)
        write_atomically(self.folder / FILE, text.encode())

    def to_json(self) -> dict[str, Any]:
        """The file's content."""
        return {
            "format": FORMAT,
            "complete": self.complete,
            "config": self.config.to_json(),
            "environment": self.environment,
            "data": self.data,
            "model": self.model,
            "summary": [
                {
                    "optimizer": line.optimizer,
                    "best_lr": line.best.lr if line.best else None,
                    "eval_loss": line.best.eval_loss if line.best else None,
                    "spread": line.best.spread if line.best else None,
                    "notes": line.notes,
                }
                for line in self.summaries()
            ],
            "runs": [asdict(run) for run in self.runs],
        }

    def add(self, record: RunRecord) -> None:
        """Take in a run, in place of an earlier one of the same optimizer, rate and seed, and write the file."""
        self.runs = [run for run in self.runs if run.key != record.key]
        self.runs.append(record)
        self.save()

    def planned(self) -> Iterator[tuple[str, float, int]]:
        """Optimizer, learning rate and seed of every run, in order: a whole table for each seed.

        With `tune_first` a later seed has the best rate alone, from when all rates have been tried with the first.
        """
        for seed in self.config.seeds:
            for optimizer in self.config.optimizers:
                for lr in self._rates_for(optimizer, seed):
                    yield optimizer, lr, seed

    def _rates_for(self, optimizer: str, seed: int) -> tuple[float, ...]:
        grid, first = self.config.lr_grid[optimizer], self.config.seeds[0]
        if seed == first or not self.config.tune_first:
            return grid
        done = {run.lr for run in self.runs if (run.optimizer, run.seed) == (optimizer, first) and run.status != FAILED}
        rate = self._rate_of_first(optimizer)
        return () if rate is None or done != set(grid) else (rate,)

    def _rate_of_first(self, optimizer: str) -> float | None:
        """The best rate with the first seed, but for those at which another diverged."""
        runs = [run for run in self.runs if run.optimizer == optimizer]
        diverged = {run.lr for run in runs if run.status == DIVERGED}
        firsts = [run for run in runs if run.seed == self.config.seeds[0] and run.status == FINISHED]
        best = min((run for run in firsts if run.lr not in diverged), key=eval_loss, default=None)
        return None if best is None else best.lr

    def _best(self, optimizer: str) -> Point | None:
        """The optimizer at the rate by which it is judged."""
        points = self.points(optimizer)
        if self.config.tune_first:
            rate = self._rate_of_first(optimizer)
            points = [point for point in points if point.lr == rate]
        return min(points, key=lambda point: point.eval_loss, default=None)

    def missing(self) -> list[tuple[str, float, int]]:
        """The runs still to be made; failed ones are tried again."""
        done = {run.key for run in self.runs if run.status != FAILED}
        return [key for key in self.planned() if key not in done]

    @property
    def complete(self) -> bool:
        """Whether every run has finished or diverged."""
        return not self.missing()

    def summaries(self) -> list[Summary]:
        """The lines of the table: lowest eval loss first, optimizers without a finished run last."""
        lines = [self._summary(optimizer) for optimizer in self.config.optimizers]
        return sorted(lines, key=lambda line: math.inf if line.best is None else line.best.eval_loss)

    def points(self, optimizer: str) -> list[Point]:
        """An optimizer at each learning rate that finished with every seed run so far, smallest rate first."""
        runs = [run for run in self.runs if run.optimizer == optimizer]
        at = {lr: tuple(run for run in runs if run.lr == lr) for lr in sorted({run.lr for run in runs})}
        return [Point(lr, each) for lr, each in at.items() if all(run.status == FINISHED for run in each)]

    def _summary(self, optimizer: str) -> Summary:
        from hfoptim.registry.lookup import get_optimizer_info

        best = self._best(optimizer)
        runs = [run for run in self.runs if run.optimizer == optimizer]
        seen = {run.key for run in runs}
        kinds = {status: [run.key for run in runs if run.status == status] for status in (DIVERGED, FAILED)}
        kinds["not run yet"] = [key for key in self.missing() if key[0] == optimizer and key not in seen]
        notes = [f"{kind} at lr {self._rates(keys, optimizer)}" for kind, keys in kinds.items() if keys]
        if get_optimizer_info(optimizer).needs is not None:
            notes.append("a step takes more than one backward pass, or one with a graph: look at the wall time")
        if best is not None:
            grid = self.config.lr_grid[optimizer]
            if len(grid) == 1:
                notes.append("only one lr was tried")
            # A neighbour that diverged bounds the grid as well as one that trained worse.
            elif best.lr == grid[-1]:
                notes.append(f"best at the upper edge of its grid: a larger lr than {best.lr:g} may do better")
            elif best.lr == grid[0]:
                notes.append(f"best at the lower edge of its grid: a smaller lr than {best.lr:g} may do better")
        return Summary(optimizer, best, notes)

    def _rates(self, keys: Iterable[tuple[str, float, int]], optimizer: str) -> str:
        """Learning rates as text, each with how many of its seeds it stands for where it is not all of them."""
        counts = Counter(lr for _, lr, _ in keys)
        seeds = Counter(lr for name, lr, _ in self.planned() if name == optimizer)
        return ", ".join(
            f"{lr:g}" + (f" ({n} of {seeds[lr]} seeds)" if n < seeds[lr] else "") for lr, n in sorted(counts.items())
        )


def eval_loss(run: RunRecord) -> float:
    """Eval loss of a finished run, infinity without one."""
    return math.inf if run.eval_loss is None else run.eval_loss


def environment(device: str) -> dict[str, Any]:
    """Versions and machine, for the record."""
    import transformers

    import hfoptim

    return {
        "hfoptim": hfoptim.__version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": device,
        "threads": torch.get_num_threads(),
    }


def check_unchanged(results: Results, environment: dict[str, Any], data: dict[str, Any]) -> None:
    """Refuse to go on where the finished runs could not be compared with the coming ones.

    Raises:
        CompareError: The text or a version that decides the numbers has changed.
    """
    changed = [
        f"{name}: {results.environment[name]} then, {environment[name]} now"
        for name in ("hfoptim", "torch", "transformers", "device")
        if results.environment[name] != environment[name]
    ]
    if results.data["fingerprint"] != data["fingerprint"]:
        changed.append("the text or its tokens")
    if changed:
        raise CompareError(
            f"--resume: what has changed since {results.folder} was begun would make the comparison unfair "
            f"({'; '.join(changed)}); start again in another --output-dir"
        )


def write_atomically(path: Path, content: bytes) -> None:
    """Replace a file by new content, or leave it as it was."""
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
