"""Many training runs in parallel, each kept in a small file so that none is ever done twice."""

import json
import math
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from whence.data import digest_of
from whence.errors import BadInput, NonFinite, StoreCorrupt
from whence.progress import meter
from whence.store import read_record, write_bytes

__all__ = ["Measure", "Retraining", "Run", "Train", "finished_runs", "measure_runs"]

Train = Callable[[Tensor, int], Any]
Measure = Callable[[Any], Tensor]

# In a worker process: what it was started with.
_job: tuple[Train, Measure] | None = None


@dataclass(frozen=True)
class Run:
    """One training run.

    Args:
        removed: Indices of the examples left out, ascending.
        seed: Handed to the training function.
    """

    removed: tuple[int, ...]
    seed: int

    def key(self, num_examples: int, fingerprint: str) -> str:
        """Name of the run's file: a digest of everything that its result depends on."""
        parts = (fingerprint, num_examples, np.asarray(self.removed, np.int64), self.seed)
        return digest_of("run", *parts).hex()[:32]


@dataclass(frozen=True)
class _Record:
    """What the file of a run holds."""

    seed: int
    removed: tuple[int, ...]
    losses: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class Retraining:
    """How models are trained again, and where what they measure is kept.

    Args:
        folder: Where results are kept, one small file per run; a second call trains only what is missing.
        fingerprint: Digest of data, settings and queries: whatever training and measuring depend on besides mask and seed.
        seeds: Training seeds, all different.
        workers: Processes, each with one torch thread. With more than one, the functions that train and measure must be picklable (top-level
            functions or frozen dataclasses), and a script needs its `if __name__ == "__main__"`.
        quiet: No progress on stderr.

    Raises:
        BadInput: If seeds repeat or there are none.
    """

    folder: str | Path
    fingerprint: str
    seeds: Sequence[int] = (0,)
    workers: int = 1
    quiet: bool = False

    def __post_init__(self):
        if not self.seeds or len(set(self.seeds)) != len(self.seeds):
            raise BadInput(found=f"the seeds {list(self.seeds)}", needed="at least one, all different", do="number them from 0")

    def measured(self, train: Train, measure: Measure, runs: Sequence[Run], num_examples: int) -> dict[Run, Tensor]:
        """What `measure_runs` gives."""
        return measure_runs(
            train, measure, runs,
            num_examples=num_examples, folder=self.folder, fingerprint=self.fingerprint, workers=self.workers, quiet=self.quiet,
        )  # fmt: skip


def measure_runs(
    train: Train,
    measure: Measure,
    runs: Sequence[Run],
    *,
    num_examples: int,
    folder: str | Path,
    fingerprint: str,
    workers: int = 1,
    quiet: bool = False,
) -> dict[Run, Tensor]:
    """Train and measure every run that has no result in the folder yet.

    A kill loses the runs in flight and nothing else; calling again goes on with the rest. A file that cannot be read is done again.

    Args:
        train: Called with a mask of shape (num_examples,) that is True for what is kept, and a seed; returns a model.
        measure: Called with the model; returns one number per query.
        runs: What to do; equal ones are done once.
        num_examples: Length of the mask.
        folder: Where results are kept, one JSON file per run.
        fingerprint: Digest of data, settings and queries: whatever `train` and `measure` depend on besides mask and seed.
        workers: Processes, each with one torch thread. With more than one, `train` and `measure` must be picklable.
        quiet: No progress on stderr.

    Returns:
        Shape (Q,), float64, per run.

    Raises:
        BadInput: If `workers` is not positive or two runs measure a different number of queries.
    """
    if workers < 1:
        raise BadInput(found=f"workers={workers}", needed="1 or more", do="ask for one worker per core at most")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    paths = _paths(runs, num_examples, folder, fingerprint)
    results = finished_runs(runs, num_examples, folder, fingerprint)
    pending = [run for run in paths if run not in results]
    fresh = closing(_each(train, measure, pending, num_examples, min(workers, len(pending))))
    with meter("retraining", len(paths), done=len(results), quiet=quiet) as progress, fresh as finished:
        for run, losses_Q in finished:
            _write(paths[run], run, losses_Q)
            results[run] = losses_Q
            progress.advance()
    sizes = {len(losses_Q) for losses_Q in results.values()}
    if len(sizes) > 1:
        raise BadInput(
            found=f"runs that measured {', '.join(map(str, sorted(sizes)))} queries in {folder}",
            needed="the same queries in every run",
            do="change the fingerprint when the queries change",
        )
    return {run: results[run] for run in paths}


def finished_runs(runs: Sequence[Run], num_examples: int, folder: Path, fingerprint: str) -> dict[Run, Tensor]:
    """What is in the folder already of what `measure_runs` does; arguments as there.

    Returns:
        Shape (Q,), float64, per finished run.
    """
    paths = _paths(runs, num_examples, folder, fingerprint)
    return {run: measured for run, path in paths.items() if (measured := _read(path, run)) is not None}


def _paths(runs: Sequence[Run], num_examples: int, folder: Path, fingerprint: str) -> dict[Run, Path]:
    return {run: folder / f"{run.key(num_examples, fingerprint)}.json" for run in runs}


def _each(
    train: Train, measure: Measure, runs: Sequence[Run], num_examples: int, workers: int
) -> Generator[tuple[Run, Tensor], None, None]:
    if workers <= 1:
        with _one_thread():
            for run in runs:
                yield run, _measured(train, measure, run, num_examples)
        return
    # Fork is not safe once torch has started its threads.
    context = multiprocessing.get_context("spawn")
    others = set(multiprocessing.active_children())
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker, initargs=(train, measure))
    try:
        futures = {pool.submit(_work, run, num_examples): run for run in runs}
        for future in as_completed(futures):
            yield futures[future], torch.tensor(future.result(), dtype=torch.float64)
        pool.shutdown()
    except BaseException:
        # Ctrl-C or a failed run: nobody waits for the rest.
        pool.shutdown(wait=False, cancel_futures=True)
        for process in set(multiprocessing.active_children()) - others:
            process.terminate()
        raise


def _start_worker(train: Train, measure: Measure) -> None:
    global _job
    _job = (train, measure)
    torch.set_num_threads(1)
    # Ctrl-C reaches the whole process group; the parent decides.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_leave_with_parent, daemon=True).start()


def _leave_with_parent() -> None:
    """A killed parent cannot stop its workers, which would train on for nobody."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _work(run: Run, num_examples: int) -> list[float]:
    assert _job is not None
    return _measured(*_job, run, num_examples).tolist()


def _measured(train: Train, measure: Measure, run: Run, num_examples: int) -> Tensor:
    keep_N = torch.ones(num_examples, dtype=torch.bool)
    keep_N[list(run.removed)] = False
    losses_Q = measure(train(keep_N, run.seed)).detach().double().cpu()
    if not bool(torch.isfinite(losses_Q).all()):
        raise NonFinite(
            found=f"a loss that is not a number after training with seed {run.seed} without {len(run.removed)} examples",
            needed="finite losses",
            do="lower the learning rate of the training function",
        )
    return losses_Q


@contextmanager
def _one_thread() -> Iterator[None]:
    """As in the workers, so that a run's bits do not depend on how many there are."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(num_threads)


def _read(path: Path, run: Run) -> Tensor | None:
    try:
        recorded = read_record(_Record, path)
    except StoreCorrupt:
        return None
    losses_Q = torch.tensor(recorded.losses, dtype=torch.float64)
    same = recorded.seed == run.seed and recorded.removed == run.removed
    return losses_Q if same and len(losses_Q) and math.isfinite(float(losses_Q.sum())) else None


def _write(path: Path, run: Run, losses_Q: Tensor) -> None:
    record = {"seed": run.seed, "removed": list(run.removed), "losses": losses_Q.tolist()}
    write_bytes(path, [json.dumps(record).encode() + b"\n"])
