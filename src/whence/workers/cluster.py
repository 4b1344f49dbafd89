"""A Ray cluster, which may be this machine alone, as whence joins it."""

import contextlib
import logging
import math
import os
import signal
import socket
import threading
from collections.abc import Iterator
from typing import Any

from whence.errors import BadInput, first_line
from whence.internals import quiet_ray

__all__ = ["RayCluster", "rooms_here"]

_CONNECT_SECONDS = 10.0
_RAY_SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # else newer versions announce that they will change
}


class RayCluster:
    """The cluster that this process is connected to, else one that it connects to or starts, and lets go of when closed.

    One that is started here has no dashboard and reports nothing to anybody. Ray's own messages are kept off this process's output.

    Args:
        address: "local" starts one on this machine, "auto" finds the one that this machine is part of; else the address of one.
        processors: Of a cluster that is started; None for all of this machine.

    Raises:
        BadInput: If Ray is not installed, or nothing is at the address.
    """

    def __init__(self, address: str, processors: int | None = None):
        for name, value in _RAY_SETTINGS.items():
            os.environ.setdefault(name, value)
        try:
            import ray
        except ImportError as error:
            raise BadInput(
                found="no package ray", needed="what workers on a cluster need", do="pip install 'whence-tda[ray]'"
            ) from error
        self.ray: Any = ray
        self.is_ours = not ray.is_initialized()
        self._quiet = contextlib.ExitStack()
        if not self.is_ours:
            return
        self._quiet.enter_context(quiet_ray())
        options: dict[str, Any] = {"num_cpus": processors, "include_dashboard": False} if address == "local" else {}
        try:
            _knock(address)
            # What actors print is not for this process's output, which is data.
            with _own_signals():
                ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **options)
        except (ConnectionError, OSError, ValueError, RuntimeError) as error:
            self._quiet.close()
            raise BadInput(
                found=f"no Ray cluster at {address!r} ({first_line(error)})",
                needed="one that runs the same versions of Ray and Python, and this machine's token where it wants one",
                do="start one with `ray start --head`, pass its address, or pass 'local'",
            ) from error

    def rooms(self, cpus: int, gpus: float = 0) -> int:
        """How many actors its machines hold, whatever else they do now.

        Args:
            cpus: Of each actor.
            gpus: Of each actor.
        """
        return sum(_rooms(node["Resources"], cpus, gpus) for node in self.ray.nodes() if node["Alive"])

    def close(self) -> None:
        """Leave the cluster, if it was joined here, and end it, if it was started here."""
        if self.is_ours:
            self.ray.shutdown()
            self._quiet.close()


def rooms_here(cpus: int, gpus: float = 0) -> int:
    """As many actors as the machine may hold that this process, an actor, runs on.

    Args:
        cpus: Of each actor.
        gpus: Of each actor.
    """
    import ray

    here = ray.get_runtime_context().get_node_id()
    return max(1, sum(_rooms(node["Resources"], cpus, gpus) for node in ray.nodes() if node["NodeID"] == here))


def _rooms(resources: dict[str, float], cpus: int, gpus: float) -> int:
    rooms = resources.get("CPU", 0.0) / cpus
    return math.floor(rooms if not gpus else min(rooms, resources.get("GPU", 0.0) / gpus))


@contextlib.contextmanager
def _own_signals() -> Iterator[None]:
    """Keep what this process does when it is to end: Ray would print a trace of its own code and abort.

    Yields:
        Nothing.
    """
    before = signal.getsignal(signal.SIGTERM)
    yield
    if threading.current_thread() is threading.main_thread() and before is not None:
        signal.signal(signal.SIGTERM, before)


def _knock(address: str) -> None:
    """Fail at once where nobody listens: Ray itself tries for minutes."""
    if address not in ("local", "auto"):
        host, _, port = address.removeprefix("ray://").rpartition(":")
        socket.create_connection((host, int(port)), _CONNECT_SECONDS).close()
