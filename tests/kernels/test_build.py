"""Compiling once per machine: the cache on disk, processes side by side, and what goes wrong."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from hfoptim.engine.kernels import build

pytestmark = pytest.mark.skipif(build.compiler() is None, reason="needs a C++ compiler")

SOURCE = """
using real = float;
#include "runtime.h"
extern "C" void step(i64 count, const i64*, void* const*, const double* h, const u32*, int, double* results) {
  results[0] = (double)count * h[0];
}
"""
# Without the rest of the package, whose imports take seconds.
LOADS = f"""
import ctypes, importlib.util, sys
spec = importlib.util.spec_from_file_location("build", {build.__file__!r})
build = importlib.util.module_from_spec(spec)
spec.loader.exec_module(build)
step = build.load({SOURCE!r})
h, out = (ctypes.c_double * 1)(2.5), (ctypes.c_double * 1)()
step(4, None, None, h, None, 1, out)
print(build.folder(), out[0])
"""
STEPS = """
import torch, hfoptim
from hfoptim.engine.kernels import native
torch.manual_seed(0)
params = [torch.nn.Parameter(torch.randn(5, 7)), torch.nn.Parameter(torch.randn(3))]
for cls in (hfoptim.AdamW, hfoptim.Lamb):
    optimizer = cls(params, lr=1e-2, fused=True)
    for _ in range(2):
        for param in params:
            param.grad = param.detach() * 0.5
        optimizer.step()
print(native.compiled(), [float(p.double().sum()) for p in params])
"""


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A cache folder, and the compiler behind a script that counts its runs, and waits until there are `TOGETHER`."""
    script = tmp_path / "c++"
    script.write_text(f"""#!/bin/sh
case " $* " in *" -o "*)
  echo run >> "{tmp_path}/runs"
  tries=0
  while [ "$(wc -l < "{tmp_path}/runs")" -lt "${{TOGETHER:-1}}" ] && [ $tries -lt 600 ]; do
    sleep 0.1
    tries=$((tries + 1))
  done;;
esac
exec {shutil.which(build.compiler())} "$@"
""")
    script.chmod(0o755)
    monkeypatch.setenv("CXX", str(script))
    monkeypatch.setenv("HFOPTIM_CACHE", str(tmp_path / "cache"))
    return tmp_path


def runs(place):
    """How often the compiler has compiled."""
    file = place / "runs"
    return len(file.read_text().split()) if file.exists() else 0


def python(program, **env):
    done = subprocess.run(
        [sys.executable, "-c", program], env={**os.environ, **env}, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def fresh():
    """The module as a new process has it, with nothing found yet."""
    spec = importlib.util.spec_from_file_location("fresh_build", build.__file__)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def files(place):
    return sorted(path.name for path in (place / "cache").iterdir())


def test_optimizers_compile_once_and_not_again_in_the_next_process(place):
    first = python(STEPS)
    count = runs(place)
    assert count > 0
    assert len(files(place)) == count
    assert python(STEPS) == first
    assert runs(place) == count


def test_a_source_is_compiled_once_per_machine(place):
    one, two = fresh(), fresh()
    assert one.load(SOURCE) is one.load(SOURCE)
    assert runs(place) == 1
    two.load(SOURCE)
    assert runs(place) == 1
    two.load(SOURCE + "\n// another\n")
    assert runs(place) == 2
    assert len(files(place)) == 2
    assert all(name.endswith(".so") for name in files(place))


def test_another_runtime_or_other_flags_are_compiled_anew(place, monkeypatch):
    fresh().load(SOURCE)
    other = fresh()
    monkeypatch.setattr(other, "_FLAGS", (*other._FLAGS, "-DANOTHER"))
    other.load(SOURCE)
    assert runs(place) == 2
    changed = fresh()
    header = place / "include" / "runtime.h"
    header.parent.mkdir()
    header.write_text(changed.RUNTIME.read_text() + "// changed\n")
    monkeypatch.setattr(changed, "RUNTIME", header)
    changed.load(SOURCE)
    assert runs(place) == 3
    # Another processor.
    elsewhere = fresh()
    monkeypatch.setattr(elsewhere, "_machine", lambda: "another machine")
    elsewhere.load(SOURCE)
    assert runs(place) == 4
    assert len(files(place)) == 4


def test_two_processes_may_compile_the_same_at_once(place):
    found = []
    threads = [threading.Thread(target=lambda: found.append(python(LOADS, TOGETHER="2"))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [f"{place / 'cache'} 10.0"] * 2
    assert runs(place) == 2
    assert len(files(place)) == 1
    assert python(LOADS) == found[0]
    assert runs(place) == 2


def test_a_cache_folder_that_cannot_be_written_is_replaced_by_a_temporary_one(place):
    # A file in its way: that stops root, too.
    (place / "file").write_text("")
    folder, value = python(LOADS, HFOPTIM_CACHE=str(place / "file" / "cache"), TMPDIR=str(place)).split()
    assert Path(folder).parent == place
    assert float(value) == 10.0
    assert runs(place) == 1


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_cache_folder(place):
    (place / "cache").mkdir(mode=0o500)
    folder, value = python(LOADS).split()
    assert Path(folder) != place / "cache"
    assert float(value) == 10.0


def test_the_cache_folder_is_that_of_the_user_unless_named(monkeypatch, tmp_path):
    monkeypatch.delenv("HFOPTIM_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert fresh().folder() == tmp_path / "xdg" / "hfoptim"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert fresh().folder() == tmp_path / "home" / ".cache" / "hfoptim"
    monkeypatch.setenv("HFOPTIM_CACHE", str(tmp_path / "named"))
    assert fresh().folder() == tmp_path / "named"


def test_what_the_compiler_says_is_in_the_error(place):
    module = fresh()
    with pytest.raises(RuntimeError, match=r"(?s)could not compile a kernel of hfoptim.*no_such_type") as error:
        module.load("no_such_type step;\n")
    assert os.environ["CXX"] in str(error.value)
    assert files(place) == []
    # The next one is none the worse for it.
    module.load(SOURCE)
    assert len(files(place)) == 1


def test_a_compiler_that_dies_is_an_error(place, monkeypatch):
    monkeypatch.setenv("CXX", shutil.which("false"))
    with pytest.raises(RuntimeError, match="could not compile a kernel of hfoptim"):
        fresh().load(SOURCE)
    assert files(place) == []


def test_which_compiler(monkeypatch, tmp_path):
    own = tmp_path / "my-c++"
    own.write_text("#!/bin/sh\n")
    own.chmod(0o755)
    monkeypatch.setenv("CXX", str(own))
    assert fresh().compiler() == str(own)
    # One that is not there is passed over.
    monkeypatch.setenv("CXX", str(tmp_path / "nothing"))
    assert fresh().compiler() in ("g++", "clang++")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX")
    assert fresh().compiler() is None
    (tmp_path / "clang++").symlink_to(own)
    assert fresh().compiler() == "clang++"
