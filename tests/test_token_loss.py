"""The cross-entropy without copies equals PyTorch's."""

import pytest
import torch
from torch import nn

from whence.tasks import token_loss


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("chunk", [1, 40, 1 << 20])
def test_value_and_gradient(monkeypatch, dtype, chunk):
    monkeypatch.setitem(token_loss._CHUNK_BYTES, "cpu", chunk)
    torch.manual_seed(0)
    logits = (4 * torch.randn(13, 7)).to(dtype).requires_grad_()
    labels = torch.randint(7, (13,))
    labels[[0, 5, 12]] = token_loss.IGNORED
    weights = torch.randn(13)
    wide = torch.promote_types(dtype, torch.float32)
    found = token_loss.token_losses(logits, labels)
    wanted = nn.functional.cross_entropy(logits.to(wide), labels, ignore_index=token_loss.IGNORED, reduction="none")
    assert found.dtype == wanted.dtype
    torch.testing.assert_close(found, wanted)
    gradients = [torch.autograd.grad((losses * weights).sum(), logits)[0] for losses in (found, wanted)]
    torch.testing.assert_close(*gradients)


def test_extreme_logits_stay_finite():
    logits = torch.tensor([[1e4, -1e4, 0.0]]).requires_grad_()
    loss = token_loss.token_losses(logits, torch.tensor([1]))
    loss.sum().backward()
    assert loss.item() == 2e4 and logits.grad.tolist() == [[1.0, -1.0, 0.0]]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("chunk", [1, 40, 1 << 20])
def test_second_derivatives_one_and_several_at_once(monkeypatch, dtype, chunk):
    monkeypatch.setitem(token_loss._CHUNK_BYTES, "cpu", chunk)
    torch.manual_seed(0)
    logits = (4 * torch.randn(13, 7)).to(dtype).requires_grad_()
    labels = torch.randint(7, (13,))
    labels[[0, 5, 12]] = token_loss.IGNORED
    weights = torch.randn(13, dtype=dtype, requires_grad=True)
    rows = torch.randn(3, 13, 7, dtype=dtype)
    found = []
    for losses in (token_loss.token_losses(logits, labels), nn.functional.cross_entropy(logits, labels, reduction="none")):
        (gradient,) = torch.autograd.grad((losses * weights).sum(), logits, create_graph=True)
        each = [torch.autograd.grad(gradient, (logits, weights), row, retain_graph=True) for row in rows]
        together = torch.autograd.grad(gradient, (logits, weights), rows, retain_graph=True, is_grads_batched=True)
        for number, one in enumerate(each):
            torch.testing.assert_close(one, tuple(part[number] for part in together))
        found.append(together)
    torch.testing.assert_close(*found)


def test_third_derivatives_are_refused():
    logits = torch.randn(2, 3, requires_grad=True)
    losses = token_loss.token_losses(logits, torch.tensor([0, 1]))
    (first,) = torch.autograd.grad(losses.sum(), logits, create_graph=True)
    (second,) = torch.autograd.grad(first[0, 0], logits, create_graph=True)
    with pytest.raises(RuntimeError, match="does not require grad|once_differentiable"):
        second.sum().backward()
