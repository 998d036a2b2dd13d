"""timm's own tests of its optimizers pass with its factory replaced by ours, for our names as for its own.

The tests come with timm's source distribution, which `make test-all` fetches.
"""

from __future__ import annotations

import fnmatch
import os
import subprocess
import sys
import tarfile
import xml.etree.ElementTree as ElementTree
import zlib
from functools import cache
from pathlib import Path

import peers
import pytest

import hfoptim

HERE = Path(__file__).resolve().parent
SOURCES = Path(sys.prefix) / "sources"

_UNTOLD = "gives parameters without names: hfoptim refuses to guess which are matrices, timm guesses by shape"
_MODELS = "builds timm's vision models, which need torchvision"
_LOSS = "steps without the loss that the step depends on"
_PRIVATE = "reads timm's private entries of state and groups, which have other names here"
_NO_DECAY = "decays without decoupled weight decay, and asks for the decay that falls with the square of lr"
_ONE = "gives groups options of their own, of which there is one for all groups"
_STEPS_ANYWAY = "has steps or decay that lr does not multiply"
_PAIR = "gives one eps to an optimizer that has two, for different uses"

# What does not pass: patterns of a test's name and of its parameters, and why.
EXEMPT = {
    ("test_param_groups_layer_decay", "False-None-*"): "counts layers in models of all kinds, not trunk and head alone",
    ("test_param_groups_layer_decay_reg_token_stem", "*"): _MODELS,
    ("test_param_groups_layer_decay_trunk_layer", "*"): _MODELS,
    ("test_compiled_muon_fallback", "*"): "gives Muon a vector alone, for which hfoptim refuses to be Muon",
    ("test_muon_load_adamw_lr_state_dict", ""): "gives Muon a vector alone, for which hfoptim refuses to be Muon",
    ("test_adamuon_*", "*"): "takes kernels of convolutions position by position, and reads Muon's private state",
    ("test_corrected_weight_decay_state_dict", "*"): _PRIVATE,
    ("test_laprop_load_legacy_float_state", "*"): _PRIVATE,
    ("test_adafactor_zero_lr", ""): "gives lr beside relative_step=True, which transformers and hfoptim refuse",
    ("test_kron_update_prob_per_param", ""): "gives a function as the probability of an update: here it is numbers",
    (_HIDDEN := ("test_opti*", "those of hidden matrices")): _UNTOLD,
    **{
        ("test_optimizer_*", f"{name}*"): _LOSS
        for name in ("adamc_schedule_free_plus", "alig", "emo", "momo", "polyak_sgd")
    },
    ("test_opti*", "bsam*"): "steps without a closure, at one gradient where two are needed",
    ("test_optimizer_*", "sophiah*"): "gives gradients without the graph that the Hessian is estimated from",
    ("test_opti*", "lbfgs*"): "torch's LBFGS takes no groups, no weight_decay and steps by a closure",
    **{("test_optim*", f"{name}*"): _ONE for name in ("prodigy", "dadapt")},
    (
        "test_opti*",
        "sparse_adam*",
    ): "gives dense gradients to an optimizer of sparse ones, and weight decay, which it has not",
    ("test_opti*", "flashadamw*"): "gives parameters in double precision and float16 to 8-bit state and master weights",
    ("test_optim_factory_common_kwargs", "radam_schedule_free"): "gives a beta2 under which nothing would ever move",
    **{
        ("test_optimizer_param_group_independent", name): "has noise that goes by the place among all parameters"
        for name in ("gravity", "noisy_sgd")
    },
    ("test_optimizer_param_group_independent", "swats"): _ONE,
    ("test_optimizer_param_group_independent", "adai*"): "has one mean of all second moments",
    ("test_optimizer_param_group_independent", "adagc"): "clips by the norm of all gradients in its first steps",
    **{
        ("test_optimizer_zero_lr", f"{name}-*"): _STEPS_ANYWAY
        for name in (
            *("a2grad*", "accsgd", "adaboundw", "adamw_schedule_free", "sgd_schedule_free"),
            *("mirror_madgrad", "nero", "rprop", "srmm"),
        )
    },
    **{
        ("test_optimizer_grad_unchanged", f"{name}-*"): _NO_DECAY
        for name in ("kronc", "lambcd", "novogradc", "rmsproptfc")
    },
    **{
        (test, f"{name}*"): _PAIR
        for test in ("test_optim_factory_common_kwargs", "test_optimizer_low_precision")
        for name in ("adafactor_torch", "adalomo", "came")
    },
}
# What fails at times: it begins at random weights.
AT_TIMES = {
    ("test_optim_factory", "kate"): "its first steps are lr / g, which throws entries with small gradients far off",
    ("test_optim_factory", "gravity"): "its first velocity is noise of the size alpha / lr",
    **{
        ("test_optim_factory", name): "rounding decides the basis of directions without gradients, as in first steps"
        for name in ("conda", "klsoap", "shampoo", "soap", "splus")
    },
    (
        "test_optim_factory",
        "dualadam",
    ): "its first steps grow with the gradient's square, which throws it far off",
    (
        "test_optim_factory",
        "sara",
    ): "moves what is nearer to zero than 1e-3 alone, of which a handful of weights has none",
    ("test_optim_factory", "*dog"): "finds its step size, which decides the direction where a minimum is overshot",
}


def timms_tests(folder: Path) -> Path:
    """timm's test_optim.py, unpacked into a folder."""
    found = sorted(SOURCES.glob("timm-*.tar.gz"))
    if not found:
        pytest.skip("timm's source distribution is not there: make test-all fetches it")
    with tarfile.open(found[-1]) as archive:
        member = next(each for each in archive.getmembers() if each.name.endswith("/tests/test_optim.py"))
        content = archive.extractfile(member)
        assert content is not None
        (folder / "test_optim.py").write_bytes(content.read())
    return folder / "test_optim.py"


# The suite runs in so many pieces, each a test of its own: three thousand tests, half of whose time are the 1,700 steps
# that timm's `test_optim_factory` takes for every name.
PIECES = 8
_KEYS = [*EXEMPT, *AT_TIMES]


@cache
def _of_hidden_matrices(name: str) -> bool:
    return name in hfoptim.list_optimizers() and hfoptim.get_optimizer_info(name).hidden_matrices


def exemption(test: str) -> tuple[str, str] | None:
    """The exemption that a test falls under if it fails."""
    name, _, parameters = test.removesuffix("]").partition("[")
    if fnmatch.fnmatch(name, _HIDDEN[0]) and _of_hidden_matrices(parameters.partition("-")[0]):
        return _HIDDEN
    return next((key for key in _KEYS if fnmatch.fnmatch(name, key[0]) and fnmatch.fnmatch(parameters, key[1])), None)


def piece_of(test: str) -> int:
    """The piece that a test belongs to: all that fall under one exemption to the same."""
    key = exemption(test)
    return (_KEYS.index(key) if key else zlib.crc32(test.encode())) % PIECES


@pytest.mark.slow
@pytest.mark.skipif(not peers.installed("timm"), reason="needs timm")
@pytest.mark.parametrize("piece", range(PIECES))
def test_timms_tests_pass_with_our_factory(piece, tmp_path):
    report = tmp_path / "report.xml"
    subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-q", "-p", "timm_as_hfoptim", "-p", "no:cacheprovider"),
            *("--rootdir", str(tmp_path), f"--junitxml={report}", str(timms_tests(tmp_path))),
        ],
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(HERE), str(HERE.parent)]),
            "TIMM_PIECE": str(piece),
            "OMP_NUM_THREADS": "1",
        },
        cwd=tmp_path,
        check=False,
    )
    cases = list(ElementTree.parse(report).getroot().iter("testcase"))
    failed = {
        case.get("name", ""): (part.get("message") or "")[:300]
        for case in cases
        for part in case
        if part.tag in ("failure", "error")
    }
    assert {name: text for name, text in failed.items() if exemption(name) is None} == {}
    exempt = {key for key in EXEMPT if _KEYS.index(key) % PIECES == piece}
    assert {exemption(name) for name in failed} - AT_TIMES.keys() == exempt
    timms = peers.load("timm.optim._optim_factory.list_optimizers")("", ["fused*", "bnb*"])
    # timm's test of its factory leaves its Kron out, and so ours.
    names = {name for name in (*timms, *hfoptim.list_optimizers()) if not name.startswith("kron")}
    wanted = {f"test_optim_factory[{name}]" for name in names}
    assert {test for test in wanted if piece_of(test) == piece} <= {case.get("name", "") for case in cases}
