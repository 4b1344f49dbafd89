"""The demo's model, trained on passages once and then used again."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from whence.demo.model import DEFAULTS, Settings, load, new_model, save, train_tokenizer
from whence.demo.train import train
from whence.progress import say
from whence.tasks import CausalLM

__all__ = ["trained_on"]


def trained_on(
    documents: Sequence[Mapping[str, Any]], folder: str | Path, *, seed: int = 0, settings: Settings = DEFAULTS
) -> CausalLM:
    """A small GPT-2 and its tokenizer, trained on passages; what is in the folder already is loaded instead.

    Args:
        documents: Passages with their `text`.
        folder: Where the model is kept.
        seed: Of the weights and of the order of the passages.
        settings: Size and training.

    Returns:
        The task, with the recipe of its training.
    """
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    if not (Path(folder) / "recipe.json").exists():
        tokenizer = train_tokenizer((document["text"] for document in documents), settings)
        dataset = CausalLM(new_model(len(tokenizer), seed, settings), tokenizer, long="truncate").prepare(documents)
        trained = train(dataset, len(tokenizer), seed=seed, settings=settings, quiet=False)
        say(f"     loss per token, epoch by epoch: {', '.join(f'{loss:.2f}' for loss in trained.losses)} nats")
        save(trained.model, tokenizer, trained.recipe, folder)
    model, tokenizer, recipe = load(folder)
    return CausalLM(model, tokenizer, long="truncate", recipe=recipe)
