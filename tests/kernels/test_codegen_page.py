"""docs/codegen.md quotes what the generator prints; the command prints it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from hfoptim.cli import app
from hfoptim.engine.backends import compiled
from hfoptim.engine.codegen import native
from hfoptim.engine.codegen.triton import kernel

ROOT = Path(__file__).parents[2]
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", (ROOT / "docs/codegen.md").read_text(), re.DOTALL | re.MULTILINE)

needs_compiler = pytest.mark.skipif(compiled.missing() is not None, reason=f"needs {compiled.missing()}")


@pytest.fixture
def shown(monkeypatch):
    monkeypatch.setattr(native, "_programs", {})
    monkeypatch.setattr(native, "_kernels", {})
    monkeypatch.setattr(native.build, "load", lambda source: lambda *arguments: None)  # the text is all that counts
    return lambda *arguments: CliRunner().invoke(app, ["kernels", *arguments])


@needs_compiler
def test_the_page_quotes_what_is_printed(shown):
    result = shown("lamb", "weight_decay=0.1", "max_grad_norm=None")
    assert result.exit_code == 0, result.output
    rule = (ROOT / "hfoptim/optimizers/lamb.py").read_text()
    programs = {key: made for key, made in native._programs.items() if key[0].rule.name == "lamb" and key[-1] is None}
    ((_, names, *_), (program, layout, _)), *_ = programs.items()
    triton = kernel.generate(program, layout, names).text
    assert [kind for kind, _ in BLOCKS] == ["python", "graph", "passes", "cpp", "cpp", "cpp", "cpp", "triton"]
    for kind, text in BLOCKS:
        place = 0
        for part in text.split("...\n"):
            found = {"python": rule, "triton": triton}.get(kind, result.output).find(part, place)
            assert found >= 0, f"docs/codegen.md quotes what is not there (any more):\n{part}"
            place = found + len(part)


@needs_compiler
def test_rows_probes_and_rules_without_a_kernel_are_shown(shown):
    assert "pass 2: reads param, grad; writes param\n" in shown("adafactor").output
    assert "probe of lamb, float32, 2 dimensions\n" in shown("lamb", "weight_decay=0.1").output
    refused = shown("prodigy", "slice_p=3")
    assert refused.exit_code == 2
    assert "fused=True has no kernel for the probe of the rule prodigy" in refused.stderr
    assert "sgdd" in shown("sgdd").stderr
