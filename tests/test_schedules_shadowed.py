"""hfoptim's own schedules where `import schedules` finds ours, or something else; each in a new interpreter."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest
from ranks import run_code

import hfoptim

ROOT = Path(hfoptim.__file__).resolve().parent.parent

# What holds in every situation.
HOLDS = """
import pickle, sys, torch
import hfoptim, hfoptim.schedules as ours, hfoptim.schedules.curves
from hfoptim.schedules import get_scheduler
from hfoptim.schedules.shapes import Cosine

assert hfoptim.schedules is ours and ours.get_scheduler is get_scheduler and ours.cosine is Cosine
assert ours.ScheduleLR.__mro__[1].__module__.endswith("schedules.scheduler")

model = torch.nn.Linear(2, 2)
schedule = get_scheduler("cosine", torch.optim.SGD(model.parameters(), lr=1.0), 2, 10)
copy = pickle.loads(pickle.dumps(schedule))
assert type(copy) is type(schedule) and copy.curve == schedule.curve and copy.lr_at(5) == schedule.lr_at(5)
import hfoptim.factory.create
assert hfoptim.factory.create.schedules is ours

def loaded_once():
    files = {}
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None) or ""
        if file.startswith(FOLDER):
            files.setdefault(file, set()).add(id(module))
            assert name.partition(".")[0] == "schedules" or name.startswith("hfoptim.schedules"), name
    assert len(files) > 15, files
    assert all(len(modules) == 1 for modules in files.values()), files

loaded_once()
"""
THEIRS = "WHOSE = 'theirs'\n"


def run(
    folder: Path, *parts: str, script: str = "train.py", launcher: tuple[str, ...] = (), cwd: Path | None = None
) -> None:
    """Run a script in a folder, with our root on the path behind it, as an installed package is."""
    code = "\n".join(map(textwrap.dedent, [f"FOLDER = {str(ROOT / 'schedules') + os.sep!r}", *parts]))
    if not launcher and cwd is None:
        run_code(code, folder=folder)
        return
    (folder / script).write_text(code, encoding="utf-8")
    command = [sys.executable, *launcher, str(folder / script)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=cwd or folder, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


def shadow_file(folder: Path) -> None:
    (folder / "schedules.py").write_text(THEIRS, encoding="utf-8")


def shadow_package(folder: Path) -> None:
    (folder / "schedules").mkdir()
    (folder / "schedules" / "__init__.py").write_text(THEIRS, encoding="utf-8")
    (folder / "schedules" / "curves.py").write_text(THEIRS, encoding="utf-8")


@pytest.mark.parametrize("first", ["import schedules, hfoptim", "import hfoptim, schedules"])
def test_without_a_shadow_both_names_are_one_package(tmp_path: Path, first: str) -> None:
    run(
        tmp_path,
        first,
        HOLDS,
        """
        import schedules, schedules.curves, schedules.named.timm
        assert schedules is ours and schedules.curves is hfoptim.schedules.curves
        for name in [name for name in sys.modules if name.startswith("schedules")]:
            assert sys.modules[name] is sys.modules["hfoptim." + name], name
            assert sys.modules[name].__spec__.name == sys.modules[name].__name__
        assert schedules.ScheduleLR is ours.ScheduleLR
        assert pickle.loads(pickle.dumps(schedules.linear(3))) == ours.linear(3)
        loaded_once()
        """,
    )


@pytest.mark.parametrize(
    ("shadow", "first"),
    [
        pytest.param(shadow_file, "import hfoptim, schedules", id="a file, imported after hfoptim"),
        pytest.param(shadow_package, "import schedules, hfoptim", id="a package, imported before"),
    ],
)
def test_another_schedules_is_left_alone(tmp_path: Path, shadow: Callable[[Path], None], first: str) -> None:
    shadow(tmp_path)
    run(
        tmp_path,
        first,
        HOLDS,
        """
        import schedules
        assert schedules.WHOSE == "theirs" and schedules is not ours
        assert ours.__name__ == "hfoptim.schedules" and type(schedule).__module__ == "hfoptim.schedules.scheduler"
        if hasattr(schedules, "__path__"):
            import schedules.curves
            assert schedules.curves.WHOSE == "theirs"
        else:  # what was pickled is read in a new process with the same shadow
            import subprocess
            read = "import pickle, sys; print(pickle.load(sys.stdin.buffer)(5))"
            done = subprocess.run([sys.executable, "-c", read], input=pickle.dumps(schedule.curve), capture_output=True)
            assert float(done.stdout) == schedule.curve(5), done.stderr
        """,
    )


def test_a_folder_without_modules_shadows_nothing(tmp_path: Path) -> None:
    (tmp_path / "schedules").mkdir()
    run(tmp_path, HOLDS, "import schedules; assert schedules is ours; loaded_once()")


def test_ours_becomes_importable_later(tmp_path: Path) -> None:
    shadow_package(tmp_path)
    run(
        tmp_path,
        "import schedules",
        HOLDS,
        """
        assert schedules.WHOSE == "theirs"
        for name in [name for name in sys.modules if name.partition(".")[0] == "schedules"]:
            del sys.modules[name]
        sys.path.remove(sys.path[0])
        import schedules.curves
        from schedules.shapes import Cosine as again
        assert schedules is ours and schedules.curves is hfoptim.schedules.curves and again is Cosine
        loaded_once()
        """,
    )


def test_their_schedules_may_use_hfoptim(tmp_path: Path) -> None:
    """hfoptim is imported while theirs is in the making; in the end there is one without a file in its place."""
    (tmp_path / "schedules.py").write_text("import hfoptim\nmine = hfoptim.schedules.cosine(5)\n", encoding="utf-8")
    run(
        tmp_path,
        "import schedules",
        HOLDS,
        """
        assert schedules.mine == ours.cosine(5)
        import types
        sys.modules["schedules"] = types.ModuleType("schedules")
        import schedules
        assert not hasattr(schedules, "get_scheduler") and ours.get_scheduler is get_scheduler
        """,
    )


def test_the_launcher_and_the_trainer_leave_the_scripts_own_module_to_it(tmp_path: Path) -> None:
    """The script is not in the current folder, so hfoptim is imported before the script's folder is on the path."""
    there = tmp_path / "there"
    there.mkdir()
    shadow_file(there)
    run(
        there,
        "import schedules; assert schedules.WHOSE == 'theirs'",
        HOLDS,
        "import transformers; assert transformers.SchedulerType('hfoptim_rex')",
        "import hfoptim.trainer; from hfoptim.trainer import build; assert build.schedules is ours",
        launcher=("-m", "hfoptim"),
        cwd=tmp_path,
    )
