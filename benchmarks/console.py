"""What the benchmarks print, for those who watch. Apart from `measure`, which needs torch alone."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

# Not narrower than the tables, whatever the terminal: what is cut off cannot be copied.
OUT = Console(width=max(140, Console().width))
ERR = Console(stderr=True)


def table(title: str, columns: Iterable[str], rows: Iterable[Sequence[Any]]) -> None:
    """Print a table; the first column is text, the others are numbers."""
    grid = Table(title=title, title_justify="left")
    for index, column in enumerate(columns):
        grid.add_column(column, justify="left" if index == 0 else "right", no_wrap=index == 0)
    for row in rows:
        grid.add_row(*["-" if cell is None else str(cell) for cell in row])
    OUT.print(grid)


def not_measured(what: str, error: str) -> None:
    """Print the line of what has no figures."""
    OUT.print(f"not measured: {what}: {error}", markup=False, highlight=False)
