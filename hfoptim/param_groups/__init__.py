"""Which parameters take which options: layers, weight decay, heads, hidden matrices, options by pattern."""

from hfoptim.param_groups.adapters import param_groups_lora_plus
from hfoptim.param_groups.mup import param_groups_mup
from hfoptim.param_groups.options import param_groups_options
from hfoptim.param_groups.paramwise import param_groups_paramwise
from hfoptim.param_groups.selection import decay_groups, head_names, layer_decay_groups, param_groups_muon
from hfoptim.param_groups.timm import auto_group_layers, param_groups_layer_decay, param_groups_weight_decay

__all__ = [
    "auto_group_layers",
    "decay_groups",
    "head_names",
    "layer_decay_groups",
    "param_groups_layer_decay",
    "param_groups_lora_plus",
    "param_groups_muon",
    "param_groups_mup",
    "param_groups_options",
    "param_groups_paramwise",
    "param_groups_weight_decay",
]
