"""How state and low-precision parameters are kept between steps: full, bfloat16, codes of 8 or 4 bits; and their rests.

The formats are defined here, in eager operations; a kernel that knows them does the same in one pass.
"""

from hfoptim.engine.storage.codebooks import code_values, codebook, midpoints
from hfoptim.engine.storage.convert import converted, fit_residual, fits, inits, is_coded, kept_as
from hfoptim.engine.storage.formats import (
    COMPRESS_FROM,
    FULL,
    RESIDUALS,
    Format,
    Rounding,
    Storage,
    exact_dtype,
    full,
    matrix_shape,
    rounding_of,
    scale_name,
    storages,
)
from hfoptim.engine.storage.rounding import (
    drawing_seed,
    join_float32,
    normal,
    random_bits,
    row_seed,
    split_float32,
    state_seed,
    stochastic_bfloat16,
)
from hfoptim.engine.storage.rows import (
    as_read,
    decode,
    encode,
    encode_param,
    encode_state,
    with_rest,
)
from hfoptim.engine.storage.weights import exact_weight, write_weight

__all__ = [
    "COMPRESS_FROM",
    "FULL",
    "RESIDUALS",
    "Format",
    "Rounding",
    "Storage",
    "as_read",
    "code_values",
    "codebook",
    "converted",
    "decode",
    "drawing_seed",
    "encode",
    "encode_param",
    "encode_state",
    "exact_dtype",
    "exact_weight",
    "fit_residual",
    "fits",
    "full",
    "inits",
    "is_coded",
    "join_float32",
    "kept_as",
    "matrix_shape",
    "midpoints",
    "normal",
    "random_bits",
    "rounding_of",
    "row_seed",
    "scale_name",
    "split_float32",
    "state_seed",
    "stochastic_bfloat16",
    "storages",
    "with_rest",
    "write_weight",
]
