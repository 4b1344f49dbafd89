"""The demo's model: a small GPT-2 with its own tokenizer, and the folder it is kept in."""

import os
import shutil
import tempfile
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from whence.errors import BadInput
from whence.records import Recipe
from whence.store import read_record, write_json

__all__ = ["DEFAULTS", "Settings", "load", "new_model", "save", "train_tokenizer"]

END = "<|endoftext|>"
_NARROW = 128
# Which attention a new model takes; the argument is one of all configurations, and announced by none.
_ATTENTION: dict[str, Any] = {"attn_implementation": "sdpa"}


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Size of the demo's model and how it is trained.

    Args:
        vocabulary: Tokens, the 256 bytes and the end-of-text token included.
        context: Positions at most.
        layers: Transformer blocks.
        heads: Attention heads per block.
        width: Size of the residual stream.
        epochs: Passes over the documents that are kept.
        batch_examples: Documents per step.
        learning_rate: At its highest, after the warm-up.
        warmup: Share of the steps in which the learning rate rises; it falls linearly to zero in the rest.
        weight_decay: Decoupled, as in AdamW.
    """

    vocabulary: int = 2048
    context: int = 128
    layers: int = 2
    heads: int = 4
    width: int = 64
    epochs: int = 8
    batch_examples: int = 8
    learning_rate: float = 8e-3
    warmup: float = 0.1
    weight_decay: float = 0.0


DEFAULTS = Settings()


def train_tokenizer(texts: Iterable[str], settings: Settings = DEFAULTS) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer: any text round-trips, and words of the corpus take few tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=settings.vocabulary,
        special_tokens=[END],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=END,
        eos_token=END,
        pad_token=END,
        model_max_length=settings.context,
    )


def new_model(vocabulary: int, seed: int, settings: Settings = DEFAULTS) -> GPT2LMHeadModel:
    """An untrained GPT-2 whose weights depend on nothing but the arguments."""
    config = GPT2Config(
        vocab_size=vocabulary,
        n_positions=settings.context,
        n_embd=settings.width,
        n_layer=settings.layers,
        n_head=settings.heads,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=0,
        eos_token_id=0,
        # GPT-2's own 0.02 suits a width of 768; at that of the demo it costs about two epochs.
        initializer_range=0.08 if settings.width <= _NARROW else 0.02,
        **_ATTENTION,
    )
    # transformers initialises from the global generator, so it is seeded here and put back afterwards.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return GPT2LMHeadModel(config)


def save(model: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerFast, recipe: Recipe, folder: str | Path) -> None:
    """Write an ordinary Hugging Face folder, plus `recipe.json`. It appears complete or not at all."""
    folder = Path(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    beside = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        model.save_pretrained(beside)
        tokenizer.save_pretrained(beside)
        write_json(beside / "recipe.json", asdict(recipe))
        if folder.exists():
            shutil.rmtree(folder)
        os.replace(beside, folder)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def load(folder: str | Path) -> tuple[GPT2LMHeadModel, PreTrainedTokenizerFast, Recipe]:
    """What `save` wrote; the model is in evaluation mode.

    Returns:
        Model, tokenizer and recipe.

    Raises:
        BadInput: If the folder is not one that `save` wrote.
    """
    path = Path(folder) / "recipe.json"
    if not path.is_file():
        raise BadInput(found=f"no {path}", needed="a model that the demo saved", do="run `whence demo` again")
    recipe = read_record(Recipe, path)
    model = GPT2LMHeadModel.from_pretrained(folder, local_files_only=True, attn_implementation="sdpa")
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)
    return model.eval(), tokenizer, recipe
