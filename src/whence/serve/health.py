"""Whether the service can answer: what every part of it did when it was last needed."""

import contextlib
import logging
from collections.abc import Iterator

from whence.errors import NonFinite, OutOfMemory, WhenceError, WorkerLost
from whence.serve.responses import Refused

__all__ = ["Health"]

_logger = logging.getLogger("whence.serve")


class Health:
    """Stores that could not be read when they were last needed, by name, with the reason for those who run the service."""

    def __init__(self):
        self.troubles: dict[str, str] = {}

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
            if self.troubles.get(store) != str(error):  # once, not with every request
                _logger.error("the store %s cannot be read: %s", store, error)
            self.troubles[store] = str(error)
            found = f"the store {store}, which cannot be read as it was when the service started"
            if isinstance(error, WorkerLost):
                found = f"workers that ended while they scanned the store {store}"
            raise Refused(503, found=found, do="tell whoever runs the service; its log says more") from error
        else:
            self.troubles.pop(store, None)
