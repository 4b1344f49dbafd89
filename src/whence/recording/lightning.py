"""Records a run of the Lightning Trainer.

Lightning trains on batches of the user's own making, so ids are taken where batches are planned: what the batch sampler says is queued, and
each batch that is trained on takes the next.
"""

import os
import sys
from collections import deque
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from whence.errors import BadInput, Unsupported
from whence.internals import lightning_source
from whence.recording.ids import digest_of_ids, ids_of
from whence.recording.recorder import Recorder

__all__ = ["record_lightning"]

_PACKAGES = ("pytorch_lightning", "lightning.pytorch")
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
    watch = _Watch(Path(folder), part, checkpoints, every, id_field, divided_by)

    class Record(_callback_class()):
        """Hands what happens to the watch."""

        def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
            if stage == "fit":
                watch.prepare(trainer, pl_module)

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
    def __init__(
        self,
        folder: Path,
        part: str,
        checkpoints: int,
        every: int | None,
        id_field: str,
        divided_by: Callable[[Any], float] | None,
    ):
        self.folder, self.part, self.id_field = folder, part, id_field
        self.checkpoints, self.every, self.divided_by = checkpoints, every, divided_by
        self.planned: deque[list[int]] = deque()
        self.ids: list[str] = []
        self.run: Recorder | None = None
        self.undo: list[Callable[[], None]] = []

    def prepare(self, trainer: Any, module: Any) -> None:
        """Refuse what cannot be recorded, and see to it that batches are queued.

        Raises:
            Unsupported: If the trainer is built in a way that is not known.
        """
        _refuse(trainer, module)
        source = lightning_source(trainer)
        if source is None:
            raise Unsupported(
                found="a Lightning whose trainer does not say where its batches come from",
                needed="pytorch-lightning 2.4 or one that is built like it",
                do="record a loop of your own with whence.Recorder",
            )
        make = source.dataloader

        def dataloader() -> Any:
            loader = make()
            _refuse_loader(loader)
            self.ids = ids_of(loader.dataset, self.id_field)
            if not isinstance(loader.batch_sampler, _Queued):
                sampler = loader.batch_sampler
                # A loader lets nobody replace its sampler, since its workers may be running; here they are not yet.
                object.__setattr__(loader, "batch_sampler", _Queued(sampler, self.planned))
                self.undo.append(lambda: object.__setattr__(loader, "batch_sampler", sampler))
            return loader

        source.dataloader = dataloader
        self.undo.append(lambda: delattr(source, "dataloader"))

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
            data=digest_of_ids(self.ids),
        )
        run.__enter__()
        self.run = run
        run.resume(trainer.global_step)
        plugin = trainer.precision_plugin

        def clipped(optimizer: torch.optim.Optimizer, clip_val: float) -> None:
            norm = torch.nn.utils.clip_grad_norm_(plugin.main_params(optimizer), clip_val)
            run.scaled(min(1.0, clip_val / (float(norm) + 1e-6)))

        plugin.clip_grad_by_norm = clipped
        self.undo.append(lambda: delattr(plugin, "clip_grad_by_norm"))

    def batch(self, trainer: Any, batch: Any) -> None:
        """Take the ids of the batch that is about to be trained on.

        Raises:
            Unsupported: If the sampler did not plan it.
        """
        if self.run is None or not self.planned:
            raise Unsupported(
                found="a batch that the DataLoader's sampler did not plan",
                needed="batches in the order of the sampler",
                do="record a loop of your own with whence.Recorder",
            )
        numbers = self.planned.popleft()
        # Lightning divides by the number of micro-batches, in a last, shorter step as well.
        divisor = (len(numbers) if self.divided_by is None else self.divided_by(batch)) * trainer.accumulate_grad_batches
        self.run.batch([self.ids[number] for number in numbers], divided_by=float(divisor))

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
        for back in reversed(self.undo):
            back()
        self.undo.clear()
        run, self.run = self.run, None
        if run is not None:
            run.__exit__(None if error is None else type(error), error, None)


class _Queued:
    """A batch sampler that tells what it said."""

    def __init__(self, inner: Any, planned: deque[list[int]]):
        self._inner, self._planned = inner, planned

    def __iter__(self) -> Iterator[list[int]]:
        self._planned.clear()  # what was prefetched of the epoch before is not trained on
        for numbers in self._inner:
            self._planned.append(list(numbers))
            yield self._planned[-1]

    def __len__(self) -> int:
        return len(self._inner)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


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


def _refuse_loader(loader: Any) -> None:
    if not isinstance(loader, torch.utils.data.DataLoader):
        raise Unsupported(
            found=f"training data in a {type(loader).__name__}",
            needed="one torch DataLoader",
            do="pass that, or record a loop of your own with whence.Recorder",
        )
    if loader.batch_sampler is None or not hasattr(loader.dataset, "__len__") or not getattr(loader, "in_order", True):
        raise Unsupported(
            found="a DataLoader that does not plan its batches",
            needed="a dataset of known length, a batch size, and batches in order",
            do="pass such a loader, or record a loop of your own with whence.Recorder",
        )


def _callback_class() -> Any:
    """That of the package which is in use already, if one is.

    Raises:
        BadInput: If none is installed.
    """
    for name in sorted(_PACKAGES, key=lambda name: name not in sys.modules):
        try:
            return import_module(name).Callback
        except ImportError:
            continue
    raise BadInput(found="no Lightning", needed="pytorch-lightning", do="pip install 'whence-tda[lightning]'")
