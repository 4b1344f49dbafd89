"""Functions that people name on the command line: file.py:function."""

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from whence.errors import BadInput

__all__ = ["absolute", "function_at", "is_function"]


def is_function(name: str) -> bool:
    """Whether a name is of the form file.py:function."""
    return ".py:" in name


def absolute(name: str) -> str:
    """The same with the file's absolute path."""
    path, function = name.rsplit(":", 1)
    return f"{Path(path).resolve()}:{function}"


def function_at(name: str) -> Callable[..., Any]:
    """The function that a name of the form file.py:function stands for; the file is run.

    Raises:
        BadInput: If there is no such file or no such function in it.
    """
    path, function = name.rsplit(":", 1)
    if not Path(path).is_file():
        raise BadInput(found=f"no Python file {path}", needed="file.py:function", do="check the path")
    spec = importlib.util.spec_from_file_location(Path(path).stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules.setdefault(spec.name, module)  # dataclasses look their module up by name
    sys.path.insert(0, str(Path(path).resolve().parent))
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.pop(0)
    if not callable(getattr(module, function, None)):
        known = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise BadInput(
            found=f"no function {function!r} in {path}", needed=f"one of: {', '.join(known) or 'none there'}", do="correct it"
        )
    return getattr(module, function)
