"""The model of a comparison and its tokenizer: a small GPT-2 made on the spot, or one of the user's."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from hfoptim.compare.config import CompareConfig, CompareError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

VOCABULARY = 2048
END = "<|endoftext|>"


def train_tokenizer(texts: Sequence[str]) -> PreTrainedTokenizerBase:
    """Train a byte-level BPE on texts; every text can be encoded, there is no unknown token.

    Args:
        texts: The training documents only: the held-out text must not shape the vocabulary.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END, bos_token=END, pad_token=END)


def small_gpt2(vocabulary: int, seq_len: int, end: int, seed: int) -> PreTrainedModel:
    """A GPT-2 of about one million parameters: 4 layers, width 128, 4 heads, no dropout.

    Args:
        vocabulary: Number of tokens.
        seq_len: Longest sequence in tokens.
        end: Id of the end token.
        seed: Seed of the initial weights.
    """
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(seed)
    config = GPT2Config(
        vocab_size=vocabulary,
        n_positions=seq_len,
        n_embd=128,
        n_layer=4,
        n_head=4,
        # 0.02 is meant for GPT-2's width of 768; the narrower the model, the larger the weights have to start.
        initializer_range=0.05,
        # The runs see the text about twice: dropout would only slow them down.
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=end,
        eos_token_id=end,
        use_cache=False,
    )
    return GPT2LMHeadModel(config)


def load_model(config: CompareConfig, seed: int) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model and tokenizer that `--model` names, in float32.

    Raises:
        CompareError: One of them cannot be loaded, or the model cannot take sequences of `seq_len` tokens.
    """
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    assert config.model is not None
    try:
        tokenizer = AutoTokenizer.from_pretrained(config.model)
        model_config = AutoConfig.from_pretrained(config.model)
        longest = getattr(model_config, "max_position_embeddings", None)
        if longest is not None and config.seq_len > longest:
            raise CompareError(f"--seq-len {config.seq_len} is more than the {longest} tokens {config.model} can take")
        torch.manual_seed(seed)
        if config.from_scratch:
            model = AutoModelForCausalLM.from_config(model_config, dtype=torch.float32)
        else:
            model = AutoModelForCausalLM.from_pretrained(config.model, dtype=torch.float32)
    except CompareError:
        raise
    except Exception as error:  # a missing file, an unknown architecture, no network: all end here
        hint = "; --from-scratch takes only its architecture" if (Path(config.model) / "config.json").exists() else ""
        raise CompareError(f"--model {config.model} cannot be loaded: {type(error).__name__}: {error}{hint}") from error
    if tokenizer.eos_token_id is None:
        raise CompareError(f"--model {config.model}: its tokenizer has no end-of-text token to put between documents")
    if len(tokenizer) > model.get_input_embeddings().num_embeddings:
        raise CompareError(
            f"--model {config.model}: its tokenizer has {len(tokenizer)} tokens, "
            f"the model only {model.get_input_embeddings().num_embeddings}"
        )
    model.config.use_cache = False
    return model, tokenizer


def empty_model(name: str) -> PreTrainedModel:
    """A model without weights, on the device "meta", made from its configuration alone.

    Args:
        name: of a model on the hub, or a local folder.

    Raises:
        CompareError: its configuration cannot be read, or no model can be made from it.
    """
    import transformers

    try:
        config = transformers.AutoConfig.from_pretrained(name)
        named = [getattr(transformers, each, None) for each in config.architectures or ()]
        with torch.device("meta"):
            made: PreTrainedModel = (
                named[0](config) if named and named[0] else transformers.AutoModel.from_config(config)
            )
    except (OSError, ValueError, KeyError) as error:
        raise CompareError(f"no model can be made from the configuration of {name!r}: {error}") from error
    return made
