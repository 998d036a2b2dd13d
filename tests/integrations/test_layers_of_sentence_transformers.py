"""layer_decay over a whole SentenceTransformer: its encoder is the first module of a row of unlike ones."""

import pytest

pytest.importorskip("sentence_transformers", reason="make test-trainers has it")
import sentence_transformers as st
from transformers import BertConfig, BertModel, BertTokenizerFast

from hfoptim import create_optimizer_v2


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_the_encoders_layers_count(tmp_path):
    from sentence_transformers import models

    sizes = {"hidden_size": 8, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 8}
    BertModel(BertConfig(**sizes, vocab_size=8, max_position_embeddings=16)).save_pretrained(tmp_path)
    words = tmp_path / "vocab.txt"
    words.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "b", "c"]))
    BertTokenizerFast(str(words)).save_pretrained(tmp_path)
    parts = [models.Transformer(str(tmp_path)), models.Pooling(8), models.Dense(8, 4), models.Dense(4, 4)]
    model = st.SentenceTransformer(modules=parts)
    optimizer = create_optimizer_v2(model, "adamw", lr=1.0, layer_decay=0.5)
    rates = {name: group["lr"] for group in optimizer.param_groups for name in group["param_names"]}
    for name, lr in rates.items():
        above = 3 - int(name.split(".")[4]) if ".encoder.layer." in name else 4 if ".embeddings." in name else 0
        assert lr == 0.5**above, name
    assert set(rates.values()) == {1.0, 0.5, 0.25, 0.125, 0.0625}
