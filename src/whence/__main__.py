"""`python -m whence`."""

from whence.cli import run

run()
