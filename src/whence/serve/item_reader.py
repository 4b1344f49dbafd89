"""Questions to classifiers and diffusion models: a text or an image, with its label."""

import base64
import dataclasses
from collections.abc import Sequence
from typing import Any, Literal

import torch

from whence.data import Dataset, Example
from whence.errors import BadInput, Unsupported
from whence.pipeline.stored.rerank import matched
from whence.plain_files import open_image
from whence.serve.catalog import Catalog
from whence.serve.pictures import check_pillow, opened, pixels_of, thumbnail, values_of
from whence.serve.question import Item, Question
from whence.store import Store
from whence.tasks import AbstractTask, Classification, Diffusion
from whence.tasks.images import prepared_image
from whence.tasks.model_outputs import model_outputs

__all__ = ["ItemReader"]

_CHECKED = 2


@dataclasses.dataclass(frozen=True)
class ItemReader:
    """Turns texts and images into examples, and shows the training images.

    Args:
        task: The model that the store was built with.
        kind: What it is asked about.
        catalog: The store's examples.
        examples: Training examples in the order of the store's rows, where they hold the images; else None.
        field: Where in them; empty where images are in files.
        pixels: The values of black and of white there.
    """

    task: Classification | Diffusion
    kind: Literal["text", "image"]
    catalog: Catalog
    examples: Sequence[Example] | None
    field: str
    pixels: tuple[float, float]

    @classmethod
    def of(
        cls,
        task: Classification | Diffusion,
        catalog: Catalog,
        train: Dataset | None,
        pixels: tuple[float, float] | None,
    ) -> "ItemReader":
        """A reader for a store.

        Args:
            task: The model that the store was built with.
            catalog: The store's examples.
            train: The data that it was built from, where images are arrays.
            pixels: The values of black and of white in arrays; None for -1 and 1 of a diffusion model, else 0 and 1.

        Raises:
            Unsupported: If the images of the store cannot be had, or its examples are neither texts nor images.
            BadInput: If `pixels` has no use, or its black is not below its white.
        """
        store = catalog.store
        is_text = isinstance(task, Classification) and task.tokenizer is not None
        is_in_files = "image" in store.example(0)
        if pixels is not None and (is_text or is_in_files or not pixels[0] < pixels[1]):
            raise BadInput(
                found=f"pixels from {pixels[0]:g} to {pixels[1]:g} for {store.folder}",
                needed="black below white, and a store of images that are arrays of numbers",
                do="correct it, or leave --pixels out",
            )
        low_high = pixels or ((-1.0, 1.0) if isinstance(task, Diffusion) else (0.0, 1.0))
        if is_text or is_in_files:
            if not is_text:
                check_pillow()
            return cls(task, "text" if is_text else "image", catalog, None, "", low_high)
        check_pillow()
        if train is None:
            raise Unsupported(
                found=f"a store in {store.folder} that does not say in which files its images are",
                needed="the data that it was built from, to show images and to read them alike",
                do="pass --train",
            )
        examples = matched(store, train)
        names = sorted(set(examples[0].fields) - {"target", "label", "trajectory", "steps"})
        if len(names) > 1:
            raise Unsupported(
                found=f"training examples with the inputs {', '.join(names)}",
                needed="a text, or an image alone",
                do="ask the store with `whence query` or from Python",
            )
        pixels_of(examples[0].fields[names[0]], *low_high)
        return cls(task, "image", catalog, examples, names[0], low_high)

    @staticmethod
    def needs_train(task: AbstractTask, store: Store) -> bool:
        """Whether the store's images can only be had from the data that it was built from."""
        is_text = isinstance(task, Classification) and task.tokenizer is not None
        return isinstance(task, Classification | Diffusion) and not is_text and "image" not in store.example(0)

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the classes in order; empty where they have none."""
        return () if isinstance(self.task, Diffusion) else self.task.class_names

    def first(self) -> Dataset:
        """Two training examples, to check the model on.

        Raises:
            Unsupported: If the store has neither their texts nor their images.
        """
        if self.examples is not None:
            return Dataset(self.examples[:_CHECKED])
        needed_examples: list[dict[str, Any]] = []
        for example in self.catalog.store.examples():
            # Whatever its label, its gradient has to be autograd's.
            if example.get(self.kind) and len(needed_examples) < _CHECKED:
                needed_examples.append({self.kind: example[self.kind], "label": 0, "id": example["id"]})
        if not needed_examples:
            raise Unsupported(
                found=f"a store without {self.kind}s in {self.catalog.store.folder}",
                needed=f"the {self.kind}s of its examples, to check the model on and to show",
                do=f"build it from records with {self.kind}",
            )
        return self.task.prepare(needed_examples)

    def example(self, question: Question) -> tuple[Example, dict[str, Any]]:
        """A question as the model reads it, and what an answer says of it.

        Raises:
            BadInput: If it has no text or image, or its label is none.
        """
        item = question.item or Item()
        image = opened(item.image) if item.image else None
        record = {**self._input(item, image), "id": "question"}
        is_predicted = not item.label and isinstance(self.task, Classification)
        if item.label:
            record["label"] = self._number(item.label)
        predicted = ""
        if isinstance(self.task, Classification):
            record["label"], seen = self._seen(record)
            predicted = self._name(seen)
        elif "label" in (self.examples or [Example("", {})])[0].fields and record.get("label") is None:
            raise BadInput(found="an image without a label", needed="the class it is of, as in training", do="add the label")
        number = record.get("label")
        number = None if number is None else int(number)
        (example,) = self.task.prepare([record]).examples
        label = "" if number is None else self._name(number)
        small = base64.b64encode(thumbnail(image)).decode() if image is not None else ""
        facts = {
            "kind": self.kind,
            "example": item.example,
            "label": label,
            "is_predicted": is_predicted,
            "predicted": predicted,
        }
        facts["thumbnail"] = small
        return example, {"prompt": item.text, "completion": label, "token": None, "tokens": [], "item": facts}

    def picture(self, row: int) -> bytes | None:
        """A small PNG of a training image; None if there is none."""
        if self.examples is not None:
            return thumbnail(pixels_of(self.examples[row].fields[self.field], *self.pixels))
        path = self.catalog.store.example(row).get("image")
        if not path:
            return None
        try:
            return thumbnail(open_image(path))
        except (OSError, ValueError):
            return None

    def _input(self, item: Item, image: Any) -> dict[str, Any]:
        """The input alone, as a record of the task.

        Raises:
            BadInput: If it is not what the store is asked about, or no example has that id.
        """
        if self.kind == "text":
            if not item.text:
                raise BadInput(found="no text", needed="a text, since this is a store of texts", do="pass text")
            return {"text": item.text}
        if image is not None:
            if self.examples is not None:
                return {self.field: values_of(image, self.examples[0].fields[self.field], *self.pixels)}
            return prepared_image(image, self.task.preprocess)  # pyright: ignore[reportAttributeAccessIssue]
        row = self.catalog.row_of(item.example) if item.example else None
        if row is None:
            raise BadInput(
                found=f"no training example {item.example[:80]!r}" if item.example else "no image",
                needed="an image, or the id of a training example",
                do="pass image or example",
            )
        if self.examples is None:
            return {"image": self.catalog.store.example(row)["image"]}
        fields = self.examples[row].fields
        return {name: fields[name] for name in (self.field, "label") if name in fields}

    def _number(self, label: str) -> int:
        if label in self.labels:
            return self.labels.index(label)
        if label.isascii() and label.isdigit() and len(label) < 10:
            return int(label)
        names = f", or one of: {', '.join(self.labels[:20])}" if self.labels else ""
        raise BadInput(found=f"the label {label[:80]!r}", needed=f"a class by its number from 0{names}", do="pick one")

    def _name(self, number: int) -> str:
        return self.labels[number] if number < len(self.labels) else str(number)

    def _seen(self, record: dict[str, Any]) -> tuple[int, int]:
        """The label of a record, or else the class that the model sees in it; and that class.

        Raises:
            BadInput: If the model has no such class, or does not take the image.
        """
        batch = self.task.collate(self.task.prepare([{**record, "label": 0}]).examples)
        try:
            with torch.no_grad():
                logits_C = model_outputs(self.task.model, batch)[0]
        except RuntimeError:
            sizes = ", ".join(str(tuple(value.shape[1:])) for value in batch["inputs"].values())
            raise BadInput(
                found=f"an input of shape {sizes}, which the model does not take",
                needed="one such as the training examples",
                do="bring the image to their size",
            ) from None
        seen = int(logits_C.argmax())
        label = record.get("label", seen)
        if label >= len(logits_C):
            raise BadInput(found=f"the label {label}", needed=f"a class from 0 to {len(logits_C) - 1}", do="pick one")
        return label, seen
