"""A sample of `make torture`: every piece of work is killed twice."""

import subprocess
import sys
from pathlib import Path

from tests.torture.jobs import jobs


def test_what_a_killed_process_leaves_is_gone_on_with():
    count = 2 * len(jobs())
    done = subprocess.run(
        [sys.executable, "-m", "tests.torture", "--kills", str(count), "--seed", "1"],
        cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert ", 0 faults" in done.stdout
