"""The processor's own matrix product against PyTorch's."""

import math

import pytest
import torch

from whence.matmul import times_transposed


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(3, 5, 7), (1, 1, 1), (64, 96, 33), (0, 4, 2)])
def test_it_is_the_product(shape, dtype):
    rows, inner, columns = shape
    generator = torch.Generator().manual_seed(0)
    left = torch.randn(rows, inner, generator=generator, dtype=torch.float64)
    right = torch.randn(columns, inner, generator=generator, dtype=torch.float64)
    found = times_transposed(left.to(dtype), right.to(dtype))
    bound = 8 * torch.finfo(dtype).eps * math.sqrt(inner) * float((left.abs() @ right.abs().T).max() if rows else 1)
    assert found.dtype == dtype
    torch.testing.assert_close(found.double(), left @ right.T, rtol=0, atol=bound)
    added = torch.randn(columns, generator=generator, dtype=torch.float64)
    found = times_transposed(left.to(dtype), right.to(dtype), added.to(dtype))
    torch.testing.assert_close(found.double(), left @ right.T + added, rtol=0, atol=bound)


def test_slices_turned_matrices_and_leading_axes():
    generator = torch.Generator().manual_seed(1)
    wide = torch.randn(2, 6, 10, generator=generator)
    turned = torch.randn(4, 9, generator=generator).T
    torch.testing.assert_close(times_transposed(wide[:, ::2, 1:5], turned[:, :4]), wide[:, ::2, 1:5] @ turned[:, :4].T)


def test_numbers_that_ask_for_a_gradient_are_constants():
    left = torch.ones(2, 3, requires_grad=True)
    assert not times_transposed(left, torch.ones(4, 3)).requires_grad
