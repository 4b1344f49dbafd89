"""python -m tests.hostile [--trials 1000 --seed 0 --only run ...]

Folders that somebody damaged, or made to do harm: each is read as its users read it, in a process of its own. Allowed are the same answer as
before, or a refusal by an error of whence in one line; after an attack that rewrote the sums, too, an answer by what is written there now.
Not allowed are another answer, another error, a signal, half a minute, a file outside that is opened, written or made, code that runs, and a
letter that steers a terminal. Ends with 1 if anything was found.
"""

import argparse
import os
import random
import resource
import secrets
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path

import torch

from tests.hostile.damages import ACCIDENTS, ATTACKS
from tests.hostile.folders import Kind, kinds
from whence.errors import WhenceError

SECONDS = 30
# More than any of these folders takes.
MEMORY = 3 << 30
_STEERING = set("\x1b\x07\x9b\u202e")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=None, help="drawn, and printed, if it is not given")
    parser.add_argument("--only", nargs="+", default=[], help="beginnings of names of kinds")
    arguments = parser.parse_args()
    seed = secrets.randbelow(1 << 31) if arguments.seed is None else arguments.seed
    torch.set_num_threads(1)  # children are forked
    chosen = [kind for kind in kinds() if not arguments.only or kind.name.startswith(tuple(arguments.only))]
    print(f"{arguments.trials} folders of {len(chosen)} kinds, --seed {seed}", flush=True)
    started, faults, outcomes = time.monotonic(), [], Counter()
    memory = Path("/dev/shm")
    place = Path(tempfile.mkdtemp(prefix="whence-hostile-", dir=memory if os.access(memory, os.W_OK) else None))
    os.environ["WHENCE_CACHE_DIR"] = str(place / "notes")
    try:
        for number, kind in enumerate(chosen):
            share = arguments.trials * (number + 1) // len(chosen) - arguments.trials * number // len(chosen)
            found, told = of_kind(kind, share, seed, place / str(number))
            faults += found
            outcomes += told
            print(f"{kind.name}: {dict(told)}, {len(found)} faults", flush=True)
    finally:
        shutil.rmtree(place, ignore_errors=True)
    print(f"{sum(outcomes.values())} folders: {dict(outcomes)}, {len(faults)} faults, {time.monotonic() - started:.0f} s")
    print("\n".join(faults), end="\n" if faults else "")
    return 1 if faults else 0


def of_kind(kind: Kind, trials: int, seed: int, place: Path) -> tuple[list[str], Counter]:
    """Faults, and how often what came out."""
    whole = place / "whole"
    whole.mkdir(parents=True)
    kind.make(whole)
    kind.read(whole)  # here, so that children have imported all that they need
    answer = None
    faults, outcomes = [], Counter()
    for number in range(trials):
        drawn = random.Random(f"{seed} {kind.name} {number}")
        is_accident = drawn.random() < 0.45
        damage = drawn.choice(ACCIDENTS if is_accident else ATTACKS)
        folder, outside = place / "trial" / "here", place / "trial" / "outside"
        shutil.rmtree(place / "trial", ignore_errors=True)
        shutil.copytree(whole, folder)
        outside.mkdir()
        (outside / "secret").write_text("precious")
        if answer is None:  # at the same place, which notes name
            outcome, answer = _read(kind, folder, outside)
            assert outcome == "answer", answer
            shutil.rmtree(folder)
            shutil.copytree(whole, folder)
        (folder / "evil.py").write_text("open('../outside/ran', 'w').close()\nmake = None\n")
        damage(folder, drawn)
        before = _snapshot(outside)
        outcome, told = _read(kind, folder, outside)
        if _snapshot(outside) != before:
            outcome, told = "outside", f"changed: {sorted(set(_snapshot(outside)) ^ set(before))}"
        if outcome == "answer":
            outcome = "same" if told == answer else "other"
        outcomes[outcome] += 1
        if outcome not in ("same", "refused") and not (outcome == "other" and not is_accident):
            faults.append(f"{kind.name}, --seed {seed}, trial {number}, {damage.__name__}: {outcome}: {told}")
    return faults, outcomes


def _read(kind: Kind, folder: Path, outside: Path) -> tuple[str, str]:
    """What a child of this process makes of a folder: "answer", "refused", or what must not be."""
    told = folder.parent / "told"
    told.unlink(missing_ok=True)
    pid = os.fork()
    if pid == 0:
        try:
            told.write_text("\n".join(_outcome(kind, folder, outside)), encoding="utf-8", errors="replace")
        finally:
            os._exit(0)
    until = time.monotonic() + SECONDS
    while os.waitpid(pid, os.WNOHANG) == (0, 0):
        if time.monotonic() > until:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            return "too long", f"{SECONDS} s"
        time.sleep(0.002)
    outcome, _, text = (told.read_text("utf-8") if told.exists() else "signal").partition("\n")
    return outcome, text


def _outcome(kind: Kind, folder: Path, outside: Path) -> tuple[str, str]:
    os.chdir(folder)
    os.dup2(os.open(os.devnull, os.O_RDWR), 0)
    used = (
        int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        if Path("/proc/self/statm").exists()
        else 0
    )
    if used:
        resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
    seen: list[str] = []
    sys.addaudithook(lambda event, found: _watch(event, found, str(outside), seen))
    try:
        answer = kind.read(folder)
    except WhenceError as error:
        text = str(error)
        if "\n" in text or set(text) & _STEERING:
            return "steers", repr(text)
        return ("seen", "; ".join(seen)) if seen else ("refused", text)
    except BaseException:
        return "error", traceback.format_exc(limit=-4)
    return ("seen", "; ".join(seen)) if seen else ("answer", answer)


def _watch(event: str, found: tuple, outside: str, seen: list[str]) -> None:
    """Note what a reader must not do."""
    if event == "open" and found and isinstance(found[0], str | bytes | os.PathLike):
        path, flags = os.fsdecode(found[0]), found[2] if len(found) > 2 and isinstance(found[2], int) else 0
        folder, name = os.path.split(path)
        # A link that the system is told not to follow leads nowhere.
        real = os.path.join(os.path.realpath(folder), name) if flags & os.O_NOFOLLOW else os.path.realpath(path)
        if real.startswith(outside):
            seen.append(f"opened {path!r}")
    elif event in ("os.system", "subprocess.Popen", "os.exec", "pickle.find_class", "socket.connect"):
        seen.append(event)


def _snapshot(folder: Path) -> dict[str, tuple]:
    found = {}
    for path in sorted(folder.rglob("*")):
        mark = path.lstat()
        content = path.read_bytes() if path.is_file() and not path.is_symlink() else b""
        found[str(path)] = (mark.st_mode, mark.st_ino, mark.st_mtime_ns, content)
    return found


if __name__ == "__main__":
    sys.exit(main())
