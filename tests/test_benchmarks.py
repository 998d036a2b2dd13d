"""The benchmarks run on tiny models, write what they print, and the report is made from what they write."""

from __future__ import annotations

import importlib
import inspect
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from ranks import run_code

import hfoptim

ROOT = Path(__file__).resolve().parent.parent
BENCHMARKS = ROOT / "benchmarks"


# Tiny runs of all programs, in one process that the tests' own does not share: what the programs import of the peers
# would stay in it.
RUN = """
import sys
from pathlib import Path

sys.path.insert(0, {benchmarks!r})
import floors, memory, quality, scaling, step_time

folder = Path({folder!r})
small = dict(layers=1, vocab=32, width=64)
# heavyball and torchao compile for half a minute: no optimizer that they have.
family = ["lion", "lars", "muon"]
for label, (shapes, limits) in step_time.ADAPTERS.items():
    step_time.ADAPTERS[label] = dict(list(shapes.items())[:4]), limits
step_time.main(**small, family=family, repeats=2, dtype=["float32"], adapters=0.01, output=folder / "step_time.json")
floored = ["lion", "lars", "alig", "muon"]
floors.main(name=floored, tensors=1, rounds=2, budget=1.0, repeats=0, output=folder / "floors.json")
memory.main(**small, family=["sgd"], runner=["compiled"], peers=False, output=folder / "memory.json")
first = dict(first=["lion"], first_layers=1, first_vocab=32)
sizes = dict(size=[1e5, 1e12], tensors=[3], tensors_size=1e4, repeats=1, least_seconds=0.0)
scaling.main(**sizes, family=["lion"], **first, output=folder / "scaling.json")
variants = ["float32", "8bit state", "bfloat16, Kahan"]
# Large batches of a short text: the part of it that is held out is evaluated in as large ones.
job = dict(steps=2, batch_size=32, seq_len=32, gradient_steps=2, dataset={text!r})
quality.main(optim=["adamw"], variant=variants, **job, output=folder / "quality.json")
"""


@pytest.fixture
def module(monkeypatch):
    """Imports a program of the benchmarks as the programs import each other; without the peers that only they have."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    before = list(sys.path)
    importlib.import_module("measure")
    sys.path[:] = before
    return importlib.import_module


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """The folder with what the tiny runs have written."""
    folder = tmp_path_factory.mktemp("results")
    text = tmp_path_factory.mktemp("text") / "text.txt"
    text.write_text("\n\n".join(page.read_text() for page in sorted((ROOT / "docs").glob("*.md"))))
    script = RUN.format(benchmarks=str(BENCHMARKS), folder=str(folder), text=str(text))
    assert "hfoptim lion" in run_code(script, folder=text.parent, timeout=500)
    return folder


def read(results: Path, name: str):
    result = json.loads((results / f"{name}.json").read_text())
    assert result["benchmark"] == name
    assert result["about"]["versions"]["torch"] == torch.__version__
    return result


@pytest.mark.slow
def test_step_time_has_ours_its_peers_and_the_base_of_every_family(results):
    families = read(results, "step_time")["dtypes"]["float32"]
    assert list(families) == ["lion", "lars", "muon"]
    for name, family in families.items():
        rows = {row["candidate"]: row for row in family["rows"]}
        assert {"torch AdamW fused", f"hfoptim {name}"} <= rows.keys()
        assert not any(label.startswith("hfoptim") for label in family["skipped"])
        assert all(row["median_ms"] > 0 and row["repeats"] == 2 for row in rows.values())
        assert family["finite"]
    lion = {row["candidate"]: row for row in families["lion"]["rows"]}
    assert {"timm Lion", "pytorch_optimizer Lion", "optimi Lion", "lion-pytorch Lion"} <= lion.keys()
    assert lion["timm Lion"]["ours"] == "hfoptim lion"
    assert lion["timm Lion"]["ahead"] is (lion["hfoptim lion"]["median_ms"] < lion["timm Lion"]["median_ms"])


@pytest.mark.slow
def test_step_time_has_adapters_and_small_models(results):
    rows = read(results, "step_time")["adapters"]["rows"]
    assert {(row["model"], row["optimizer"]) for row in rows} >= {
        ("128 adapter matrices", "adamw"),
        ("448 adapter matrices", "adafactor"),
        ("148 of 8 x 8", "adamw"),
    }
    for row in rows:
        assert row["ratio"] == pytest.approx(row["median_ms"] / row["base_median_ms"])
        assert row["kept"] is (row["ratio"] <= row["limit"])
    assert {row["model"]: row["numel"] for row in rows}["448 adapter matrices"] == 4 * 8 * 4096


@pytest.mark.slow
def test_step_time_sets_limits_by_bytes_and_scope(results):
    families = read(results, "step_time")["dtypes"]["float32"]
    rows = {name: {row["candidate"]: row for row in family["rows"]} for name, family in families.items()}
    lion, lars, muon = (rows[name][f"hfoptim {name}"] for name in ("lion", "lars", "muon"))
    assert (lion["scope"], lion["bytes_moved"], lion["limit"]) == ("ELEMENT", 20.0, 1.2)
    assert lion["of_floor"] == pytest.approx(lion["ratio"] * 28 / 20)
    assert lion["kept"] is (lion["of_floor"] <= 1.2)
    assert families["lion"]["busy"] in (True, False)
    assert (lars["scope"], lars["limit"]) == ("TENSOR", 2.0)
    assert lars["bytes_moved"] == 28.0
    assert (muon["scope"], muon["bytes_moved"], muon["limit"], muon["kept"]) == ("MATRIX", None, None, None)
    coded = rows["lion"]["hfoptim lion 8bit"]
    assert (coded["limit"], coded["kept"]) == (None, None)


@pytest.mark.slow
def test_floors_are_bytes_at_the_rate_of_memory(results):
    rows = {row["optimizer"]: row for row in read(results, "floors")["rows"]}
    assert {name: row.get("bytes_moved") for name, row in rows.items()} == {
        **{"lion": 20.0, "lars": 28.0},
        # The gradient's norm first; it is told a loss.
        "alig": 16.0,
        "muon": None,
    }
    for row in (rows["lion"], rows["lars"], rows["alig"]):
        assert row["limit"] == {"ELEMENT": 1.2, "TENSOR": 2.0}[row["scope"]]
        assert row["kept"] is (row["of_floor"] <= row["limit"])
        assert 0.0 < row["min_ms"] <= row["median_ms"]
    assert rows["muon"]["error"] == "multiplies matrices"


@pytest.mark.parametrize(
    ("name", "options", "moved"),
    [
        ("adamw", {}, 28.0),
        ("sgd", {}, 20.0),
        # Kahan's term is read and written with the parameter.
        ("adamw", {"dtype": torch.bfloat16}, 26.0),
        ("adamw", {"dtype": torch.bfloat16, "kahan_sum": False, "state_dtype": "bfloat16"}, 14.0),
        ("adamw", {"state_dtype": "8bit"}, 12 + 4 * (1 + 4 / 256)),
        ("adamw", {"state_dtype": "4bit"}, 12 + 4 * (0.5 + 4 / 128)),
        # The norm of all gradients comes first, the norm of the update next; then the parameter moves.
        ("lamb", {}, 44.0),
        # Here Kahan's term is also read where the distance from the start is measured: 10 bytes, and 10 for the step.
        ("dog", {"dtype": torch.bfloat16}, 20.0),
    ],
)
def test_bytes_moved_follow_from_the_schedule(module, name, options, moved):
    traffic = module("traffic")
    dtype = options.pop("dtype", torch.float32)
    param = torch.nn.Parameter(torch.ones(64, 256, dtype=dtype))
    param.grad = torch.full_like(param, 1e-3)
    optimizer = hfoptim.create_optimizer_v2([("w", param)], name, weight_decay=0.1, fused=True, **options)
    assert traffic.bytes_moved(optimizer) == pytest.approx(moved)


def test_every_optimizer_of_the_registry_is_measured_or_left_out_with_a_reason(module):
    candidates, measure = module("candidates"), module("measure")
    able, left_out = candidates.names()
    assert sorted([*able, *left_out]) == hfoptim.list_optimizers()
    params = measure.Parameters(measure.gpt2_shapes(layers=1, width=8, vocab=16, context=8))
    for name in able:
        for form in candidates.forms(name, torch.bfloat16):
            candidates.ours(name, form).make(params)


def test_peers_are_found_by_name(module):
    peers = module("candidates").peers
    labels = {name: {peer.label: peer for peer in peers(name, torch.bfloat16)} for name in ("adan", "adanw", "sgd")}
    assert {"timm Adan", "optimi Adan", "pytorch_optimizer Adan"} <= labels["adan"].keys()
    # Only timm knows what adanw adds to adan, and no peer but torch nesterov with that name.
    assert "timm Adan" in labels["adanw"]
    assert "pytorch_optimizer Adan" not in labels["adanw"]
    assert "torch SGD fused" in labels["sgd"]
    assert "optimi SGD" not in labels["sgd"]
    assert labels["adan"]["timm Adan"].form == "bare"
    assert labels["adan"]["optimi Adan"].form == "full"


@pytest.mark.slow
def test_memory_counts_state_and_the_peak_of_a_step(results):
    (row,) = read(results, "memory")["rows"]
    assert (row["candidate"], row["runner"]) == ("hfoptim sgd", "compiled")
    assert row["state_bytes"] == pytest.approx(4.0, abs=0.01)
    assert 0 <= row["peak_bytes"] < 2**28


@pytest.mark.parametrize(("form", "least", "most"), [("bfloat16", 4.0, 4.1), ("8bit", 2.0, 2.1), ("4bit", 1.0, 1.1)])
def test_memory_of_compressed_state(module, form, least, most):
    memory = module("memory")
    (job,) = (job for job in memory.jobs("adamw", "float32", ["foreach"], False) if job["form"] == form)
    found = memory.run({**job, "layers": 1, "width": 256, "vocab": 64, "threads": torch.get_num_threads()})
    assert least < found["state_bytes"] < most


def test_shared_tensors_of_a_state_count_once(module):
    state_bytes = module("measure").state_bytes
    params = [torch.nn.Parameter(torch.zeros(10)) for _ in range(2)]
    optimizer = torch.optim.SGD(params)
    shared = torch.zeros(256)
    for param in params:
        optimizer.state[param] = {"a": {"b": [torch.zeros(5)]}, "map": shared, "param": param}
    assert state_bytes(optimizer) == 2 * 20 + 1024


def test_peak_of_a_call_is_what_it_allocates_in_between(module, tmp_path):
    script = tmp_path / "peak.py"
    script.write_text(
        f"import sys; sys.path.insert(0, {str(BENCHMARKS)!r})\n"
        "import measure, torch\n"
        "print(measure.peak_above(lambda: torch.ones(1 << 23).sum()))\n"
    )
    environment = {**os.environ, **module("measure").RETURN_MEMORY}
    out = subprocess.run([sys.executable, script], capture_output=True, text=True, check=True, env=environment).stdout
    assert 2**25 <= int(out) < 1.3 * 2**25


@pytest.mark.slow
def test_quality_compares_runs_and_errors(results):
    result = read(results, "quality")
    rows = {row["variant"]: row for row in result["summary"]}
    assert rows["float32"]["off"] == 0.0
    assert rows["8bit state"]["kept"] is True
    assert rows["8bit state"]["state_bytes"] < rows["float32"]["state_bytes"]
    assert abs(rows["bfloat16, Kahan"]["off"]) < 0.005
    kahan = {(row["optimizer"], row["label"]): row for row in result["kahan"]}
    for name in ("adamw", "lion", "adan"):
        assert kahan[name, "hfoptim"]["error"] < 0.02 < kahan[name, "hfoptim, no compensation"]["error"]
        assert kahan[name, "hfoptim"]["equal"] > 0.5
    codes = {(row["optimizer"], row["label"]): row for row in result["codes"]}
    for name in ("adamw", "lion", "ademamix"):
        eight, four = codes[name, "hfoptim 8bit"], codes[name, "hfoptim 4bit"]
        assert all(0 < eight["states"][key] < four["states"][key] for key in eight["states"])
        if (name, "bitsandbytes 8bit") in codes:
            assert codes[name, "bitsandbytes 8bit"]["states"].keys() == eight["states"].keys()


@pytest.mark.slow
def test_scaling_times_models_tensors_and_first_steps(results):
    result = read(results, "scaling")
    small, large = result["sizes"]
    assert small["tensors"] == 148
    assert small["ratio"] > 0
    assert "memory short" in large["skipped"]
    assert [row["tensors"] for row in result["tensors"]] == [3]
    (first,) = result["first"]
    # Warm, nothing is compiled.
    assert first["warm"]["first_step_s"] < first["cold"]["first_step_s"]
    assert first["cold"]["import_s"] > 0


def test_gpu_ends_where_there_is_none(module, monkeypatch, capsys):
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--output", "nowhere"])
    with pytest.raises(SystemExit):
        module("gpu").main()
    assert "no CUDA device; --dry-run needs none" in capsys.readouterr().err


# With None for a module, its import fails.
HEAVY = ("accelerate", "datasets", "rich", "transformers", "typer")


def dry_run(folder, *arguments):
    """What gpu.py writes in a dry run, where torch and Triton are, but nothing else of what hfoptim brings along."""
    pytest.importorskip("triton")
    script = f"import runpy, sys; sys.modules.update(dict.fromkeys({HEAVY!r})); sys.argv = sys.argv[1:]; "
    script += f"sys.path.insert(0, {str(BENCHMARKS)!r}); runpy.run_path(sys.argv[0], run_name='__main__')"
    call = [sys.executable, "-c", script, str(BENCHMARKS / "gpu.py"), "--dry-run", "--output", str(folder), *arguments]
    done = subprocess.run(call, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads((folder / "gpu.json").read_text())


def test_gpu_runs_dry_without_what_hfoptim_brings_along(tmp_path):
    result = dry_run(tmp_path, "--name", "adamw", "--part", "machine", "--part", "right")
    assert result["about"]["dry"] is True
    assert result["parts"]["machine"]["rows"][0]["bytes_per_s"] > 0
    right = result["parts"]["right"]
    assert [row["form"] for row in right["rows"]] == ["fp32", "fp32, 8-bit state"]
    assert all(row["kept"] and row["by"] == "generated Triton kernels" for row in right["rows"]), right
    # Another order of operations than the loop's, and yet the same numbers.
    assert 0 < right["rows"][0]["off"] < 1e-4
    assert right["left_out"] == []


def test_gpu_names_what_time_did_not_suffice_for(tmp_path):
    result = dry_run(tmp_path, "--name", "adamw", "--part", "right", "--minutes", "0")
    right = result["parts"]["right"]
    assert right["rows"] == []
    assert [(row["optimizer"], row["form"]) for row in right["left_out"]] == [
        ("adamw", "fp32"),
        ("adamw", "fp32, 8-bit state"),
    ]


@pytest.mark.slow
def test_gpu_runs_all_parts_dry(tmp_path, module):
    names = ("adamw", "lamb", "muon")
    result = dry_run(tmp_path, *(argument for name in names for argument in ("--name", name)), "--minutes", "20")
    parts = result["parts"]
    kinds = ("machine", "compiling", "right", "elementwise", "reductions", "formats", "matrices", "host")
    assert tuple(parts) == kinds
    for name, part in parts.items():
        assert part["rows"], name
        assert not part["left_out"], name
        assert not any("error" in row for row in part["rows"]), part
    (compiled,) = parts["compiling"]["rows"]
    assert compiled["done"] == compiled["cases"] > 0
    assert not compiled["failed"]
    assert all(row["kept"] for row in parts["right"]["rows"])
    for name in kinds[3:]:
        for row in parts[name]["rows"]:
            assert row["times"]["hfoptim"]["median_ms"] > 0
            assert row["by"] == "generated Triton kernels"
            assert not any("error" in other for other in row.get("others", {}).values()), row
    assert {"torch AdamW fused", "torch AdamW foreach"} < parts["host"]["rows"][0]["times"].keys()
    assert "in Triton's interpreter" in module("report").gpu_tables(result)["gpu"]


@pytest.mark.slow
def test_report_fills_the_document_and_draws(results, module, tmp_path):
    pytest.importorskip("matplotlib")
    document = tmp_path / "performance.md"
    shutil.copy(ROOT / "docs" / "performance.md", document)
    module("report").main(results=results, document=document, images=tmp_path / "images")
    text = document.read_text()
    assert "| lion | ELEMENT | 20.0 |" in text
    assert "| adamw | 8bit state |" in text
    assert "Not timed: muon (multiplies matrices)" in text
    assert text.count("<!-- begin:") == text.count("<!-- end:") == 14
    pictures = {path.name for path in (tmp_path / "images").iterdir()}
    assert pictures == {f"performance_{name}.png" for name in ("step_time", "memory", "quality", "scaling")}
    # Made again from the same results, it is the same.
    module("report").main(results=results, document=document, images=tmp_path / "images")
    assert document.read_text() == text


def test_report_leaves_what_was_not_measured(module, tmp_path, capsys):
    document = tmp_path / "performance.md"
    shutil.copy(ROOT / "docs" / "performance.md", document)
    (tmp_path / "step_time.json").write_text('{"families": {}}')
    before = document.read_text()
    module("report").main(results=tmp_path, document=document, images=tmp_path)
    assert document.read_text() == before
    assert "not of this benchmark" in capsys.readouterr().out


SGD_FORMS = ("float32", "float64", "float16")


def digests_of_sgd(module):
    """What bitwise.py records of a variant of SGD."""
    bitwise_jobs = module("bitwise_jobs")
    wanted = [f"eager/sgd[momentum]/{which}" for which in ("loop/float32", *(f"foreach/{f}" for f in SGD_FORMS))]
    jobs = bitwise_jobs.jobs(bitwise_jobs.plan_of(ROOT), thorough=False)
    return {"digests": {job.key: job.run() for job in jobs if job.key in wanted}}


def test_bitwise_finds_nothing_in_equal_runs_and_says_what_differs_in_others(module, monkeypatch, capsys):
    bitwise = module("bitwise")
    before = digests_of_sgd(module)
    assert len(before["digests"]) == 4
    parts = before["digests"]["eager/sgd[momentum]/foreach/float32"]
    assert {"params", "state.momentum_buffer", "state.step", "param_groups.lr"} <= parts.keys()
    assert bitwise.report(before, digests_of_sgd(module))
    assert "0 differ" in capsys.readouterr().out

    step = hfoptim.SGD.step

    def further(self, closure=None):
        step(self, closure)
        param = self.param_groups[0]["params"][0]
        if param.dtype == torch.float64:
            param.data += 1e-12

    monkeypatch.setattr(hfoptim.SGD, "step", further)
    assert not bitwise.report(before, digests_of_sgd(module))
    said = capsys.readouterr().out
    assert "sgd[momentum]: params" in said
    assert "in 1: eager/sgd[momentum]/foreach/float64\n" in said

    after = {key: dict(value) for key, value in before["digests"].items()}
    after["eager/sgd[momentum]/loop/float32"]["state.velocity"] = "0"
    del after["eager/sgd[momentum]/loop/float32"]["param_groups.lr"]
    after["eager/sgd[momentum]/foreach/float16"] = {"raised": "TypeError"}
    del after["eager/sgd[momentum]/foreach/float32"]
    assert not bitwise.report(before, {"digests": after})
    said = capsys.readouterr().out
    assert "param_groups.lr is gone, state.velocity is new" in said
    assert "raises nothing, now TypeError" in said
    assert "not recorded is new" in said
    assert "3 differ" in said


@pytest.mark.slow
def test_bitwise_steps_two_checkouts_in_processes_of_their_own(tmp_path):
    """SGD, in this checkout and in a copy that steps twice, sharded ones as well."""
    copied = tmp_path / "copy"
    shutil.copytree(ROOT / "hfoptim", copied / "hfoptim", ignore=shutil.ignore_patterns("__pycache__"))
    if (ROOT / "schedules").is_dir():
        shutil.copytree(ROOT / "schedules", copied / "schedules", ignore=shutil.ignore_patterns("__pycache__"))
    module_of_sgd = Path(inspect.getfile(hfoptim.SGD)).relative_to(Path(hfoptim.__file__).parent)
    with (copied / "hfoptim" / module_of_sgd).open("a") as file:
        file.write("\n\n_step = SGD.step\nSGD.step = lambda self, closure=None: (_step(self), _step(self))[0]\n")
    call = [sys.executable, str(BENCHMARKS / "bitwise.py"), "against", str(ROOT), "--sharded"]
    call += ["--only", "eager/sgd/loop/*", "--only", "sharded*/sgd/loop/float32"]
    same = subprocess.run(call, capture_output=True, text=True, timeout=300)
    assert same.returncode == 0, same.stdout + same.stderr
    assert "7 combinations compared, 0 differ" in same.stdout
    other = subprocess.run([*call, "--checkout", str(copied)], capture_output=True, text=True, timeout=300)
    assert other.returncode == 1, other.stdout + other.stderr
    assert "sgd: params, state.momentum_buffer, state.step" in other.stdout
    assert "7 combinations compared, 7 differ" in other.stdout


@pytest.mark.parametrize("name", ["step_time", "floors", "memory", "quality", "scaling", "report"])
def test_programs_explain_themselves(module, name):
    import typer
    from typer.testing import CliRunner

    app = typer.Typer()
    app.command()(module(name).main)
    assert "--output" in CliRunner().invoke(app, ["--help"], env={"COLUMNS": "120"}).output or name == "report"
