"""csrc/cuda on a runtime that needs no GPU: its logic, not what a GPU's compiler makes of it."""

import importlib

import pytest
import torch

from bfmpipe.kernels import leave_one_out, leave_one_out_reference, sf_evaluate_reference
from tests.kernels import test_leave_one_out as loo
from tests.kernels import test_sf_evaluate as sf

loo_module = importlib.import_module("bfmpipe.kernels.leave_one_out")


@pytest.fixture(params=["forward", "backward", "shuffled"])
def order(request, monkeypatch):
    """In which order the threads of a block take turns: a race would show as other results."""
    monkeypatch.setenv("CUDA_ON_CPU_ORDER", request.param)
    return request.param


@pytest.fixture
def launch_cuda(cuda_on_cpu, monkeypatch):
    """Every launch goes to csrc/cuda."""

    def launch(name, _, *arguments):
        getattr(cuda_on_cpu, name)(*arguments, 0)

    monkeypatch.setattr(loo_module, "launch", launch)
    monkeypatch.setattr(sf.module, "launch", launch)


def test_it_is_this_module_that_runs(cuda_on_cpu):
    assert cuda_on_cpu.unavailable() is None
    assert cuda_on_cpu.__file__.endswith(".so")


@pytest.mark.parametrize("dtype", loo.dtypes)
@pytest.mark.parametrize("ends", [True, False])
@pytest.mark.parametrize("shape", loo.shapes[:-1])
def test_leave_one_out(shape, ends, dtype, order, launch_cuda):
    arguments = loo.inputs(shape, dtype)
    if not ends:
        arguments["terminated"] = None
    rtol, atol = (1e-5, 1e-4) if dtype == torch.float32 else (1e-12, 1e-11)
    want = leave_one_out_reference(**loo.as_float64(arguments))
    for got, expected in zip(leave_one_out(**arguments), want, strict=True):
        torch.testing.assert_close(got.double(), expected, rtol=rtol, atol=atol)


@pytest.mark.parametrize("kind", ["float32", "float64", "half"])
@pytest.mark.parametrize("size", [(1, 1, 5), (2, 9, 5), (3, 1, 2)])
@pytest.mark.parametrize("spec", [sf.TWO, sf.ONE, sf.networks[2], sf.networks[3], *sf.wide])
def test_sf_evaluate(spec, size, kind, order, launch_cuda, monkeypatch):
    monkeypatch.setattr(sf.module, "_CUDA_ROWS", 37)
    dtype = torch.float64 if kind == "float64" else torch.float32
    groups, *pairs = size
    network, inputs = sf.make_network(spec, dtype), sf.make_inputs(spec, ((groups,), *pairs), dtype)
    precision = "half" if kind == "half" else "full"
    got = sf.module._run_on_cuda(sf.module._restructure(network, *inputs), 0.0, precision)
    want = sf_evaluate_reference(sf.cast(network), *sf.cast(tuple(inputs)))
    plain = sf.relative_error(sf_evaluate_reference(network, *inputs), want)
    # of so few pairs, heads that cancel are a large part
    tolerance = 2 * sf.HALF_TOLERANCE if kind == "half" else sf.TOLERANCE[dtype]
    assert sf.relative_error(got, want) <= max(tolerance, 5 * plain)


@pytest.mark.parametrize("spec", [sf.TWO, sf.ONE, *sf.networks[2:4]])
@pytest.mark.parametrize("size", [(1, 13, 7), (3, 5, 4), (1, 4, 0), (0, 2, 2), (2, 0, 3)])
def test_the_gradient_by_blocks(spec, size):
    """What CUDA tensors take is plain torch: the same as the compiled gradient."""
    groups, *pairs = size
    inputs = sf.make_inputs(spec, ((groups,), *pairs), torch.float64)
    parts = sf.module._restructure(sf.make_network(spec, torch.float64), *inputs)
    grad_q = torch.randn(size, dtype=torch.float64)
    pessimism = 0.3 if spec[1] == 2 else 0.0
    want = sf.module._run_gradient(grad_q, *parts, pessimism)
    for got, expected in zip(
        sf.module._differentiate(parts, grad_q, pessimism, pairs=20), want, strict=True
    ):
        torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-12)
