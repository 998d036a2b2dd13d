"""The curves behind the names: each a function of the warm-up, the total and its own options, one module per source.

``num_warmup_steps`` (W) and ``num_training_steps`` (T) are in steps of the optimizer; T includes the warm-up.
"""
