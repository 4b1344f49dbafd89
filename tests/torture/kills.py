"""Kills processes at any moment and looks at what they leave.

A process that has imported everything forks children, each of which does one piece of work in a folder until it is killed. Then the folder is
looked at, the work is done again by the next child, and what is there in the end has to be what an undisturbed process makes, byte by byte.
"""

import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

# What changes a folder: a child is killed right before one of these, or after some time.
CHANGES = ("replace", "rename", "unlink", "mkdir", "rmdir", "fsync", "open", "write")
KILLS_IN_A_ROW = 3


@dataclass(frozen=True)
class Job:
    """A piece of work that may be killed.

    Args:
        name: What it is called.
        run: Does it in a folder, or what is left of it there.
        prepare: Puts what is there before into the folder.
        look: Called with the folder after every kill: raises if what is there could be mistaken for something else.
        content: What has to be the same in the end.
    """

    name: str
    run: Callable[[Path], object]
    prepare: Callable[[Path], object] = lambda folder: None
    look: Callable[[Path], object] = lambda folder: None
    content: Callable[[Path], object] = field(default=lambda folder: contents(folder))


@dataclass
class Tally:
    """What came of it."""

    kills: int = 0
    trials: int = 0
    faults: list[str] = field(default_factory=list)


def contents(folder: Path) -> dict[str, bytes]:
    """Bytes of all files but locks, by path."""
    found = sorted(path for path in folder.rglob("*") if path.is_file() and path.name not in (".lock", ".leases"))
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


def scratch() -> Path:
    """A folder in memory where there is one: a killed process needs no disk to lose what it had not written."""
    memory = Path("/dev/shm")
    return Path(tempfile.mkdtemp(prefix="whence-kills-", dir=memory if os.access(memory, os.W_OK) else None))


def tortured(jobs: list[Job], kills: int, seed: int, *, say: Callable[[str], object] = lambda text: None) -> dict[str, Tally]:
    """Kill each job so many times in all, evenly shared.

    Args:
        jobs: The work.
        kills: In all.
        seed: Of the moments.
        say: Told how far it is.

    Returns:
        What came of each job.
    """
    place = scratch()
    tallies = {}
    try:
        for number, job in enumerate(jobs):
            share = kills * (number + 1) // len(jobs) - kills * number // len(jobs)
            tallies[job.name] = _of_job(job, share, random.Random(f"{seed} {job.name}"), place / job.name)
            say(f"{job.name}: {tallies[job.name].kills} kills, {len(tallies[job.name].faults)} faults")
    finally:
        shutil.rmtree(place, ignore_errors=True)
    return tallies


def _of_job(job: Job, kills: int, drawn: random.Random, place: Path) -> Tally:
    tally = Tally()
    whole = place / "whole"
    whole.mkdir(parents=True)
    job.prepare(whole)
    before = place / "before"
    shutil.copytree(whole, before)
    job.run(whole)  # here, so that children have imported all that they need
    wanted = job.content(whole)
    started = time.monotonic()
    if (told := child(job, _copied(before, place / "timed"), None)) is not None:
        tally.faults.append(f"undisturbed: {told}")
        return tally
    seconds = time.monotonic() - started
    child(job, _copied(before, place / "counted"), 0, place / "changes")
    changes = int((place / "changes").read_text())
    while tally.kills < kills and len(tally.faults) < 5:
        folder = _copied(before, place / f"trial-{tally.trials}")
        tally.trials += 1
        moments = []
        for _ in range(drawn.randint(1, KILLS_IN_A_ROW)):
            moment = drawn.randint(1, changes) if drawn.random() < 0.5 else drawn.uniform(0, 1.1 * seconds)
            moments.append(moment)
            told = child(job, folder, moment)
            if told is None:  # it was done before
                continue
            tally.kills += told == "killed"
            if told != "killed":
                tally.faults.append(f"killed at {moments}: {told}")
                break
            try:
                job.look(folder)
            except Exception:
                tally.faults.append(f"killed at {moments}, looked at: {traceback.format_exc(limit=-3)}")
        if (told := child(job, folder, None)) is not None:
            tally.faults.append(f"killed at {moments}, done again: {told}")
        elif job.content(folder) != wanted:
            tally.faults.append(f"killed at {moments}: {_difference(job.content(folder), wanted)}")
        shutil.rmtree(folder, ignore_errors=True)
    return tally


def child(job: Job, folder: Path, moment: int | float | None, counted: Path | None = None) -> str | None:
    """Have a child do the work.

    Args:
        job: The work.
        folder: Where.
        moment: When it is killed: before that many changes of a folder, after that many seconds if it is a float, never if it is None.
        counted: Where it writes how many changes there are.

    Returns:
        None if it is done, "killed" if it was, else what went wrong.
    """
    told = folder.with_name(f"{folder.name}.told")
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            if isinstance(moment, int):
                count = _killing_at(moment)
            sys.stderr = open(os.devnull, "w")  # noqa: SIM115
            job.run(folder)
            if counted is not None:
                counted.write_text(str(count[0]))
            status = 0
        except BaseException:
            told.write_text(traceback.format_exc(limit=-6))
        finally:
            os._exit(status)
    if isinstance(moment, float):
        time.sleep(moment)
        os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    if os.WIFSIGNALED(status):
        return "killed" if os.WTERMSIG(status) == signal.SIGKILL else f"ended by signal {os.WTERMSIG(status)}"
    if os.WEXITSTATUS(status):
        text = told.read_text() if told.exists() else "no message"
        told.unlink(missing_ok=True)
        return text
    return None


def _killing_at(moment: int) -> list[int]:
    """Have this process killed right before it changes a folder that many times; 0 for never. What it has done so far."""
    count = [0]

    def counting(function):
        def called(*arguments, **keywords):
            count[0] += 1
            if count[0] == moment:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*arguments, **keywords)

        return called

    for name in CHANGES:
        setattr(os, name, counting(getattr(os, name)))
    return count


def _copied(before: Path, folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    return Path(shutil.copytree(before, folder))


def _difference(found: object, wanted: object) -> str:
    if isinstance(found, dict) and isinstance(wanted, dict):
        names = sorted(name for name in found.keys() | wanted.keys() if found.get(name) != wanted.get(name))
        return f"other files than an undisturbed process leaves: {', '.join(names[:6])}"
    return f"{found!r} instead of {wanted!r}"
