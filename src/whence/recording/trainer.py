"""Records a run of the Hugging Face Trainer."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor

from whence.errors import Unsupported
from whence.recording.ids import digest_of_ids
from whence.recording.recorder import Recorder
from whence.recording.trainer_batches import TrainerBatch, check_device, numbered, watch_steps

__all__ = ["record_trainer"]


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
    ids = numbered(trainer, id_field)
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

    train, clip = trainer.train, trainer.accelerator.clip_grad_norm_

    def trained(*args: Any, **kwargs: Any) -> Any:
        try:
            return train(*args, **kwargs)
        except BaseException as error:
            if run:
                run.pop().__exit__(type(error), error, None)
            raise

    def stepped(batch: TrainerBatch, step: Callable[[], Tensor]) -> Tensor:
        run[0].batch(batch.ids, divided_by=batch.divided_by, inputs=batch.inputs)
        loss = step()
        run[0].loss(loss)
        return loss

    def clipped(parameters: Any, max_norm: float, *args: Any, **kwargs: Any) -> Any:
        norm = clip(parameters, max_norm, *args, **kwargs)
        run[0].scaled(min(1.0, max_norm / (float(norm) + 1e-6)))
        return norm

    watch_steps(trainer, ids, stepped)
    trainer.train, trainer.accelerator.clip_grad_norm_ = trained, clipped
    trainer.add_callback(Record())


def _check_trainer(trainer: Any) -> None:
    """Refuse what the recorder would get wrong.

    Raises:
        Unsupported: If it trains in float16, whose steps may be skipped, on several devices, or puts earlier weights back at the end.
    """
    check_device(trainer, "one device, in float32 or bfloat16", "train so, or record a loop of your own with whence.Recorder")
    if trainer.args.load_best_model_at_end:
        raise Unsupported(
            found="a Trainer with load_best_model_at_end",
            needed="a run that ends with the weights of its last step",
            do="leave it out; any checkpoint can be attributed as the end of a shorter run",
        )
