"""`hfoptim compare`: several optimizers on one language model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from hfoptim.cli.arguments import INTERRUPTED, fail


def compare(
    optim: Annotated[
        list[str] | None,
        typer.Option(help="Optimizer, in any case; repeatable or comma-separated. (default: adamw,adafactor,lion,sgd)"),
    ] = None,
    dataset: Annotated[
        str | None,
        typer.Option(
            help="Hub dataset, or a local .txt, .json, .jsonl, .csv, .parquet file or folder. "
            "(default: Python's language reference)"
        ),
    ] = None,
    dataset_config: Annotated[str | None, typer.Option(help="Configuration of a hub dataset.")] = None,
    text_column: Annotated[str | None, typer.Option(help="Column with the text, if in doubt.")] = None,
    model: Annotated[
        str | None, typer.Option(help="Hub model or local folder, pretrained. (default: a small new GPT-2)")
    ] = None,
    from_scratch: Annotated[
        bool, typer.Option("--from-scratch", help="Take only the architecture of --model, with fresh weights.")
    ] = False,
    steps: Annotated[int | None, typer.Option(help="Optimizer steps per run. (default: 300)")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Sequences per step. (default: 8)")] = None,
    seq_len: Annotated[int | None, typer.Option(help="Tokens per sequence. (default: 64)")] = None,
    lr_grid: Annotated[
        list[str] | None,
        typer.Option(
            help="Learning rates, for all optimizers (1e-3,3e-3) or for one (lion=1e-4,3e-4); repeatable. "
            "(default: three per optimizer)"
        ),
    ] = None,
    schedule: Annotated[str | None, typer.Option(help="Learning-rate schedule. (default: cosine)")] = None,
    seed: Annotated[
        list[str] | None,
        typer.Option(help="Seed of weights and data order; repeatable or comma-separated. (default: 0)"),
    ] = None,
    tune_first: Annotated[
        bool,
        typer.Option(
            "--tune-first", help="Try all rates with the first seed; run the other seeds at the best rate alone."
        ),
    ] = False,
    checkpoint_steps: Annotated[
        int | None, typer.Option(help="Steps between checkpoints of a run, 0 for none. (default: a quarter of it)")
    ] = None,
    output_dir: Annotated[Path, typer.Option(help="A new folder for the results.")] = Path("hfoptim-compare"),
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the comparison in --output-dir, with its options.")
    ] = False,
) -> None:
    """Train a model with several optimizers, each over its learning rates, and compare them fairly."""
    from hfoptim.compare import CompareConfig, CompareError, resumed_config
    from hfoptim.compare import compare as run_comparison

    options: dict[str, Any] = {
        "optimizers": optim or None,
        "lr_grid": lr_grid or None,
        "dataset": dataset,
        "dataset_config": dataset_config,
        "text_column": text_column,
        "model": model,
        "from_scratch": from_scratch or None,
        "steps": steps,
        "batch_size": batch_size,
        "seq_len": seq_len,
        "schedule": schedule,
        "seeds": seed or None,
        "tune_first": tune_first or None,
        "checkpoint_steps": checkpoint_steps,
    }
    try:
        config = resumed_config(output_dir, options) if resume else CompareConfig.from_options(**options)
        results = run_comparison(config, output_dir, resume=resume)
    except CompareError as error:
        fail(str(error))
    except KeyboardInterrupt:
        begun = (output_dir / "results.json").exists()
        hint = f"; go on with: hfoptim compare --resume --output-dir {output_dir}" if begun else ""
        typer.echo(f"stopped{hint}", err=True)
        raise typer.Exit(INTERRUPTED) from None
    if not results.complete:
        raise typer.Exit(1)
