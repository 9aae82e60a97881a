"""Products of float32 by oneDNN keep float32, and leave torch's settings as they were."""

import pytest
import torch

from bfmpipe.agents import fb, products
from bfmpipe.agents.base import Batch
from bfmpipe.agents.learner import Learner, LearnerConfig
from bfmpipe.agents.products import fast_float32, onednn_is_better

pytestmark = pytest.mark.skipif(
    not hasattr(torch.backends.mkldnn, "matmul"),
    reason="torch before 2.9 has no setting for oneDNN's products",
)


@pytest.fixture
def fresh():
    onednn_is_better.cache_clear()
    yield
    onednn_is_better.cache_clear()


@pytest.fixture
def elsewhere(monkeypatch, fresh):
    """As if this processor were one on which oneDNN is the faster library."""
    monkeypatch.setattr(products, "_is_amd", lambda: True)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")


def precision() -> str:
    return torch.backends.mkldnn.matmul.fp32_precision


@pytest.mark.parametrize("n", [3, 32, 100, 512])
def test_products_and_their_gradients_are_those_of_float32(n):
    generator = torch.Generator().manual_seed(n)
    x, w, g = (torch.randn(2, n, n, generator=generator) for _ in range(3))
    results = []
    for dtype in (torch.float32, torch.float64):
        a, b = (t.detach().to(dtype, copy=True).requires_grad_() for t in (x, w))
        with fast_float32():
            y = torch.baddbmm(torch.zeros(2, 1, n, dtype=dtype), a, b)
            y.backward(g.to(dtype))
        results.append((y, a.grad, b.grad))
    for found, exact in zip(*results, strict=True):
        assert (found - exact).norm() <= 1e-6 * exact.norm()


def test_the_setting_holds_in_the_block_alone(elsewhere, monkeypatch):
    monkeypatch.setattr(products, "_products_are_exact", lambda: True)
    with fast_float32():
        assert precision() == "bf16"
    assert precision() == "none"
    with pytest.raises(ZeroDivisionError), fast_float32():
        1 / 0  # noqa: B018
    assert precision() == "none"


@pytest.mark.parametrize(
    ("how", "inside"),
    [({}, "bf16"), ({"precision": "bfloat16"}, "none"), ({"compile": True}, "none")],
)
def test_a_learner_in_float32_asks_for_it(how, inside, elsewhere, monkeypatch):
    monkeypatch.setattr(products, "_products_are_exact", lambda: True)
    monkeypatch.setattr(torch, "compile", lambda call: call)
    config = fb.Config(z_dim=4, hidden_dim=8, backward_hidden_dim=8, batch=6)
    seen = []

    class Watched(fb.Agent):
        def forward(self, *args):
            seen.append(precision())
            return super().forward(*args)

    learner = Learner([Watched(config, 5, 2)], [torch.Generator()], LearnerConfig(**how))
    obs, action = torch.zeros(6, 5), torch.zeros(6, 2)
    learner.update([Batch(obs, action, obs, obs)])
    assert set(seen) == {inside}
    assert precision() == "none"


def test_what_the_user_has_set_stays(elsewhere, monkeypatch):
    monkeypatch.setattr(products, "_products_are_exact", lambda: True)
    torch.backends.mkldnn.matmul.fp32_precision = "ieee"
    try:
        with fast_float32():
            assert precision() == "ieee"
        assert precision() == "ieee"
    finally:
        torch.backends.mkldnn.matmul.fp32_precision = "none"


def test_a_processor_that_rounds_products_is_told_by_a_product(elsewhere, monkeypatch):
    matmul = torch.Tensor.__matmul__

    def rounding(a, b):
        if a.dtype == torch.float32 and precision() == "bf16":
            return matmul(a.bfloat16(), b.bfloat16()).float()
        return matmul(a, b)

    monkeypatch.setattr(torch.Tensor, "__matmul__", rounding)
    assert not onednn_is_better()
    assert precision() == "none"
    with fast_float32():
        assert precision() == "none"


def test_other_processors_keep_their_library(monkeypatch, fresh):
    monkeypatch.setattr(products, "_is_amd", lambda: False)
    assert not onednn_is_better()
