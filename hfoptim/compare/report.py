"""What a comparison shows: bars while it runs, then a table and a picture."""

from __future__ import annotations

import importlib.util
import io
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
    """

    def __init__(self, console: Console, done: int, total: int, steps: int) -> None:
        self.console = console
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

    def start(self, optimizer: str, lr: float) -> None:
        """A run begins."""
        if self.bars is not None:
            text = f"run {self.done + 1} of {self.total}: {optimizer}, lr {lr:g}"
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
        line = f"[{self.done}/{self.total}] {run.optimizer}, lr {run.lr:g}: {outcome}"
        self.console.print(line, markup=False, highlight=False, soft_wrap=True)


def heading(results: Results) -> list[str]:
    """Lines that say what is compared on what."""
    config, data, model = results.config, results.data, results.model
    count = sum(map(len, config.lr_grid.values()))
    return [
        f"text: {data['name']}, {data['train_tokens']:,} tokens to train on, {data['held_out_tokens']:,} held out",
        f"model: {model['name']}, {model['parameters']:,} parameters, on {results.environment['device']}",
        f"{count} runs of {config.steps} steps of {config.batch_size} x {config.seq_len} tokens, "
        f"schedule {config.schedule}, seed {config.seed}",
    ]


def table(results: Results) -> Table:
    """One line per optimizer, with the run of its best learning rate; lowest eval loss first."""
    grid = Table(
        title="Each optimizer at its best learning rate", box=box.SIMPLE_HEAD, padding=(0, 0, 0, 0), pad_edge=False
    )
    grid.add_column("optimizer", no_wrap=True)
    # Two lines each, so that the table fits into 80 columns.
    headers = ("best\nlr", "lrs\ntried", "train\nloss", "eval\nloss", "optimizer\nms/step", "state\nB/param")
    for header in (*headers, "wall\ns"):
        grid.add_column(header, justify="right", no_wrap=True)
    for line in results.summaries():
        rates = results.config.lr_grid[line.optimizer]
        tried = f"{rates[0]:g}" if len(rates) == 1 else f"{rates[0]:g}-{rates[-1]:g}"
        best = line.best
        if best is None:
            statuses = {run.status for run in results.runs if run.optimizer == line.optimizer}
            grid.add_row(line.optimizer, "/".join(sorted(statuses)) or "not run", tried, *["-"] * 5)
            continue
        grid.add_row(
            line.optimizer,
            f"{best.lr:g}{' *' if line.notes else ''}",
            tried,
            f"{best.train_loss:.3f}",
            f"{best.eval_loss:.3f}",
            f"{best.step_ms:.2f}",
            f"{best.state_bytes_per_param:.2f}",
            f"{best.wall_seconds:.1f}",
        )
    return grid


def notes(results: Results) -> list[str]:
    """The notes of all optimizers, one per line."""
    return [f"* {line.optimizer}: {note}" for line in results.summaries() for note in line.notes]


def draw(results: Results) -> bool:
    """Write the picture: the loss curves of the best runs, and the eval loss over the learning rates tried.

    Returns:
        Whether it was drawn; False without matplotlib.
    """
    if importlib.util.find_spec("matplotlib") is None:
        return False
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 5), layout="constrained")
    curves, rates = figure.subplots(1, 2)
    for index, name in enumerate(results.config.optimizers):
        color = f"C{index}"
        best = next(line.best for line in results.summaries() if line.optimizer == name)
        if best is not None:
            smooth = smoothed([loss for loss in best.train_curve if loss is not None])
            curves.plot(range(1, len(smooth) + 1), smooth, color=color, alpha=0.5, linewidth=1)
            label = f"{name}, lr {best.lr:g}"
            curves.plot(best.eval_steps, best.eval_curve, color=color, marker="o", label=label)
        finished = sorted(
            (run.lr, eval_loss(run)) for run in results.runs if run.status == FINISHED and run.optimizer == name
        )
        if finished:
            rates.plot(*zip(*finished, strict=True), color=color, marker="o", label=name)
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
