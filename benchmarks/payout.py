"""From answers to a payout that others can check: ten thousand of them served, paid out, verified elsewhere, and tampered with.

    python benchmarks/payout.py [--answers 10000 --rows 2000 --users 16 --flips 30]

A store of made rows around a small GPT-2, and the real service with credits and receipts in a process of its own. Everything after that is
the command line: `whence shares --log` over the time in which it answered, twice; `whence verify` in another folder that has only the report,
the heads of the receipts and the public key; `whence verify --store` with store and model, which asks all questions again. Then one byte of
a published file after the other is changed (each file at least once, the rest drawn), and it is counted how many changes are found.
"""

import argparse
import contextlib
import io
import random
import shutil
import tempfile
import threading
import time
from datetime import UTC, datetime
from pathlib import Path

from serve_load import PROMPT, make_store, sealed_service

import whence
from whence.cli import main as run_command
from whence.ledger import read_public_key, verify_chain
from whence.progress import say


def served(folder, answers, users):
    """Have that many answers given; the seconds it took."""
    service, numbers, lock, failures = sealed_service(folder), iter(range(answers)), threading.Lock(), []

    def user():
        while True:
            with lock:
                number = next(numbers, None)
            if number is None:
                return
            try:
                service.client.attribute(f" word {number % 97} seven {number}", prompt=PROMPT, store="store", k=10)
            except whence.WhenceError as error:
                failures.append(str(error))

    started = time.monotonic()
    threads = [threading.Thread(target=user) for _ in range(users)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    service.stop()
    assert not failures, failures[:1]
    return time.monotonic() - started


def timed(*words):
    """Seconds of a command that goes well."""
    started = time.monotonic()
    with contextlib.redirect_stdout(io.StringIO()) as told:
        status = run_command(list(map(str, words)))
    assert status == 0, told.getvalue()
    return time.monotonic() - started


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def faults_of(place, key, head):
    """What `whence verify` finds in the published files."""
    chain = verify_chain(place / "published.jsonl", keys=[key], published=head)
    try:
        return [*chain.faults, *whence.shares.verify_shares(place / "report", receipts=chain.heads).faults]
    except whence.WhenceError as error:
        return [str(error)]


def tampered(place, key, head, flips, drawn):
    """How many changes of one byte were found, and the names of files of which one was not."""
    paths = [path for path in sorted(place.rglob("*")) if path.is_file() and path.suffix != ".pub"]
    missed = []
    for number in range(flips):
        path = paths[number] if number < len(paths) else drawn.choice(paths)
        content = path.read_bytes()
        at = drawn.randrange(len(content))
        path.write_bytes(content[:at] + bytes([content[at] ^ drawn.randrange(1, 256)]) + content[at + 1 :])
        faults = faults_of(place, key, head)
        if not any(path.name in fault for fault in faults):
            missed.append(f"{path.name} at {at}")
        path.write_bytes(content)
    return flips - len(missed), missed


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--answers", type=int, default=10_000)
    parser.add_argument("--rows", type=int, default=2_000)
    parser.add_argument("--users", type=int, default=16)
    parser.add_argument("--flips", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        say(f"a store of {arguments.rows:,} rows ...")
        store, _ = make_store(folder, arguments.rows, 8)
        begun = datetime.now(UTC).isoformat()
        seconds = served(folder, arguments.answers, arguments.users)
        period = f"{begun}/{datetime.now(UTC).isoformat()}"
        log, receipts = ((folder / name).stat().st_size for name in ("c.sqlite", "receipts.jsonl"))
        print(
            f"{arguments.answers:,} answers of a store of {len(store):,} rows in {seconds:.0f} s; "
            f"log {log / arguments.answers:,.0f} bytes an answer, receipts {receipts / arguments.answers:,.0f}"
        )
        words = ["shares", "--log", folder / "c.sqlite", "--store", folder / "store", "--period", period, "--payout", "1000.00 EUR",
                 "--minimum", "20", "-o", folder / "report"]  # fmt: skip
        seconds = timed(*words)
        before = contents(folder / "report")
        timed(*words)
        again = folder / "elsewhere" / "report"
        timed(*words[:-1], again)
        assert contents(folder / "report") == contents(again) == before
        print(
            f"payout: {seconds:.1f} s, {sum(map(len, before.values())) / 2**20:.1f} MiB; made twice more, the same byte for byte"
        )
        shutil.rmtree(folder / "elsewhere")
        place = folder / "published"
        shutil.copytree(folder / "report", place / "report")
        shutil.copy(folder / "sealing.key.pub", place)
        key = place / "sealing.key.pub"
        timed("verify", folder / "receipts.jsonl", "--key", key, "--publish", place / "published.jsonl")
        head = verify_chain(place / "published.jsonl").head
        seconds = timed("verify", place / "report", "--receipts", place / "published.jsonl", "--key", key, "--head", head)
        report = whence.shares.verify_shares(place / "report")
        print(
            f"verified elsewhere from the published files: {report.queries:,} answers, {report.sources} sources, {seconds:.1f} s"
        )
        count, missed = tampered(place, read_public_key(str(key)), head, arguments.flips, random.Random(arguments.seed))
        print(f"one byte changed: {count} of {arguments.flips} found, in the file that it is in {missed or ''}")
        seconds = timed("verify", folder / "receipts.jsonl", "--key", key, "--store", folder / "store")
        print(f"asked again with store and model: {arguments.answers:,} receipts, no fault, {seconds:.0f} s")


if __name__ == "__main__":
    main()
