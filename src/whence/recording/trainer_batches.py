"""Which examples are in the batches of a Hugging Face Trainer, and what their losses are divided by.

The Trainer shuffles, prefetches and skips batches where nobody sees it, so every example carries its number through the collator to the step
that is computed on it.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from whence.errors import BadInput, Unsupported
from whence.recording.ids import ids_of
from whence.tasks.token_loss import IGNORED

__all__ = ["TrainerBatch", "check_device", "check_known", "check_one_model", "narrow_steps", "numbered", "watch_steps"]

_NUMBERS = "whence_numbers"
# Of a training step that takes them out of the batch, and of one that trains on some of a batch only.
_TAKES_NUMBERS, _NARROWS = "takes_whence_numbers", "narrows_batches"


@dataclass(frozen=True)
class TrainerBatch:
    """A micro-batch on its way through the Trainer.

    Args:
        ids: Of its examples, in their order.
        divided_by: What the sum of their losses is divided by in what goes backward.
        inputs: What the model gets.
    """

    ids: Sequence[str]
    divided_by: float
    inputs: Mapping[str, Any]


def numbered(trainer: Any, id_field: str) -> list[str]:
    """Have a Trainer's examples carry their numbers; nothing changes where they do already.

    Args:
        trainer: Before `train()`.
        id_field: Field of the examples that holds their id; without it they are numbered from 0.

    Returns:
        Their ids.

    Raises:
        BadInput: If the Trainer has no training data of known length.
    """
    if trainer.train_dataset is None or not hasattr(trainer.train_dataset, "__len__"):
        raise BadInput(
            found="a Trainer without training data of known length", needed="a dataset with a length", do="pass train_dataset"
        )
    if isinstance(trainer.train_dataset, _Numbered):
        return ids_of(trainer.train_dataset.data, id_field)
    ids = ids_of(trainer.train_dataset, id_field)
    trainer.train_dataset = _Numbered(trainer.train_dataset)
    trainer.data_collator = _Collator(trainer.data_collator, _kept_fields(trainer))
    trainer.args.remove_unused_columns = False  # the collator does it, after it has taken the numbers
    return ids


def check_device(trainer: Any, needed: str, do: str) -> None:
    """Refuse a Trainer whose losses are scaled, or whose examples are spread over devices.

    Args:
        trainer: The Trainer.
        needed: In place of it.
        do: What to do.

    Raises:
        Unsupported: If it trains in float16 or on several devices.
    """
    arguments = trainer.args
    if arguments.fp16 or arguments.world_size > 1 or arguments.n_gpu > 1:
        raise Unsupported(
            found=f"a Trainer with fp16={arguments.fp16} on {max(arguments.world_size, arguments.n_gpu)} device(s)",
            needed=needed,
            do=do,
        )


def watch_steps(trainer: Any, ids: Sequence[str], around: Callable[[TrainerBatch, Callable[[], Tensor]], Tensor]) -> None:
    """Have a function called in place of a Trainer's training step.

    Args:
        trainer: Of numbered examples.
        ids: By number.
        around: From a micro-batch and its step, which is to be called once, to the step's loss.

    Raises:
        Unsupported: If the steps are on some of their batches only, which a watch from outside would not see.
    """
    if getattr(trainer.training_step, _NARROWS, False):
        raise Unsupported(
            found="a Trainer that chooses among the examples of a batch already",
            needed="to see what is chosen",
            do="ask for records and logs first, and for the selection last",
        )
    mean, step = _Mean(trainer), trainer.training_step

    def stepped(model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        numbers = inputs.pop(_NUMBERS)
        divisor = mean.divisor(model, inputs, len(numbers), num_items_in_batch)
        batch = TrainerBatch([ids[int(number)] for number in numbers], divisor, dict(inputs))
        if getattr(step, _TAKES_NUMBERS, False):  # another watch
            inputs[_NUMBERS] = numbers
        return around(batch, lambda: step(model, inputs, num_items_in_batch))

    setattr(stepped, _TAKES_NUMBERS, True)
    trainer.training_step = stepped


def check_one_model(trainer: Any, model: Any, whose: str, done: str) -> None:
    """Refuse a Trainer of another model.

    Args:
        trainer: The Trainer.
        model: The model that it should train.
        whose: Whose model that is, such as "log".
        done: What is done with it while it is trained, such as "watched".

    Raises:
        BadInput: If it trains another one.
    """
    if trainer.model is not model:
        raise BadInput(
            found=f"a Trainer of another model than the {whose}'s",
            needed=f"one model, {done} while it is trained",
            do="make the task of trainer.model",
        )


def check_known(ids: Sequence[str], has: Callable[[str], bool], whose: str) -> None:
    """Refuse a Trainer's examples that are not there.

    Args:
        ids: Of the Trainer's examples.
        has: Whether there is an example of an id.
        whose: Whose examples they should be, such as "log".

    Raises:
        BadInput: If one is not there.
    """
    unknown = next((name for name in ids if not has(name)), None)
    if unknown is not None:
        raise BadInput(
            found=f"a training example {unknown[:80]!r} of the Trainer that the {whose} does not have",
            needed="the same examples under the same ids",
            do=f"pass the {whose} the Trainer's data, or id_field",
        )


def narrow_steps(trainer: Any, ids: Sequence[str], choose: Callable[[Sequence[str]], Sequence[int]]) -> None:
    """Have a Trainer's steps made on some examples of their batches.

    Args:
        trainer: Of numbered examples, without accumulation.
        ids: By number.
        choose: From the ids of a batch to the places of those that are kept.
    """
    step = trainer.training_step

    def stepped(model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        numbers = inputs.pop(_NUMBERS)
        rows = list(choose([ids[int(number)] for number in numbers]))
        if getattr(step, _TAKES_NUMBERS, False):
            inputs[_NUMBERS] = numbers
        chosen = {name: value[rows] if _is_rows(value, len(numbers)) else value for name, value in inputs.items()}
        # Without the number of tokens, which is of all of them, a model means over what it is given.
        return step(model, chosen, None)

    setattr(stepped, _TAKES_NUMBERS, True)
    setattr(stepped, _NARROWS, True)
    trainer.training_step = stepped


def _is_rows(value: Any, count: int) -> bool:
    return isinstance(value, Tensor) and value.ndim > 0 and len(value) == count


class _Numbered(torch.utils.data.Dataset):
    """A dataset whose examples come with their number."""

    def __init__(self, data: Any):
        self.data = data

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, number: int) -> dict[str, Any]:
        return {**self.data[number], _NUMBERS: number}


class _Collator:
    """Takes the numbers off the examples, drops what the model does not take, and puts the numbers on the batch."""

    def __init__(self, inner: Any, columns: set[str] | None):
        self.inner, self.columns = inner, columns

    def __call__(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        features = [
            {key: value for key, value in example.items() if key != _NUMBERS and (self.columns is None or key in self.columns)}
            for example in examples
        ]
        numbers = [example.get(_NUMBERS, -1) for example in examples]  # those of an evaluation have none
        batch = dict(self.inner(features))
        return batch if numbers[0] < 0 else {**batch, _NUMBERS: torch.tensor(numbers)}


def _kept_fields(trainer: Any) -> set[str] | None:
    """Fields that the Trainer would keep; None for all."""
    if not trainer.args.remove_unused_columns:
        return None
    return {*inspect.signature(trainer.model.forward).parameters, "label", "label_ids", *trainer.label_names}


class _Mean:
    """What a Trainer's losses are means over, as far as these themselves say it: each question is put once, and only where it matters."""

    def __init__(self, trainer: Any):
        self.trainer = trainer
        self.counts_items: bool | None = None
        self.shifts: bool | None = None

    def divisor(self, model: Any, inputs: Mapping[str, Any], examples: int, num_items: Any) -> float:
        """What the Trainer divides the sum of a micro-batch's losses by.

        It passes the number of scored tokens of the whole step to models that take it; otherwise a model means over its own micro-batch, and
        the Trainer over micro-batches, unless it was told, or thinks since it passed that number, that this is done already.
        """
        trainer = self.trainer
        if num_items is not None:
            if self.counts_items is None:
                self.counts_items = self._asked_of_items(model, inputs, num_items)
            if self.counts_items:
                return float(num_items)
        own = self._scored(model, inputs, examples, num_items)
        is_scaled = getattr(trainer, "loss_is_scaled_for_ga", None)
        is_scaled = num_items is not None if is_scaled is None else is_scaled
        # Trainers of earlier versions divide the last, shorter step of an epoch by as many as all others.
        steps = getattr(trainer, "current_gradient_accumulation_steps", trainer.args.gradient_accumulation_steps)
        return float(own if is_scaled else own * steps)

    def _scored(self, model: Any, inputs: Mapping[str, Any], examples: int, num_items: Any) -> int:
        """How many losses the mean of a micro-batch is over: its tokens with a label, of which a causal model does not predict the first."""
        if isinstance(inputs.get("shift_labels"), Tensor):
            return int(inputs["shift_labels"].ne(IGNORED).sum())
        labels = inputs.get("labels")
        if not isinstance(labels, Tensor) or labels.ndim < 2 or labels.is_floating_point():
            return examples
        first = labels[:, 0].ne(IGNORED).sum()
        if not first:  # alike either way
            return int(labels.ne(IGNORED).sum())
        if self.shifts is None:
            self.shifts = self._asked_of_first(model, inputs, num_items)
        return int(labels.ne(IGNORED).sum() - (first if self.shifts else 0))

    def _asked_of_items(self, model: Any, inputs: Mapping[str, Any], num_items: Any) -> bool:
        """Whether the loss is divided by the number that the Trainer passes; some models take it and pay no heed to it."""
        once, twice = self._losses(model, [(inputs, num_items), (inputs, 2 * num_items)])
        return abs(once) <= 1e-12 or abs(twice / once - 0.5) < 0.25

    def _asked_of_first(self, model: Any, inputs: Mapping[str, Any], num_items: Any) -> bool:
        """Whether the first label of each row is nothing to the loss, since labels are shifted against predictions."""
        others = inputs["labels"].clone()
        others[:, 0] = IGNORED
        with_labels, left = self._losses(model, [(inputs, num_items), ({**inputs, "labels": others}, num_items)])
        return abs(with_labels - left) <= 1e-6 * abs(with_labels)

    def _losses(self, model: Any, calls: Sequence[tuple[Mapping[str, Any], Any]]) -> list[float]:
        """Looked at in evaluation mode, with the random numbers put back, so that the run goes on as it would have."""
        modes = [(module, module.training) for module in model.modules()]
        try:
            for module, _ in modes:
                module.training = False
            with torch.no_grad(), torch.random.fork_rng():
                losses = [self.trainer.compute_loss(model, dict(inputs), num_items_in_batch=items) for inputs, items in calls]
        finally:
            for module, mode in modes:
                module.training = mode
        return [float(loss.detach()) for loss in losses]
