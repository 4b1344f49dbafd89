"""The one door to the terminal: nothing that somebody else wrote reaches it as anything but text.

Ids, names, texts and paths come from data, stores and services. An escape sequence in one of them could rename the window, hide what was
printed before or type into the shell. All that whence prints goes through here, where what steers a terminal is replaced.
"""

import json
import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from traceback import format_exception
from types import TracebackType
from typing import TYPE_CHECKING, Any, TextIO

from whence.errors import printable

if TYPE_CHECKING:  # not needed for an error message
    from rich.console import Console, RenderableType

__all__ = ["json_text", "said_elsewhere", "say", "show", "stdout", "steerless", "tell", "tell_all_through_here", "tell_json"]

# A pipe or a log file has no width; rich would assume 80, too narrow for paths.
_PIPE_WIDTH = 120
_SPEAKER: ContextVar[Callable[[str], object] | None] = ContextVar("speaker", default=None)


def steerless(text: str) -> str:
    r"""A text of several lines that cannot steer a terminal: as `printable`, but lines end where they end.

    >>> steerless("a\x1b[31m\nb") == "a\N{REPLACEMENT CHARACTER}[31m\nb"
    True
    """
    return "\n".join(map(printable, text.split("\n")))


def tell(*lines: object, flush: bool = False) -> None:
    """Lines on stdout, where data goes. What is in one of them cannot begin another."""
    _write(sys.stdout, "".join(f"{printable(str(line))}\n" for line in lines), flush)


def say(text: str) -> None:
    """One line, or several, for the person who waits, on stderr."""
    speaker = _SPEAKER.get()
    if speaker is not None:
        speaker(text)
    else:
        _write(sys.stderr, steerless(text) + "\n", True)


@contextmanager
def said_elsewhere(speaker: Callable[[str], object]) -> Iterator[None]:
    """Have what this block says to the person who waits go to where that person is.

    Args:
        speaker: Given each text.

    Yields:
        Nothing.
    """
    token = _SPEAKER.set(speaker)
    try:
        yield
    finally:
        _SPEAKER.reset(token)


def tell_json(content: Any, *, flush: bool = False) -> None:
    """A value as one line of JSON on stdout; see `json_text`."""
    text = json_text(content)
    if not _can_hold(sys.stdout, text):
        text = json.dumps(content)
    _write(sys.stdout, text + "\n", flush)


def json_text(content: Any) -> str:
    """JSON with letters as they are and everything that could steer a terminal as escapes, which mean the same."""
    text = json.dumps(content, ensure_ascii=False)
    return "".join(f"\\u{ord(letter):04x}" if letter != printable(letter) else letter for letter in text)


def stdout() -> "Console":
    """What lays out tables for stdout, wide enough for paths where that has no width of its own; `show` prints them."""
    from rich.console import Console

    console = Console(highlight=False, markup=False, emoji=False)
    if not console.is_terminal and not console.is_jupyter and "COLUMNS" not in os.environ:
        console.width = _PIPE_WIDTH
    return console


def show(console: "Console", *renderables: "RenderableType") -> None:
    """Print tables and styled text: the styles, which are ours, as they are, and texts as by `tell`."""
    from rich.segment import Segment, Segments

    for renderable in renderables:
        clean = (
            piece if piece.control else Segment(steerless(piece.text), piece.style) for piece in console.render(renderable)
        )
        console.print(Segments(clean), end="")


def tell_all_through_here() -> None:
    """Have what Python itself prints (warnings, logs, the end of a process that failed) come through here, in the process of a command."""
    warnings.showwarning = _warn
    sys.excepthook = _fail
    factory = logging.getLogRecordFactory()

    def record(*arguments: Any, **more: Any) -> logging.LogRecord:
        record = factory(*arguments, **more)
        record.msg, record.args = steerless(record.getMessage()), None
        if record.exc_info and record.exc_info[0] is not None:
            record.exc_text = steerless("".join(format_exception(*record.exc_info)).rstrip("\n"))
        return record

    logging.setLogRecordFactory(record)


def _warn(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    _write(
        sys.stderr if file is None else file, steerless(warnings.formatwarning(message, category, filename, lineno, line)), True
    )


def _fail(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    _write(sys.stderr, steerless("".join(format_exception(kind, error, trace))), True)


def _write(stream: TextIO, text: str, flush: bool) -> None:
    if not _can_hold(stream, text):
        text = text.encode(stream.encoding, "replace").decode(stream.encoding)
    print(text, end="", file=stream, flush=flush)


def _can_hold(stream: TextIO, text: str) -> bool:
    try:
        text.encode(getattr(stream, "encoding", None) or "utf-8")
    except UnicodeEncodeError:
        return False
    return True
