"""timm's own tests of its optimizers pass with its factory replaced by ours, and every name of timm's is one of ours.

The tests come with timm's source distribution, which `make test-all` fetches.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import peers
import pytest

import hfoptim

HERE = Path(__file__).resolve().parent
SOURCES = Path(sys.prefix) / "sources"

# Tests of timm's that do not pass, and why.
_UNTOLD = "gives parameters without names: hfoptim refuses to guess which are matrices, timm guesses by shape"
EXEMPT = {
    "test_param_groups_layer_decay_reg_token_stem": "builds timm's vision models, which need torchvision",
    "test_compiled_foreach_adam_optimizers": "imports private modules of timm's",
    "test_compiled_muon_fallback": "imports private modules of timm's",
    "test_kron": "there is no Kron yet",
    "test_muon": _UNTOLD,
    "test_adamuon": _UNTOLD,
    **{f"test_optim_factory[{name}]": _UNTOLD for name in ("muon", "nmuon", "adamuon", "nadamuon")},
    "test_optim_factory[lbfgs]": "torch's LBFGS takes no groups",
    "test_optim_factory[prodigy]": "gives groups learning rates of their own, which Prodigy refuses; timm has none",
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


@pytest.mark.slow
@pytest.mark.skipif(not peers.installed("timm"), reason="needs timm")
def test_timms_tests_pass_with_our_factory(tmp_path):
    report = tmp_path / "report.xml"
    subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-q", "-p", "timm_as_hfoptim", "-p", "no:cacheprovider"),
            *("--rootdir", str(tmp_path), f"--junitxml={report}", str(timms_tests(tmp_path))),
        ],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE), str(HERE.parent)])},
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
    exempt = {key for name in failed for key in (name, name.partition("[")[0]) if key in EXEMPT}
    assert {key: text for key, text in failed.items() if not exempt & {key, key.partition("[")[0]}} == {}
    assert exempt == set(EXEMPT)
    names = {case.get("name", "") for case in cases}
    assert {f"test_optim_factory[{name}]" for name in hfoptim.list_optimizers()} <= names | {
        f"test_optim_factory[{name}]" for name in hfoptim.list_optimizers("kron*")
    }
