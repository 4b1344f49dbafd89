"""Whether the service can answer: what every store did when it was last needed, and what its files are now."""

import contextlib
import logging
import time
from collections.abc import Iterator, Mapping

from whence.errors import NonFinite, OutOfMemory, StoreCorrupt, WhenceError, WorkerLost
from whence.serve.responses import Refused
from whence.store import Store, deleted_since

__all__ = ["Health"]

_LOOK_SECONDS = 1.0
# A look at a store of many files takes its time: the next one comes after so many times of that.
_LOOK_SHARE = 50.0
_logger = logging.getLogger("whence.serve")


class Health:
    """Stores that cannot be read as they were when the service started."""

    def __init__(self):
        # Why, by name: of those that were needed, and of those that were looked at.
        self.troubles: dict[str, Exception] = {}
        self.changed: dict[str, str] = {}
        self.look_again = 0.0

    def unreadable(self, stores: Mapping[str, Store]) -> list[str]:
        """Names of stores of which a question may fail: one did, or their files are no longer what they were.

        Args:
            stores: All of them. They are looked at for a small part of the time only, however often somebody asks.
        """
        started = time.monotonic()
        if started >= self.look_again:
            self.look_again = started + _LOOK_SECONDS
            self.changed = {name: why for name, store in stores.items() if (why := _changed(store))}
            # Damage does not show in what a file's times say; whatever else it was may be over.
            for name, error in list(self.troubles.items()):
                if name not in self.changed and not isinstance(error, StoreCorrupt):
                    self.troubles.pop(name, None)
            self.look_again += _LOOK_SHARE * (time.monotonic() - started)
        return [name for name in stores if name in self.troubles or name in self.changed]

    @contextlib.contextmanager
    def reading(self, store: str, mistakes: tuple[type[Exception], ...] = ()) -> Iterator[None]:
        """Around everything that reads a store: what goes wrong there is no mistake of whoever asks, and its text names files.

        Args:
            store: Its name.
            mistakes: Errors that are the asker's all the same.

        Yields:
            Nothing.

        Raises:
            Refused: If the store cannot be read as it was when the service started.
            NonFinite: If the model, or a row, holds what is no number.
            OutOfMemory: If the question is too large.
        """
        try:
            yield
        except (NonFinite, OutOfMemory, *mistakes) as error:
            raise error
        except (WhenceError, OSError) as error:
            if str(self.troubles.get(store)) != str(error):  # once, not with every request
                _logger.error("the store %s cannot be read: %s", store, error)
            self.troubles[store] = error
            problem = f"the store {store}, which cannot be read as it was when the service started"
            if isinstance(error, WorkerLost):
                problem = f"workers that ended while they scanned the store {store}"
            raise Refused(503, found=problem, do="tell whoever runs the service; its log says more") from error
        else:
            self.troubles.pop(store, None)


def _changed(store: Store) -> str:
    """What is no longer as it was of what the store reads from its files; what it keeps in memory does not depend on them."""
    if deleted_since(store):
        return "documents were deleted from it"
    in_memory = store.memory.tensors if store.memory is not None else {}
    return "; ".join(f"{name}: {why}" for name, why in store.faults().items() if name not in in_memory)
