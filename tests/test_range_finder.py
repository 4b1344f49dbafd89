"""Streamed axes: exact where sketches lose nothing, the formula elsewhere, the same however the rows are divided."""

import threading

import pytest
import torch

from tests.reference.range_finder import exact_axes, mixed_axes, share
from whence.compress import SparseSketch
from whence.curvature import range_finder
from whence.curvature.range_finder import streamed_axes
from whence.distributed import Ranks

CPU = torch.device("cpu")


def decaying(count, size, seed=0):
    made = torch.Generator().manual_seed(seed)
    return torch.randn(count, size, generator=made).double() * torch.logspace(0, -2, size).double()


def in_chunks(rows, size, first=0):
    return lambda: (
        (range(first + at, first + min(at + size, len(rows))), rows[at : at + size]) for at in range(0, len(rows), size)
    )


def axes_of(rows, width, size=7, **options):
    return streamed_axes(in_chunks(rows, size), len(rows), rows.shape[1], width, seed=1, device=CPU, **options)


def projector(axes, width):
    return axes[:, :width] @ axes[:, :width].T


@pytest.mark.parametrize("size", [1, 5, 40])
def test_short_rows_give_the_singular_vectors(size):
    """Sketches are the rows themselves."""
    rows = decaying(40, 60)
    axes, wanted = axes_of(rows, 9, size), exact_axes(rows)
    assert axes.shape == (60, 9)
    for width in (1, 4, 9):
        torch.testing.assert_close(projector(axes, width), projector(wanted, width), rtol=0.0, atol=1e-9)


def test_as_many_axes_as_rows_are_all_directions_however_short_sketches_are(monkeypatch):
    monkeypatch.setattr(range_finder, "SKETCHED", 30)
    rows = decaying(12, 50)
    axes = axes_of(rows, 20)
    assert axes.shape == (50, 12)
    torch.testing.assert_close(projector(axes, 12), projector(exact_axes(rows), 12), rtol=0.0, atol=1e-8)


def test_longer_rows_are_mixed_as_their_sketches_say(monkeypatch):
    monkeypatch.setattr(range_finder, "SKETCHED", 64)
    rows = decaying(40, 200)
    sketch = SparseSketch.random(200, 64, seed=1, name="sketches of documents", device=CPU)
    dense = torch.zeros(200, 64).double()
    dense[torch.arange(200), sketch.slots_N] = sketch.signs_N.double()
    axes, wanted = axes_of(rows, 10), mixed_axes(rows, dense, 10)
    torch.testing.assert_close(axes.T @ axes, torch.eye(10).double(), rtol=0.0, atol=1e-12)
    for width in (3, 10):
        torch.testing.assert_close(projector(axes, width), projector(wanted, width), rtol=0.0, atol=1e-8)
    by_chance = torch.linalg.qr(rows.T @ torch.randn(40, 10, generator=torch.Generator().manual_seed(0)).double())[0]
    assert share(rows, exact_axes(rows)[:, :10]) > share(rows, axes) > 1.1 * share(rows, by_chance)


def test_single_precision_stays_orthonormal_on_a_steep_spectrum():
    rows = (decaying(30, 400) * torch.logspace(0, -2, 400).double()).float()
    axes = axes_of(rows, 12)
    assert axes.dtype == torch.float32
    torch.testing.assert_close(axes.T @ axes, torch.eye(axes.shape[1]), rtol=0.0, atol=1e-5)


class Paired(Ranks):
    """Two threads that add up what they hold, in the order of their ranks."""

    def added_up(self, tensors):
        held[self.rank] = tensors
        barrier.wait()
        sums = {name: held[0][name] + held[1][name] for name in tensors}
        barrier.wait()
        return sums


held: dict = {}
barrier = threading.Barrier(2, timeout=30)


def test_processes_find_together_what_one_finds(monkeypatch):
    monkeypatch.setattr(range_finder, "SKETCHED", 30)
    rows, axes = decaying(30, 40), {}

    def run(rank):
        part = in_chunks(rows[rank * 15 : rank * 15 + 15], 4, rank * 15)
        axes[rank] = streamed_axes(part, 30, 40, 8, seed=1, device=CPU, ranks=Paired(rank, 2))

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert torch.equal(axes[0], axes[1])
    torch.testing.assert_close(projector(axes[0], 5), projector(axes_of(rows, 8, 30), 5), rtol=0.0, atol=1e-9)
