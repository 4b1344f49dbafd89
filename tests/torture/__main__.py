"""python -m tests.torture [--kills 1000 --seed 0 --only build ...]: see `kills` and `jobs`. Ends with 1 if anything was found."""

import argparse
import os
import secrets
import sys
import tempfile
import time

import torch

from tests.torture.jobs import jobs
from tests.torture.kills import tortured


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=None, help="of the moments; drawn, and printed, if it is not given")
    parser.add_argument("--only", nargs="+", default=[], help="beginnings of names of jobs")
    arguments = parser.parse_args()
    seed = secrets.randbelow(1 << 31) if arguments.seed is None else arguments.seed
    chosen = [job for job in jobs() if not arguments.only or job.name.startswith(tuple(arguments.only))]
    # Children are forked, which threads do not survive.
    torch.set_num_threads(1)
    started = time.monotonic()
    print(f"{arguments.kills} kills of {len(chosen)} jobs, --seed {seed}", flush=True)
    with tempfile.TemporaryDirectory(prefix="whence-notes-") as cache:
        os.environ["WHENCE_CACHE_DIR"] = cache
        found = tortured(chosen, arguments.kills, seed, say=lambda text: print(text, flush=True))
    faults = [f"{name}: {fault}" for name, tally in found.items() for fault in tally.faults]
    kills, trials = (sum(getattr(tally, what) for tally in found.values()) for what in ("kills", "trials"))
    print(f"{kills} kills in {trials} folders, {len(faults)} faults, {time.monotonic() - started:.0f} s")
    print("\n".join(faults), end="\n" if faults else "")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
