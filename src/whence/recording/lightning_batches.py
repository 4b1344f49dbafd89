"""Which examples are in the batches of a Lightning Trainer, and what their losses are divided by.

Lightning trains on batches of the user's own making, so ids are taken where batches are planned: what the batch sampler says is queued, and
each batch that is trained on takes the next.
"""

import sys
from collections import deque
from collections.abc import Callable, Iterator
from importlib import import_module
from typing import Any

import torch

from whence.errors import BadInput, Unsupported
from whence.internals import lightning_source
from whence.recording.ids import ids_of

__all__ = ["PlannedBatches", "callback_class"]

_PACKAGES = ("pytorch_lightning", "lightning.pytorch")


class PlannedBatches:
    """The batches that a Trainer's loader has planned and that are not trained on yet.

    Args:
        id_field: Field of the examples that holds their id, where they are mappings; without it they are numbered from 0.
        divided_by: From a batch to what the sum of its examples' losses is divided by; None for a mean over the examples.
    """

    def __init__(self, id_field: str, divided_by: Callable[[Any], float] | None):
        self.id_field, self.divided_by = id_field, divided_by
        self.planned: deque[list[int]] = deque()
        self.ids: list[str] = []
        self.undo: list[Callable[[], None]] = []

    def prepare(self, trainer: Any) -> None:
        """See to it that batches are queued.

        Raises:
            Unsupported: If the trainer is built in a way that is not known.
        """
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
            else:
                loader.batch_sampler.tell(self.planned)
            return loader

        source.dataloader = dataloader
        self.undo.append(lambda: vars(source).pop("dataloader", None))

    def take(self, trainer: Any, batch: Any) -> tuple[list[str], float]:
        """Ids of the batch that is about to be trained on, and what the sum of its losses is divided by.

        Raises:
            Unsupported: If the sampler did not plan it.
        """
        if not self.planned:
            raise Unsupported(
                found="a batch that the DataLoader's sampler did not plan",
                needed="batches in the order of the sampler",
                do="record a loop of your own with whence.Recorder",
            )
        numbers = self.planned.popleft()
        # Lightning divides by the number of micro-batches, in a last, shorter step as well.
        divisor = (len(numbers) if self.divided_by is None else self.divided_by(batch)) * trainer.accumulate_grad_batches
        return [self.ids[number] for number in numbers], float(divisor)

    def put_back(self) -> None:
        """Leave the Trainer as it was."""
        for back in reversed(self.undo):
            back()
        self.undo.clear()


class _Queued:
    """A batch sampler that tells what it said, to everybody who asked for it."""

    def __init__(self, inner: Any, planned: deque[list[int]]):
        self._inner, self._queues = inner, [planned]

    def tell(self, planned: deque[list[int]]) -> None:
        """Tell one more."""
        if all(planned is not other for other in self._queues):
            self._queues.append(planned)

    def __iter__(self) -> Iterator[list[int]]:
        for planned in self._queues:
            planned.clear()  # what was prefetched of the epoch before is not trained on
        for numbers in self._inner:
            for planned in self._queues:
                planned.append(list(numbers))
            yield list(numbers)

    def __len__(self) -> int:
        return len(self._inner)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


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


def callback_class() -> Any:
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
