"""Optimizers of other packages by name: a table for each package, and nothing imported until one is asked for."""

from hfoptim.providers.apex import APEX
from hfoptim.providers.bitsandbytes import BITSANDBYTES
from hfoptim.providers.deepspeed import DEEPSPEED
from hfoptim.providers.flashoptim import FLASHOPTIM
from hfoptim.providers.provider import Outside, Provider
from hfoptim.providers.torch import TORCH
from hfoptim.providers.torchao import TORCHAO

PROVIDERS = (APEX, BITSANDBYTES, DEEPSPEED, FLASHOPTIM, TORCH, TORCHAO)

__all__ = ["PROVIDERS", "Outside", "Provider"]
