"""Streamed axes: exact where there are as many probes as directions, the formula elsewhere, the same however the rows are divided."""

import threading

import pytest
import torch

from tests.reference.range_finder import exact_axes, found_axes
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


def projector(axes, width):
    return axes[:, :width] @ axes[:, :width].T


def test_as_many_probes_as_rows_give_the_singular_vectors():
    rows = decaying(12, 50)
    axes, values = streamed_axes(in_chunks(rows, 5), 50, 20, seed=3, device=CPU)
    wanted, squares = exact_axes(rows)
    assert axes.shape == (50, 12)
    torch.testing.assert_close(values, squares, rtol=1e-9, atol=0.0)
    for width in (1, 4, 12):
        torch.testing.assert_close(projector(axes, width), projector(wanted, width), rtol=0.0, atol=1e-9)


@pytest.mark.parametrize("size", [1, 7, 40])
def test_fewer_probes_are_the_formula(size):
    rows = decaying(40, 60)
    axes, values = streamed_axes(in_chunks(rows, size), 60, 9, seed=1, device=CPU)
    wanted, squares = found_axes(rows, 9, seed=1)
    torch.testing.assert_close(values, squares, rtol=1e-9, atol=0.0)
    torch.testing.assert_close(projector(axes, 6), projector(wanted, 6), rtol=0.0, atol=1e-8)
    torch.testing.assert_close(axes.T @ axes, torch.eye(9).double(), rtol=0.0, atol=1e-12)


def test_single_precision_stays_orthonormal_on_a_steep_spectrum():
    rows = (decaying(30, 400) * torch.logspace(0, -4, 400).double()).float()
    axes, _ = streamed_axes(in_chunks(rows, 8), 400, 12, seed=0, device=CPU)
    assert axes.dtype == torch.float32
    torch.testing.assert_close(axes.T @ axes, torch.eye(axes.shape[1]), rtol=0.0, atol=1e-5)


class Paired(Ranks):
    """Two threads that add up what they hold, in the order of their ranks."""

    def added_up(self, tensors):
        held[self.rank] = tensors
        barrier.wait()
        found = {name: held[0][name] + held[1][name] for name in tensors}
        barrier.wait()
        return found


held: dict = {}
barrier = threading.Barrier(2, timeout=30)


def test_processes_find_together_what_one_finds():
    rows, found = decaying(30, 40), {}

    def run(rank):
        part = rows[rank * 15 : rank * 15 + 15]
        found[rank] = streamed_axes(in_chunks(part, 4, rank * 15), 40, 8, seed=2, device=CPU, ranks=Paired(rank, 2))

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    wanted, values = streamed_axes(in_chunks(rows, 30), 40, 8, seed=2, device=CPU)
    assert torch.equal(found[0][0], found[1][0]) and torch.equal(found[0][1], found[1][1])
    torch.testing.assert_close(found[0][1], values)
    torch.testing.assert_close(projector(found[0][0], 5), projector(wanted, 5), rtol=0.0, atol=1e-9)
