"""Compiling once per machine: the cache on disk, processes side by side, and what goes wrong."""

from __future__ import annotations

import ctypes
import importlib.util
import os
import shutil
import stat
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
from ranks import run_code

from hfoptim.engine.codegen import build

pytestmark = [
    pytest.mark.skipif(os.name != "posix", reason="the compiler is counted by a shell script"),
    pytest.mark.skipif(build.missing() is not None, reason=f"needs {build.missing()}"),
]

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
from hfoptim.engine.codegen import native
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
    first = run_code(STEPS, folder=place).splitlines()[-1]
    count = runs(place)
    assert count > 0
    assert len(files(place)) == count
    assert run_code(STEPS, folder=place).splitlines()[-1] == first
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


def works(module, source=SOURCE):
    """Load a source and call it."""
    step = module.load(source)
    h, out = (ctypes.c_double * 1)(2.5), (ctypes.c_double * 1)()
    step(4, None, None, h, None, 1, out)
    return out[0] == 10.0


def kept(place):
    (library,) = (place / "cache").glob("*.so")
    return library


def replace(path, content):
    """Give a file another content, as another file: this process may have the library in its memory."""
    path.unlink()
    path.write_bytes(content)


# -- what is in the cache and cannot be used ---------------------------------------------------------------------------

DAMAGES = {
    "empty": lambda content: b"",
    "a_few_bytes": lambda content: content[:20],
    # Loading this one would end the process: the parts behind the headers are not there.
    "cut_in_half": lambda content: content[: len(content) // 2],
    "without_its_end": lambda content: content[:-7],
    "a_bit_flipped": lambda content: content[:5000] + bytes([content[5000] ^ 1]) + content[5001:],
    "zeros": lambda content: bytes(len(content)),
    "text": lambda content: b"no library at all\n" * 100,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_library_is_made_anew(place, damage):
    assert works(fresh())
    library = kept(place)
    whole = library.read_bytes()
    replace(library, DAMAGES[damage](whole))
    assert python(LOADS).endswith("10.0")
    assert runs(place) == 2
    assert python(LOADS).endswith("10.0")
    assert runs(place) == 2
    assert files(place) == [library.name]


def test_a_damaged_probe_does_not_leave_the_machine_without_kernels(place):
    assert fresh().missing() is None
    replace(kept(place), b"")
    assert fresh().missing() is None
    assert runs(place) == 2


def test_a_library_under_the_name_of_another_one_is_not_taken(place):
    module = fresh()
    assert works(module)
    first = kept(place)
    module.load(SOURCE + "\n// another\n")
    (second,) = (path for path in (place / "cache").iterdir() if path != first)
    replace(first, second.read_bytes())
    assert works(fresh())
    assert runs(place) == 3


def test_a_whole_library_that_this_machine_cannot_load_is_made_anew(place, monkeypatch):
    assert works(fresh())
    other, opened, paths = fresh(), [], []

    def refuses_once(path):
        paths.append(Path(path))
        if len(paths) == 1:
            raise OSError("version `GLIBC_9.9' not found")
        opened.append(ctypes.CDLL(path))
        return opened[-1]

    monkeypatch.setattr(other, "ctypes", SimpleNamespace(**{**vars(ctypes), "CDLL": refuses_once}))
    assert works(other)
    assert runs(place) == 2
    assert paths == [kept(place)] * 2


# -- where nothing can be kept -----------------------------------------------------------------------------------------


def assert_works_and_leaves_nothing(place, why, **env):
    """A process loads kernels, warns once, and leaves its temporary folder as it was."""
    temporary = place / "tmp"
    temporary.mkdir(exist_ok=True)
    program = LOADS + f"build.load({SOURCE + '// another'!r})\nimport os\nif os.fork() == 0: os._exit(0)\nos.wait()\n"
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "TMPDIR": str(temporary), **env},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[-1] == "10.0"
    assert done.stderr.count("UserWarning") == 1
    assert why in done.stderr
    assert "HFOPTIM_CACHE" in done.stderr
    assert list(temporary.iterdir()) == []


def test_a_cache_folder_in_the_place_of_which_is_a_file(place):
    # That stops root, too.
    (place / "file").write_text("")
    assert_works_and_leaves_nothing(place, "File exists", HFOPTIM_CACHE=str(place / "file"))
    assert_works_and_leaves_nothing(place, "Not a directory", HFOPTIM_CACHE=str(place / "file" / "cache"))
    assert runs(place) == 4


def test_a_name_too_long_for_a_folder(place):
    assert_works_and_leaves_nothing(place, "name too long", HFOPTIM_CACHE=str(place / ("x" * 300)))


def test_a_full_disk(place):
    # Nothing can be written to this device; a folder that leads there is not to be had.
    if not Path("/dev/full").exists():
        pytest.skip("needs /dev/full")
    module = fresh()

    def full(library, kept):
        with open("/dev/full", "wb", buffering=0) as file:
            file.write(library)

    module._keep = full
    with pytest.warns(UserWarning, match="No space left on device"):
        assert works(module)
    assert runs(place) == 1
    assert files(place) == []


def test_a_part_that_could_not_be_written_is_removed(place, monkeypatch):
    module = fresh()
    monkeypatch.setattr(module.os, "replace", fails := lambda a, b: (_ for _ in ()).throw(OSError(28, "No space left")))
    with pytest.warns(UserWarning, match="No space left"):
        assert works(module)
    assert module.os.replace is fails
    assert files(place) == []


def test_a_folder_that_nothing_may_be_run_from(place, monkeypatch):
    module = fresh()

    def not_from_the_cache(path):
        if Path(path).parent == place / "cache":
            raise OSError("failed to map segment from shared object: Operation not permitted")
        return ctypes.CDLL(path)

    monkeypatch.setattr(module, "ctypes", SimpleNamespace(**{**vars(ctypes), "CDLL": not_from_the_cache}))
    with pytest.warns(UserWarning, match="failed to map segment"):
        assert works(module)


def test_without_any_folder_that_libraries_can_be_loaded_from(place, monkeypatch):
    module = fresh()

    def from_nowhere(path):
        raise OSError("failed to map segment from shared object: Operation not permitted")

    monkeypatch.setattr(module, "ctypes", SimpleNamespace(**{**vars(ctypes), "CDLL": from_nowhere}))
    with pytest.raises(RuntimeError, match=r"cannot be loaded.*failed to map segment"):
        module.load(SOURCE)
    assert "failed to map segment" in module.missing()


def test_without_a_temporary_folder_the_compiler_works_in_the_cache(place, monkeypatch):
    module = fresh()
    made = tempfile.TemporaryDirectory

    def not_in_the_systems(dir=None, **options):
        if dir is None:
            raise FileNotFoundError("no usable temporary directory found")
        return made(dir=dir, **options)

    monkeypatch.setattr(module, "tempfile", SimpleNamespace(TemporaryDirectory=not_in_the_systems))
    assert works(module)
    assert len(files(place)) == 1


def test_a_user_without_a_home(place, monkeypatch):
    monkeypatch.delenv("HFOPTIM_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    module = fresh()

    def nowhere():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(module.Path, "home", nowhere)
    with pytest.warns(UserWarning, match="no home folder"):
        assert works(module)
    assert module.folder() is None


root = pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="needs to become another user")


def as_stranger(program, temporary, **env):
    """Run a program that becomes a user without a name and a home once all of Python it needs is read."""
    temporary.mkdir()
    temporary.chmod(0o777)
    system = Path(tempfile.gettempdir())
    for folder in temporary.parents:  # pytest's are its user's alone
        if folder != system and folder.is_relative_to(system):
            folder.chmod(folder.stat().st_mode | 0o011)
    environment = {k: v for k, v in os.environ.items() if k not in ("HOME", "XDG_CACHE_HOME", "HFOPTIM_CACHE")}
    become = "import os, pwd, linecache\nos.setgroups([]); os.setgid(54321); os.setuid(54321)\n"
    begin = program.index("step = build.load")
    return subprocess.run(
        [sys.executable, "-c", program[:begin] + become + program[begin:]],
        env={**environment, "TMPDIR": str(temporary), **env},
        cwd="/",
        capture_output=True,
        text=True,
        timeout=120,
    )


def own_copy(place):
    """LOADS with a copy of the module that everybody can read, and counts that everybody can write."""
    target = place / "package"
    shutil.copytree(Path(build.__file__).parent, target, ignore=shutil.ignore_patterns("__pycache__"))
    for path in (target, *target.rglob("*")):
        path.chmod(0o755)
    (place / "runs").touch()
    (place / "runs").chmod(0o666)
    return LOADS.replace(build.__file__, str(target / "build.py"))


@root
def test_another_user_without_a_home(place):
    done = as_stranger(own_copy(place), place / "tmp")
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["None", "10.0"]
    assert done.stderr.count("UserWarning") == 1
    assert list((place / "tmp").iterdir()) == []


@root
def test_a_read_only_cache_that_is_filled_is_read(place):
    program = own_copy(place)
    cache = {"HFOPTIM_CACHE": str(place / "cache")}
    assert python(program).endswith("10.0")
    assert runs(place) == 1
    done = as_stranger(program, place / "tmp", **cache)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert runs(place) == 1
    kept(place).unlink()
    done = as_stranger(program, place / "tmp2", **cache)
    assert done.returncode == 0, done.stderr
    assert "Permission denied" in done.stderr
    assert runs(place) == 2
    assert files(place) == []


# -- whose libraries are run -------------------------------------------------------------------------------------------


@pytest.fixture
def default(place, monkeypatch):
    """The cache folder where none is named."""
    monkeypatch.delenv("HFOPTIM_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(place))
    return place / "hfoptim"


def test_the_default_folder_is_the_users_alone(place, default):
    assert works(fresh())
    assert stat.S_IMODE(default.stat().st_mode) == 0o700
    (library,) = default.iterdir()
    assert not library.stat().st_mode & 0o022
    # One that others could write to was made under a loose umask: it is closed.
    default.chmod(0o777)
    assert works(fresh())
    assert not default.stat().st_mode & 0o022
    assert runs(place) == 1
    # What others could have written is not run.
    library.chmod(0o666)
    assert works(fresh())
    assert runs(place) == 2
    assert not library.stat().st_mode & 0o022


@root
def test_what_another_user_has_put_there_is_not_run(place, default):
    assert works(fresh())
    (library,) = default.iterdir()
    os.chown(library, 54321, 54321)
    assert works(fresh())
    assert runs(place) == 2
    assert library.stat().st_uid == 0
    os.chown(default, 54321, 54321)
    with pytest.warns(UserWarning, match="belongs to another user"):
        assert works(fresh())
    assert runs(place) == 3


@root
def test_in_a_folder_that_the_user_has_named_it_is(place):
    assert works(fresh())
    os.chown(kept(place), 54321, 54321)
    (place / "cache").chmod(0o777)
    assert works(fresh())
    assert runs(place) == 1


def test_the_cache_folder_is_that_of_the_user_unless_named(monkeypatch, tmp_path):
    monkeypatch.delenv("HFOPTIM_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert fresh().folder() == tmp_path / "xdg" / "hfoptim"
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for ignored in ("", "relative"):  # as the XDG specification has it
        monkeypatch.setenv("XDG_CACHE_HOME", ignored)
        assert fresh().folder() == tmp_path / "home" / ".cache" / "hfoptim"
    monkeypatch.setenv("HFOPTIM_CACHE", str(tmp_path / "named"))
    assert fresh().folder() == tmp_path / "named"
    monkeypatch.setenv("HFOPTIM_CACHE", "~/named")
    assert fresh().folder() == tmp_path / "home" / "named"


def test_a_folder_named_from_where_the_process_is(place, monkeypatch):
    monkeypatch.chdir(place)
    for name in (".", "with a space/and more"):
        monkeypatch.setenv("HFOPTIM_CACHE", name)
        assert works(fresh())
        assert len(list((place / name).glob("*.so"))) == 1


# -- the compiler ------------------------------------------------------------------------------------------------------


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


def test_a_compiler_that_cannot_be_run(place, monkeypatch, tmp_path):
    broken = tmp_path / "broken-c++"
    broken.write_bytes(b"\x7fELF no program")
    broken.chmod(0o755)
    monkeypatch.setenv("CXX", str(broken))
    module = fresh()
    assert not module.has_float16()
    assert "Exec format error" in module.missing()
    with pytest.raises(RuntimeError, match="Exec format error"):
        module.load(SOURCE)


def test_no_compiler_at_all(place, monkeypatch, tmp_path):
    monkeypatch.delenv("CXX")
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    module = fresh()
    assert module.has_float16() is False
    assert module.missing() == "a C++ compiler (g++ or clang++)"
    with pytest.raises(RuntimeError, match=r"needs a C\+\+ compiler"):
        module.load(SOURCE)


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
