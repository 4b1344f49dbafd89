"""One store at the service: its model, its examples, what is known of it, and how a question becomes a query."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from whence.data import Dataset, Example
from whence.errors import BadInput, StoreChanged, Unsupported
from whence.methods import method_named
from whence.pipeline.stored.prepared import PreparedStore
from whence.pipeline.words import store_words
from whence.score import WordIndex
from whence.serve.catalog import Catalog
from whence.serve.item_reader import ItemReader
from whence.serve.question import Kind, Question
from whence.serve.text_reader import TextReader
from whence.sharded_weights import refuse_sharded
from whence.store import Store, deleted_since
from whence.tasks import AbstractTask, CausalLM, Classification, Diffusion

__all__ = ["HostedStore"]

_INPUTS = {"completion": "a prompt and its completion", "text": "a text and its label", "image": "an image"}
_PATHS = {"completion": "ask or attribute", "text": "attribute-item with text", "image": "attribute-item with image or example"}


@dataclasses.dataclass(frozen=True)
class HostedStore:
    """A store that can be asked.

    Args:
        name: What it is called in requests.
        prepared: The store and its model, made ready.
        catalog: Its examples.
        reader: Turns questions into examples.
        questions: What to begin with, for the page.
        words_folder: Where the index of its words is kept; None for answers that do not say what is copied.
        reopen: From a later version of the store to what answers from it, with the same model; None where that takes its data, too.
    """

    name: str
    prepared: PreparedStore
    catalog: Catalog
    reader: TextReader | ItemReader
    questions: tuple[Mapping[str, str], ...] = ()
    reopen: "Callable[[Store], HostedStore] | None" = None
    words_folder: Path | None = None

    @classmethod
    def load(
        cls,
        name: str,
        store: Store,
        task: AbstractTask,
        *,
        metadata: Sequence[Mapping[str, Any]] = (),
        questions: Sequence[Mapping[str, str]] = (),
        train: Dataset | None = None,
        pixels: tuple[float, float] | None = None,
    ) -> "HostedStore":
        """Load what questions need, and check the model against the store.

        Args:
            name: What it is called in requests.
            store: The store.
            task: The model that it was built with.
            metadata: See `Catalog.of`.
            questions: Mappings with `prompt` and perhaps `completion`, for the page to begin with; for classifiers and diffusion models the
                text as `prompt`, or `example`, and perhaps `label`.
            train: The data that the store was built from, where it is needed to show images.
            pixels: The values of black and of white in images that are arrays.

        Returns:
            The store, ready to be asked.

        Raises:
            Unsupported: If the model is no language model with a tokenizer, no classifier of texts or images and no diffusion model.
            BadInput: If `train` or `pixels` are given for a language model.
        """
        refuse_sharded(task.model, "a service")
        # Reading a tensor of a safetensors file (0.8) never gives back some 50 bytes: nothing over a build, much over a million questions.
        store = store.in_memory()
        if isinstance(task, CausalLM) and task.tokenizer is not None:
            if train is not None or pixels is not None:
                raise BadInput(
                    found=f"{'--train' if train is not None else '--pixels'} for a store of a language model in {store.folder}",
                    needed="a store of images that are arrays",
                    do="leave it out",
                )
            reader: TextReader | ItemReader = TextReader.of(task)
            first = reader.first(store)
            catalog = Catalog.of(store, metadata)
        elif isinstance(task, Diffusion) or (isinstance(task, Classification) and task.labelling == "single"):
            catalog = Catalog.of(store, metadata)
            reader = ItemReader.of(task, catalog, train, pixels)
            first = reader.first()
        else:
            raise Unsupported(
                found=f"a store of a {task.kind} task in {store.folder}",
                needed="a causal language model with a tokenizer, a classifier of one class each, or a diffusion model",
                do="ask it with `whence query` or from Python",
            )
        prepared = PreparedStore.load(store, task)
        prepared.check(first)

        def reopen(later: Store) -> HostedStore:
            return cls.load(name, later, task, metadata=metadata, questions=questions)

        return cls(name, prepared, catalog, reader, tuple(questions), None if train is not None else reopen)

    @property
    def kind(self) -> Kind:
        """What it is asked about."""
        return self.reader.kind

    def check(self, question: Question) -> None:
        """Refuse a question of another kind.

        Raises:
            BadInput: If it is one.
        """
        item = question.item
        given = "completion" if item is None else "text" if item.text else "image"
        if given != self.kind:
            raise BadInput(
                found=f"{_INPUTS[given]} for the store {self.name}", needed=_INPUTS[self.kind], do=f"use {_PATHS[self.kind]}"
            )

    def check_not_deleted(self) -> None:
        """Refuse to answer from rows that somebody deleted since the service started.

        Raises:
            StoreChanged: If there are some.
        """
        store = self.prepared.store
        if deleted_since(store):
            raise StoreChanged(
                found=f"documents that were deleted from {store.folder} since it was opened",
                needed="a service that does not show them",
                do="start the service again",
            )

    def example(self, question: Question) -> tuple[Example, dict[str, Any]]:
        """A question as the model reads it, and what an answer says of it."""
        return self.reader.example(question)

    def write(self, question: Question, on_token: Callable[[int], None]) -> str:
        """The model's own completion of a prompt; see `TextReader.write`."""
        assert isinstance(self.reader, TextReader)  # else `check` has refused it
        return self.reader.write(question, on_token)

    def picture(self, row: int) -> bytes | None:
        """A small PNG of a training image; None if there is none."""
        return self.reader.picture(row) if isinstance(self.reader, ItemReader) else None

    @functools.cached_property
    def digest(self) -> str:
        """Of all that the store was sealed with: what an answer is of. A store built anew from other data has another one."""
        return self.prepared.store.digest

    @functools.cached_property
    def words(self) -> WordIndex | None:
        """The words of its texts; None where nobody asked for them."""
        return None if self.words_folder is None else store_words(self.prepared.store, self.words_folder)

    @property
    def weights(self) -> str:
        """Digest of the model's weights."""
        return self.prepared.store.blueprint.model

    @property
    def at_once(self) -> int:
        """Queries that may share a scan: one where a query's answer depends on the others asked with it, else as many as one likes."""
        return 1 if method_named(self.prepared.store.blueprint.method).is_mixed else 1 << 30

    def facts(self, *, redacted: bool = False) -> dict[str, Any]:
        """What the store is, what was checked when the service started, and what was not.

        Args:
            redacted: Leave out what was made from its examples.
        """
        store, blueprint = self.prepared.store, self.prepared.store.blueprint
        return {
            "name": self.name,
            "num_examples": len(store),
            "num_sources": len(self.catalog.sources),
            "has_times": self.catalog.time_N is not None and not redacted,
            "method": blueprint.method,
            "bytes_per_example": store.codec.row_bytes(),
            "unit": self.prepared.task.unit,
            "model": Path(str(blueprint.task.get("model", "given in Python"))).name,
            "weights": blueprint.model,
            "kind": self.kind,
            "labels": list(self.reader.labels) if isinstance(self.reader, ItemReader) else [],
            "sees_labels": isinstance(self.prepared.task, Classification),
            "context": self.reader.task.max_length if isinstance(self.reader, TextReader) else None,
            **({} if redacted else {"digest": self.digest}),
            "coverage": str(self.prepared.plan.coverage),
            "damping": self.prepared.damping_note or "none",
            "questions": list(self.questions),
            "verified": [
                "every file of the store has the checksum that it was sealed with",
                "the model's weights and tokenizer are those that the store was built with",
                "captured gradients of two training examples equal autograd's",
            ],
            "not_verified": [
                "that the scores predict what retraining would do: `whence evaluate` measures that, on a model of your choice",
                "that sources and metadata are what they say: they are shown as they were given",
            ],
        }
