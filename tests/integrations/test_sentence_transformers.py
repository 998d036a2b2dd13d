"""SentenceTransformerTrainer: its losses' weights and its learning-rate mapping."""

import pytest

st = pytest.importorskip("sentence_transformers", reason="make test-trainers has it")


def test_its_trainer_is_a_trainer_of_transformers():
    from transformers import Trainer

    assert issubclass(st.SentenceTransformerTrainer, Trainer)
