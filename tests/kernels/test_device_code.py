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
        bytes: that an entry has in the tensor with the fewest. A thread takes 8 entries of a tensor at once, or 4 where
            the rule needs the registers; in accesses of 16 bytes if it has as many.
        older: registers on sm_80, where they are more.
    """

    instructions: float
    registers: int = 128
    scales: float = 0.0
    bytes: float = 2.0
    older: int = 0


# Triton 3.6 and 3.9.
LIMITS = {
    "fp32": Limit(40, bytes=4),
    "fp64": Limit(56, registers=168, bytes=8),
    "fp32, caution": Limit(60, bytes=4),
    "fp32, bf16 state": Limit(82),
    "bf16, nearest": Limit(46),
    "bf16, Kahan": Limit(54),
    "bf16, stochastic": Limit(64),
    "bf16, remainder 8": Limit(62, bytes=1),
    "bf16, remainder 16": Limit(58),
    "fp16, Kahan": Limit(54),
    "bf16, bf16 state": Limit(90),
    "fp32, 8-bit state": Limit(150, scales=0.5, bytes=1),
    "fp32, 4-bit state": Limit(150, scales=1.0, bytes=0.5, older=150),
}

CODES = ("fp32, 8-bit state", "fp32, 4-bit state")

# No kernel is generated for the rules of these, for all shapes or for matrices: why.
WITHOUT_KERNEL = {
    "adalite": "a reduction from column to scalar",
    "prodigy_plus_schedule_free": "it uses flatten",
}
# Nor for matrices whose state is in codes.
_CODED_ROWS = "adafactorbv adafactorbvc adamp adamw_sn cadafactor cadafactorbv cadafactorbvc cadamp came csgdp sgdp"
WITHOUT_KERNEL_IN_CODES = frozenset([*_CODED_ROWS.split(), "ranger21_base"])
# In codes torch's operations step those of these, too: products of matrices, and norms of their rows.
BY_TORCH_IN_CODES = frozenset(["muown", "nordion2", "normuon"])
# Torch's operations step the matrices of these: decompositions, roots and projections.
_MATRICES = (
    "alice alice_0 apollo_adamw apollo_mini conda dash demo dion distributed_shampoo fira galore_adafactor "
    "galore_adamw galore_adamw_8bit klshampoo klsoap kron kronc kronw ldadamw psgd_pro racs shampoo "
    "soap soap_muon spectralsphere splus"
)
BY_TORCH = frozenset(_MATRICES.split())
# Their state is in codes of 8 bits unless told otherwise: in float64, where there are none, and with an average of the
# parameters, which caution is not possible with, there is no such form.
CODED = frozenset(["flashadamw", "galore_adamw_8bit"])
NOT_POSSIBLE = {
    **{(name, "fp64"): "state_dtype='8bit' is for float32" for name in CODED},
    ("asgd", "fp32, caution"): "caution=True is not possible",
    ("flashadamw", "bf16, stochastic"): "exclude each other",
    ("flashadamw", "fp16, Kahan"): "master_weights=8 is for bfloat16",
}

# Instructions of all passes per byte that they move, at most, of any optimizer in float32: about as many as an H100 can
# issue in the time that a byte takes.
PER_BYTE = 10
MORE_PER_BYTE = {"sm3": 10.5}

# Instructions per entry of the longest pass, as for AdamW: in programs that take one block. What such a program does
# once (it adds up what others have left of a sum) is shared by the blocks of larger tensors.
INSTRUCTIONS = {
    ("lion", "fp32"): 18,
    ("lamb", "fp32"): 56,
    ("lars", "fp32"): 40,
    ("novograd", "fp32"): 34,
    ("prodigy", "fp32"): 56,
    # A vector's second pass, which adds up what the first has left, in a program with one block.
    ("adafactor", "fp32"): 64,
    ("muon", "fp32"): 14,
}

# What is over those limits, as measured on sm_90 and sm_80 with Triton 3.9, of the whole catalogue in all forms.
# Registers of a thread that has 4 entries already: ten gradients are read and written at once; six or five tensors in
# codes or in 16 bits, with a sum or caution's mask.
_BF16_STATE, _REMAINDER = "bf16, bf16 state", "bf16, remainder 16"
MORE_REGISTERS: dict[tuple[str, str], int] = {
    **{("adashift", form): 181 for form in LIMITS},
    **{("adashift", form): 255 for form in ("fp64", "fp32, bf16 state", _BF16_STATE, *CODES)},
    **{(name, CODES[0]): 196 for name in ("cadan", "cadanw")},
    **{(name, CODES[1]): 180 for name in ("cadan", "cadanw")},
    **{(name, _BF16_STATE): 158 for name in ("cadan", "cadanw")},
    **{(name, "fp32, bf16 state"): 134 for name in ("cadan", "cadanw")},
    **{(name, CODES[0]): 168 for name in ("mars", "cmars", "grokadamw")},
    **{("mars", _BF16_STATE): 141, ("cmars", CODES[1]): 144},
    **{("adalite", CODES[0]): 138, ("apollo", CODES[0]): 159},
    **{(name, "fp32"): 139 for name in ("adafactorbv", "adafactorbvc")},
    # Projections, and a rule in seven passes, which hold several sums for each entry: 8 warps take half a tile, with
    # these registers; in the 128 that 16 warps leave for a whole one they spilled up to 448 bytes.
    **{("adamp", _BF16_STATE): 158, ("cadamp", _BF16_STATE): 182, ("cadamp", "fp32, bf16 state"): 165},
    **{("cadamp", "fp64"): 230, ("csgdp", "fp64"): 172},
    **{("ranger21_base", form): 202 for form in LIMITS},
    ("ranger21_base", "fp64"): 255,
    # With 8 entries for a thread: the count of what they need is about right, no more. Three programs of 4 warps fit,
    # where four are wanted.
    **{("adaboundw", "fp64"): 170, ("dadapt_adagrad", CODES[1]): 145, ("apollo", CODES[1]): 146},
    **{("adago", CODES[0]): 162, ("adago", CODES[1]): 178},
    **{(name, CODES[0]): 148 for name in ("novogradc", "novogradw", "sgdsai")},
    **{(name, _REMAINDER): 148 for name in ("came", "kourkoutas", "cadan", "cadanw")},
}

# Bytes of a thread that do not find a register as the assembler allocates them unless told otherwise. On sm_80, for
# which Triton has an older one, it takes fewer registers than there are and leaves a few values in memory.
SPILLS: dict[tuple[str, str], int] = {
    **{("adashift", CODES[0]): 88, ("csgdp", _BF16_STATE): 8, ("ranger21_base", "fp64"): 16},
    **{("tam", form): 8 for form in LIMITS if "16, " in form and form != _BF16_STATE},
}
SPILLS_ON = {90: 0, 80: 32}
# Those of any optimizer as Triton 3.9 has it allocate them, though there would be registers left.
MOST_SPILLS = 48

# In 16 bits none of their tensors has more bytes for an entry: state is in values of rows and columns, or in codes.
NARROW = frozenset(["nero", "sm3", "flashadamw"])

# Entries of a block; a tile has twice as many, or as many.
BLOCK = 1024

# Numbers per entry that a pass over a tile moves beside the schedule's, for values of its rows and columns. Each thread
# reads those of its own entries, out of the cache.
TILE_VALUES = 1
MORE_TILE_VALUES = {"muown": 3, "sm3": 2, "ranger21_base": 2, "came": 2}

# Launches of a steady step of GPT-2's 148 tensors, at most.
LAUNCHES = {
    **{"adamw": 1, "lion": 1, "sgd": 1, "adan": 1, "lars": 2, "novograd": 2, "lamb": 4, "prodigy": 4, "adafactor": 6},
    **{"noisy_sgd": 2, "clamb": 4, "came": 8},
    # Besides 75 products.
    **{"muon": 46, "adamuon": 60},
}

# Of the whole catalogue, those with more than was wanted (`wanted` in launches.py). Matrices take three passes, as what
# caution counts follows from what is clipped by a norm, and vectors, which have a kernel of their own, two. Sums of
# rows, tensors and all, each made of the one before, in a probe and again in the step, for matrices and for vectors.
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
    why = WITHOUT_KERNEL.get(row["name"]) or NOT_POSSIBLE.get((row["name"], row["form"]))
    if row["form"] in CODES and row["name"] in WITHOUT_KERNEL_IN_CODES:
        why = "codes together with reductions along rows"
    if "error" in row and why is not None:
        assert why in row["error"], said
        return
    assert "error" not in row, (said, row["error"])
    if not row["launches"]:
        assert row["name"] in (BY_TORCH | BY_TORCH_IN_CODES if row["form"] in CODES else BY_TORCH), said
        return
    limit = LIMITS[CODES[0] if row["name"] in CODED and row["form"] not in CODES else row["form"]]
    registers = MORE_REGISTERS.get((row["name"], row["form"]), limit.registers)
    registers = max(registers, limit.older if row["arch"] == 80 else 0)
    spills = max(SPILLS_ON[row["arch"]], SPILLS.get((row["name"], row["form"]), 0))
    for kernel in row["kernels"]:
        assert kernel["spills"] <= max(spills, MOST_SPILLS), (said, kernel)
        assert kernel.get("spills_by_default", 0) <= spills, (said, kernel)
        assert kernel["registers"] <= registers, (said, kernel)
    walks = [kernel for kernel in row["kernels"] if "read" in kernel]
    tiled = any("tile" in kernel for kernel in walks)
    lookups = sum(kernel["lookups"] for kernel in walks)
    for what in ("read", "written"):
        found, wanted = sum(kernel[what] for kernel in walks), row[f"scheduled_{what}"]
        values = MORE_TILE_VALUES.get(row["name"], TILE_VALUES) * (8 if row["form"] == "fp64" else 4)
        more = lookups * limit.scales + (values * len(walks) + row["read_again"] if tiled else 0.0)
        assert wanted <= found <= wanted + more, (said, what, found, wanted)
    for kernel in walks:
        entries = kernel.get("tile", BLOCK) / (32 * kernel["warps"])
        assert entries in (4, 8), (said, kernel)
        if row["aligned"]:
            # Values of rows and columns are read one by one, as scales of codes are.
            least = min(16.0, entries * limit.bytes)
            assert min(kernel["widths"]) >= (min(4.0, least) if tiled or limit.scales else least), (said, kernel)
        else:
            assert 16 not in kernel["widths"], (said, kernel)
    if row["aligned"]:
        widest = max(width for kernel in walks for width in kernel["widths"])
        narrow = row["form"] == "bf16, bf16 state" or (row["name"] in NARROW and row["form"][2:4] == "16")
        assert widest == 16 or (narrow and widest == 8), (said, walks)
    if row["form"] == "fp32" and row["aligned"] and row["arch"] == 90:
        moved = row["scheduled_read"] + row["scheduled_written"] + row.get("read_again", 0.0)
        most = MORE_PER_BYTE.get(row["name"], PER_BYTE) * moved
        assert sum(kernel["instructions"] for kernel in walks) <= most, (said, moved, walks)
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
    # What the output has already is not judged again.
    done = {"name": "lars", "form": "fp32", "shape": "vector", "aligned": True, "arch": 90, "kernels": "as before"}
    (tmp_path / "kernels.json").write_text(json.dumps({"rows": [done]}))
    rows = cases(tmp_path, "--arch", "90", "--processes", "1", "--resume", *chosen)
    rows.remove(done)
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
        access(store=False, bytes=16, own=True, lookup=False, vector=True),
        access(store=False, bytes=4, own=True, lookup=True),
        access(store=True, bytes=16, own=True, lookup=False, vector=True),
    ]
    one = access(store=False, bytes=4, own=True, lookup=False)
    assert ptx.usual_accesses(aligned=False) == [table, one, one, access(store=True, bytes=4, own=True, lookup=False)]


LOOPS = """
	mov.u32 %r1, %tid.x;
	mul.wide.u32 %rd2, %r1, 16;
	@%p1 bra $L__BB0_4;
	bra.uni $L__BB0_2;
$L__BB0_1:
	st.global.v4.b32 [ %rd2 + 0 ], { %r2, %r3, %r4, %r5 };
	@!%p2 bra $L__BB0_4;
$L__BB0_2:
	ld.global.v4.b32 { %r2, %r3, %r4, %r5 }, [ %rd2 + 0 ];
	ld.global.b32 { %r6 }, [ %rd2 + 16 ];
	ld.global.b32 { %r7 }, [ %rd2 + 20 ];
	ld.global.b32 { %r8 }, [ %rd2 + 24 ];
	bra.uni $L__BB0_1;
$L__BB0_3:
	st.global.b16 [ %rd2 + 0 ], { %rs2 };
	@!%p4 bra $L__BB0_6;
	bra.uni $L__BB0_5;
$L__BB0_4:
	@%p3 bra $L__BB0_6;
$L__BB0_5:
	ld.global.b16 { %rs2 }, [ %rd2 + 0 ];
	bra.uni $L__BB0_3;
$L__BB0_6:
	ret;
"""


def test_a_way_leads_through_a_loop_whose_end_is_above_its_beginning(assembly):
    ptx = assembly.Ptx(LOOPS)
    # Once, and not through the loop over unaligned memory; nor, where that is wanted, through the one before it.
    assert [access.bytes for access in ptx.usual_accesses(aligned=True)] == [16, 4, 4, 4, 16]
    assert [access.bytes for access in ptx.usual_accesses(aligned=False)] == [2, 2]
    assert [access.store for access in ptx.usual_accesses(aligned=False)] == [False, True]


CODES_ALONE = """
	mov.u32 %r1, %tid.x;
	mul.wide.u32 %rd2, %r1, 4;
	@%p1 bra $L__BB0_3;
$L__BB0_2:
	ld.global.b32 { %r2 }, [ %rd2 + 0 ];
	@!%p2 bra $L__BB0_2;
$L__BB0_3:
	@%p3 bra $L__BB0_5;
$L__BB0_4:
	@%p4 ld.global.b8 { %rs2 }, [ %rd2 + 0 ];
	@%p5 ld.global.b8 { %rs3 }, [ %rd2 + 1 ];
	@!%p6 bra $L__BB0_4;
$L__BB0_5:
	ret;
"""


def test_codes_alone_are_read_four_bytes_at_a_time(assembly):
    ptx = assembly.Ptx(CODES_ALONE)
    assert [access.bytes for access in ptx.usual_accesses(aligned=True)] == [4]
    assert [access.bytes for access in ptx.usual_accesses(aligned=False)][-2:] == [1, 1]


def test_the_usual_way_calls_nothing(assembly):
    sass = assembly.Sass(SASS)
    wide = [one.op for one in sass.usual(assembly.wide(16))]
    assert wide == ["LDG.E.64", "BRA", "FMUL.FTZ", "FFMA", "BRA", "STG.E.128", "EXIT"]
    assert [one.op for one in sass.usual(assembly.narrow(16))][-3:] == ["STG.E", "STL", "EXIT"]
    with pytest.raises(ValueError, match="no way leads to an end"):
        assembly.Sass("        /*0000*/                   NOP ;\n").usual(assembly.wide(16))
    with pytest.raises(ValueError, match="no target"):
        assembly.Sass("        /*0000*/                   BRA `(.L_x_9) ;\n").usual(assembly.wide(16))
