"""Models that actors load in tests, by file.py:function; some of them come with a slow or deadly way to write a shard."""

import os
import signal
import time
from pathlib import Path

from tests.test_store import make_task
from whence.store.writer import Writer

PAUSE = 0.3


def plain():
    return make_task()


def slow():
    """Every shard takes a while, and it is said whose it is; nobody begins before there are two."""
    write = Writer.write
    _note(f"{os.getpid()}.ready")
    for _ in range(600):
        if len(list(Path(os.environ["RAY_JOBS_NOTES"]).glob("*.ready"))) > 1:
            break
        time.sleep(0.1)

    def slowly(self, shard, *more):
        _note(f"{shard.number}.{os.getpid()}")
        time.sleep(PAUSE)
        write(self, shard, *more)

    Writer.write = slowly
    return make_task()


def deadly():
    """Whoever writes shard 2 ends."""
    write = Writer.write

    def die(self, shard, *more):
        if shard.number == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        write(self, shard, *more)

    Writer.write = die
    return make_task()


def slow_passes():
    """Every batch of a fit takes a while."""
    _note(f"{os.getpid()}.pid")
    task = make_task()
    task.model.register_forward_pre_hook(lambda *_: time.sleep(PAUSE))
    return task


def _note(name):
    (Path(os.environ["RAY_JOBS_NOTES"]) / name).touch()


def other():
    return make_task(seed=1)
