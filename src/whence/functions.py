"""Functions of people's own: named on the command line as file.py:function, and told from other functions."""

import importlib.util
import inspect
import sys
from collections.abc import Callable
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import CodeType
from typing import Any

from whence.errors import BadInput

__all__ = ["absolute", "function_at", "identity_of", "is_function", "sources_of"]


def is_function(name: str) -> bool:
    """Whether a name is of the form file.py:function."""
    return ".py:" in name


def absolute(name: str) -> str:
    """The same with the file's absolute path."""
    path, colon, function = name.rpartition(":")
    return f"{Path(path).resolve()}{colon}{function}" if path else name


class _FromSource(SourceFileLoader):
    """Runs what is in the file: no compiled code is read from beside it, and none is left there, which may be somebody's store."""

    def get_code(self, fullname: str) -> CodeType:
        return self.source_to_code(self.get_data(self.path), self.path)


def function_at(name: str) -> Callable[..., Any]:
    """The function that a name of the form file.py:function stands for; the file is run.

    Raises:
        BadInput: If there is no such file or no such function in it.
    """
    path, _, function = name.rpartition(":")
    if not function or not path:
        raise BadInput(found=f"the name {name!r}", needed="file.py:function", do="add the name of the function")
    if not Path(path).is_file():
        raise BadInput(found=f"no Python file {path}", needed="file.py:function", do="check the path")
    spec = importlib.util.spec_from_file_location(Path(path).stem, path, loader=_FromSource(Path(path).stem, path))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules.setdefault(spec.name, module)  # dataclasses look their module up by name
    sys.path.insert(0, str(Path(path).resolve().parent))
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.pop(0)
    if not callable(getattr(module, function, None)):
        names = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise BadInput(
            found=f"no function {function!r} in {path}", needed=f"one of: {', '.join(names) or 'none there'}", do="correct it"
        )
    return getattr(module, function)


def sources_of(name: str) -> list[Path]:
    """The Python files that a function depends on as far as its own folder goes: its file and what that imported from beside it.

    Args:
        name: As file.py:function; the file is run.
    """
    function_at(name)
    home = Path(absolute(name).rpartition(":")[0])
    beside = {Path(file).resolve() for module in list(sys.modules.values()) if (file := getattr(module, "__file__", None))}
    inside = (file for file in beside if file.is_relative_to(home.parent) and "site-packages" not in file.parts)
    # Some modules name a file that is not there: torch.classes says "_classes.py", which would be in the folder one works in.
    return sorted({home, *(file for file in inside if file.is_file())})


def identity_of(function: Callable[..., Any] | None) -> str:
    """What tells a function from another one: its source, its defaults, and the numbers and strings that it sees from outside."""
    if function is None:
        return ""
    try:
        source = inspect.getsource(function)
    except (OSError, TypeError):
        source = repr(getattr(function, "__qualname__", type(function).__qualname__))
    try:
        seen = inspect.getclosurevars(function)
        outside = {**seen.globals, **seen.nonlocals}
    except (TypeError, ValueError):
        outside = {}
    plain = {name: value for name, value in outside.items() if isinstance(value, int | float | str | bool | None)}
    return repr((source, getattr(function, "__defaults__", None), sorted(plain.items())))
