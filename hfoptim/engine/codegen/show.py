"""Kernels as text: what a rule computes, in which passes over memory, and the C++ that it becomes."""

from __future__ import annotations

from collections.abc import Iterator

from hfoptim.engine.codegen import cpp, native
from hfoptim.engine.codegen.schedule import Program


def known(rule: str | None = None) -> dict[str, str]:
    """The kernels of the steps that this process has taken with kernels so far.

    Args:
        rule: the name of a rule whose kernels are wanted; None for all.

    Returns:
        By a title, the graph, the passes and the C++, or the reason why there is no kernel.
    """
    found = {}
    for (plan, names, shape, dtypes, function), made in native._programs.items():
        if rule is None or plan.rule.name == rule:
            probe = plan.rule.probe
            of = "" if function is None else "probe of " if probe and function is probe.fn else "report of "
            title = f"{of}{plan.rule.name}, {str(dtypes[0]).removeprefix('torch.')}"
            title += "" if shape is None else f", {len(shape)} dimensions"
            if isinstance(made, Exception):
                found[title] = f"no kernel: {made}\n"
                continue
            program, layout, _ = made
            values = ["param", "grad", *plan.rule.state]
            source = cpp.generate(program, layout, names, native._codebook)
            found[title] = "\n".join([*graph(program, values), "", *passes(program, values), "", source])
    return found


def graph(program: Program, values: list[str]) -> Iterator[str]:
    """One line for each operation that is needed: what it is, what it varies over, in which pass it is first known.

    Args:
        program: the scheduled rule.
        values: the names of what is in memory: parameter, gradient, states.
    """
    for i in sorted(program.live):
        node = program.nodes[i]
        if node.op == "load":
            said = values[node.value]
        elif node.op == "scalar":
            said = f"h.{node.value}"
        elif node.op in ("number", "size"):
            said = f"{node.op} {node.value}"
        else:
            said = f"{node.op}({', '.join(f'v{a}' for a in node.args)})"
        yield f"{f'v{i} = {said}':28}{program.kinds[i]:8}{program.times[i][0]}"


def passes(program: Program, values: list[str]) -> Iterator[str]:
    """One line for each walk over memory: what is read, written and summed up. Arguments as for `graph`."""
    for phase in range(program.phases):
        for sub in range(program.subs(phase)):
            time = (phase, sub)
            read = [values[index] for index in sorted({*program.reads(time).values()})]
            written = [values[store.position] for store in program.stored(time, "full")]
            reduced = [f"v{i}" for i in program.reductions(time, "full")]
            said = [f"{verb} {', '.join(what)}" for verb, what in (("reads", read), ("writes", written)) if what]
            said += [f"reduces to {', '.join(reduced)}"] if reduced else []
            if said:
                again = f", walk {sub + 1} of a row" if sub else ""
                yield f"pass {phase}{again}: {'; '.join(said)}"
