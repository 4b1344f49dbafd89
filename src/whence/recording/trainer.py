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

__all__ = ["record_trainer"]

_NUMBERS = "whence_numbers"


def record_trainer(
    trainer: Any, folder: str | Path, *, checkpoints: int = 6, id_field: str = "id", every: int | None = None
) -> None:
    """Have a Hugging Face Trainer record the runs it is about to make.

        trainer = Trainer(model, arguments, train_dataset=data)
        whence.record_trainer(trainer, "run")
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
    data = _Numbered(trainer.train_dataset)
    ids = ids_of(trainer.train_dataset, id_field)
    trainer.train_dataset = data
    trainer.data_collator = _Collator(trainer.data_collator, _kept_fields(trainer))
    arguments.remove_unused_columns = False  # the collator does it, after it has taken the numbers
    run: list[Recorder] = []

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
        divisor = _divisor(trainer, inputs.get("labels"), len(numbers), num_items_in_batch)
        run[0].batch([ids[number] for number in numbers], divided_by=divisor)
        return step(model, inputs, num_items_in_batch)

    def clipped(parameters: Any, max_norm: float, *args: Any, **kwargs: Any) -> Any:
        norm = clip(parameters, max_norm, *args, **kwargs)
        run[0].scaled(min(1.0, max_norm / (float(norm) + 1e-6)))
        return norm

    trainer.train, trainer.training_step, trainer.accelerator.clip_grad_norm_ = trained, stepped, clipped
    trainer.add_callback(Record())


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

    def __init__(self, inner: Any, kept: set[str] | None):
        self.inner, self.kept = inner, kept

    def __call__(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        kept = [
            {key: value for key, value in example.items() if key != _NUMBERS and (self.kept is None or key in self.kept)}
            for example in examples
        ]
        numbers = [example.get(_NUMBERS, -1) for example in examples]  # those of an evaluation have none
        batch = dict(self.inner(kept))
        return batch if numbers[0] < 0 else {**batch, _NUMBERS: torch.tensor(numbers)}


def _kept_fields(trainer: Any) -> set[str] | None:
    """Fields that the Trainer would keep; None for all."""
    if not trainer.args.remove_unused_columns:
        return None
    return {*inspect.signature(trainer.model.forward).parameters, "label", "label_ids", *trainer.label_names}


def _divisor(trainer: Any, labels: Tensor | None, examples: int, num_items: Any) -> float:
    """What the Trainer divides the sum of a micro-batch's losses by.

    It passes the number of scored tokens of the whole step to models that take it; otherwise a model means over its own micro-batch, and the
    Trainer over micro-batches.
    """
    if num_items is not None:
        return float(num_items)
    is_per_token = labels is not None and labels.ndim > 1 and not labels.is_floating_point()
    own = int(labels.ne(-100).sum()) if is_per_token and labels is not None else examples
    return float(own * trainer.current_gradient_accumulation_steps)
