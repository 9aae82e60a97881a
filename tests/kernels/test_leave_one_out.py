import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from bfmpipe.kernels import _cpu, extension, leave_one_out, leave_one_out_reference
from bfmpipe.types import UserError

op = torch.ops.bfmpipe.leave_one_out.default

needs_cuda = pytest.mark.skipif(
    not torch.cuda.is_available() or extension._find_cuda() is None,
    reason="needs a GPU, a torch with CUDA and the CUDA kernels",
)
devices = ["cpu", pytest.param("cuda", marks=needs_cuda)]
dtypes = [torch.float32, torch.float64]

# nstep, tasks, states, k, d
shapes = [
    (1, 1, 1, 2, 1),
    (0, 2, 3, 4, 5),
    (7, 0, 3, 4, 5),
    (7, 2, 0, 4, 5),
    (7, 2, 3, 4, 0),
    (3, 1, 1, 17, 33),
    (11, 3, 5, 7, 13),
    (5, 2, 1, 513, 3),
    (5, 1, 2, 3, 515),
    (250, 2, 4, 256, 50),
]


def inputs(shape, dtype=torch.float64, device="cpu", seed=0):
    """Arguments of the operator, drawn on the CPU: the same for every device."""
    nstep, tasks, states, k, d = shape
    generator = torch.Generator().manual_seed(seed)

    def draw(*size):
        return torch.randn(*size, generator=generator, dtype=torch.float64).to(device, dtype)

    ends = torch.rand(nstep, tasks, states, k, generator=generator) < 0.1
    tensors = {
        "reward": draw(nstep, tasks, states, k),
        "bootstrap": draw(tasks, states, k),
        "z": draw(tasks, states, k, d),
        "mu": draw(tasks, d),
        "terminated": ends.to(device),
    }
    return tensors | {"sigma": 0.3, "discount": 0.97}


def positional(reward, bootstrap, z, mu, terminated, sigma, discount):
    return reward, bootstrap, z, mu, terminated, sigma, discount


def as_float64(arguments):
    return {
        name: x.cpu().double() if isinstance(x, Tensor) and x.is_floating_point() else x
        for name, x in arguments.items()
    } | {"terminated": None if arguments["terminated"] is None else arguments["terminated"].cpu()}


def test_by_hand():
    # two steps, discount 1/2; the second latent's episode ends at its first step
    reward = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]).reshape(2, 1, 1, 3)
    terminated = torch.tensor([[0, 1, 0], [0, 0, 0]]).bool().reshape(2, 1, 1, 3)
    bootstrap = torch.tensor([8.0, 100.0, 0.0]).reshape(1, 1, 3)
    z = torch.tensor([[1.0, 0.0], [0.0, 1.0], [2.0, 2.0]]).reshape(1, 1, 3, 2)
    mu = torch.tensor([[1.0, 0.0]])
    out = leave_one_out(reward, bootstrap, z, mu, sigma=2.0, discount=0.5, terminated=terminated)
    # 1 + 4/2 + 8/4, 2, 3 + 6/2
    assert out.returns.flatten().tolist() == [5.0, 2.0, 6.0]
    # 5 - (2 + 6)/2, 2 - (5 + 6)/2, 6 - (5 + 2)/2
    assert out.advantages.flatten().tolist() == [1.0, -3.5, 2.5]
    # (1 (0, 0) - 3.5 (-1, 1) + 2.5 (1, 2)) / (3 * 4)
    torch.testing.assert_close(out.score_gradient, torch.tensor([[6.0, 1.5]]) / 12)


@pytest.mark.parametrize("device", devices)
@pytest.mark.parametrize("dtype", dtypes)
@pytest.mark.parametrize("ends", [True, False])
@pytest.mark.parametrize("shape", shapes)
def test_equals_reference(shape, ends, dtype, device):
    arguments = inputs(shape, dtype, device)
    if not ends:
        arguments["terminated"] = None
    actual = leave_one_out(**arguments)
    # returns round once; the others inherit the rounding of the returns, a sum of many
    rtol, atol = (1e-5, 1e-4) if dtype == torch.float32 else (1e-12, 1e-11)
    for got, want in zip(actual, leave_one_out_reference(**as_float64(arguments)), strict=True):
        assert got.dtype == dtype
        assert got.device.type == device
        torch.testing.assert_close(got.cpu().double(), want, rtol=rtol, atol=atol)


@pytest.mark.parametrize("device", devices)
def test_no_states_give_a_zero_gradient_and_no_steps_the_bootstrap(device):
    assert leave_one_out(**inputs((7, 2, 0, 4, 5), device=device)).score_gradient.eq(0).all()
    arguments = inputs((0, 2, 3, 4, 5), device=device)
    out = leave_one_out(**arguments)
    assert torch.equal(out.returns, arguments["bootstrap"])
    assert out.returns.data_ptr() != arguments["bootstrap"].data_ptr()


@pytest.mark.parametrize("device", devices)
def test_strides_do_not_matter(device):
    arguments = inputs((6, 3, 4, 5, 8), device=device)
    strided = dict(arguments)
    for name in ("reward", "bootstrap", "z", "mu", "terminated"):
        # the same values, last axis first in memory, every second element
        x = arguments[name].movedim(-1, 0).repeat_interleave(2, 0)[::2].movedim(0, -1)
        assert not x.is_contiguous()
        strided[name] = x
    for got, want in zip(leave_one_out(**strided), leave_one_out(**arguments), strict=True):
        assert torch.equal(got, want)


@pytest.mark.parametrize("device", devices)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nothing_after_a_termination_counts(value, device):
    arguments = inputs((5, 2, 3, 4, 6), device=device)
    arguments["terminated"][2] = True
    arguments["reward"][3:] = 0
    arguments["bootstrap"].zero_()
    want = leave_one_out(**arguments)
    arguments["reward"][3:] = value
    arguments["bootstrap"].fill_(value)
    for got, expected in zip(leave_one_out(**arguments), want, strict=True):
        assert torch.equal(got, expected)


@pytest.mark.parametrize("device", devices)
@pytest.mark.parametrize("dtype", dtypes)
def test_same_bits_every_run(dtype, device):
    arguments = inputs((50, 3, 5, 65, 33), dtype, device)
    first = leave_one_out(**arguments)
    for _ in range(3):
        for got, want in zip(leave_one_out(**arguments), first, strict=True):
            assert torch.equal(got, want)


@pytest.mark.parametrize("dtype", dtypes)
def test_a_task_gives_the_same_bits_alone_and_in_a_batch(dtype):
    arguments = inputs((9, 4, 3, 171, 11), dtype)
    batch = leave_one_out(**arguments)
    for task in range(4):
        one = {
            name: arguments[name][:, task : task + 1]
            if name in ("reward", "terminated")
            else arguments[name][task : task + 1]
            for name in ("reward", "terminated", "bootstrap", "z", "mu")
        }
        alone = leave_one_out(**one, sigma=0.3, discount=0.97)
        for got, want in zip(alone, batch, strict=True):
            assert torch.equal(got[0], want[task])


@pytest.mark.parametrize("instruction_set", _cpu.instruction_sets())
@pytest.mark.parametrize("dtype", dtypes)
@pytest.mark.parametrize("shape", shapes)
def test_same_bits_on_every_instruction_set(shape, dtype, instruction_set):
    arguments = inputs(shape, dtype)
    want = leave_one_out(**arguments)
    best = _cpu.instruction_set()
    try:
        _cpu.use_instruction_set(instruction_set)
        got = leave_one_out(**arguments)
    finally:
        _cpu.use_instruction_set(best)
    for x, y in zip(got, want, strict=True):
        assert torch.equal(x, y)


@pytest.mark.parametrize("device", devices)
@pytest.mark.parametrize("ends", [True, False])
@pytest.mark.parametrize("nstep", [0, 1, 4])
def test_gradients(nstep, ends, device):
    arguments = inputs((nstep, 2, 3, 4, 5), device=device)
    if not ends:
        arguments["terminated"] = None
    reward, bootstrap = arguments.pop("reward"), arguments.pop("bootstrap")

    def differentiable(reward, bootstrap):
        return leave_one_out(reward, bootstrap, **arguments)[:2]

    leaves = reward.requires_grad_(), bootstrap.requires_grad_()
    assert torch.autograd.gradcheck(differentiable, leaves)
    assert torch.autograd.gradgradcheck(differentiable, leaves)


def test_nothing_is_differentiable_in_the_latents():
    arguments = inputs((4, 2, 3, 4, 5))
    arguments["z"].requires_grad_()
    arguments["mu"] = torch.nn.Parameter(arguments["mu"])
    assert not any(x.requires_grad for x in leave_one_out(**arguments))
    arguments["reward"].requires_grad_()
    out = leave_one_out(**arguments)
    assert [x.requires_grad for x in out] == [True, True, False]
    (out.returns.sum() + out.advantages.square().sum()).backward()
    assert arguments["reward"].grad is not None
    assert arguments["z"].grad is None
    assert arguments["mu"].grad is None
    with torch.no_grad():
        assert not any(x.requires_grad for x in leave_one_out(**arguments))


@pytest.mark.parametrize("device", devices)
@pytest.mark.parametrize("ends", [True, False])
@pytest.mark.parametrize("dtype", dtypes)
def test_opcheck(dtype, ends, device):
    arguments = inputs((4, 2, 3, 5, 6), dtype, device)
    if not ends:
        arguments["terminated"] = None
    arguments["reward"].requires_grad_()
    arguments["bootstrap"].requires_grad_()
    torch.library.opcheck(op, positional(**arguments))


def test_fake_tensors_have_the_right_shapes():
    arguments = inputs((4, 2, 3, 5, 6), torch.float32)
    with FakeTensorMode() as mode:
        out = leave_one_out(
            **{k: mode.from_tensor(x) if isinstance(x, Tensor) else x for k, x in arguments.items()}
        )
    assert [tuple(x.shape) for x in out] == [(2, 3, 5), (2, 3, 5), (2, 6)]
    assert all(x.dtype == torch.float32 for x in out)


def test_compiles_as_one_graph():
    arguments = inputs((4, 2, 3, 5, 6), torch.float32)

    def loss(reward, bootstrap, terminated, z, mu):
        out = leave_one_out(
            reward, bootstrap, z, mu, terminated=terminated, sigma=0.3, discount=0.97
        )
        return (out.returns + out.advantages.square()).sum() + out.score_gradient.sum()

    names = ("reward", "bootstrap", "terminated", "z", "mu")
    tensors = [arguments[name] for name in names]
    tensors[0].requires_grad_()
    want = torch.autograd.grad(loss(*tensors), tensors[0])
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(torch.autograd.grad(compiled(*tensors), tensors[0]), want)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {"reward": torch.ones(4, 3, 5)},
            r"reward must be \(nstep, tasks, states, k\), not \(4, 3, 5\)",
        ),
        ({"mu": torch.ones(6)}, r"mu must be \(tasks, d\), not \(6,\)"),
        ({"mu": torch.ones(3, 6)}, r"mu must be \(2, 6\) .*, not \(3, 6\)"),
        ({"bootstrap": torch.ones(2, 3, 4)}, r"bootstrap must be \(2, 3, 5\) .*, not \(2, 3, 4\)"),
        ({"z": torch.ones(2, 3, 5, 7)}, r"z must be \(2, 3, 5, 6\) .*, not \(2, 3, 5, 7\)"),
        (
            {"terminated": torch.ones(4, 2, 3, 1).bool()},
            r"terminated must be \(4, 2, 3, 5\) like reward",
        ),
        (
            {"terminated": torch.ones(4, 2, 3, 5)},
            "terminated must be torch.bool, not torch.float32",
        ),
        ({"z": torch.ones(2, 3, 5, 6).double()}, "z is torch.float64 but reward is torch.float32"),
        ({"mu": torch.ones(2, 6, device="meta")}, "mu is on meta but reward is on cpu"),
        (
            {
                "reward": torch.ones(4, 2, 3, 1),
                "bootstrap": torch.ones(2, 3, 1),
                "z": torch.ones(2, 3, 1, 6),
            },
            "k must be >= 2, not 1",
        ),
        ({"reward": torch.ones(4, 2, 3, 5).half()}, "bootstrap is torch.float32 but reward is"),
        ({"sigma": 0.0}, "sigma must be positive and finite, not 0.0"),
        ({"sigma": float("nan")}, "sigma must be positive"),
        ({"discount": 1.5}, r"discount must be in \[0, 1\], not 1.5"),
    ],
)
def test_bad_input_is_said_in_one_sentence(changes, sentence):
    arguments = inputs((4, 2, 3, 5, 6), torch.float32)
    arguments["terminated"] = None
    with pytest.raises(UserError, match=sentence) as raised:
        leave_one_out(**arguments | changes)
    assert str(raised.value).endswith(".")
    assert "\n" not in str(raised.value)


def test_half_precision_is_refused():
    arguments = inputs((4, 2, 3, 5, 6), torch.bfloat16)
    with pytest.raises(UserError, match=r"must be torch.float32 or torch.float64, not torch.bfl"):
        leave_one_out(**arguments)
