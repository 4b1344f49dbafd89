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
    """Every shard takes a while."""
    write = Writer.write

    def slowly(self, shard, *more):
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
    (Path(os.environ["RAY_JOBS_PIDS"]) / f"{os.getpid()}.pid").touch()
    task = make_task()
    task.model.register_forward_pre_hook(lambda *_: time.sleep(PAUSE))
    return task


def other():
    return make_task(seed=1)
