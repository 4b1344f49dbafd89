"""Records a run of the Lightning Trainer."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from whence.errors import BadInput, Unsupported
from whence.recording.ids import digest_of_ids
from whence.recording.lightning_batches import PlannedBatches, callback_class
from whence.recording.recorder import Recorder

__all__ = ["record_lightning"]

_AVERAGING = ("StochasticWeightAveraging", "WeightAveraging", "EMAWeightAveraging")


def record_lightning(
    folder: str | Path,
    *,
    part: str = "",
    checkpoints: int = 6,
    every: int | None = None,
    id_field: str = "id",
    divided_by: Callable[[Any], float] | None = None,
) -> Any:
    """A Lightning callback that records the runs of its Trainer.

        trainer = Trainer(max_epochs=3, callbacks=[whence.runs.record_lightning("run", part="network")])
        trainer.fit(module, DataLoader(data, batch_size=32, shuffle=True))

    Resuming with `ckpt_path` goes on in the same folder. Shuffling, prefetching, accumulation and clipping by norm are recorded as they
    happen. Works with `pytorch_lightning` and with `lightning`, version 2.

    Args:
        folder: Where the run is kept, see `whence.Recorder`.
        part: The module's attribute that is attributed later, such as "network" of `self.network`; empty for the whole module.
        checkpoints: How many, spread evenly; those of the Trainer are its own.
        every: Steps between checkpoints instead of their number.
        id_field: Field of the examples that holds their id, where they are mappings; without it they are numbered from 0.
        divided_by: From a batch to what the sum of its examples' losses is divided by in what `training_step` returns: the number of scored
            tokens, say. None for a mean over the examples.

    Returns:
        The callback.

    Raises:
        BadInput: If Lightning is not installed.
    """
    batches = PlannedBatches(id_field, divided_by)
    watch = _Watch(Path(folder), part, checkpoints, every, batches)

    class Record(callback_class()):
        """Hands what happens to the watch."""

        def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
            if stage == "fit":
                _refuse(trainer, pl_module)
                batches.prepare(trainer)

        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            watch.start(trainer, pl_module)

        def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
            watch.batch(trainer, batch)

        def on_before_backward(self, trainer: Any, pl_module: Any, loss: torch.Tensor) -> None:
            watch.loss(loss)

        def on_save_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
            watch.flush()

        def on_train_end(self, trainer: Any, pl_module: Any) -> None:
            watch.stop(None)

        def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
            watch.stop(exception)

    return Record()


class _Watch:
    def __init__(self, folder: Path, part: str, checkpoints: int, every: int | None, batches: PlannedBatches):
        self.folder, self.part = folder, part
        self.checkpoints, self.every, self.batches = checkpoints, every, batches
        self.run: Recorder | None = None

    def start(self, trainer: Any, module: Any) -> None:
        """Open the recorder when there is an optimizer.

        Raises:
            BadInput: If nobody knows how long the run is.
        """
        total = trainer.estimated_stepping_batches
        if self.every is None and not 0 < total < float("inf"):
            raise BadInput(
                found="a run of a length that is not known", needed="the steps between checkpoints", do="pass every=..."
            )
        seed = os.environ.get("PL_GLOBAL_SEED")
        run = Recorder(
            self.folder,
            module.get_submodule(self.part),
            trainer.optimizers[0],
            every=self.every or max(1, -(-int(total) // self.checkpoints)),
            seed=None if seed is None else int(seed),
            data=digest_of_ids(self.batches.ids),
        )
        run.__enter__()
        self.run = run
        run.resume(trainer.global_step)
        plugin = trainer.precision_plugin

        def clipped(optimizer: torch.optim.Optimizer, clip_val: float) -> None:
            norm = torch.nn.utils.clip_grad_norm_(plugin.main_params(optimizer), clip_val)
            run.scaled(min(1.0, clip_val / (float(norm) + 1e-6)))

        plugin.clip_grad_by_norm = clipped
        self.batches.undo.append(lambda: delattr(plugin, "clip_grad_by_norm"))

    def batch(self, trainer: Any, batch: Any) -> None:
        """Take the ids of the batch that is about to be trained on."""
        ids, divisor = self.batches.take(trainer, batch)
        if self.run is not None:
            self.run.batch(ids, divided_by=divisor, inputs=batch if isinstance(batch, Mapping) else None)

    def loss(self, value: torch.Tensor) -> None:
        """Take what goes backward, which Lightning has divided by the number of micro-batches."""
        if self.run is not None:
            self.run.loss(value.detach())

    def flush(self) -> None:
        """Write down what the Trainer's own checkpoint will go on from."""
        if self.run is not None:
            self.run.flush()

    def stop(self, error: BaseException | None) -> None:
        """Close the recorder, and leave the Trainer as it was."""
        self.batches.put_back()
        run, self.run = self.run, None
        if run is not None:
            run.__exit__(None if error is None else type(error), error, None)


def _refuse(trainer: Any, module: Any) -> None:
    trouble = None
    if trainer.world_size > 1:
        trouble = f"a Trainer on {trainer.world_size} devices", "one device"
    elif getattr(trainer.precision_plugin, "scaler", None) is not None:
        trouble = f"a Trainer with precision={trainer.precision}, whose steps may be skipped", "float32 or bfloat16"
    elif not module.automatic_optimization:
        trouble = "a module that steps its optimizer itself", "automatic optimization"
    elif type(module).configure_gradient_clipping.__qualname__.split(".")[0] != "LightningModule":
        trouble = "a module that clips gradients in its own way", "the Trainer's gradient_clip_val"
    elif trainer.gradient_clip_val and trainer.gradient_clip_algorithm == "value":
        trouble = "gradients that are clipped by value, each number by itself", "clipping by norm"
    elif trainer.overfit_batches:
        trouble = "a Trainer with overfit_batches", "a run on the data that its loader has"
    else:
        averaging = [type(callback).__name__ for callback in trainer.callbacks if type(callback).__name__ in _AVERAGING]
        if averaging:
            trouble = f"a Trainer with {averaging[0]}", "a run that ends with the weights of its last step"
    if trouble is not None:
        raise Unsupported(found=trouble[0], needed=trouble[1], do="train so, or record a loop of your own with whence.Recorder")
