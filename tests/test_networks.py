"""Parts of the networks that torch has in another form."""

import pytest
import torch

from bfmpipe.networks import Tanh, reduce_heads


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_tanh_and_its_gradient(dtype):
    x = torch.cat([torch.linspace(-12, 12, 4001), torch.tensor([0.0, 1e-6, -200, 200])])
    x = x.to(dtype).requires_grad_()
    y = Tanh()(x)
    y.sum().backward()
    exact = x.detach().double().tanh()
    assert y.dtype == dtype
    tolerance = {torch.float32: 2e-7, torch.float64: 1e-15, torch.bfloat16: 4e-3}[dtype]
    assert (y - exact).abs().max() <= tolerance
    assert (x.grad - (1 - exact**2)).abs().max() <= 4 * tolerance


@pytest.mark.parametrize("heads", [1, 2, 3, 5])
def test_pessimism_is_the_mean_distance_of_two_heads(heads):
    x = torch.randn(heads, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    gaps = [(x[i] - x[j]).abs() for i in range(heads) for j in range(heads) if i != j]
    expected = x.mean(0) - 0.3 * (torch.stack(gaps).mean(0) if gaps else 0)
    torch.testing.assert_close(reduce_heads(x, 0.3), expected)
    torch.testing.assert_close(reduce_heads(x, 0), x.mean(0))
    if heads == 2:
        torch.testing.assert_close(reduce_heads(x, 0.5), x.amin(0))


def test_tanh_keeps_what_is_no_number_and_ends_at_one():
    y = Tanh()(torch.tensor([float("nan"), float("inf"), -float("inf")]))
    assert y[0].isnan()
    assert y[1:].tolist() == [1, -1]
