"""Pages of the documentation and examples, run as they stand."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def page_text(name):
    """A page by its path in the repository."""
    return (ROOT / name).read_text("utf-8")


def run_blocks(name, count):
    """Run a page's Python, block after block in one namespace, which is returned; `count` is how many blocks it has."""
    blocks = re.findall(r"```python\n(.*?)```", page_text(name), re.S)
    assert len(blocks) == count, f"{name} has {len(blocks)} blocks of Python"
    names = {}
    for block in blocks:
        exec(compile(block, name, "exec"), names)
    return names


def page_commands(name, count):
    """The words behind each `whence` in a page's plain blocks; `count` is how many commands it has."""
    blocks = [block for kind, block in re.findall(r"```(\w*)\n(.*?)```", page_text(name), re.S) if not kind]
    lines = [line for block in blocks for line in block.replace("\\\n", "").splitlines() if line.startswith("whence ")]
    assert len(lines) == count, f"{name} has {len(lines)} commands"
    return [shlex.split(line)[1:] for line in lines]


def run_example(name, *words, timeout=None):
    """What a program under examples/ prints."""
    done = subprocess.run(
        [sys.executable, ROOT / "examples" / name, *words],
        capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT / "src")}, timeout=timeout, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout
