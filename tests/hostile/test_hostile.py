"""A sample of the second half of `make torture`: three folders of every kind, and that what must not be would be seen."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.hostile import __main__ as hostile
from tests.hostile.folders import Kind


def test_damaged_and_hostile_folders_are_read_as_before_or_refused():
    done = subprocess.run(
        [sys.executable, "-m", "tests.hostile", "--trials", "51", "--seed", "1"],
        cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert ", 0 faults" in done.stdout


def _nothing(folder, drawn):
    """No damage at all."""


def _careless(folder):
    (folder / "kept").mkdir()
    (folder / "kept" / "a.json").write_text("[1, 2, 3]")


@pytest.mark.parametrize(
    ("read", "seen"),
    [
        (lambda folder: int("x"), "error"),
        (lambda folder: (folder.parent / "outside" / "secret").read_text(), "seen"),
        (lambda folder: (folder.parent / "outside" / "new").write_text(""), "outside"),
        (lambda folder: "another", "other"),
        (lambda folder: [bytearray(1 << 33) for _ in range(9)], "error"),
        (lambda folder: time.sleep(60), "too long"),
        (lambda folder: os.kill(os.getpid(), signal.SIGKILL), "signal"),
    ],
)
def test_careless_readers_are_seen(tmp_path, monkeypatch, read, seen):
    """Each reads well twice, to learn and to compare, and badly after that."""
    (tmp_path / "place").mkdir()
    state = tmp_path / "place" / "0" / "state"

    def careless(folder):
        if "trial" in folder.parts and state.exists():
            return str(read(folder))
        if "trial" in folder.parts:
            state.touch()
        return "answer"

    monkeypatch.setattr(hostile, "ACCIDENTS", [_nothing])
    monkeypatch.setattr(hostile, "ATTACKS", [_nothing])
    monkeypatch.setattr(hostile, "SECONDS", 1)
    faults, outcomes = hostile.of_kind(Kind("careless", _careless, careless), 3, 0, tmp_path / "place" / "0")
    assert outcomes == {seen: 3} and (faults or seen == "other")
