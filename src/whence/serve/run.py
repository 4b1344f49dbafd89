"""Starting the service: stores by name, an address, and a stop that finishes what it began."""

import functools
import gc
import socket
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI

from whence.errors import BadInput
from whence.serve.config import ServeConfig
from whence.serve.connection import Connection, OpenConnections
from whence.serve.limits import most_connections

__all__ = ["named_folders", "run_app"]

_BACKLOG = 1024


def named_folders(stores: Sequence[str]) -> dict[str, Path]:
    """Folders by the names that requests use.

    >>> named_folders(["runs/store", "news=runs/other"])
    {'store': PosixPath('runs/store'), 'news': PosixPath('runs/other')}

    Args:
        stores: Folders, or NAME=FOLDER.

    Returns:
        By name, in order.

    Raises:
        BadInput: If two have one name, or a name would not fit into an address.
    """
    folders: dict[str, Path] = {}
    for store in stores:
        name, _, folder = store.partition("=") if "=" in store and not Path(store).exists() else ("", "", store)
        name = name or Path(folder).resolve().name
        if name in folders or not name or "/" in name:
            raise BadInput(
                found=f"a store named {name!r}" + (" twice" if name in folders else ""),
                needed="a name of its own for each, without slashes",
                do="write NAME=FOLDER",
            )
        folders[name] = Path(folder)
    return folders


def run_app(app: FastAPI, config: ServeConfig, ready: Callable[[str], None]) -> None:
    """Listen until SIGINT or SIGTERM; then take nothing new and finish what was begun.

    Args:
        app: From `create_app`.
        config: Address and patience.
        ready: Called with the address once it answers.

    Raises:
        BadInput: If the address cannot be listened on, or this process may open too few files.
    """
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((config.host, config.port))
    except OSError as error:
        listener.close()
        raise BadInput(
            found=f"the address {config.host}:{config.port}, which cannot be listened on ({error.strerror or error})",
            needed="an address of this machine and a free port",
            do="pass another --port, or stop what listens there",
        ) from error
    host = f"[{config.host}]" if family == socket.AF_INET6 else config.host
    url = f"http://{host}:{listener.getsockname()[1]}/"
    metrics = app.state.metrics
    others = OpenConnections(
        config, most_connections(config), lambda status: metrics.requests.labels("none", str(status)).inc()
    )
    metrics.connections.set_function(lambda: others.count)
    settings: Mapping[str, Any] = {
        "log_level": "warning", "access_log": False, "server_header": False, "timeout_graceful_shutdown": int(config.drain_seconds),
        "proxy_headers": False, "http": functools.partial(Connection, others=others), "ws": "none",
        "backlog": _BACKLOG,
    }  # fmt: skip
    server = uvicorn.Server(uvicorn.Config(app, **settings))
    # What is loaded stays: looking through it for garbage again and again would take longer than most of what an answer takes.
    gc.collect()
    gc.freeze()
    # The socket listens from here on, so whoever is told the address is answered.
    listener.listen(settings["backlog"])
    ready(url)
    server.run(sockets=[listener])
