"""Triton from scheduled rules: what GPUs run, as C++ is what CPUs run.

`kernel` makes the functions for a plan, `launch` runs them over the rows of a bucket:

    found = kernel.kernel(plan, scalars, row)        # a Kernel: traced, scheduled, written; not yet compiled
    found.source.text                                # a Python module with one function per launch
    found.source.launches                            # in order: name, grid, names of the arguments, warps
    found.source.signature(launch)                   # Triton's types of these arguments, for compiling without a device
    getattr(found.step, launch.name)                 # the function itself, as `triton.jit` gives it

    call = launch.Call(found)                        # one call steps all rows of a bucket that share the functions
    call.add(row, seed)
    call.run(scalars)                                # the sums of a probe, by name; else nothing

No function has a constexpr argument: sizes of blocks are written out. Every pointer among the arguments is 16-byte
aligned (`tt.divisibility`). The addresses inside `table` may not be: each block looks at those of its tensor.
`launch.start` is the one place where functions are launched (with `launch.OPTIONS`), for whoever counts; on meta
tensors all is done but that. What a row of `table` and the other arguments hold is said at `writer.TYPES`.
"""
