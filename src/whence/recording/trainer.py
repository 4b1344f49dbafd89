"""Records a run of the Hugging Face Trainer.

The Trainer shuffles, prefetches and skips batches where nobody sees it, so every example carries its number through the collator to the step
that is computed on it.
"""

import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from whence.errors import BadInput, Unsupported
from whence.recording.ids import digest_of_ids, ids_of
from whence.recording.recorder import Recorder
from whence.tasks.token_loss import IGNORED

__all__ = ["record_trainer"]

_NUMBERS = "whence_numbers"


def record_trainer(
    trainer: Any, folder: str | Path, *, checkpoints: int = 6, id_field: str = "id", every: int | None = None
) -> None:
    """Have a Hugging Face Trainer record the runs it is about to make.

        trainer = Trainer(model, arguments, train_dataset=data)
        whence.runs.record_trainer(trainer, "run")
        trainer.train()

    Resuming with `resume_from_checkpoint` goes on in the same folder. Gradient accumulation, clipping and the token counts that the
    Trainer divides losses by are recorded as they happen.

    Args:
        trainer: A Trainer, before `train()`.
        folder: Where the run is kept, see `whence.Recorder`.
        checkpoints: How many, spread evenly; those of the Trainer are its own.
        id_field: Field of the examples that holds their id; without it they are numbered from 0.
        every: Steps between checkpoints instead of their number.

    Raises:
        BadInput: If the Trainer has no training data of known length.
        Unsupported: If it trains in float16, whose steps may be skipped, on several devices, or puts
            earlier weights back at the end.
    """
    from transformers import TrainerCallback

    _check_trainer(trainer)
    data = _Numbered(trainer.train_dataset)
    ids = ids_of(trainer.train_dataset, id_field)
    trainer.train_dataset = data
    trainer.data_collator = _Collator(trainer.data_collator, _kept_fields(trainer))
    trainer.args.remove_unused_columns = False  # the collator does it, after it has taken the numbers
    run: list[Recorder] = []
    mean = _Mean(trainer)

    class Record(TrainerCallback):
        """Opens the recorder when there is an optimizer and closes it at the end."""

        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            optimizer = getattr(trainer.optimizer, "optimizer", trainer.optimizer)
            steps = every or max(1, -(-state.max_steps // checkpoints))
            recorder = Recorder(
                folder, trainer.model, optimizer, every=steps, seed=args.seed, data=digest_of_ids(ids)
            ).__enter__()
            recorder.resume(state.global_step)
            run[:] = [recorder]

        def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            run[0].flush()

        def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            run.pop().__exit__(None, None, None)

    train, step, clip = trainer.train, trainer.training_step, trainer.accelerator.clip_grad_norm_

    def trained(*args: Any, **kwargs: Any) -> Any:
        try:
            return train(*args, **kwargs)
        except BaseException as error:
            if run:
                run.pop().__exit__(type(error), error, None)
            raise

    def stepped(model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        numbers = inputs.pop(_NUMBERS).tolist()
        divisor = mean.divisor(model, inputs, len(numbers), num_items_in_batch)
        run[0].batch([ids[number] for number in numbers], divided_by=divisor)
        loss = step(model, inputs, num_items_in_batch)
        run[0].loss(loss)
        return loss

    def clipped(parameters: Any, max_norm: float, *args: Any, **kwargs: Any) -> Any:
        norm = clip(parameters, max_norm, *args, **kwargs)
        run[0].scaled(min(1.0, max_norm / (float(norm) + 1e-6)))
        return norm

    trainer.train, trainer.training_step, trainer.accelerator.clip_grad_norm_ = trained, stepped, clipped
    trainer.add_callback(Record())


def _check_trainer(trainer: Any) -> None:
    """Refuse what the recorder would get wrong.

    Raises:
        BadInput: If the Trainer has no training data of known length.
        Unsupported: If it trains in float16, whose steps may be skipped, on several devices, or puts earlier weights back at the end.
    """
    arguments = trainer.args
    if arguments.fp16 or arguments.world_size > 1 or arguments.n_gpu > 1:
        raise Unsupported(
            found=f"a Trainer with fp16={arguments.fp16} on {max(arguments.world_size, arguments.n_gpu)} device(s)",
            needed="one device, in float32 or bfloat16",
            do="train so, or record a loop of your own with whence.Recorder",
        )
    if trainer.train_dataset is None or not hasattr(trainer.train_dataset, "__len__"):
        raise BadInput(
            found="a Trainer without training data of known length", needed="a dataset with a length", do="pass train_dataset"
        )
    if arguments.load_best_model_at_end:
        raise Unsupported(
            found="a Trainer with load_best_model_at_end",
            needed="a run that ends with the weights of its last step",
            do="leave it out; any checkpoint can be attributed as the end of a shorter run",
        )


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
