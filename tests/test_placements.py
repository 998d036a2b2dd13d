"""What becomes of every parameter: `describe_param_groups` and `hfoptim groups` say what the optimizer then does."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, Phi3Config, Phi3ForCausalLM
from typer.testing import CliRunner

import hfoptim
from hfoptim.cli import app


def phi3():
    sizes = {"hidden_size": 24, "intermediate_size": 20, "num_hidden_layers": 2, "vocab_size": 16, "pad_token_id": 0}
    config = Phi3Config(num_attention_heads=4, num_key_value_heads=2, **sizes, architectures=["Phi3ForCausalLM"])
    with torch.device("meta"):
        return Phi3ForCausalLM(config)


def test_muon_says_what_it_takes_for_matrices_and_why_not_the_rest():
    model = phi3()
    model.model.norm.weight.requires_grad_(False)
    found = {each.name: each for each in hfoptim.describe_param_groups(model, "muon", lr=2e-3, weight_decay=0.1)}
    assert list(found) == [name for name, _ in model.named_parameters()]
    qkv = found["model.layers.1.self_attn.qkv_proj.weight"]
    assert qkv.taken_by == "muon: matrix 24x24 and 2 matrices 12x24"
    assert (qkv.lr, qkv.weight_decay, qkv.why) == (2e-3, 0.1, "")
    assert found["model.layers.0.mlp.gate_up_proj.weight"].taken_by == "muon: 2 matrices 20x24"
    assert found["model.layers.0.mlp.down_proj.weight"].taken_by == "muon: matrix 24x20"
    head, table = found["lm_head.weight"], found["model.embed_tokens.weight"]
    assert {head.taken_by, table.taken_by} == {"muon: adamw"}
    assert (head.why, table.why) == ("head, by its name", "embedding or table of positions, by its name")
    norm = found["model.layers.0.input_layernorm.weight"]
    assert (norm.taken_by, norm.weight_decay, norm.why) == ("muon: adamw", 0.0, "vector")
    frozen = found["model.norm.weight"]
    assert (frozen.taken_by, frozen.group, frozen.lr) == ("frozen", None, None)


def test_what_one_says_against_the_names_is_said_back():
    options = {"lm_head.weight": {"use_muon": True}, "*down_proj*": {"use_muon": False}}
    found = {each.name: each for each in hfoptim.describe_param_groups(phi3(), "muon", param_options=options)}
    assert (found["lm_head.weight"].taken_by, found["lm_head.weight"].why) == ("Muon: matrix 16x24", "use_muon=True")
    down = found["model.layers.1.mlp.down_proj.weight"]
    assert (down.taken_by, down.why) == ("Muon: adamw", "use_muon=False")


def test_groups_and_rates_are_those_of_the_optimizer():
    model = GPT2LMHeadModel(GPT2Config(n_layer=2, n_embd=8, n_head=2, vocab_size=16, n_positions=8))
    options = {"layer_decay": 0.5, "head_lr": None, "param_options": {"*.c_fc.*": {"optimizer": "lion", "lr": 1e-4}}}
    optimizer = hfoptim.create_optimizer_v2(model, "adamw", lr=1e-3, weight_decay=0.1, **options)
    found = hfoptim.describe_param_groups(model, optimizer)
    params = dict(model.named_parameters())
    for each in found:
        group = optimizer.param_groups[each.group]
        assert any(param is params[each.name] for param in group["params"])
        assert (each.lr, each.weight_decay, each.why) == (group["lr"], group["weight_decay"], "")
        assert each.taken_by == ("Lion" if ".c_fc." in each.name else "Adam")
    assert {each.taken_by for each in hfoptim.describe_param_groups(model, "AdamW")} == {"adamw"}
    with pytest.raises(TypeError, match=r"options \(lr\)"):
        hfoptim.describe_param_groups(model, optimizer, lr=1.0)


def test_parameters_in_no_group_are_named():
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    found = hfoptim.describe_param_groups(model, torch.optim.SGD(model[0].parameters(), lr=0.1))
    assert [(each.taken_by, each.group) for each in found] == [("SGD", 0)] * 2 + [("nothing", None)] * 2


def test_the_table_has_a_row_for_like_layers():
    lines = str(hfoptim.describe_param_groups(phi3(), "muon")).splitlines()
    assert len(lines) == 1 + 3 + 6
    (qkv,) = [line.split() for line in lines if "qkv_proj" in line]
    assert qkv[:3] == ["model.layers.*.self_attn.qkv_proj.weight", "2", "48x24"]


def test_the_command_reads_the_configuration_alone(tmp_path):
    phi3().config.save_pretrained(tmp_path)
    said = ["groups", str(tmp_path), "--optim", "muon", "weight_decay=0.1", "lr=3e-4"]
    result = CliRunner().invoke(app, said, env={"COLUMNS": "220"})
    assert result.exit_code == 0, result.output
    (line,) = [line for line in result.stdout.splitlines() if "qkv_proj" in line]
    cells = [cell.strip() for cell in line.strip("│").split("│")]
    assert cells[0] == "model.layers.*.self_attn.qkv_proj.weight"
    assert "muon: matrix 24x24 and 2 matrices 12x24" in cells
    assert "0.0003" in cells
    assert "0.1" in cells
    unknown = CliRunner().invoke(app, ["groups", str(tmp_path / "nothing"), "--optim", "muon"])
    assert unknown.exit_code == 2
    assert "no model can be made" in unknown.stderr
    wrong = CliRunner().invoke(app, ["groups", str(tmp_path), "--optim", "muonn"])
    assert wrong.exit_code == 2
    assert "muon" in wrong.stderr
