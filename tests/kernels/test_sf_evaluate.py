import importlib
import math

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from bfmpipe.kernels import (
    Embedding,
    Linear,
    Network,
    _cpu,
    extension,
    sf_evaluate,
    sf_evaluate_reference,
    sf_evaluate_rows,
)
from bfmpipe.types import UserError

module = importlib.import_module("bfmpipe.kernels.sf_evaluate")

needs_cuda = pytest.mark.skipif(
    not torch.cuda.is_available() or extension._find_cuda() is None,
    reason="needs a GPU, a torch with CUDA and the CUDA kernels",
)
devices = ["cpu", pytest.param("cuda", marks=needs_cuda)]
dtypes = [torch.float32, torch.float64]

# relative error (Frobenius norm) that each dtype is allowed against the float64 reference
TOLERANCE = {torch.float32: 1e-6, torch.float64: 1e-13}
HALF_TOLERANCE = 2e-3

# network: form, heads, trunk layers, hidden width, obs, action and latent width, length of w
TWO = ("two", 2, 1, 64, 7, 3, 6, 6)
ONE = ("one", 2, 0, 64, 7, 3, 6, 6)
networks = [
    TWO,
    ONE,
    ("two", 1, 0, 48, 5, 1, 4, 9),  # no trunk: both embeddings go to the readout
    ("two", 3, 3, 38, 1, 2, 3, 1),  # deep, an odd number of heads, odd widths
    ("one", 1, 0, 33, 3, 1, 2, 5),
    ("two", 2, 2, 256, 24, 6, 50, 50),
]
# widths that CUDA has kernels of their own for, beside those of any width
wide = [
    ("two", 2, 1, 1024, 24, 6, 50, 50),
    ("one", 2, 0, 512, 5, 3, 6, 6),
    ("two", 1, 2, 256, 5, 3, 6, 6),
    ("one", 2, 0, 128, 5, 3, 6, 6),
]
# leading axes, B, K
sizes = [((), 1, 1), ((), 17, 5), ((), 0, 3), ((), 3, 0), ((3,), 1, 1), ((2, 0), 2, 2)]
sizes += [((5,), 1, 33), ((2, 3), 19, 7), ((97,), 1, 1), ((), 130, 101)]


def make_network(spec, dtype=torch.float64, device="cpu", seed=0):
    form, heads, trunk, hidden, obs_dim, action_dim, z_dim, d = spec
    generator = torch.Generator().manual_seed(seed)

    def draw(*size):
        return torch.randn(*size, generator=generator, dtype=torch.float64)

    def linear(inputs, outputs):
        weight = draw(heads, inputs, outputs) / math.sqrt(max(inputs, 1))
        return Linear(weight.to(device, dtype), (0.1 * draw(heads, 1, outputs)).to(device, dtype))

    def embedding(inputs, outputs):
        scale, shift = 1 + 0.1 * draw(heads, 1, hidden), 0.1 * draw(heads, 1, hidden)
        norm = [x.to(device, dtype) for x in (scale, shift)]
        return Embedding(linear(inputs, hidden), *norm, linear(hidden, outputs))

    if form == "one":
        return Network(embedding(obs_dim + z_dim + action_dim, hidden), None, (), linear(hidden, d))
    half = hidden // 2
    return Network(
        embedding(obs_dim + z_dim, half),
        embedding(obs_dim + action_dim, half),
        tuple(linear(hidden, hidden) for _ in range(trunk)),
        linear(hidden, d),
    )


def make_inputs(spec, size, dtype=torch.float64, device="cpu", seed=1):
    *_, obs_dim, action_dim, z_dim, d = spec
    lead, B, K = size
    generator = torch.Generator().manual_seed(seed)
    shapes = [(*lead, B, obs_dim), (*lead, B, action_dim), (*lead, K, z_dim), (*lead, K, d)]
    return [
        torch.randn(shape, generator=generator, dtype=torch.float64).to(device, dtype)
        for shape in shapes
    ]


def cast(x, dtype=torch.float64, device="cpu"):
    """The same network in another dtype."""
    if isinstance(x, tuple):
        parts = [cast(part, dtype, device) for part in x]
        return tuple(parts) if type(x) is tuple else type(x)(*parts)
    return x.to(device, dtype) if isinstance(x, Tensor) else x


def relative_error(got, want):
    return float((got.cpu().double() - want).norm() / want.norm().clamp_min(1e-300))


def check_against_reference(evaluate, spec, size, dtype, device, pessimism, tolerance):
    network, inputs = (
        make_network(spec, dtype, device),
        make_inputs(spec, size, dtype, device),
    )
    got = evaluate(network, *inputs, pessimism=pessimism)
    want = sf_evaluate_reference(cast(network), *cast(tuple(inputs)), pessimism=pessimism)
    assert got.dtype == dtype
    assert got.device.type == device
    assert got.shape == want.shape
    # of few values heads and terms can cancel: there nobody does better than the plain evaluation
    plain = sf_evaluate_reference(network, *inputs, pessimism=pessimism)
    allowed = tolerance * (5 if got.numel() < 32 else 1)
    assert relative_error(got, want) <= max(allowed, 5 * relative_error(plain, want))


@pytest.fixture(params=_cpu.instruction_sets())
def instruction_set(request):
    best = _cpu.instruction_set()
    _cpu.use_instruction_set(request.param)
    yield request.param
    _cpu.use_instruction_set(best)


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def test_by_hand():
    # One head, hidden width 2. The normalisation of (x, -x) is (sign x, -sign x) up to epsilon.
    one, zero = torch.ones(1, 1, 2).double(), torch.zeros(1, 1, 2).double()
    first = Linear(torch.tensor([[[1.0, -1.0]] * 3]).double(), zero)
    second = Linear(torch.eye(2)[None].double(), one)
    out = Linear(torch.tensor([[[2.0], [3.0]]]).double(), torch.tensor([[[4.0]]]).double())
    network = Network(Embedding(first, one, zero, second), None, (), out)
    obs, action, z = torch.tensor([[[1e9]], [[0.0]], [[1.0]]]).double()
    w = torch.tensor([[10.0]]).double()
    # hidden 1 + tanh(1), 1 - tanh(1); then 2 (.) + 3 (.) + 4, times 10
    want = 10 * (2 * (1 + math.tanh(1)) + 3 * (1 - math.tanh(1)) + 4)
    assert sf_evaluate(network, obs, action, z, w).item() == pytest.approx(want, rel=1e-12)


@pytest.mark.parametrize("device", devices)
@pytest.mark.parametrize("dtype", dtypes)
@pytest.mark.parametrize("size", sizes)
@pytest.mark.parametrize("spec", networks)
def test_equals_reference(spec, size, dtype, device):
    pessimism = 0.4 if spec[1] == 2 else 0.0
    check_against_reference(sf_evaluate, spec, size, dtype, device, pessimism, TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", dtypes)
@pytest.mark.parametrize("size", [((2, 3), 19, 7), ((), 130, 101)])
@pytest.mark.parametrize("spec", networks)
def test_every_instruction_set_equals_reference(spec, size, dtype, instruction_set):
    check_against_reference(sf_evaluate, spec, size, dtype, "cpu", 0.0, TOLERANCE[dtype])


@pytest.mark.parametrize("size", [((2, 3), 19, 7), ((), 130, 101)])
@pytest.mark.parametrize("spec", [*networks, *wide[:2], ("two", 1, 1, 300, 5, 3, 6, 6)])
def test_half_precision(spec, size, instruction_set):
    def evaluate(*arguments, pessimism):
        return sf_evaluate(*arguments, pessimism=pessimism, precision="half")

    # each layer rounds; the published networks have one of the trunk
    tolerance = HALF_TOLERANCE * max(1, spec[2])
    check_against_reference(evaluate, spec, size, torch.float32, "cpu", 0.0, tolerance)


def uneven(weight, normal):
    """Columns of sizes between e^-6 and e^6 or so."""
    return weight * (2 * normal[..., :1, :]).exp()


def with_zero_columns(weight, normal):
    return torch.where(normal[..., :1, :] > 0, weight, 0)


def rows_of_the_odd(factor, weight):
    """Those of odd units times `factor`."""
    return torch.where(even(weight.mT), weight.mT, factor * weight.mT).mT


def even(x):
    """1 at even units of the last axis, 0 at odd ones."""
    return torch.arange(x.shape[-1]) % 2 == 0


# what becomes of scale and shift of the normalisation and of the weights after it, given draws from
# a normal distribution in their place
HARD = {
    "small": lambda s, h, w, n: (0.1 * s, 0.1 * h, w),
    "large": lambda s, h, w, n: (10 * s, h, w),
    "uneven columns": lambda s, h, w, n: (s.exp(), h, uneven(w, n)),
    "columns of zeros": lambda s, h, w, n: (s, h, with_zero_columns(w, n)),
    "one sign": lambda s, h, w, n: (1 + 0 * s, 3 + 0 * h, w),
    "one sign and zeros": lambda s, h, w, n: (0 * s + 1, 0 * h + 3, with_zero_columns(w, n)),
    "even units of one sign": lambda s, h, w, n: (1 + 0 * s, 3.0 * even(h) + 0 * h, w),
    "odd units of the other sign": lambda s, h, w, n: (1 + 0 * s, 6.0 * even(h) - 3 + 0 * h, w),
    "units that are off": lambda s, h, w, n: (s * even(s), h * even(h), rows_of_the_odd(1e6, w)),
    "constant": lambda s, h, w, n: (0 * s, h, w),
    "tiny": lambda s, h, w, n: (1e-22 * s, 1e-22 * h, 1e22 * w),
    "one large scale": lambda s, h, w, n: (torch.where(even(s) & (s > 2.2), 1e20, 1), 0 * h, w),
    "sizes that cancel": lambda s, h, w, n: ((2 * s).exp(), 0 * h, w * (-2 * s).exp().mT),
    "tiny weights": lambda s, h, w, n: (s, h, 1e-12 * uneven(w, n)),
    "large weights": lambda s, h, w, n: (s, h, 1e12 * uneven(w, n)),
}


def make_hard_network(spec, hard, biased):
    network = make_network(spec, torch.float32)
    generator = torch.Generator().manual_seed(5)
    first, scale, shift, second = network.left

    def draw(x):
        return torch.randn(x.shape, generator=generator)

    scale, shift, weight = HARD[hard](draw(scale), draw(shift), second.weight, draw(second.weight))
    second = Linear(weight, second.bias * biased)
    network = network._replace(left=Embedding(first, scale.float(), shift.float(), second))
    if not biased:  # lest what comes later makes up for it
        network = network._replace(
            trunk=tuple(Linear(x.weight, 0 * x.bias) for x in network.trunk),
            out=Linear(network.out.weight, 0 * network.out.bias),
        )
    return network


@pytest.mark.parametrize("hard", HARD)
@pytest.mark.parametrize(
    ("form", "hidden", "biased"), [("one", 64, True), ("two", 256, False), ("one", 1024, False)]
)
def test_activations_and_weights_of_any_size(form, hidden, biased, hard, instruction_set):
    if _cpu.sanitized and hidden > 256:
        pytest.skip("minutes under the sanitizers, of code that the others run")
    spec = (form, 2, int(form == "two"), hidden, 24, 6, 50, 50)
    network, inputs = make_hard_network(spec, hard, biased), make_inputs(spec, ((), 30, 21))
    in_float32 = cast(tuple(inputs), torch.float32)
    got, want = sf_evaluate(network, *in_float32), sf_evaluate_reference(cast(network), *inputs)
    allowed = TOLERANCE[torch.float32]
    if hard == "constant":  # all states are alike, and their errors do not average out
        plain = relative_error(sf_evaluate_reference(network, *in_float32), want)
        allowed = max(allowed, 5 * plain)
    assert relative_error(got, want) <= allowed


def test_errors_that_columns_share_do_not_add_up(instruction_set):
    spec = ("one", 2, 0, 1024, 24, 6, 50, 50)
    network, (obs, action, z, w) = (
        make_hard_network(spec, "one sign", biased=False),
        make_inputs(spec, ((), 30, 21)),
    )
    network = network._replace(out=Linear(network.out.weight.abs(), network.out.bias))
    inputs = (obs, action, z, w.abs())
    got = sf_evaluate(network, *cast(inputs, torch.float32))
    want = sf_evaluate_reference(cast(network), *inputs)
    assert relative_error(got, want) <= 2e-7


@pytest.mark.parametrize("precision", ["full", "half"])
def test_activations_that_are_nothing_give_nothing(precision, instruction_set):
    network = make_network(ONE, torch.float32)
    first, scale, shift, second = network.left
    second = Linear(1e6 * second.weight, second.bias)
    network = network._replace(left=Embedding(first, 0 * scale, 0 * shift, second))
    obs, action, z, w = make_inputs(ONE, ((), 5, 4))
    got = sf_evaluate(network, *cast((obs, action, z, w), torch.float32), precision=precision)
    want = sf_evaluate_reference(cast(network), obs, action, z, w)
    assert relative_error(got, want) <= TOLERANCE[torch.float32]


@pytest.mark.skipif(
    not {"vnni", "zen5"} <= set(_cpu.instruction_sets()), reason="needs AVX-512 VNNI"
)
@pytest.mark.parametrize("spec", [*networks, ("two", 1, 1, 600, 5, 3, 6, 6)])
def test_integers_are_the_same_in_half_as_many_products(spec):
    network, inputs = make_network(spec, torch.float32), make_inputs(spec, ((), 50, 9))
    best, values = _cpu.instruction_set(), {}
    try:
        for name in ("vnni", "zen5"):
            _cpu.use_instruction_set(name)
            inputs = cast(tuple(inputs), torch.float32)
            values[name] = sf_evaluate(network, *inputs, precision="half")
    finally:
        _cpu.use_instruction_set(best)
    assert torch.equal(values["vnni"], values["zen5"])


@needs_cuda
@pytest.mark.parametrize("size", [((2, 3), 19, 7), ((), 130, 101)])
@pytest.mark.parametrize("spec", wide)
def test_wide_networks_on_a_gpu(spec, size):
    tolerance = TOLERANCE[torch.float32]
    check_against_reference(sf_evaluate, spec, size, torch.float32, "cuda", 0.0, tolerance)


@needs_cuda
@pytest.mark.parametrize("size", [((2, 3), 19, 7), ((), 130, 101)])
@pytest.mark.parametrize("spec", [*networks, *wide])
def test_half_precision_on_a_gpu(spec, size):
    def evaluate(*arguments, pessimism):
        return sf_evaluate(*arguments, pessimism=pessimism, precision="half")

    tolerance = HALF_TOLERANCE * max(1, spec[2])
    check_against_reference(evaluate, spec, size, torch.float32, "cuda", 0.0, tolerance)


@pytest.mark.parametrize("device", devices)
def test_random_sweep_of_shapes(device):
    generator = torch.Generator().manual_seed(0)

    def pick(low, high):
        return int(torch.randint(low, high + 1, (), generator=generator))

    for i in range(40):
        form, heads = ("one", "two")[pick(0, 1)], pick(1, 3)
        trunk = pick(0, 3) if form == "two" else 0
        spec = (
            form,
            heads,
            trunk,
            (2 * pick(1, 90), 128 << pick(0, 1))[pick(0, 3) == 0],
            pick(1, 30),
            pick(0, 9),
            pick(1, 30),
            pick(1, 60),
        )
        size = (tuple(pick(0, 4) for _ in range(pick(0, 2))), pick(0, 70), pick(0, 70))
        dtype = dtypes[i % 2]
        pessimism = pick(0, 10) / 10 if heads == 2 else 0.0
        check_against_reference(
            sf_evaluate, spec, size, dtype, device, pessimism, 2 * TOLERANCE[dtype]
        )


@pytest.mark.parametrize("device", devices)
def test_rows_are_the_diagonal(device):
    network = make_network(TWO, device=device)
    obs, action, z, w = make_inputs(TWO, ((), 23, 23), device=device)
    pairs = sf_evaluate(network, obs, action, z, w, pessimism=0.5)
    rows = sf_evaluate_rows(network, obs, action, z, w, pessimism=0.5)
    torch.testing.assert_close(rows, pairs.diagonal(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("device", devices)
@pytest.mark.parametrize("spec", [TWO, ONE])
def test_strides_do_not_matter(spec, device):
    network, inputs = (
        make_network(spec, device=device),
        make_inputs(spec, ((2,), 5, 4), device=device),
    )
    # the same values, last axis first in memory, every second element
    strided = [x.movedim(-1, 0).repeat_interleave(2, 0)[::2].movedim(0, -1) for x in inputs]
    assert not any(x.is_contiguous() for x in strided)
    want = sf_evaluate(network, *inputs)
    torch.testing.assert_close(sf_evaluate(network, *strided), want, rtol=1e-13, atol=0)
    # a latent for all groups, as a stride of zero
    shared = [x[:1].expand_as(x) for x in inputs]
    want = sf_evaluate(network, *(x.contiguous() for x in shared))
    torch.testing.assert_close(sf_evaluate(network, *shared), want, rtol=1e-13, atol=0)


@pytest.mark.parametrize("device", devices)
@pytest.mark.parametrize("precision", ["full", "half"])
def test_same_bits_every_run(precision, device):
    network = make_network(TWO, torch.float32, device)
    inputs = make_inputs(TWO, ((3,), 40, 21), torch.float32, device)
    first = sf_evaluate(network, *inputs, precision=precision)
    for _ in range(3):
        assert torch.equal(sf_evaluate(network, *inputs, precision=precision), first)


def parts_of(spec, size, dtype):
    inputs = [x[None] for x in make_inputs(spec, size, dtype)]
    return module._restructure(make_network(spec, dtype), *inputs)


@pytest.mark.parametrize("precision", ["full", "half"])
@pytest.mark.parametrize("spec", [*networks, ("two", 1, 1, 600, 5, 3, 6, 6)])
def test_same_bits_on_any_number_of_threads_and_in_any_batch(
    spec, precision, instruction_set, threads
):
    parts = parts_of(spec, ((), 37, 29), torch.float32)
    threads(1)
    want = module._run(*parts, 0.0, precision)
    threads(3)
    assert torch.equal(module._run(*parts, 0.0, precision), want)
    cut = parts._replace(
        state=parts.state[:, :, 5:23],
        addends=[x[:, :, 5:23] if parts.of_state(x) else x for x in parts.addends],
        offset=parts.offset[:, :, 5:23] if parts.offset.shape[2] > 1 else parts.offset,
    )
    assert torch.equal(module._run(*cut, 0.0, precision), want[:, 5:23])


def gradients(evaluate, inputs, grad_q):
    leaves = [x.detach().requires_grad_() for x in inputs]
    return torch.autograd.grad(evaluate(*leaves), leaves, grad_q)


@pytest.mark.parametrize("device", devices)
@pytest.mark.parametrize("spec", networks[:5])
def test_gradcheck(spec, device):
    network, inputs = (
        make_network(spec, device=device),
        make_inputs(spec, ((2,), 3, 2), device=device),
    )
    pessimism = 0.3 if spec[1] == 2 else 0.0

    def evaluate(*inputs):
        return sf_evaluate(network, *inputs, pessimism=pessimism)

    assert torch.autograd.gradcheck(evaluate, [x.requires_grad_() for x in inputs])


@pytest.mark.parametrize("size", [((), 60, 101), ((41,), 3, 1), ((), 0, 4), ((3,), 1, 300)])
@pytest.mark.parametrize("spec", networks)
@pytest.mark.parametrize("dtype", dtypes)
def test_gradients_equal_autograd_through_the_reference(dtype, spec, size, instruction_set):
    network, inputs = make_network(spec, dtype), make_inputs(spec, size, dtype)
    lead, B, K = size
    grad_q = torch.randn(*lead, B, K, generator=torch.Generator().manual_seed(2)).to(dtype)
    got = gradients(lambda *x: sf_evaluate(network, *x), inputs, grad_q)
    exact = cast(network)
    want = gradients(
        lambda *x: sf_evaluate_reference(exact, *x), cast(tuple(inputs)), grad_q.double()
    )
    # in float32 some of millions of rectifiers round to the other side
    tolerance = 2e-3 if dtype == torch.float32 else 1e-11
    for x, y in zip(got, want, strict=True):
        assert relative_error(x, y) <= tolerance


def test_gradients_have_the_same_bits_on_any_number_of_threads(threads):
    network, inputs = (
        make_network(TWO, torch.float32),
        make_inputs(TWO, ((), 150, 90), torch.float32),
    )
    grad_q = torch.ones(150, 90)
    threads(1)
    # torch's own products may sum in another order on more threads; ours may not
    parts = parts_of(TWO, ((), 150, 90), torch.float32)
    want = module._run_gradient(grad_q[None], *parts, 0.2)
    threads(3)
    for x, y in zip(module._run_gradient(grad_q[None], *parts, 0.2), want, strict=True):
        assert torch.equal(x, y)
    assert all(
        x.isfinite().all() for x in gradients(lambda *x: sf_evaluate(network, *x), inputs, grad_q)
    )


def test_only_what_asks_for_a_gradient_has_one():
    network, (obs, action, z, w) = make_network(TWO), make_inputs(TWO, ((), 3, 2))
    network.out.weight.requires_grad_()
    assert not sf_evaluate(network, obs, action, z, w).requires_grad
    q = sf_evaluate(network, obs, action, z.requires_grad_(), w)
    q.sum().backward()
    assert z.grad is not None
    assert network.out.weight.grad is None
    with torch.no_grad():
        assert not sf_evaluate(network, obs, action, z, w).requires_grad


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("precision", ["full", "half"])
def test_what_is_not_finite_shows(bad, precision, instruction_set):
    network, inputs = make_network(TWO, torch.float32), make_inputs(TWO, ((), 40, 9), torch.float32)
    want = sf_evaluate(network, *inputs, precision=precision)
    inputs[0][7, 0] = bad
    got = sf_evaluate(network, *inputs, precision=precision)
    assert not got[7].isfinite().any()
    assert torch.equal(got[:7], want[:7])
    assert torch.equal(got[8:], want[8:])


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("precision", ["full", "half"])
def test_an_activation_that_is_not_finite_shows(bad, precision, instruction_set):
    spec = ("two", 1, 2, 64, 7, 3, 6, 6)
    network, inputs = (
        make_network(spec, torch.float32),
        make_inputs(spec, ((), 5, 4), torch.float32),
    )
    network.trunk[0].bias[0, 0, 3] = bad
    network.trunk[1].weight[0, 3].abs_()
    assert not sf_evaluate(network, *inputs, precision=precision).isfinite().any()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("precision", ["full", "half"])
def test_a_weight_that_is_not_finite_shows(bad, precision, instruction_set):
    network = make_network(ONE, torch.float32)
    inputs = make_inputs(ONE, ((), 5, 4), torch.float32)
    network.left.second.weight[:, 3, 5] = bad
    assert not sf_evaluate(network, *inputs, precision=precision).isfinite().all()


@pytest.mark.parametrize("device", devices)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("precision", ["full", "half"])
@pytest.mark.parametrize("spec", [TWO, ONE])
def test_a_latent_that_is_not_finite_shows(spec, bad, precision, device):
    network = make_network(spec, torch.float32, device)
    inputs = make_inputs(spec, ((), 40, 9), torch.float32, device)
    inputs[2][4, 0] = bad
    got = sf_evaluate(network, *inputs, precision=precision)
    assert not got[:, 4].isfinite().any()
    assert got[:, [0, 1, 2, 3, 5, 6, 7, 8]].isfinite().all()


@pytest.mark.parametrize("device", devices)
@pytest.mark.parametrize("dtype", dtypes)
@pytest.mark.parametrize("spec", [TWO, ONE])
def test_opcheck(spec, dtype, device):
    inputs = [x[None] for x in make_inputs(spec, ((), 5, 4), dtype, device)]
    parts = module._restructure(make_network(spec, dtype, device), *inputs)
    for x in (parts.state, parts.latent, parts.readout, parts.offset):
        x.requires_grad_()
    torch.library.opcheck(torch.ops.bfmpipe.sf_evaluate.default, (*parts, 0.1, "full"))
    detached = [x.detach() if isinstance(x, Tensor) else x for x in parts]
    grad_q = torch.ones(1, 5, 4, dtype=dtype, device=device)
    gradient = torch.ops.bfmpipe.sf_evaluate_gradient.default
    torch.library.opcheck(gradient, (grad_q, *detached, 0.1))


def test_fake_tensors_have_the_right_shapes():
    network, inputs = make_network(TWO), make_inputs(TWO, ((2,), 5, 4))
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        q = sf_evaluate(network, *(mode.from_tensor(x) for x in inputs))
    assert (q.shape, q.dtype) == ((2, 5, 4), torch.float64)


@pytest.mark.parametrize("spec", [TWO, ONE])
def test_compiles_as_one_graph(spec):
    network = make_network(spec, torch.float32)
    obs, action, z, w = make_inputs(spec, ((2,), 5, 4), torch.float32)

    def loss(z):
        return sf_evaluate(network, obs, action, z, w, pessimism=0.2).square().sum()

    z.requires_grad_()
    (want,) = torch.autograd.grad(loss(z), z)
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    (got,) = torch.autograd.grad(compiled(z), z)
    torch.testing.assert_close(got, want)


def changed(position, tensor):
    def change(inputs):
        inputs[position] = tensor
        return inputs

    return change


@pytest.mark.parametrize(
    ("change", "options", "sentence"),
    [
        (
            changed(0, torch.ones(5, 7).half()),
            {},
            "action is torch.float32 but obs is torch.float16",
        ),
        (changed(1, torch.ones(4, 3)), {}, r"action must be \(5, 3\) .*, not \(4, 3\)"),
        (changed(2, torch.ones(6)), {}, r"z must have at least two axes, not the shape \(6,\)"),
        (changed(2, torch.ones(2, 4, 6)), {}, r"z must be \(4, 6\) .*, not \(2, 4, 6\)"),
        (changed(2, torch.ones(4, 5)), {}, "reads 13 numbers; obs, z have 12"),
        (changed(1, torch.ones(5, 2)), {}, r"\(obs, action\) reads 10 numbers; they have 9"),
        (changed(3, torch.ones(4, 7)), {}, r"w must be \(4, 6\) .*, not \(4, 7\)"),
        (changed(3, torch.ones(4, 6, device="meta")), {}, "w is on meta but obs is on cpu"),
        (list, {"precision": "quarter"}, "precision must be 'full' or 'half', not 'quarter'"),
    ],
)
def test_bad_input_is_said_in_one_sentence(change, options, sentence):
    network, inputs = make_network(TWO, torch.float32), make_inputs(TWO, ((), 5, 4), torch.float32)
    with pytest.raises(UserError, match=sentence) as raised:
        sf_evaluate(network, *change(inputs), **options)
    assert str(raised.value).endswith(".")
    assert "\n" not in str(raised.value)


def test_networks_the_kernel_does_not_take():
    deep = ("two", 2, extension.SF_MAX_LAYERS, 8, 7, 3, 6, 6)
    with pytest.raises(UserError, match=r"up to 8 heads and 7 trunk layers; .* has 2 and 8"):
        sf_evaluate(make_network(deep), *make_inputs(deep, ((), 2, 2)))
    three = ("two", 3, 1, 8, 7, 3, 6, 6)
    with pytest.raises(UserError, match=r"pessimism is the distance of two heads; .* has 3"):
        sf_evaluate(make_network(three), *make_inputs(three, ((), 2, 2)), pessimism=0.5)
    with pytest.raises(UserError, match="precision 'half' is for float32 inputs"):
        sf_evaluate(make_network(TWO), *make_inputs(TWO, ((), 2, 2)), precision="half")
