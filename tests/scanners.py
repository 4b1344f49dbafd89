"""What workers run in tests: a scanner, slow, deadly or unable to begin. Only modules can be named to another process."""

import os
import signal
import time

from whence.workers.pieces import Scanner

# Seconds a piece takes a slow scanner.
PAUSE = 0.04


class Slow:
    """Scans as any other, after a while."""

    def __init__(self):
        self.scan = Scanner()

    def __call__(self, job):
        if job == "pid":
            return os.getpid()
        time.sleep(PAUSE)
        return self.scan(job)


class Deadly:
    """Dies of one shard."""

    def __init__(self):
        self.scan = Scanner()

    def __call__(self, job):
        if 3 in job.piece.shards:
            os.kill(os.getpid(), signal.SIGKILL)
        return self.scan(job)


class Failing:
    """Has a mistake in it."""

    def __call__(self, job):
        raise KeyError("a mistake")


class Unready:
    """Ends before it is ready."""

    def __init__(self):
        os._exit(7)
