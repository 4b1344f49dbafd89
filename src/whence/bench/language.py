"""The bench's language models: their documents, their sizes, and the pretrained weights of the larger one."""

import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from whence.bench.data import documents, tuning_documents
from whence.data import Dataset, digest_of
from whence.demo.model import Settings, new_model, train_tokenizer
from whence.demo.train import train
from whence.progress import say
from whence.store import write_tensors
from whence.tasks import CausalLM

__all__ = ["MEDIUM", "TEXT", "TEXT_LONG", "Language", "from_scratch", "pretrained", "tuned"]

# Two layers of width 96 stopped well before convergence: 223 thousand parameters in blocks, 197 thousand in the tied embedding and head.
TEXT = Settings(context=64, width=96, epochs=4, batch_examples=16, learning_rate=4e-3)
# The same trained until it has learned its documents by heart.
TEXT_LONG = replace(TEXT, epochs=12, batch_examples=32)
# 6.3 million parameters in blocks, 4.2 million in the tied embedding and head: the MLP's sides and the vocabulary are longer than 1,024.
MEDIUM = Settings(vocabulary=8192, context=32, width=512, heads=8, epochs=1, batch_examples=16, learning_rate=1e-3)
_PRETRAINING = replace(MEDIUM, epochs=4, batch_examples=32)
_TRAIN_DOCUMENTS, _TUNING_DOCUMENTS, _QUERY_DOCUMENTS = 1024, 2000, 64
# Tokens of a passage to fine-tune on, of the 32 that the model reads: of whole ones there are too few.
_SHORTEST = 28


@dataclass(frozen=True)
class Language:
    """A language model's documents and training.

    Args:
        settings: Size and training.
        tokenizer: Of the documents.
        train: Training documents; those of a model from scratch are as long as the context, so that every system reads the same batches.
        queries: As long, never trained on.
        start: Weights that training starts from; None for a model from scratch.
    """

    settings: Settings
    tokenizer: Any
    train: Dataset
    queries: Dataset
    start: Path | None = None

    @property
    def vocabulary(self) -> int:
        """Number of tokens."""
        return len(self.tokenizer)


def from_scratch(settings: Settings) -> Language:
    """A model trained from scratch on 1,024 passages of Python's documentation."""
    records = documents()
    tokenizer = _tokenizer(records, settings)
    long = _long(records, tokenizer, settings, settings.context)
    return Language(settings, tokenizer, *_split(long, _TRAIN_DOCUMENTS, _QUERY_DOCUMENTS))


def tuned(folder: Path) -> Language:
    """A model of 10.5 million parameters, fine-tuned on 2,000 passages from weights that other passages were learned with.

    Args:
        folder: Of models; the pretrained weights are made if they are not there.
    """
    first, second = tuning_documents()
    tokenizer = _tokenizer([*first, *second], MEDIUM)
    long = _long(second, tokenizer, MEDIUM, _SHORTEST)
    start = pretrained(folder, first, tokenizer, _PRETRAINING)
    return Language(MEDIUM, tokenizer, *_split(long, _TUNING_DOCUMENTS, _QUERY_DOCUMENTS), start)


def pretrained(folder: Path, records: Sequence[Mapping[str, str]], tokenizer: Any, settings: Settings) -> Path:
    """Weights trained on some documents, made once.

    Args:
        folder: Where they are kept.
        records: Documents with their `text`.
        tokenizer: As `whence.CausalLM` takes it.
        settings: Size and training.

    Returns:
        The file (.safetensors).
    """
    dataset = _task(tokenizer, settings).prepare(records)
    weights = folder / f"pretrained-{digest_of(dataset.fingerprint, repr(settings)).hex()[:16]}.safetensors"
    if not weights.exists():
        say(f"pretraining on {len(dataset):,} documents")
        trained = train(dataset, len(tokenizer), settings=settings, quiet=False)
        say(f"     loss per token, epoch by epoch: {', '.join(f'{loss:.2f}' for loss in trained.losses)} nats")
        folder.mkdir(parents=True, exist_ok=True)
        write_tensors(weights, {name: value.detach().contiguous() for name, value in trained.model.named_parameters()})
    return weights


def _tokenizer(records: Iterable[Mapping[str, str]], settings: Settings) -> Any:
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    logging.getLogger("transformers").setLevel(logging.ERROR)
    return train_tokenizer((record["text"] for record in records), settings)


def _long(records: Sequence[Mapping[str, str]], tokenizer: Any, settings: Settings, tokens: int) -> Sequence[Any]:
    """The documents that have so many tokens."""
    examples = _task(tokenizer, settings).prepare(records).examples
    return [example for example in examples if example.length >= tokens]


def _split(examples: Sequence[Any], train_documents: int, query_documents: int) -> tuple[Dataset, Dataset]:
    return Dataset(examples[:train_documents]), Dataset(examples[train_documents:][:query_documents])


def _task(tokenizer: Any, settings: Settings) -> CausalLM:
    return CausalLM(new_model(len(tokenizer), 0, settings), tokenizer, long="truncate")
