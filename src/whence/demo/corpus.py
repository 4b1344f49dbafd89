"""Real text that every CPython carries: the language reference and the docstrings of the standard library."""

import ast
import inspect
import re
import sysconfig
from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module
from pathlib import Path

from whence.errors import BadInput

__all__ = ["MODULES", "docstrings", "passages", "python_docs"]

MODULES = (
    "json", "os", "re", "collections", "functools", "pathlib", "asyncio", "threading", "datetime", "random", "typing",
    "logging", "subprocess", "unittest", "argparse", "csv", "sqlite3", "socket", "http", "urllib", "email", "contextlib",
    "dataclasses", "enum", "heapq", "bisect", "string", "textwrap", "shutil", "tempfile", "glob", "fnmatch", "pickle", "copy",
    "queue", "multiprocessing", "concurrent", "statistics", "fractions", "decimal", "calendar", "hashlib", "hmac", "secrets",
    "base64", "zipfile", "tarfile", "gzip", "configparser", "tomllib", "html", "xml", "inspect", "traceback", "warnings", "weakref",
    "abc", "ast", "tokenize", "timeit", "cProfile", "pstats", "doctest", "difflib", "shlex", "getpass", "platform", "io", "locale",
    "gettext", "sched", "selectors", "signal", "ssl", "smtplib", "imaplib", "ftplib", "uuid", "ipaddress", "mimetypes", "struct",
    "codecs", "importlib", "pkgutil", "types", "operator", "numbers", "graphlib", "pprint", "reprlib", "zoneinfo", "webbrowser",
)  # fmt: skip
"""Modules whose docstrings are read, best known first; one that this Python lacks is passed over."""

_SKIPPED = {"test", "tests", "idlelib", "lib2to3", "__main__", "_test_multiprocessing"}
# Since 3.12 the Python twin of a C module lives in a file of another name.
_TWINS = {"datetime": "_pydatetime", "decimal": "_pydecimal"}
_PLAIN = str.maketrans({"“": '"', "”": '"', "‘": "'", "’": "'", "…": "...", "–": "-", "—": "-", "\u00a0": " "})
_RULE = re.compile(r"[\s=*~^\-+|#\"']{3,}")
_LONG_PARAGRAPH = 60


def python_docs(
    modules: Sequence[str] = MODULES,
    *,
    max_documents: int = 1000,
    max_characters: int = 280,
    min_characters: int = 120,
    per_topic: int = 6,
    per_source: int = 3,
    per_module: int = 22,
) -> list[dict[str, str]]:
    """Passages of Python's own documentation, with the name of what each one documents.

    Nothing is downloaded and no module of the standard library runs: its files are parsed. The same Python version gives the same
    documents in the same order. A third of them at most comes from the language reference.

    Args:
        modules: Top-level modules whose docstrings are read, in this order; one that this Python lacks is passed over.
        max_documents: How many at most.
        max_characters: Longest passage; 280 are about 80 tokens of the demo's tokenizer.
        min_characters: Shorter ones teach nothing and are dropped.
        per_topic: Passages of one reference topic at most.
        per_source: Passages of one docstring at most.
        per_module: Passages of one module (with its submodules) at most.

    Returns:
        Records with `id`, `source` and `text`. The id is the source, followed by "#" and a number if it has several passages.

    Raises:
        BadInput: If this Python was installed without the topics or without the sources of its standard library.
    """
    documents: list[dict[str, str]] = []
    texts_taken: set[str] = set()

    def take(source: str, heading: str, paragraphs: Sequence[str], most: int) -> int:
        long_enough = [text for text in passages(paragraphs, max_characters - len(heading)) if len(text) >= min_characters]
        new_texts = [text for text in long_enough if text not in texts_taken][: max(most, 0)]
        # Overloads and property setters repeat a name; the first one documents it.
        if source in texts_taken or not new_texts:
            return 0
        texts_taken.update([source, *new_texts])
        names = [source] if len(new_texts) == 1 else [f"{source}#{number}" for number in range(len(new_texts))]
        documents.extend(
            {"id": name, "source": source, "text": heading + text} for name, text in zip(names, new_texts, strict=True)
        )
        return len(new_texts)

    for topic, paragraphs in _topics():
        take(f"topics/{topic}", "", paragraphs, min(per_topic, max_documents // 3 - len(documents)))
    for module in modules:
        room = min(per_module, max_documents - len(documents))
        for source, text in docstrings(module):
            room -= take(source, f"{source}: ", _paragraphs(text), min(per_source, room))
    if "json" in modules and not any(document["source"] == "json.dumps" for document in documents):
        raise BadInput(
            found=f"no docstrings under {_library()}",
            needed="the sources of the standard library",
            do="run the demo with a Python that carries them, or build a store from your own text",
        )
    return documents


def docstrings(module: str) -> Iterator[tuple[str, str]]:
    """Docstrings of a standard module, its submodules, classes and functions, read without importing it.

    Names that start with an underscore are left out.

    Args:
        module: Name of a top-level module or package.

    Yields:
        Dotted name and docstring, in the order of the source files.
    """
    folder = _library() / module
    files = sorted(folder.rglob("*.py")) if folder.is_dir() else [folder.with_suffix(".py")]
    if module in _TWINS:
        files.append(_library() / f"{_TWINS[module]}.py")
    for file in files:
        parts = file.relative_to(_library()).with_suffix("").parts
        if not file.is_file() or _SKIPPED & set(parts):
            continue
        # A private file is an implementation detail: what it defines is known by the name of its package.
        name = ".".join([module, *(part for part in parts[1:] if not part.startswith("_"))])
        tree = ast.parse(file.read_bytes(), filename=str(file))
        text = ast.get_docstring(tree)
        if text and (len(parts) == 1 or parts[-1] == "__init__" or not parts[-1].startswith("_")):
            yield name, text
        yield from _members(tree, name)


def passages(paragraphs: Sequence[str], max_characters: int) -> list[str]:
    r"""Paragraphs packed in order into passages, cut inside a paragraph only when it is too long by itself.

    >>> passages(["one two", "three", "four five six"], 14)
    ['one two\n\nthree', 'four five six']
    >>> passages(["A sentence. And more."], 14)
    ['A sentence.', 'And more.']
    """
    packed: list[str] = []
    for paragraph in paragraphs:
        for piece in _pieces(paragraph, max_characters):
            if packed and len(packed[-1]) + 2 + len(piece) <= max_characters:
                packed[-1] += "\n\n" + piece
            else:
                packed.append(piece)
    return packed


def _members(node: ast.Module | ast.ClassDef, name: str) -> Iterator[tuple[str, str]]:
    for child in node.body:
        if not isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) or child.name.startswith("_"):
            continue
        text = ast.get_docstring(child)
        if text:
            yield f"{name}.{child.name}", text
        if isinstance(child, ast.ClassDef):
            yield from _members(child, f"{name}.{child.name}")


def _topics() -> list[tuple[str, list[str]]]:
    try:
        topics: Mapping[str, str] = import_module("pydoc_data.topics").topics
    except ImportError:
        raise BadInput(
            found="a Python without pydoc_data.topics",
            needed="the language reference that `help()` shows",
            do="run the demo with a complete Python, or build a store from your own text",
        ) from None
    # The long topics repeat the short ones ("compound" holds all of "with"); whoever is specific keeps the paragraph.
    seen: set[str] = set()
    by_topic: dict[str, list[str]] = {}
    for topic in sorted(topics, key=lambda topic: (len(topics[topic]), topic)):
        fresh = [text for text in _paragraphs(topics[topic]) if text not in seen]
        seen.update(text for text in fresh if len(text) >= _LONG_PARAGRAPH)
        by_topic[topic] = fresh
    return list(by_topic.items())


def _paragraphs(text: str) -> list[str]:
    text = inspect.cleandoc(text.translate(_PLAIN)).replace("\r", "")
    paragraphs = []
    for block in re.split(r"\n\s*\n", text):
        lines = [line.rstrip() for line in block.split("\n") if not _RULE.fullmatch(line.strip())]
        if not lines or "+---" in block:
            continue
        indents = [len(line) - len(line.lstrip()) for line in lines]
        # Prose is set on one line; code, lists and tables keep theirs.
        if len(set(indents)) == 1 and not re.search(r"^\s*(>>>|\.\.\.)", block, re.MULTILINE):
            paragraphs.append(" ".join(" ".join(lines).split()))
        else:
            paragraphs.append("\n".join(line[min(indents) :] for line in lines))
    return paragraphs


def _pieces(paragraph: str, max_characters: int) -> Iterator[str]:
    while len(paragraph) > max_characters:
        head = paragraph[: max_characters + 1]
        ends = [head.rfind(mark) + len(mark) - 1 for mark in (". ", ".\n", "\n", "; ", ", ", " ") if head.rfind(mark) > 0]
        # The first kind of boundary that does not leave a stump; any at all before a cut through a word.
        cut = next((end for end in ends if end >= max_characters // 3), max(ends, default=max_characters))
        yield paragraph[:cut].rstrip()
        paragraph = paragraph[cut:].strip()
    if paragraph:
        yield paragraph


def _library() -> Path:
    return Path(sysconfig.get_path("stdlib"))
