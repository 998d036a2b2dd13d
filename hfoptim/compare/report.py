"""What a comparison shows: bars while it runs, then a table and a picture."""

from __future__ import annotations

import importlib.util
import io
from collections.abc import Sequence
from statistics import fmean
from types import TracebackType

from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table

from hfoptim.compare.results import FAILED, FILE, FINISHED, Results, RunRecord, eval_loss, write_atomically

PICTURE = "loss_curves.png"
PICTURE_HINT = "no picture: matplotlib is not installed; pip install 'hfoptim[report]', then run again with --resume"


class Display:
    """Progress on a terminal as two bars, elsewhere as one line per run.

    Args:
        console: Where to write.
        done: Runs that are finished already.
        total: Runs of the whole comparison.
        steps: Steps of a run.
        seeds: How many seeds there are; one alone is not named.
    """

    def __init__(self, console: Console, done: int, total: int, steps: int, seeds: int) -> None:
        self.console, self.seeds = console, seeds
        self.done, self.total, self.steps = done, total, steps
        self.bars: Progress | None = None
        self.all_runs, self.this_run = TaskID(0), TaskID(1)

    def __enter__(self) -> Display:
        if self.console.is_terminal:
            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
            self.bars = Progress(*columns, console=self.console, refresh_per_second=4, transient=True)
            self.all_runs = self.bars.add_task("all steps", total=self.total * self.steps)
            self.this_run = self.bars.add_task("", total=self.steps)
            self.bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.bars is not None:
            self.bars.stop()

    def start(self, optimizer: str, lr: float, seed: int) -> None:
        """A run begins."""
        if self.bars is not None:
            text = f"run {self.done + 1} of {self.total}: {self._named(optimizer, lr, seed)}"
            self.bars.reset(self.this_run, total=self.steps, description=text)

    def step(self, step: int) -> None:
        """The run has taken this many steps."""
        if self.bars is not None:
            self.bars.update(self.this_run, completed=step)
            self.bars.update(self.all_runs, completed=self.done * self.steps + step)

    def finish(self, run: RunRecord) -> None:
        """The run is over."""
        self.done += 1
        if run.status == FINISHED:
            outcome = f"eval loss {eval_loss(run):.3f}, {run.wall_seconds:.1f} s"
        elif run.status == FAILED:
            outcome = f"failed: {str(run.error).splitlines()[-1]} (traceback in {FILE})"
        else:
            outcome = f"diverged after {run.steps} steps"
        line = f"[{self.done}/{self.total}] {self._named(*run.key)}: {outcome}"
        self.console.print(line, markup=False, highlight=False, soft_wrap=True)

    def _named(self, optimizer: str, lr: float, seed: int) -> str:
        return f"{optimizer}, lr {lr:g}" + (f", seed {seed}" if self.seeds > 1 else "")


def heading(results: Results) -> list[str]:
    """Lines that say what is compared on what."""
    config, data, model = results.config, results.data, results.model
    seeds = f"seed{'s' if len(config.seeds) > 1 else ''} {', '.join(map(str, config.seeds))}"
    seeds += ", rates chosen with the first" if config.tune_first else ""
    return [
        f"text: {data['name']}, {data['train_tokens']:,} tokens to train on, {data['held_out_tokens']:,} held out",
        f"model: {model['name']}, {model['parameters']:,} parameters, on {results.environment['device']}",
        f"{config.runs} runs of {config.steps} steps of {config.batch_size} x {config.seq_len} tokens, "
        f"schedule {config.schedule}, {seeds}",
    ]


def table(results: Results) -> Table:
    """One line per optimizer, at its best learning rate; lowest eval loss first. Numbers are means over the seeds."""
    several = len(results.config.seeds) > 1
    grid = Table(
        title="Each optimizer at its best learning rate", box=box.SIMPLE_HEAD, padding=(0, 0, 0, 0), pad_edge=False
    )
    grid.add_column("optimizer", no_wrap=True)
    # Two lines each, so that the table fits into 80 columns.
    headers = ("best\nlr", "lrs\ntried", "train\nloss", "eval\nloss", "optimizer\nms/step", "state\nB/param")
    for header in (*headers[:4], *(["+-"] if several else []), *headers[4:], "wall\ns"):
        grid.add_column(header, justify="right", no_wrap=True)
    for line in results.summaries():
        rates = results.config.lr_grid[line.optimizer]
        tried = f"{rates[0]:g}" if len(rates) == 1 else f"{rates[0]:g}-{rates[-1]:g}"
        best = line.best
        if best is None:
            statuses = {run.status for run in results.runs if run.optimizer == line.optimizer}
            grid.add_row(line.optimizer, "/".join(sorted(statuses)) or "not run", tried, *["-"] * (5 + several))
            continue
        grid.add_row(
            line.optimizer,
            f"{best.lr:g}{' *' if line.notes else ''}",
            tried,
            f"{best.mean('train_loss'):.3f}",
            f"{best.eval_loss:.3f}",
            *([f"{best.spread:.3f}"] if several else []),
            f"{best.mean('step_ms'):.2f}",
            f"{best.mean('state_bytes_per_param'):.2f}",
            f"{best.mean('wall_seconds'):.1f}",
        )
    return grid


def notes(results: Results) -> list[str]:
    """The notes of all optimizers, one per line."""
    return [f"* {line.optimizer}: {note}" for line in results.summaries() for note in line.notes]


def draw(results: Results) -> bool:
    """Write the picture: loss curves at the best rates, and eval loss over the rates tried; means over the seeds.

    Returns:
        Whether it was drawn; False without matplotlib.
    """
    if importlib.util.find_spec("matplotlib") is None:
        return False
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    palette = colormaps["tab10" if len(results.config.optimizers) <= 10 else "tab20"]
    figure = Figure(figsize=(12, 5), layout="constrained")
    curves, rates = figure.subplots(1, 2)
    for index, name in enumerate(results.config.optimizers):
        color = palette(index)
        best = next(line.best for line in results.summaries() if line.optimizer == name)
        if best is not None:
            smooth = smoothed(mean_curve([run.train_curve for run in best.runs]))
            curves.plot(range(1, len(smooth) + 1), smooth, color=color, alpha=0.5, linewidth=1)
            label = f"{name}, lr {best.lr:g}"
            evals = mean_curve([run.eval_curve for run in best.runs])
            curves.plot(best.runs[0].eval_steps, evals, color=color, marker="o", label=label)
        if points := results.points(name):
            losses, spreads = [point.eval_loss for point in points], [point.spread for point in points]
            rates.errorbar([point.lr for point in points], losses, spreads, color=color, marker="o", label=name)
    curves.set(title="Loss at the best learning rate (thin: training, dots: held out)", xlabel="step", ylabel="loss")
    rates.set(title="Eval loss over the learning rates tried", xlabel="learning rate", ylabel="eval loss", xscale="log")
    for axes in (curves, rates):
        axes.grid(alpha=0.3)
        if axes.get_legend_handles_labels()[1]:
            axes.legend()
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=120, format="png")
    write_atomically(results.folder / PICTURE, buffer.getvalue())
    return True


def mean_curve(curves: Sequence[Sequence[float | None]]) -> list[float]:
    """The mean of several runs at each step, as far as all of them have a finite value."""
    columns = [[value for value in column if value is not None] for column in zip(*curves, strict=False)]
    return [fmean(column) for column in columns if len(column) == len(curves)]


def smoothed(values: list[float], weight: float = 0.9) -> list[float]:
    """Exponential moving average, corrected for its start at zero.

    Args:
        values: The curve.
        weight: Weight of the past, in [0, 1).
    """
    result, average, norm = [], 0.0, 0.0
    for value in values:
        average = weight * average + (1 - weight) * value
        norm = weight * norm + (1 - weight)
        result.append(average / norm)
    return result
