"""The training objective that suppresses marked tokens, in a plain loop and in the Hugging Face Trainer.

Axes: B examples, T tokens, V vocabulary.
"""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from whence.errors import BadInput, Unsupported
from whence.guide.marks import Marks
from whence.tasks.token_loss import IGNORED, token_losses

__all__ = ["suppress_in_trainer", "suppress_marked"]

_MARKS = "whence_marks"


def suppress_marked(
    logits: Tensor, labels: Tensor, marks: Tensor, *, strength: float = 1.0, divisor: float | Tensor | None = None
) -> Tensor:
    """Next-token cross-entropy in which marked tokens count with a negative weight (IF-Guide, section 4.3).

    loss = (sum of the unmarked tokens' losses - strength x sum of the marked ones') / number of scored tokens. It works from scratch and in
    fine-tuning. The second sum has no bound: with a large strength, or many marked tokens, it takes over.

    Args:
        logits: What the model gives, shape (B, T, V).
        labels: Token ids, -100 where not scored, shape (B, T); place j is predicted from the logits at j - 1, as in Hugging Face models.
        marks: True at marked tokens, in the places of the labels, shape (B, T).
        strength: Weight of marked tokens; 0 leaves them out of the loss.
        divisor: Number to divide the sum by; None for that of the scored tokens here, marked ones included.

    Returns:
        The loss, a single number.

    Raises:
        BadInput: If the shapes do not fit together, the strength is negative, or no token is scored.

    >>> logits = torch.zeros(1, 3, 2)
    >>> suppress_marked(logits, torch.tensor([[0, 1, 1]]), torch.tensor([[False, False, True]]))
    tensor(0.)
    """
    if not (labels.shape == marks.shape == logits.shape[:2] and marks.dtype == torch.bool):
        raise BadInput(
            found=f"logits {tuple(logits.shape)}, labels {tuple(labels.shape)}, marks {tuple(marks.shape)} of type {marks.dtype}",
            needed="logits (B, T, V), labels (B, T) and boolean marks (B, T)",
            do="make the marks with Marks.rows of the same batch",
        )
    if not strength >= 0:
        raise BadInput(found=f"strength={strength}", needed="0 or more", do="leave it out for 1")
    # The labels move instead of the logits: a slice of those would copy the largest tensor of the step.
    labels_BT = torch.nn.functional.pad(labels[:, 1:], (0, 1), value=IGNORED)
    marks_BT = torch.nn.functional.pad(marks[:, 1:], (0, 1), value=False)
    losses_BT = token_losses(logits.flatten(0, 1), labels_BT.flatten()).view(labels_BT.shape)
    count = (labels_BT != IGNORED).sum()
    if divisor is None and not bool(count):
        raise BadInput(found="a batch without a scored token", needed="one or more", do="drop this batch")
    return torch.where(marks_BT, -strength * losses_BT, losses_BT).sum() / (count if divisor is None else divisor)


def suppress_in_trainer(
    trainer: Any, marks: Marks, *, strength: float = 1.0, id_field: str = "id", padding: str = "right"
) -> None:
    """Have a Hugging Face Trainer train with `suppress_marked`. Evaluation stays as it is.

        trainer = Trainer(model, arguments, train_dataset=data, data_collator=collator)
        whence.guide.suppress_in_trainer(trainer, whence.guide.open_marks("guide/marks.jsonl"))
        trainer.train()

    The training examples need their ids, and have to be tokenized as those that were scored.

    Args:
        trainer: A Trainer of a causal language model, before `train()`.
        marks: What to suppress.
        strength: Weight of marked tokens.
        id_field: Field of the training examples that holds their id.
        padding: Side on which the collator pads, "right" or "left".

    Raises:
        BadInput: If the Trainer has no training data.
        Unsupported: If it is told to compute its loss in a way of its own.
    """
    if trainer.label_smoother is not None or getattr(trainer, "compute_loss_func", None) is not None:
        raise Unsupported(
            found="a Trainer with label smoothing or a compute_loss_func",
            needed="one loss, that of suppress_marked",
            do="leave these out, or use suppress_marked in a loss function of your own",
        )
    if trainer.train_dataset is None:
        raise BadInput(found="a Trainer without training data", needed="a dataset", do="pass train_dataset")
    collator = _Marking(trainer.data_collator, marks, id_field, padding, _kept_fields(trainer))
    loader, plain_loss = trainer.get_train_dataloader, trainer.compute_loss

    def train_loader() -> Any:
        # For training only: an evaluation's examples may carry ids of their own.
        before, removes = trainer.data_collator, trainer.args.remove_unused_columns
        trainer.data_collator, trainer.args.remove_unused_columns = collator, False
        try:
            return loader()
        finally:
            trainer.data_collator, trainer.args.remove_unused_columns = before, removes

    def loss(model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None) -> Any:
        if _MARKS not in inputs:
            return plain_loss(model, inputs, return_outputs, num_items_in_batch)
        inputs = dict(inputs)
        marked, labels = inputs.pop(_MARKS), inputs.pop("labels")
        outputs = model(**inputs)
        result = suppress_marked(outputs.logits, labels, marked, strength=strength, divisor=num_items_in_batch)
        return (result, outputs) if return_outputs else result

    trainer.get_train_dataloader, trainer.compute_loss = train_loader, loss


class _Marking:
    """Takes the ids off the examples, drops what the model does not take, and puts the marks on the batch."""

    def __init__(self, inner: Any, marks: Marks, id_field: str, padding: str, columns: set[str] | None):
        self.inner, self.marks, self.id_field, self.padding, self.columns = inner, marks, id_field, padding, columns

    def __call__(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        ids = []
        for example in examples:
            if self.id_field not in example:
                raise BadInput(
                    found=f"a training example with the fields {', '.join(sorted(example))}",
                    needed=f"its id in {self.id_field!r}",
                    do="put the ids of the scored examples into the dataset, or pass id_field",
                )
            ids.append(str(example[self.id_field]))
        features = [
            {
                key: value
                for key, value in example.items()
                if key != self.id_field and (self.columns is None or key in self.columns)
            }
            for example in examples
        ]
        batch = dict(self.inner(features))
        return {**batch, _MARKS: self.marks.rows(ids, batch["input_ids"], padding=self.padding)}


def _kept_fields(trainer: Any) -> set[str] | None:
    """Fields that the Trainer would keep; None for all."""
    if not trainer.args.remove_unused_columns:
        return None
    return {*inspect.signature(trainer.model.forward).parameters, "label", "label_ids", *trainer.label_names}
