"""The generated Triton kernels as NVIDIA's assembler sees them, for a device that is not there: what they read and
write, in how wide accesses, with how many registers and instructions; and how often a step launches them.

The programs are those of benchmarks/: kernel_cases.py, launches.py. They run in processes of their own, for nothing is
compiled in one whose kernels are interpreted.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")


class Limit(NamedTuple):
    """What a kernel may need.

    Args:
        instructions: per entry, of AdamW for aligned memory on sm_90; others' are in `INSTRUCTIONS`.
        registers: of a thread, of any optimizer.
        scales: bytes per entry and code looked up that each thread reads of what it shares with others, from the cache.
        narrow: whether some tensors have less than 16 bytes for a thread: one or half a byte per entry.
    """

    instructions: float
    registers: int = 128
    scales: float = 0.0
    narrow: bool = False


# Triton 3.6 and 3.9.
LIMITS = {
    "fp32": Limit(40),
    "fp64": Limit(56, registers=168),
    "fp32, caution": Limit(60),
    "fp32, bf16 state": Limit(82),
    "bf16, nearest": Limit(46),
    "bf16, Kahan": Limit(54),
    "bf16, stochastic": Limit(64),
    "bf16, remainder 8": Limit(62, narrow=True),
    "bf16, remainder 16": Limit(58),
    "fp16, Kahan": Limit(54),
    # More than the 128 registers that are wanted.
    "bf16, bf16 state": Limit(90, registers=152),
    "fp32, 8-bit state": Limit(150, registers=168, scales=0.5, narrow=True),
    "fp32, 4-bit state": Limit(150, registers=152, scales=1.0, narrow=True),
}

# No kernel is generated for their rules: why.
WITHOUT_KERNEL = {"adalite": "a reduction from column to scalar"}

# Instructions of all passes per byte that they move, at most, of any optimizer in float32: about as many as an H100 can
# issue in the time that a byte takes.
PER_BYTE = 10

# Instructions per entry of the longest pass, as for AdamW: in programs that take one block. What such a program does
# once (it adds up what others have left of a sum) is shared by the blocks of larger tensors.
INSTRUCTIONS = {
    ("lion", "fp32"): 18,
    ("lamb", "fp32"): 56,
    ("lars", "fp32"): 40,
    ("novograd", "fp32"): 34,
    ("prodigy", "fp32"): 56,
    ("adafactor", "fp32"): 58,
    ("muon", "fp32"): 14,
}

# More registers than that: fewer programs at a time than there could be. With states in 16 bits or in codes...
MORE_REGISTERS = {"adan": 216, "adanw": 216, "ademamix": 168, "adopt": 168, "adoptw": 168, "prodigy": 168}
# ... and in float32: an arc tangent; several sums down the columns and along the rows of a tile at once.
MORE_REGISTERS_IN_FLOAT32 = {
    **{"adam_atan2": 144, "adamp": 192, "cadamp": 216, "csgdp": 176, "sgdp": 144},
    **{"cadafactorbv": 144, "cadafactorbvc": 144},
}

MORE_REGISTERS_IN_FLOAT64 = {"adadelta": 176}

# Bytes of a thread that do not find a register, on sm_80; of Adafactor's first pass, once for each row.
SPILLS = {
    **{("adafactor", f"bf16, remainder {bits}", 80): 24 for bits in (8, 16)},
    ("ademamix", "bf16, nearest", 80): 8,
    ("lion", "fp32, 8-bit state", 80): 8,
    ("nero", "fp32", 90): 8,
}

# Numbers per entry that a pass over a tile moves beside the schedule's, for values of its rows and columns. Each thread
# reads those of its own entries, out of the cache.
TILE_VALUES = 1

# Launches of a steady step of GPT-2's 148 tensors, at most.
LAUNCHES = {
    **{"adamw": 1, "lion": 1, "sgd": 1, "adan": 1, "lars": 2, "novograd": 2, "lamb": 4, "prodigy": 4, "adafactor": 6},
    **{"noisy_sgd": 2, "clamb": 4, "came": 8},
    # Besides 75 products.
    **{"muon": 46, "adamuon": 60},
}

# Of the whole catalogue, those with more than was wanted (`wanted` in launches.py): three passes over matrices, and two
# over vectors, which have a kernel of their own; several sums of rows, of tensors and of all, for tiles of two shapes.
MORE_LAUNCHES = {"cmars": 5, "ranger21_base": 17}


def run(script, *arguments):
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    command = [sys.executable, "-W", "ignore", str(BENCHMARKS / script), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """Triton's cache, of these tests alone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_CACHE_DIR", str(tmp_path_factory.mktemp("triton")))
        yield


def cases(folder, *arguments):
    run("kernel_cases.py", "--output", str(folder / "kernels.json"), *arguments)
    rows = json.loads((folder / "kernels.json").read_text())["rows"]
    assert rows
    return rows


def check(row):
    said = {key: row[key] for key in ("name", "form", "shape", "aligned", "arch")}
    if "error" in row and row["name"] in WITHOUT_KERNEL:
        assert WITHOUT_KERNEL[row["name"]] in row["error"], said
        return
    assert "error" not in row, (said, row["error"])
    limit = LIMITS[row["form"]]
    exact = {"fp32": MORE_REGISTERS_IN_FLOAT32, "fp64": MORE_REGISTERS_IN_FLOAT64}
    more = exact.get(row["form"], MORE_REGISTERS if "state" in row["form"] else {})
    registers = max(limit.registers, more.get(row["name"], 0))
    for kernel in row["kernels"]:
        assert kernel["spills"] <= SPILLS.get((row["name"], row["form"], row["arch"]), 0), (said, kernel)
        assert kernel["registers"] <= registers, (said, kernel)
    walks, tiled = [kernel for kernel in row["kernels"] if "read" in kernel], "tile" in row
    lookups = sum(kernel["lookups"] for kernel in walks)
    for what in ("read", "written"):
        found, wanted = sum(kernel[what] for kernel in walks), row[f"scheduled_{what}"]
        values = TILE_VALUES * (8 if row["form"] == "fp64" else 4)
        more = lookups * limit.scales + (values * len(walks) + row["read_again"] if tiled else 0.0)
        assert wanted <= found <= wanted + more, (said, what, found, wanted)
    widths = {width for kernel in walks for width in kernel["widths"]}
    if row["aligned"]:
        assert 16 in widths, said
        assert widths == {16} or ((limit.narrow or tiled) and min(widths) >= 4), (said, widths)
    else:
        assert 16 not in widths, (said, widths)
    if row["form"] == "fp32" and row["aligned"] and row["arch"] == 90:
        moved = row["scheduled_read"] + row["scheduled_written"] + row.get("read_again", 0.0)
        assert sum(kernel["instructions"] for kernel in walks) <= PER_BYTE * moved, (said, moved, walks)
    budget = limit.instructions if row["name"] == "adamw" else INSTRUCTIONS.get((row["name"], row["form"]))
    if budget is not None and row["aligned"] and row["arch"] == 90:
        assert max(kernel["instructions"] for kernel in walks) <= budget, (said, walks)


def problem_of(row):
    try:
        check(row)
    except AssertionError as error:
        return str(error).splitlines()[0]


def test_kernels_move_what_the_schedule_says_in_wide_accesses_without_spills(cache, tmp_path):
    # What is in codes takes the assembler ten times as long: it is among those of the next test.
    chosen = ["--name", "adamw", "--name", "lars", "--form", "fp32", "--form", "bf16, Kahan"]
    rows = cases(tmp_path, "--arch", "90", "--processes", "1", *chosen)
    for row in rows:
        check(row)
    seen = {(row["name"], row["form"], row["aligned"]): row for row in rows if row["shape"] == "matrix"}
    assert len(seen) == 8
    adamw = seen["adamw", "fp32", True]["kernels"][0]
    assert (adamw["read"], adamw["written"], adamw["widths"]) == (16.0, 12.0, [16])
    assert seen["adamw", "fp32", False]["kernels"][0]["widths"] == [4]
    assert len(seen["lars", "fp32", True]["launches"]) == 2


@pytest.mark.slow
def test_kernels_of_every_optimizer_in_every_form(cache, tmp_path):
    rows = cases(tmp_path, "--all", "--arch", "80", "--arch", "90", "--processes", "2")
    assert {row["form"] for row in rows} == LIMITS.keys()
    problems = [problem for row in rows if (problem := problem_of(row))]
    assert not problems, "\n".join(problems)


def test_steady_steps_launch_little_copy_once_and_wait_for_nothing(tmp_path):
    names = [argument for name in LAUNCHES for argument in ("--name", name)]
    run("launches.py", "--output", str(tmp_path / "launches.json"), *names)
    rows = {row["optimizer"]: row for row in json.loads((tmp_path / "launches.json").read_text())["rows"]}
    assert rows.keys() == LAUNCHES.keys()
    for name, row in rows.items():
        assert row["launches"] - row["products"] <= LAUNCHES[name], (name, row)
        assert row["waits"] == 0, (name, row)
        # Matrices and vectors are two calls; Muon's matrices of two forms and the rest three; numbers are sent, too.
        copies = {"adafactor": 2, "muon": 3, "adamuon": 3, "lamb": 2, "prodigy": 2, "clamb": 2, "noisy_sgd": 2}
        assert row["copies"] <= copies.get(name, 1), (name, row)


@pytest.mark.slow
def test_steady_steps_of_every_optimizer_launch_what_is_wanted(tmp_path):
    run("launches.py", "--output", str(tmp_path / "launches.json"))
    for row in json.loads((tmp_path / "launches.json").read_text())["rows"]:
        assert row["waits"] == 0, row
        if row["wanted"] is not None:
            assert row["launches"] <= MORE_LAUNCHES.get(row["optimizer"], row["wanted"]), row


# -- the tools themselves --------------------------------------------------------------------------------------------

PTX = """
	mov.u32 %r1, %tid.x;
	ld.global.b64 { %rd1 }, [ %rd9 + 0 ];
	mad.wide.s32 %rd2, %r1, 16, %rd1;
	setp.ge.s64 %p1, %rd1, 7;
	@%p1 bra $L__BB0_2;
	ld.global.v4.b32 { %r2, %r3, %r4, %r5 }, [ %rd2 + 0 ];
	mad.wide.u32 %rd3, %r2, 4, %rd8;
	ld.global.b32 { %r6 }, [ %rd3 + 0 ];
	st.global.v4.b32 [ %rd2 + 0 ], { %r6, %r3, %r4, %r5 };
	bra.uni $L__BB0_3;
$L__BB0_2:
	@%p2 ld.global.L1::evict_first.b32 { %r7 }, [ %rd2 + 0 ];
	@%p3 ld.global.b32 { %r8 }, [ %rd2 + 4 ];
	@%p2 st.global.b32 [ %rd2 + 0 ], { %r7 };
$L__BB0_3:
	ret;
"""

SASS = """
.text.step:
        /*0000*/                   LDG.E.64 R2, desc[UR4][R2.64] ;
        /*0010*/              @!P5 BRA `(.L_x_1) ;
        /*0020*/                   CALL.REL.NOINC `($__internal_0_$__cuda_sm20_sqrt_rn_f32_slowpath) ;
        /*0030*/                   BRA `(.L_x_2) ;
.L_x_1:
        /*0040*/                   FMUL.FTZ R4, R5, R6 ;
        /*0050*/                   FFMA R4, R5, R6, R4 ;
.L_x_2:
        /*0060*/               @P1 BRA `(.L_x_3) ;
        /*0070*/                   STG.E.128 desc[UR4][R2.64], R4 ;
        /*0080*/                   EXIT ;
.L_x_3:
        /*0090*/               @P0 STG.E desc[UR4][R2.64], R4 ;
        /*00a0*/               @P2 STL [R1], R4 ;
        /*00b0*/                   EXIT ;
.L_x_4:
        /*00c0*/                   BRA `(.L_x_4);
"""


@pytest.fixture
def assembly(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("assembly")


def test_accesses_of_a_way_are_told_apart(assembly):
    access = assembly.Access
    table = access(store=False, bytes=8, own=False, lookup=False)
    ptx = assembly.Ptx(PTX)
    assert ptx.usual_accesses(aligned=True) == [
        table,
        access(store=False, bytes=16, own=True, lookup=False),
        access(store=False, bytes=4, own=True, lookup=True),
        access(store=True, bytes=16, own=True, lookup=False),
    ]
    one = access(store=False, bytes=4, own=True, lookup=False)
    assert ptx.usual_accesses(aligned=False) == [table, one, one, access(store=True, bytes=4, own=True, lookup=False)]


def test_the_usual_way_calls_nothing(assembly):
    sass = assembly.Sass(SASS)
    wide = [one.op for one in sass.usual(assembly.is_wide)]
    assert wide == ["LDG.E.64", "BRA", "FMUL.FTZ", "FFMA", "BRA", "STG.E.128", "EXIT"]
    assert [one.op for one in sass.usual(assembly.is_narrow)][-3:] == ["STG.E", "STL", "EXIT"]
    with pytest.raises(ValueError, match="no way leads to an end"):
        assembly.Sass("        /*0000*/                   NOP ;\n").usual(assembly.is_wide)
    with pytest.raises(ValueError, match="no target"):
        assembly.Sass("        /*0000*/                   BRA `(.L_x_9) ;\n").usual(assembly.is_wide)
