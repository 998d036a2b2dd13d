"""What may import what, and what the public names promise."""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import hfoptim
import schedules

ROOT = Path(hfoptim.__file__).resolve().parent.parent
HEAVY = ("transformers", "datasets", "accelerate", "tokenizers", "matplotlib", "keras", "timm", "typer", "rich")

# Part of the packages -> what of hfoptim and schedules it may import at the top or inside a function; an entry covers
# its submodules. The first match from the top counts.
MAY_IMPORT = {
    "schedules": {"schedules"},
    "hfoptim.schedules": set(),
    "hfoptim.engine": {"hfoptim.engine"},
    "hfoptim.param_groups": {"hfoptim.engine.checks", "hfoptim.engine.parameter_names", "hfoptim.param_groups"},
    "hfoptim.optimizers": {"hfoptim.engine", "hfoptim.optimizers", "hfoptim.param_groups"},
    "hfoptim.wrappers": {"hfoptim.engine", "hfoptim.optimizers", "hfoptim.wrappers"},
    "hfoptim.training": {"hfoptim.engine", "hfoptim.training"},
    "hfoptim.registry.stubs": {"hfoptim.optimizers", "hfoptim.schedules"},
    "hfoptim.providers": {"hfoptim.providers"},
    "hfoptim.registry": {
        "hfoptim.engine",
        "hfoptim.optimizers",
        "hfoptim.providers",
        "hfoptim.registry",
        "hfoptim.wrappers",
    },
    "hfoptim.factory": {
        "hfoptim.engine",
        "hfoptim.factory",
        "hfoptim.optimizers",
        "hfoptim.param_groups",
        "hfoptim.registry",
        "hfoptim.wrappers",
        "hfoptim.schedules",
    },
    "hfoptim.trainer": {
        "hfoptim.engine",
        "hfoptim.factory",
        "hfoptim.optimizers",
        "hfoptim.param_groups",
        "hfoptim.registry",
        "hfoptim.trainer",
        "hfoptim.training",
        "hfoptim.wrappers",
        "hfoptim.schedules",
    },
    "hfoptim.compare": {"hfoptim"},
    "hfoptim.cli": {"hfoptim"},
    "hfoptim.__main__": {"hfoptim"},
    "hfoptim": {"hfoptim"},
}
# Part -> packages from outside that it may import besides the standard library, anywhere in its files.
OUTSIDE = {
    "schedules.drawing": {"torch", "matplotlib"},
    "schedules": {"torch", "typing_extensions"},
    "hfoptim.engine.codegen.triton.runtime": {"triton"},
    "hfoptim.engine.codegen.triton.written": {"triton"},  # functions that Triton compiles into kernels
    "hfoptim.engine": {"torch", "typing_extensions"},
    "hfoptim.optimizers": {"torch", "typing_extensions"},
    "hfoptim.param_groups": {"torch"},
    "hfoptim.providers": {"torch"},
    "hfoptim.registry": {"torch", "typing_extensions"},
}


def modules():
    """Every module of the two packages, by its dotted name."""
    found = {}
    for package in ("hfoptim", "schedules"):
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def last_name(node):
    """The name, or that after the last dot."""
    return node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else None


@cache
def imported(name, path):
    """The absolute names of all that a module imports, also inside functions, but not for type checkers only."""
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    tree = ast.parse(path.read_text(encoding="utf-8"))
    typing_only = {
        id(node)
        for test in ast.walk(tree)
        if isinstance(test, ast.If) and last_name(test.test) == "TYPE_CHECKING"
        for body in test.body
        for node in ast.walk(body)
    }
    names = set()
    for node in ast.walk(tree):
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, *([base] if base else [])])
            for alias in node.names:
                inner = f"{base}.{alias.name}"
                names.add(inner if inner in MODULES else base)
        elif isinstance(node, ast.Call) and node.args and last_name(node.func) == "import_module":
            names |= {str(arg.value) for arg in node.args[:1] if isinstance(arg, ast.Constant)}
    return names


def within(name, part):
    return name == part or name.startswith(part + ".")


def part_of(name, table):
    return next((part for part in table if within(name, part)), None)


MODULES = modules()


def test_the_walk_sees_modules_and_imports():
    assert {"hfoptim", "schedules", "hfoptim.engine.optimizer", "hfoptim.registry", "hfoptim.optimizers.lion"} <= set(
        MODULES
    )
    assert "hfoptim.engine.backends.compiled" in imported("hfoptim.engine.backends", MODULES["hfoptim.engine.backends"])
    assert "hfoptim.optimizers.shared.moments" in imported(
        "hfoptim.optimizers.lion", MODULES["hfoptim.optimizers.lion"]
    )
    assert "schedules.curves" in imported("schedules.learning_rate", MODULES["schedules.learning_rate"])
    assert "torch" in imported("hfoptim.engine.rule", MODULES["hfoptim.engine.rule"])


@pytest.fixture(scope="module")
def imports():
    """What each module imports."""
    return {name: imported(name, path) for name, path in MODULES.items()}


def test_imports_run_one_way(imports):
    wrong = [
        f"{name} must not import {other}"
        for name, others in imports.items()
        for other in sorted(others)
        if other.split(".")[0] in ("hfoptim", "schedules")
        and not any(within(other, part) for part in MAY_IMPORT[part_of(name, MAY_IMPORT)])
    ]
    assert not wrong, "\n".join(wrong)


def test_no_imports_go_in_circles(imports):
    graph = {name: others & MODULES.keys() - {name} for name, others in imports.items()}
    assert sum(map(len, graph.values())) > 2 * len(graph)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"a circle: {' <- '.join(error.args[1])}")


def packages(names):
    return {name.split(".")[0] for name in names}


def test_the_lower_floors_know_only_torch(imports):
    known = {"hfoptim", "schedules", *sys.stdlib_module_names}
    low = {name: OUTSIDE[part_of(name, OUTSIDE)] for name in MODULES if part_of(name, OUTSIDE)}
    assert len(low) > len(MODULES) / 2
    wrong = {name: more for name, allowed in low.items() if (more := packages(imports[name]) - allowed - known)}
    assert not wrong


# The launcher runs scripts with the trainer's names.
NAME_TRANSFORMERS = ("hfoptim.trainer", "hfoptim.compare", "hfoptim.cli", "hfoptim.__main__")


def test_only_the_trainer_the_comparison_and_the_cli_name_transformers(imports):
    found = {name for name, others in imports.items() if "transformers" in packages(others)}
    assert {name for name in found if not name.startswith(NAME_TRANSFORMERS)} == set()
    assert found


@cache
def modules_after(*statements):
    """All modules that a fresh interpreter has loaded after statements."""
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); {'; '.join(statements)}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


# Names that may be asked for.
ASKED = {
    "schedules": "schedules.get_scheduler",
    "hfoptim": "hfoptim.Lion, hfoptim.create_optimizer_v2, hfoptim.GradientAccumulator",
}


def packages_after(package):
    names = modules_after(f"import torch, {package}", ASKED[package])
    return {name.split(".")[0] for name in names}


@pytest.mark.parametrize("package", ASKED)
def test_beyond_torch_only_our_own_files_are_loaded(package):
    """benchmarks/imports.py has the seconds. No part of torch that torch leaves for later, and no other package."""
    more = modules_after(f"import torch, {package}", ASKED[package]) - modules_after("import torch")
    ours = ("schedules", "hfoptim") if package == "hfoptim" else ("schedules",)
    others = {name for name in more if name.split(".")[0] not in ours}
    assert {name.split(".")[0] for name in others} <= set(sys.stdlib_module_names), sorted(others)
    assert len(others) < 10, sorted(others)
    assert package in more


def test_import_hfoptim_loads_nothing_heavy():
    loaded = packages_after("hfoptim")
    assert {"hfoptim", "torch"} <= loaded
    assert not loaded & set(HEAVY)


def test_import_schedules_loads_nothing_of_hfoptim():
    loaded = packages_after("schedules")
    assert {"schedules", "torch"} <= loaded
    assert not loaded & {*HEAVY, "hfoptim"}


def test_lazy_names_are_found_and_others_are_not():
    for name in ("OptimizerCallback", "enable", "disable"):
        assert getattr(hfoptim, name).__module__.startswith("hfoptim.trainer")
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = hfoptim.no_such_name
    assert set(hfoptim.__all__) <= {*dir(hfoptim), *hfoptim._OF_TRAINER}
    assert hfoptim.__version__


PUBLIC = [
    pytest.param(getattr(package, name), id=f"{package.__name__}.{name}")
    for package in (hfoptim, schedules)
    for name in package.__all__
    if callable(getattr(package, name))
]


def parameters_of(thing):
    try:
        given = inspect.signature(thing).parameters.values()
    except ValueError:
        return []
    return [p.name for p in given if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL) and p.name not in ("self", "cls")]


@pytest.mark.parametrize("thing", PUBLIC)
def test_public_names_are_documented(thing):
    text = inspect.getdoc(thing)
    assert text, f"{thing} has no docstring"
    assert len(text.splitlines()[0]) <= 120
    assert text.splitlines()[0].rstrip().endswith(".") or "\n" in text
    if inspect.isclass(thing) and issubclass(thing, str):
        return  # an enumeration
    names = parameters_of(thing)
    referred = "rguments as for" in text or "rguments of" in text
    if len(names) > 1 and not referred:
        section = "Args:" if "Args:" in text else "Attributes:"
        assert section in text, f"{thing.__name__} does not describe its arguments"
        missing = [name for name in names if name not in text.split(section, 1)[1]]
        assert not missing, f"{thing.__name__} does not describe {missing}"


@pytest.mark.parametrize("name", hfoptim.list_optimizers(exclude_filters=["lbfgs"]))  # torch's own class
def test_optimizers_state_their_errors_equation_and_source(name):
    cls = hfoptim.get_optimizer_info(name).opt_class
    text = inspect.getdoc(cls)
    for section in ("Args:", "Raises:", "Source:"):
        assert section in text, f"{cls.__name__} has no section {section}"
    assert " = p - " in text or "P = P - " in text, f"{cls.__name__} does not show its update"
    for option in ("maximize", "foreach", "fused", "caution", "kahan_sum"):
        assert option in text


def test_transcriptions_know_nothing_of_what_they_check():
    folder = ROOT / "tests" / "transcriptions"
    for path in folder.glob("*.py"):
        outside = {name.partition(".")[0] for name in imported(f"transcriptions.{path.stem}", path)}
        assert outside <= {*sys.stdlib_module_names, "numpy", "transcriptions"}, path.name
