"""The service: a model and its stores loaded once, asked over HTTP, by a page or from Python.

What needs FastAPI is in `whence.serve.app` and is imported by whoever starts a server; the client needs nothing but Python.
"""

from whence.serve.client import Client, HitFilter
from whence.serve.config import ServeConfig

__all__ = ["Client", "HitFilter", "ServeConfig"]
