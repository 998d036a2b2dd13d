"""The comparison job: its text, its configuration, its runs and what it makes of them."""

from __future__ import annotations

import importlib.util
import io
import json
import math
import random
import statistics
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import pytest
import torch
from rich.console import Console

import hfoptim
from hfoptim.compare import (
    CompareConfig,
    CompareError,
    Results,
    RunRecord,
    compare,
    data,
    job,
    model,
    report,
    resumed_config,
    runs,
)
from hfoptim.compare import config as config_module
from hfoptim.compare.results import Point, environment, write_atomically
from hfoptim.engine import unwrap

WORDS = ["the", "state", "of", "step", "and", "rate", "lion", "loss", "curve", "moves", "falls", "with", "slow", "seed"]


def sentences(count: int, seed: int = 0) -> list[str]:
    rng = random.Random(seed)
    return [" ".join(rng.choices(WORDS, k=rng.randint(20, 60))) + "." for _ in range(count)]


@pytest.fixture
def text_file(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text("\n\n".join(sentences(80)), encoding="utf-8")
    return path


@pytest.fixture
def tiny(text_file: Path) -> dict[str, Any]:
    """Options of a comparison that takes about a second."""
    return {
        "optimizers": ["adamw", "lion"],
        "dataset": str(text_file),
        "lr_grid": ["1e-3"],
        "steps": 4,
        "batch_size": 2,
        "seq_len": 16,
        "seeds": 1,
    }


def screen(width: int = 100, terminal: bool = False) -> Console:
    return Console(record=True, width=width, force_terminal=terminal, file=io.StringIO())


@pytest.fixture
def console() -> Console:
    return screen()


def run_of(
    optimizer: str, lr: float, eval_loss: float | None = 2.0, status: str = "finished", seed: int = 0
) -> RunRecord:
    measured = 3, 1.9, eval_loss, 0.5, 8.0, 1.0
    return RunRecord(optimizer, lr, seed, {}, status, *measured, [3.0, 2.5, 1.9], [lr] * 3, [3], [2.0])


def results_of(folder: Path, *records: RunRecord, **grids: tuple[float, ...]) -> Results:
    config = CompareConfig(optimizers=tuple(grids), lr_grid=dict(grids), steps=3)
    facts = {"name": "x", "train_tokens": 1, "held_out_tokens": 1, "fingerprint": "f"}
    return Results(folder, config, environment("cpu"), facts, {"name": "m", "parameters": 1}, list(records))


# ---------------------------------------------------------------------------------------------------------------- text


def test_language_reference_has_no_paragraph_twice() -> None:
    documents = data.language_reference()
    paragraphs = [" ".join(p.split()) for text in documents for p in data._paragraphs(text)]
    assert len(paragraphs) == len(set(paragraphs))
    assert sum(map(len, documents)) > 250_000
    assert any('"lambda"' in text for text in documents)


def test_python_without_its_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pydoc_data", None)
    with pytest.raises(CompareError, match="give a --dataset"):
        data.language_reference()


def test_held_out_documents_are_a_tenth_and_unseen() -> None:
    documents = data.language_reference()
    train, held_out = data.split_documents(documents)
    share = sum(map(len, held_out)) / sum(map(len, documents))
    assert 0.08 < share < 0.13
    assert len(held_out) >= 3
    assert sorted(train + held_out) == sorted(documents)
    seen = {" ".join(p.split()) for text in train for p in data._paragraphs(text)}
    assert not any(" ".join(p.split()) in seen for text in held_out for p in data._paragraphs(text))


def test_split_does_not_depend_on_the_order() -> None:
    documents = sentences(50)
    shuffled = random.Random(3).sample(documents, len(documents))
    assert sorted(data.split_documents(documents)[1]) == sorted(data.split_documents(shuffled)[1])


def test_duplicates_of_a_held_out_text_leave_the_training() -> None:
    documents = sentences(50)
    _, held_out = data.split_documents(documents)
    train, again = data.split_documents([*documents, *(f"  {text}\n" for text in documents)])
    assert held_out
    assert not {text.strip() for text in train} & {text.strip() for text in again}


def test_few_documents() -> None:
    train, held_out = data.split_documents(["a" * 50, "b" * 40, "c" * 60])
    assert (train, held_out) == (["a" * 50, "c" * 60], ["b" * 40])
    train, held_out = data.split_documents(["\n\n".join(f"paragraph {i}" for i in range(10))])
    assert (len(train), held_out) == (9, ["paragraph 9"])
    assert data.split_documents([]) == ([], [])


def test_continuous_text_loses_its_end() -> None:
    paragraphs = [f"{i:04d}" for i in range(100)]
    train, held_out = data.split_tail(paragraphs)
    assert train + held_out == paragraphs
    assert len(held_out) == 10
    assert data.split_tail(["short", "the rest of it, which is long"]) == (["short"], ["the rest of it, which is long"])
    assert data.split_tail([*paragraphs[:95], *paragraphs[:5]])[0] == paragraphs[5:90]


def test_blocks_are_cut_in_order() -> None:
    blocks = data.make_blocks(["abc", "defg"], lambda text: [ord(c) for c in text], 0, 4, 10)
    assert blocks.dtype == torch.int64
    assert blocks.tolist() == [[97, 98, 99, 0], [100, 101, 102, 103]]
    assert data.make_blocks(["abc", "defg"], lambda text: [1, 1, 1], 0, 2, 3).tolist() == [[1, 1], [1, 0], [1, 1]]
    assert data.make_blocks(["ab"], lambda text: [1], 0, 4, 3).shape == (0, 4)
    example = data.Blocks(blocks)[1]
    assert example["input_ids"].tolist() == [100, 101, 102, 103]
    assert example["labels"].tolist() == [-100, 101, 102, 103]


def test_fingerprint_tells_tokens_and_shapes_apart() -> None:
    tokens = torch.arange(8)
    prints = {data.fingerprint(tokens.view(2, 4)), data.fingerprint(tokens.view(4, 2)), data.fingerprint(tokens[1:])}
    assert len(prints) == 3
    assert data.fingerprint(tokens.view(2, 4)) == data.fingerprint(torch.arange(8).view(2, 4))


@pytest.mark.parametrize(
    ("columns", "asked", "found"),
    [
        ({"text": True, "title": True}, None, "text"),
        ({"id": False, "body": True}, None, "body"),
        ({"title": True, "body": True}, "body", "body"),
    ],
)
def test_text_column(columns: dict[str, bool], asked: str | None, found: str) -> None:
    assert data.find_text_column(columns, asked) == found


@pytest.mark.parametrize(
    ("columns", "asked", "message"),
    [
        ({"title": True, "body": True}, None, "title, body.*--text-column"),
        ({"id": False}, None, "no column of text.*id"),
        ({"id": False, "body": True}, "id", "'id' is no column of text; those are: body"),
    ],
)
def test_text_column_in_doubt(columns: dict[str, bool], asked: str | None, message: str) -> None:
    with pytest.raises(CompareError, match=message):
        data.find_text_column(columns, asked)


@pytest.mark.parametrize("kind", ["txt", "json", "jsonl", "csv", "parquet", "folder", "saved", "splits"])
def test_local_datasets(tmp_path: Path, kind: str) -> None:
    texts = sentences(60)
    table = datasets.Dataset.from_dict({"number": list(range(60)), "body": texts})
    path = tmp_path / f"data.{kind}"
    if kind == "txt":
        path.write_text("\n\n".join(texts))
    elif kind == "json":
        path.write_text(json.dumps([{"number": i, "body": text} for i, text in enumerate(texts)]))
    elif kind == "jsonl":
        table.to_json(path)
    elif kind == "csv":
        table.to_csv(path)
    elif kind == "parquet":
        table.to_parquet(path)
    elif kind == "folder":
        path.mkdir()
        for i, text in enumerate(texts):
            (path / f"{i:02d}.txt").write_text(text)
    elif kind == "saved":
        table.save_to_disk(path)
    else:
        parts = {"train": table.select(range(50)), "validation": table.select(range(45, 60))}
        datasets.DatasetDict(parts).save_to_disk(path)
    config = CompareConfig.from_options(dataset=str(path))
    corpus = data.load_corpus(config)
    assert corpus.name == path.name
    train, held_out = [{text.strip() for text in part} for part in (corpus.train, corpus.held_out)]
    assert train | held_out == set(texts)
    assert not train & held_out
    if kind == "splits":
        assert held_out == set(texts[45:])
    else:
        assert 3 <= len(held_out) <= 9
    if kind == "txt":
        assert [text.strip() for text in corpus.held_out] == texts[-len(held_out) :]


def test_reading_stops_when_the_run_has_enough(tmp_path: Path) -> None:
    path = tmp_path / "long.jsonl"
    path.write_text("".join(json.dumps({"text": f"{i} {'word ' * 200}"}) + "\n" for i in range(1000)))
    config = CompareConfig.from_options(dataset=str(path), steps=2, batch_size=2, seq_len=64)
    corpus = data.load_corpus(config)
    needed = data.CHARACTERS_PER_TOKEN * (2 * 2 * 64 + data.MAX_HELD_OUT_TOKENS)
    assert needed <= sum(map(len, corpus.train + corpus.held_out)) < needed + 2000


def test_datasets_that_cannot_be_loaded(tmp_path: Path) -> None:
    (tmp_path / "x.bin").write_bytes(b"x")
    (tmp_path / "broken.json").write_text("{not json")
    (tmp_path / "empty").mkdir()
    for name, message in (
        (str(tmp_path / "x.bin"), r"must be one of \.txt"),
        (str(tmp_path / "broken.json"), "broken.json cannot be loaded"),
        (str(tmp_path / "empty"), "empty cannot be loaded"),
        ("nobody/has-this-dataset", "nobody/has-this-dataset cannot be loaded"),
    ):
        with pytest.raises(CompareError, match=message):
            data.load_corpus(CompareConfig.from_options(dataset=name))


# ------------------------------------------------------------------------------------------------------- configuration


def test_options_become_a_configuration() -> None:
    config = CompareConfig.from_options(
        optimizers=["LION,Adam-W", "lion"], lr_grid=["1e-2,1e-3", "Lion=3e-4,1e-4"], schedule="Inverse-Sqrt", steps=30
    )
    assert config.optimizers == ("lion", "adamw")
    assert config.lr_grid == {"lion": (1e-4, 3e-4), "adamw": (1e-3, 1e-2)}
    assert config.schedule == "inverse_sqrt"
    assert (config.warmup_steps, config.save_every) == (3, 7)
    assert CompareConfig.from_json(json.loads(json.dumps(config.to_json()))) == config


def test_defaults() -> None:
    config = CompareConfig.from_options()
    assert config.optimizers == ("adamw", "adafactor", "lion", "sgd")
    assert all(len(rates) == 3 and list(rates) == sorted(rates) for rates in config.lr_grid.values())
    assert config.to_json()["optimizer_options"]["adafactor"]["relative_step"] is False


@pytest.mark.parametrize("name", [n for n in hfoptim.list_optimizers() if hfoptim.get_optimizer_info(n).needs is None])
def test_every_optimizer_has_a_grid_it_accepts(name: str) -> None:
    rates = config_module.default_grid(name)
    assert len(rates) == 3
    assert rates[0] > 0
    for rate in rates:
        weight = torch.nn.Parameter(torch.ones(4, 4))
        hfoptim.create_optimizer_v2([("weight", weight)], name, lr=rate, **config_module.PRESETS.get(name, {}))


def test_grid_around_an_optimizers_own_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(config_module.DEFAULT_GRIDS, "lion")
    assert config_module.default_grid("lion") == (3e-5, 1e-4, 3e-4)
    monkeypatch.delitem(config_module.DEFAULT_GRIDS, "adafactor")
    with pytest.raises(CompareError, match=r"adafactor has no default learning rate.*--lr-grid adafactor="):
        config_module.default_grid("adafactor")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"optimizers": ["lionn"]}, "lionn.*lion"),
        ({"optimizers": ["lion", "lbfgs"]}, "lbfgs cannot be compared: every run clips"),
        ({"optimizers": ["svrg_sgd"]}, "svrg_sgd cannot be compared: it takes the gradient of all batches"),
        ({"optimizers": ["sparse_adam"]}, "sparse_adam cannot be compared: it needs sparse gradients"),
        ({"optimizers": [" ,"]}, "--optim names no optimizer"),
        ({"lr_grid": ["1e-3,fast"]}, "'fast' is no learning rate"),
        ({"lr_grid": ["-1e-3"]}, "'-1e-3' is no learning rate"),
        ({"lr_grid": ["nan"]}, "'nan' is no learning rate"),
        ({"lr_grid": ["lion="]}, "'' is no learning rate"),
        ({"lr_grid": ["adam=1e-3"]}, "names adam, which is not compared"),
        ({"lr_grid": ["lyon=1e-3"]}, "lyon"),
        ({"schedule": "cosin"}, "cosin.*cosine"),
        ({"schedule": "reduce_lr_on_plateau"}, "follows a metric"),
        ({"schedule": "sequential"}, "is made of other schedules"),
        ({"steps": 0}, "--steps must be a whole number of at least 1, got 0"),
        ({"batch_size": True}, "--batch-size"),
        ({"seq_len": 4}, "--seq-len.*at least 8"),
        ({"seeds": -1}, "--seed"),
        ({"seeds": 2**32}, "--seed"),
        ({"checkpoint_steps": -1}, "--checkpoint-steps"),
        ({"text_column": "body"}, "need --dataset"),
        ({"from_scratch": True}, "needs --model"),
    ],
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(CompareError, match=message):
        CompareConfig.from_options(**options)


@pytest.mark.parametrize(
    "schedule",
    [
        name
        for name in hfoptim.schedules.list_schedules()
        if name not in config_module.COMPOSED_SCHEDULES and not hfoptim.schedules.get_schedule_info(name).needs_metric
    ],
)
def test_every_other_schedule_has_what_it_needs(schedule: str) -> None:
    config = CompareConfig.from_options(schedule=schedule, steps=20)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=0.1)
    made = hfoptim.schedules.get_scheduler(schedule, optimizer, 2, 20, config.schedule_kwargs)
    assert math.isfinite(made.get_last_lr()[0])


# ---------------------------------------------------------------------------------------------------------------- runs


def test_comparison_end_to_end(tiny: dict[str, Any], tmp_path: Path, console: Console) -> None:
    folder = tmp_path / "out"
    options = {**tiny, "optimizers": ["adamw", "adafactor", "lion", "sgd"], "lr_grid": ["1e-3,2e-3"], "steps": 5}
    compare(CompareConfig.from_options(**options), folder, console=console)
    assert sorted(path.name for path in folder.iterdir()) == ["loss_curves.png", "results.json"]
    assert (folder / "loss_curves.png").read_bytes().startswith(b"\x89PNG")
    written = json.loads((folder / "results.json").read_text())
    assert written["complete"] is True
    assert written["environment"]["torch"] == torch.__version__
    assert written["model"]["parameters"] > 800_000
    assert written["data"]["train_tokens"] == 5 * 2 * 16
    assert [(run["optimizer"], run["lr"]) for run in written["runs"]] == [
        (name, lr) for name in options["optimizers"] for lr in (1e-3, 2e-3)
    ]
    for run in written["runs"]:
        assert run["status"] == "finished"
        assert len(run["train_curve"]) == len(run["learning_rates"]) == run["steps"] == 5
        assert run["eval_steps"] == [1, 2, 3, 4, 5]
        assert run["eval_curve"][-1] == run["eval_loss"]
        assert run["train_loss"] == run["train_curve"][-1]
        assert run["step_ms"] > 0
        assert run["wall_seconds"] > 5e-3 * run["step_ms"]
        assert run["learning_rates"][0] == pytest.approx(run["lr"])
        assert run["learning_rates"] == sorted(run["learning_rates"], reverse=True)
    # The same weights and the same first batch for all.
    assert len({run["train_curve"][0] for run in written["runs"]}) == 1
    assert len({tuple(run["train_curve"]) for run in written["runs"]}) == 8
    sizes = {run["optimizer"]: run["state_bytes_per_param"] for run in written["runs"]}
    assert sizes["adamw"] == pytest.approx(8, rel=1e-3)
    assert sizes["lion"] == pytest.approx(4, rel=1e-3)
    assert 0 < sizes["adafactor"] < 0.5
    shown = console.export_text()
    assert "[8/8] sgd, lr 0.002: eval loss" in shown
    best = min(written["runs"], key=lambda run: run["eval_loss"])
    assert f"{best['eval_loss']:.3f}" in shown
    assert "edge of its grid" in shown


def test_optimizers_with_a_second_gradient(tiny: dict[str, Any], tmp_path: Path, console: Console) -> None:
    names = ["sam_sgd", "adahessian", "sophiag"]
    results = compare(
        CompareConfig.from_options(**{**tiny, "optimizers": names, "lr_grid": ["1e-3"]}),
        tmp_path / "out",
        console=console,
    )
    assert [(run.optimizer, run.status) for run in results.runs] == [(name, "finished") for name in names]
    assert "sam_sgd: a step takes more than one backward pass" in " ".join(console.export_text().split())


def test_same_seed_same_numbers(tiny: dict[str, Any], tmp_path: Path, console: Console) -> None:
    tiny["optimizers"] = ["lion"]
    first, second = (compare(CompareConfig.from_options(**tiny), tmp_path / n, console=console) for n in ("a", "b"))
    other = compare(CompareConfig.from_options(**{**tiny, "seeds": 2}), tmp_path / "c", console=console)
    assert first.runs[0].train_curve == second.runs[0].train_curve
    assert first.runs[0].eval_curve == second.runs[0].eval_curve
    assert first.data == second.data == other.data
    assert first.runs[0].train_curve != other.runs[0].train_curve


def test_numbers_are_those_of_a_plain_loop(tiny: dict[str, Any], tmp_path: Path, console: Console) -> None:
    """The optimizer that the Trainer was told by name is the one that trained, at the rates that were recorded."""
    tiny.update(optimizers=["sgd"], lr_grid=["0.05"], batch_size=1, steps=3, schedule="constant")
    config = CompareConfig.from_options(**tiny)
    run = compare(config, tmp_path / "out", console=console).runs[0]
    models, blocks, held_out, _ = job.prepare(config)
    net = models(1)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9, nesterov=True)
    losses = []
    for expected in run.train_curve:
        candidates = [net(**{k: v[None] for k, v in blocks[i].items()}).loss for i in range(len(blocks))]
        loss = min(candidates, key=lambda value: abs(value.item() - expected))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
    assert losses == pytest.approx(run.train_curve, rel=1e-5)
    with torch.no_grad():
        final = net(input_ids=held_out.tokens, labels=held_out.tokens).loss.item()
    assert run.eval_loss == pytest.approx(final, rel=1e-5)


def test_diverged_run_is_reported_and_never_best(tiny: dict[str, Any], tmp_path: Path, console: Console) -> None:
    options = {**tiny, "optimizers": ["sgd", "lion"], "lr_grid": ["sgd=0.01,1e30", "lion=1e30"], "steps": 6}
    results = compare(CompareConfig.from_options(**options), tmp_path / "out", console=console)
    statuses = {(run.optimizer, run.lr): run.status for run in results.runs}
    assert statuses == {("sgd", 0.01): "finished", ("sgd", 1e30): "diverged", ("lion", 1e30): "diverged"}
    diverged = results.runs[1]
    assert diverged.eval_loss is None
    assert diverged.train_curve[-1] is None
    assert diverged.steps < 6
    assert results.complete
    first, second = results.summaries()
    assert first.best is not None
    assert first.best.runs == (results.runs[0],)
    assert first.notes == [
        "diverged at lr 1e+30",
        "best at the lower edge of its grid: a smaller lr than 0.01 may do better",
    ]
    assert (second.optimizer, second.best) == ("lion", None)
    assert Results.load(tmp_path / "out").runs == results.runs
    assert ["lion", "diverged"] in [line.split()[:2] for line in console.export_text().splitlines()]


def test_failed_run_does_not_cost_the_others(
    tiny: dict[str, Any], tmp_path: Path, console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    working = runs.train

    def broken(optimizer: str, *args: Any) -> RunRecord:
        if optimizer == "adamw":
            raise RuntimeError("no memory left")
        return working(optimizer, *args)

    monkeypatch.setattr(runs, "train", broken)
    config = CompareConfig.from_options(**tiny)
    results = compare(config, tmp_path / "out", console=console)
    assert [run.status for run in results.runs] == ["failed", "finished"]
    assert "RuntimeError: no memory left" in str(results.runs[0].error)
    assert not results.complete
    shown = console.export_text()
    assert "[1/2] adamw, lr 0.001: failed: RuntimeError: no memory left (traceback in results.json)" in shown
    assert "* adamw: failed at lr 0.001" in shown
    monkeypatch.setattr(runs, "train", working)
    again = compare(config, tmp_path / "out", resume=True, console=console)
    assert again.complete
    assert again.runs[0] == results.runs[1]


def test_local_model_keeps_its_weights(tiny: dict[str, Any], tmp_path: Path, console: Console) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    tokenizer = model.train_tokenizer(sentences(50))
    torch.manual_seed(5)
    shape = GPT2Config(
        vocab_size=len(tokenizer), n_positions=32, n_embd=16, n_layer=1, n_head=2, eos_token_id=0, bos_token_id=0
    )
    saved = GPT2LMHeadModel(shape)
    saved.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    tiny.update(model=str(tmp_path / "model"), optimizers=["adamw"], lr_grid=["1e-12"])
    results = compare(CompareConfig.from_options(**tiny), tmp_path / "out", console=console)
    held_out = job.prepare(results.config)[2].tokens
    with torch.no_grad():
        loss = saved.eval()(input_ids=held_out, labels=held_out).loss.item()
    assert results.runs[0].eval_loss == pytest.approx(loss, rel=1e-5)
    assert results.model == {
        "name": "model",
        "parameters": sum(p.numel() for p in saved.parameters()),
        "vocabulary": len(tokenizer),
    }
    models, *_ = job.prepare(CompareConfig.from_options(**{**tiny, "from_scratch": True}))
    fresh = models(1)
    assert not torch.equal(fresh.transformer.wte.weight, saved.transformer.wte.weight)

    with pytest.raises(CompareError, match="--seq-len 64 is more than the 32 tokens"):
        job.prepare(CompareConfig.from_options(**{**tiny, "seq_len": 64}))
    (tmp_path / "model" / "model.safetensors").unlink()
    with pytest.raises(CompareError, match=r"cannot be loaded.*--from-scratch"):
        job.prepare(CompareConfig.from_options(**tiny))
    with pytest.raises(CompareError, match="--model no/such-model cannot be loaded"):
        job.prepare(CompareConfig.from_options(**{**tiny, "model": "no/such-model"}))


def test_too_little_text(tiny: dict[str, Any], text_file: Path) -> None:
    text_file.write_text("one short paragraph")
    with pytest.raises(CompareError, match="too little text"):
        job.prepare(CompareConfig.from_options(**tiny))
    text_file.write_text("\n\n".join(sentences(3)))
    with pytest.raises(CompareError, match=r"at least 2 .--batch-size. and 1 are needed"):
        job.prepare(CompareConfig.from_options(**{**tiny, "seq_len": 512}))


def test_tokenizer_round_trips_any_text() -> None:
    tokenizer = model.train_tokenizer(sentences(20))
    text = "lion: \t 三 é \U0001f981\n  x"
    assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) == text
    assert tokenizer.eos_token_id == 0


def test_small_gpt2_follows_the_seed() -> None:
    weights = [next(model.small_gpt2(300, 16, 0, seed).parameters()) for seed in (1, 1, 2)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_state_bytes_count_every_tensor() -> None:
    weight = torch.nn.Parameter(torch.ones(10, 10))
    optimizer = torch.optim.AdamW([weight], lr=0.1)
    weight.grad = torch.ones(10, 10)
    optimizer.step()
    assert runs.state_bytes_per_param(optimizer) == pytest.approx(8.04)
    wrapped = SimpleNamespace(optimizer=SimpleNamespace(optimizer=optimizer))
    assert unwrap(wrapped) is optimizer


def test_state_bytes_count_tensors_within() -> None:
    """bitsandbytes' codes lie in a dict of their own, torchao's in tensors made of tensors."""
    weight = torch.nn.Parameter(torch.ones(10, 10))
    codes, scale = torch.zeros(100, dtype=torch.uint8), torch.zeros(5)
    made_of_two = weight.detach().as_subclass(MadeOfTwo)
    made_of_two.codes, made_of_two.scale = codes, scale
    for state in ({"step": 3, "inside": {"codes": codes, "scale": scale}}, {"exp_avg": made_of_two}):
        optimizer = torch.optim.SGD([weight])
        optimizer.state[weight] = state
        assert runs.state_bytes_per_param(optimizer) == pytest.approx(1.2)


class MadeOfTwo(torch.Tensor):
    codes: torch.Tensor
    scale: torch.Tensor

    def __tensor_flatten__(self) -> tuple[list[str], None]:
        return ["codes", "scale"], None


def test_half_written_checkpoints_are_not_used(tmp_path: Path) -> None:
    assert runs.last_checkpoint(tmp_path / "none") is None
    for step in (5, 10, 100):
        (tmp_path / f"checkpoint-{step}").mkdir()
    assert runs.last_checkpoint(tmp_path) is None
    for step in (5, 10):
        (tmp_path / f"checkpoint-{step}" / runs.MARKER).write_text("{}")
    assert runs.last_checkpoint(tmp_path) == tmp_path / "checkpoint-10"


# ------------------------------------------------------------------------------------------------------------- results


@pytest.mark.parametrize(
    ("losses", "note"),
    [
        ((2.0, 1.0, 3.0), None),
        ((1.0, 2.0, 3.0), "best at the lower edge of its grid: a smaller lr than 0.1 may do better"),
        ((3.0, 2.0, 1.0), "best at the upper edge of its grid: a larger lr than 10 may do better"),
        ((3.0, 2.0, None), "diverged at lr 10"),
    ],
)
def test_edge_of_the_grid_is_noted(tmp_path: Path, losses: tuple[float | None, ...], note: str | None) -> None:
    rates = (0.1, 1.0, 10.0)
    records = [
        run_of("sgd", lr, loss, "diverged" if loss is None else "finished")
        for lr, loss in zip(rates, losses, strict=True)
    ]
    (line,) = results_of(tmp_path, *records, sgd=rates).summaries()
    assert line.notes == ([] if note is None else [note])
    assert line.best is not None
    assert line.best.eval_loss == min(loss for loss in losses if loss is not None)


def test_table_is_sorted_by_eval_loss(tmp_path: Path, console: Console) -> None:
    records = [run_of("adamw", 1e-3, 2.5), run_of("lion", 1e-3, 2.25), run_of("sgd", 1.0, None, "diverged")]
    results = results_of(tmp_path, *records, sgd=(1.0,), adamw=(1e-3,), lion=(1e-3, 2e-3))
    console.print(report.table(results))
    lines = [line.split() for line in console.export_text().splitlines()]
    rows = [line for line in lines if line and line[0] in ("adamw", "lion", "sgd")]
    assert rows[0] == ["lion", "0.001", "*", "0.001-0.002", "1.900", "2.250", "0.50", "8.00", "1.0"]
    assert rows[1][0] == "adamw"
    assert rows[2] == ["sgd", "diverged", "1", "-", "-", "-", "-", "-"]
    assert "* lion: not run yet at lr 0.002" in report.notes(results)
    assert "* adamw: only one lr was tried" in report.notes(results)


def test_several_seeds(tiny: dict[str, Any], tmp_path: Path, console: Console) -> None:
    """Every rate is run with every seed, as by itself; the table shows means and their standard deviation."""
    tiny["optimizers"] = ["lion"]
    both = compare(CompareConfig.from_options(**{**tiny, "seeds": ["1", "2,1"]}), tmp_path / "out", console=console)
    one, two = (compare(CompareConfig.from_options(**{**tiny, "seeds": n}), tmp_path / f"{n}") for n in (1, 2))
    assert [run.seed for run in both.runs] == [1, 2]
    assert [run.train_curve for run in both.runs] == [one.runs[0].train_curve, two.runs[0].train_curve]
    (line,) = both.summaries()
    losses = [run.eval_loss for run in both.runs if run.eval_loss is not None]
    assert line.best is not None
    assert line.best.eval_loss == statistics.fmean(losses)
    row = next(text.split() for text in console.export_text().splitlines() if text.lstrip().startswith("lion "))
    assert row[5:7] == [f"{statistics.fmean(losses):.3f}", f"{statistics.stdev(losses):.3f}"]
    assert Results.load(tmp_path / "out").complete


def test_a_rate_counts_only_if_every_seed_finished(tmp_path: Path) -> None:
    records = [
        run_of("sgd", 1.0, 2.0),
        run_of("sgd", 1.0, 2.5, seed=1),
        run_of("sgd", 3.0, 1.0),
        run_of("sgd", 3.0, None, "diverged", seed=1),
    ]
    results = results_of(tmp_path, *records, sgd=(1.0, 3.0, 9.0))
    results.config = replace(results.config, seeds=(0, 1))
    (line,) = results.summaries()
    assert line.best == Point(1.0, (records[0], records[1]))
    assert (line.best.eval_loss, line.best.spread) == (2.25, pytest.approx(0.5 / 2**0.5))
    assert line.notes[:2] == ["diverged at lr 3 (1 of 2 seeds)", "not run yet at lr 9"]
    assert len(results.missing()) == 2


def test_an_optimizer_of_another_package_takes_part(tiny: dict[str, Any], tmp_path: Path, console: Console) -> None:
    options = {**tiny, "optimizers": ["torch_adamw", "adamw"], "lr_grid": ["1e-3"]}
    theirs, ours = compare(CompareConfig.from_options(**options), tmp_path / "out", console=console).runs
    assert (theirs.status, theirs.state_bytes_per_param) == ("finished", pytest.approx(8.0, abs=0.1))
    assert theirs.eval_loss == pytest.approx(ours.eval_loss, rel=1e-4)


def test_rates_chosen_with_the_first_seed(tiny: dict[str, Any], tmp_path: Path, console: Console) -> None:
    """The other seeds run at the best rate alone; an interrupted comparison goes on like that."""
    options = {**tiny, "optimizers": ["lion", "sgd"], "lr_grid": ["lion=1e-3,1e-5", "sgd=0.1,1e9"], "seeds": "1,2,3"}
    config = CompareConfig.from_options(**options, tune_first=True)
    results = compare(config, tmp_path / "out", console=console)
    assert results.complete
    assert len(results.runs) == config.runs == 8
    later = [run.key for run in results.runs if run.seed != 1]
    assert later == [("lion", 1e-3, 2), ("sgd", 0.1, 2), ("lion", 1e-3, 3), ("sgd", 0.1, 3)]
    assert "[8/8] sgd, lr 0.1, seed 3" in console.export_text(clear=False)
    results.runs = [run for run in results.runs if run.seed != 3]
    results.save()
    again = compare(config, tmp_path / "out", resume=True, console=console)
    assert [run.key for run in again.runs] == [run.key for run in results.runs] + later[2:]


def test_a_rate_of_the_first_seed_must_not_diverge_with_others(tmp_path: Path) -> None:
    records = [run_of("sgd", 1.0, 2.0), run_of("sgd", 3.0, 1.0), run_of("sgd", 9.0, None, "failed")]
    results = results_of(tmp_path, *records, sgd=(1.0, 3.0, 9.0))
    results.config = replace(results.config, seeds=(0, 1), tune_first=True)
    assert results.missing() == [("sgd", 9.0, 0)]
    results.add(run_of("sgd", 9.0, 3.0))
    assert results.missing() == [("sgd", 3.0, 1)]
    results.add(run_of("sgd", 3.0, None, "diverged", seed=1))
    assert results.missing() == [("sgd", 1.0, 1)]
    results.add(run_of("sgd", 1.0, 0.5, seed=1))
    (line,) = results.summaries()
    assert line.best is not None
    assert (line.best.lr, line.best.eval_loss, results.complete) == (1.0, 1.25, True)
    assert "diverged at lr 3 (1 of 1 seeds)" not in line.notes
    with pytest.raises(CompareError, match="--tune-first is about the other seeds"):
        replace(results.config, seeds=(0,))


@pytest.mark.parametrize(
    ("seeds", "said"), [("0,x", "0, x: no whole"), ([], "names no seed"), ("1.5", "1.5: no whole")]
)
def test_bad_seeds(seeds: Any, said: str) -> None:
    with pytest.raises(CompareError, match=said):
        CompareConfig.from_options(seeds=seeds)


def test_table_fits_into_80_columns(tmp_path: Path) -> None:
    record = replace(run_of("adam_weight_decay", 0.0003), wall_seconds=1234.5, step_ms=123.45)
    results = results_of(tmp_path, record, adam_weight_decay=(0.0003, 0.001, 0.003))
    narrow = screen(width=80)
    narrow.print(report.table(results))
    text = narrow.export_text()
    assert "…" not in text
    assert all(part in text for part in ("adam_weight_decay", "0.0003-0.003", "1234.5", "123.45"))


def test_results_survive_the_file(tmp_path: Path) -> None:
    results = results_of(tmp_path, run_of("sgd", 1.0), sgd=(1.0, 2.0))
    results.save()
    loaded = Results.load(tmp_path)
    assert loaded == results
    assert loaded.missing() == [("sgd", 2.0, 0)]
    loaded.add(run_of("sgd", 2.0, 1.5))
    assert Results.load(tmp_path).complete
    assert Results.load(tmp_path).summaries()[0].best == Point(2.0, (run_of("sgd", 2.0, 1.5),))
    assert [path.name for path in tmp_path.iterdir()] == ["results.json"]


def test_writing_never_leaves_half_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "results.json"
    write_atomically(path, b"old")

    def fails(fd: int) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("os.fsync", fails)
    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"


@pytest.mark.parametrize("content", ["", "[]", '{"format": 99}', '{"format": 1}'])
def test_other_files_are_not_resumed(tmp_path: Path, content: str) -> None:
    (tmp_path / "results.json").write_text(content)
    with pytest.raises(CompareError, match=r"results\.json"):
        Results.load(tmp_path)


def test_picture_needs_matplotlib(
    tiny: dict[str, Any], tmp_path: Path, console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    results = compare(CompareConfig.from_options(**tiny), tmp_path / "out", console=console)
    assert results.complete
    assert not (tmp_path / "out" / "loss_curves.png").exists()
    assert "hfoptim[report]" in console.export_text()


def test_bars_on_a_terminal() -> None:
    console = screen(terminal=True)
    with report.Display(console, 1, 3, 10, 1) as display:
        display.start("lion", 1e-3, 0)
        display.step(4)
        assert display.bars is not None
        overall, current = display.bars.tasks
        assert (overall.completed, overall.total) == (14, 30)
        assert (current.completed, current.total, current.description) == (4, 10, "run 2 of 3: lion, lr 0.001")
        display.finish(run_of("lion", 1e-3))
    assert "[2/3] lion, lr 0.001: eval loss 2.000, 1.0 s" in console.export_text()


def test_smoothing_starts_at_the_first_value() -> None:
    assert report.smoothed([2.0, 2.0, 2.0]) == pytest.approx([2.0, 2.0, 2.0])
    assert report.smoothed([1.0, 3.0], weight=0.5) == pytest.approx([1.0, 7 / 3])


# -------------------------------------------------------------------------------------------------------------- folders


def test_a_used_folder_is_left_alone(tiny: dict[str, Any], tmp_path: Path, console: Console) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "thesis.tex").write_text("dear")
    config = CompareConfig.from_options(**tiny)
    with pytest.raises(CompareError, match=r"is not empty; name a new folder$"):
        compare(config, folder, console=console)
    assert [path.name for path in folder.iterdir()] == ["thesis.tex"]
    with pytest.raises(CompareError, match="is a file"):
        compare(config, folder / "thesis.tex", console=console)
    with pytest.raises(CompareError, match="nothing to resume"):
        compare(config, folder, resume=True, console=console)
    results_of(folder, sgd=(1.0,)).save()
    with pytest.raises(CompareError, match="add --resume"):
        compare(config, folder, console=console)


def test_bad_data_leaves_no_folder(tiny: dict[str, Any], tmp_path: Path, console: Console) -> None:
    tiny["dataset"] = "no/such-dataset"
    with pytest.raises(CompareError):
        compare(CompareConfig.from_options(**tiny), tmp_path / "out", console=console)
    assert not (tmp_path / "out").exists()


def test_folder_that_cannot_be_made(tiny: dict[str, Any], tmp_path: Path, console: Console) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(CompareError, match=r"--output-dir .*file/out cannot be written"):
        compare(CompareConfig.from_options(**tiny), tmp_path / "file" / "out", console=console)


def test_resume_takes_the_options_of_the_folder(tmp_path: Path) -> None:
    stored = results_of(tmp_path, sgd=(1.0, 2.0), lion=(1e-3,))
    stored.save()
    nothing: dict[str, Any] = {"optimizers": None, "lr_grid": None, "steps": None, "seeds": None, "tune_first": None}
    assert resumed_config(tmp_path, nothing) == stored.config
    assert resumed_config(tmp_path, {**nothing, "steps": 3, "optimizers": ["SGD,lion"]}) == stored.config
    with pytest.raises(CompareError, match="steps: 3 against 9"):
        resumed_config(tmp_path, {**nothing, "steps": 9})
    with pytest.raises(CompareError, match=r"optimizers: .'sgd', 'lion'. against .'adamw',"):
        resumed_config(tmp_path, {**nothing, "optimizers": ["adamw"]})
    with pytest.raises(CompareError, match="lr_grid"):
        resumed_config(tmp_path, {**nothing, "lr_grid": ["sgd=5"]})


def test_resume_refuses_what_would_be_unfair(tiny: dict[str, Any], tmp_path: Path, console: Console) -> None:
    config = CompareConfig.from_options(**tiny)
    folder = tmp_path / "out"
    compare(config, folder, console=console)
    before = (folder / "results.json").read_bytes()
    with pytest.raises(CompareError, match=r"seeds: \(1,\) against \(2,\)"):
        compare(replace(config, seeds=(2,)), folder, resume=True, console=console)
    Path(tiny["dataset"]).write_text("\n\n".join(sentences(80, seed=9)))
    with pytest.raises(CompareError, match="the text or its tokens"):
        compare(config, folder, resume=True, console=console)
    results = Results.load(folder)
    results.environment["torch"] = "1.0"
    results.save()
    with pytest.raises(CompareError, match=r"torch: 1\.0 then"):
        compare(config, folder, resume=True, console=console)
    results.environment["torch"] = torch.__version__
    results.save()
    assert (folder / "results.json").read_bytes() == before
