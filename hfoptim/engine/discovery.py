"""What the classes in a folder declare of themselves, read from the source: nothing is imported for it."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hfoptim.engine.declaration import Name

# What a class body may say of an optimizer's needs, as True or False.
NEEDS = ("needs_closure", "second_order", "hidden_matrices", "sparse_only")


@dataclass(frozen=True)
class FoundClass:
    """An optimizer's class as its source declares it.

    Args:
        module: the module it is in.
        name: the class's name.
        summary: the first line of its docstring.
        paper: the first paper that its docstring names as a source, an address.
        names: what it is chosen by.
        needs: which of `NEEDS` it says, and what.
    """

    module: str
    name: str
    summary: str
    paper: str
    names: tuple[Name, ...]
    needs: Mapping[str, bool]


@dataclass(frozen=True)
class FoundModule:
    """A module with optimizers, and the names of what is in it for users."""

    name: str
    public: tuple[str, ...]
    classes: tuple[FoundClass, ...]


def found_in(folder: Path, package: str) -> Iterator[FoundModule]:
    """The modules of a folder that declare optimizers, in the order of their names.

    Args:
        folder: where the sources are.
        package: what the folder is called in an import.

    Raises:
        ValueError: a declaration is not literal.
    """
    for path in sorted(folder.glob("*.py")):
        source = path.read_text(encoding="utf-8")
        if not re.search(r"^    names\b", source, re.MULTILINE):
            continue
        module, tree = f"{package}.{path.stem}", ast.parse(source, str(path))
        classes = tuple(
            _class(node, names, module, path)
            for node in tree.body
            if isinstance(node, ast.ClassDef) and (names := _assigned(node.body, "names")) is not None
        )
        listed = _assigned(tree.body, "__all__")
        public = [each.name for each in classes] if listed is None else _literal(listed, "__all__", path)
        yield FoundModule(module, tuple(public), classes)


def summary_of(doc: str | None) -> str:
    """The first line of a docstring, without its full stop."""
    return " ".join((doc or "").strip().partition("\n\n")[0].split()).removesuffix(".")


def paper_of(doc: str | None) -> str:
    """The address of the first paper, or the first address, in the section Source of a docstring; "" for none."""
    _, _, source = (doc or "").partition("Source:\n")
    found = re.search(r"arXiv\s+(\d{4}\.\d{4,5})|(https?://[^\s,;)]+)", source)
    if found is None:
        return ""
    return f"https://arxiv.org/abs/{found[1]}" if found[1] else found[2].rstrip(".")


def _class(node: ast.ClassDef, names: ast.expr, module: str, path: Path) -> FoundClass:
    of = f"{node.name}.names"
    if not isinstance(names, ast.Tuple):
        raise _error(names, of, path, 'expected a tuple: (Name("lion", paper="https://..."),)')
    needs = {
        need: bool(_literal(value, f"{node.name}.{need}", path))
        for need in NEEDS
        if (value := _assigned(node.body, need)) is not None
    }
    if _assigned(node.body, "curvature") is not None:
        needs["second_order"] = True
    found = tuple(_name(call, of, path) for call in names.elts)
    doc = ast.get_docstring(node)
    return FoundClass(module, node.name, summary_of(doc), paper_of(doc), found, needs)


def _name(call: ast.expr, of: str, path: Path) -> Name:
    if not isinstance(call, ast.Call) or ast.unparse(call.func).rpartition(".")[2] != "Name":
        raise _error(call, of, path, 'expected Name("lion", ...)')
    keywords = {str(each.arg): _literal(each.value, of, path) for each in call.keywords}
    try:
        return Name(*(_literal(arg, of, path) for arg in call.args), **keywords)
    except TypeError as error:
        raise _error(call, of, path, str(error)) from None


def _assigned(body: list[ast.stmt], name: str) -> ast.expr | None:
    """What a class's or module's body assigns to a name."""
    for node in body:
        if isinstance(node, (ast.Assign, ast.AnnAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            if any(isinstance(target, ast.Name) and target.id == name for target in targets):
                return node.value
    return None


def _literal(node: ast.expr, of: str, path: Path) -> Any:
    try:
        return ast.literal_eval(node)
    except ValueError:
        raise _error(node, of, path, "it is read without being run, so it must be literal") from None


def _error(node: ast.expr, of: str, path: Path, expected: str) -> ValueError:
    return ValueError(f"{path}:{node.lineno}: {of} has {ast.unparse(node)}; {expected}")
