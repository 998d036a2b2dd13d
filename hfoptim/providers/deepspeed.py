"""DeepSpeed: kernels for CPUs and GPUs, which it compiles when an optimizer is made, and 1-bit communication."""

from __future__ import annotations

from hfoptim.providers.provider import Outside, Provider

_ENGINE = (
    "DeepSpeed's engine, as its option `deepspeed`, and processes that have been started; for a Trainer name it in "
    'DeepSpeed\'s configuration: {{"optimizer": {{"type": "{}"}}}}'
)
_ONEBIT = "deepspeed.runtime.fp16.onebit"

DEEPSPEED = Provider(
    "deepspeed",
    "ds_",
    "deepspeed",
    'pip install "deepspeed>=0.16" (1-bit optimizers: up to 0.19.0)',
    "https://github.com/deepspeedai/DeepSpeed",
    (
        Outside("ds_fused_adam", "deepspeed.ops.adam.FusedAdam", "adamw", "AdamW, or Adam by adam_w_mode, on GPUs"),
        Outside("ds_cpu_adam", "deepspeed.ops.adam.DeepSpeedCPUAdam", "adamw", "AdamW, or Adam by adamw_mode, on CPUs"),
        Outside("ds_fused_lamb", "deepspeed.ops.lamb.FusedLamb", "lamb", "LAMB on GPUs"),
        Outside("ds_fused_lion", "deepspeed.ops.lion.FusedLion", "lion", "Lion on GPUs"),
        Outside("ds_cpu_lion", "deepspeed.ops.lion.DeepSpeedCPULion", "lion", "Lion on CPUs"),
        Outside("ds_cpu_adagrad", "deepspeed.ops.adagrad.DeepSpeedCPUAdagrad", "adagrad", "Adagrad on CPUs"),
        Outside(
            "ds_onebit_adam",
            f"{_ONEBIT}.adam.OnebitAdam",
            "adam",
            "Adam whose momentum is exchanged in 1 bit after freeze_step",
            needs=_ENGINE.format("OneBitAdam"),
        ),
        Outside(
            "ds_zero_one_adam",
            f"{_ONEBIT}.zoadam.ZeroOneAdam",
            "adam",
            "0/1 Adam: exchanges in 1 bit, and rarely",
            needs=_ENGINE.format("ZeroOneAdam"),
        ),
        Outside(
            "ds_onebit_lamb",
            f"{_ONEBIT}.lamb.OnebitLamb",
            "lamb",
            "LAMB whose momentum is exchanged in 1 bit after freeze_step",
            needs=_ENGINE.format("OneBitLamb"),
        ),
    ),
)
