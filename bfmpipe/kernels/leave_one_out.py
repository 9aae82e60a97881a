"""Leave-one-out advantages and the score-function gradient of a Gaussian over latents.

LoLA (arXiv 2504.07896) samples k latents z_i ~ N(mu, sigma^2 I), rolls each out for nstep steps
from the same start state, and follows the gradient of the expected return with respect to mu:

    R_i = sum_{t < nstep} discount^t reward_{t,i} + discount^nstep bootstrap_i
    A_i = R_i - 1/(k-1) sum_{j != i} R_j
    g   = 1/(states k) sum_{states, i} A_i (z_i - mu) / sigma^2

An episode that ends at step t keeps reward_t and loses what follows, the bootstrap included.
The other rollouts of a group are a baseline that does not depend on z_i, so g is unbiased for z_i
as drawn; LoLA plays and scores their projections to the sphere.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from bfmpipe.kernels.extension import launch
from bfmpipe.types import UserError


class LeaveOneOut(NamedTuple):
    """Returns and advantages (tasks, states, k), score gradient (tasks, d)."""

    returns: Tensor
    advantages: Tensor
    score_gradient: Tensor


def leave_one_out(
    reward: Tensor,
    bootstrap: Tensor,
    z: Tensor,
    mu: Tensor,
    *,
    sigma: float,
    discount: float,
    terminated: Tensor | None = None,
) -> LeaveOneOut:
    """Return R, A and g of the module's equations, for every task and start state.

    reward (nstep, tasks, states, k) is time-major, as a rollout records it; terminated has its
    shape and is bool, None where nothing ends; bootstrap (tasks, states, k), z (tasks, states, k,
    d), mu (tasks, d). All float32 or all float64, on one device; any strides. Sums run in double
    and in a fixed order: two calls give the same bits. With nstep = 0 the returns are the
    bootstrap, with states = 0 the gradient is zero.

    Returns and advantages are differentiable in reward and bootstrap. Nothing is differentiable
    in z and mu, and the score gradient in nothing: it is the gradient.

    UserError for k < 2, shapes, types or devices that do not match, sigma <= 0, or a discount
    outside [0, 1].
    """
    differentiate = torch.is_grad_enabled() and (reward.requires_grad or bootstrap.requires_grad)
    plain = type(reward) is type(bootstrap) is type(z) is Tensor
    # the dispatcher costs more than a small kernel: go through it only where it does something
    if differentiate or torch.compiler.is_compiling() or not plain:
        z, mu = z.detach(), mu.detach()
        return LeaveOneOut(*_op(reward, bootstrap, z, mu, terminated, sigma, discount))
    return LeaveOneOut(*_run(reward, bootstrap, z, mu, terminated, sigma, discount))


def leave_one_out_reference(
    reward: Tensor,
    bootstrap: Tensor,
    z: Tensor,
    mu: Tensor,
    *,
    sigma: float,
    discount: float,
    terminated: Tensor | None = None,
) -> LeaveOneOut:
    """Compute leave_one_out as it is defined: the oracle of its tests, for any floating type."""
    returns = bootstrap
    for t in reversed(range(len(reward))):
        future = discount * returns
        if terminated is not None:
            future = torch.where(terminated[t], torch.zeros_like(future), future)
        returns = reward[t] + future
    _, states, k = bootstrap.shape
    others = (returns.sum(-1, keepdim=True) - returns) / (k - 1)
    advantages = returns - others
    score = (z - mu[:, None, None]) / sigma**2
    total = torch.einsum("tsk,tskd->td", advantages, score)
    return LeaveOneOut(returns, advantages, (total / max(states * k, 1)).detach())


def _check(
    reward: Tensor,
    bootstrap: Tensor,
    z: Tensor,
    mu: Tensor,
    terminated: Tensor | None,
    sigma: float,
    discount: float,
) -> None:
    dtype, device, shape, of_mu = reward.dtype, reward.device, reward.shape, mu.shape
    if len(shape) != 4:
        raise UserError(f"reward must be (nstep, tasks, states, k), not {tuple(shape)}.")
    if len(of_mu) != 2:
        raise UserError(f"mu must be (tasks, d), not {tuple(of_mu)}.")
    _, tasks, states, k = shape
    d = of_mu[1]
    # one expression first: the loop that names what is off costs as much as a small kernel
    if not (
        bootstrap.shape == (tasks, states, k)
        and z.shape == (tasks, states, k, d)
        and of_mu[0] == tasks
        and dtype is bootstrap.dtype is z.dtype is mu.dtype
        and device == bootstrap.device == z.device == mu.device
    ):
        for name, tensor, expected in (
            ("bootstrap", bootstrap, (tasks, states, k)),
            ("z", z, (tasks, states, k, d)),
            ("mu", mu, (tasks, d)),
        ):
            if tensor.shape != expected:
                raise UserError(
                    f"{name} must be {expected} beside a reward of {tuple(shape)} and a mu of "
                    f"{tuple(of_mu)}, not {tuple(tensor.shape)}."
                )
            if tensor.dtype != dtype:
                raise UserError(f"{name} is {tensor.dtype} but reward is {dtype}.")
            if tensor.device != device:
                raise UserError(f"{name} is on {tensor.device} but reward is on {device}.")
    if terminated is not None:
        if terminated.shape != shape:
            raise UserError(
                f"terminated must be {tuple(shape)} like reward, not {tuple(terminated.shape)}."
            )
        if terminated.dtype != torch.bool:
            raise UserError(f"terminated must be torch.bool, not {terminated.dtype}.")
        if terminated.device != device:
            raise UserError(f"terminated is on {terminated.device} but reward is on {device}.")
    if dtype not in (torch.float32, torch.float64):
        raise UserError(f"reward must be torch.float32 or torch.float64, not {dtype}.")
    if k < 2:
        raise UserError(f"leave_one_out compares the latents of a group: k must be >= 2, not {k}.")
    if not 0 < sigma < float("inf"):
        raise UserError(f"sigma must be positive and finite, not {sigma}.")
    if not 0 <= discount <= 1:
        raise UserError(f"discount must be in [0, 1], not {discount}.")


def _outputs(bootstrap: Tensor, mu: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    # of contiguous tensors; empty_like is three times as fast as new_empty
    return torch.empty_like(bootstrap), torch.empty_like(bootstrap), torch.empty_like(mu)


def _run(
    reward: Tensor,
    bootstrap: Tensor,
    z: Tensor,
    mu: Tensor,
    terminated: Tensor | None,
    sigma: float,
    discount: float,
) -> tuple[Tensor, Tensor, Tensor]:
    _check(reward, bootstrap, z, mu, terminated, sigma, discount)
    reward, bootstrap = reward.contiguous(), bootstrap.contiguous()
    z, mu = z.contiguous(), mu.contiguous()
    terminated = None if terminated is None else terminated.contiguous()
    returns, advantages, score_gradient = _outputs(bootstrap, mu)
    launch(
        "leave_one_out_float32" if reward.dtype is torch.float32 else "leave_one_out_float64",
        reward.device,
        reward.data_ptr(),
        0 if terminated is None else terminated.data_ptr(),
        bootstrap.data_ptr(),
        z.data_ptr(),
        mu.data_ptr(),
        returns.data_ptr(),
        advantages.data_ptr(),
        score_gradient.data_ptr(),
        *reward.shape,
        mu.shape[1],
        sigma,
        discount,
    )
    return returns, advantages, score_gradient


_op = torch.library.custom_op("bfmpipe::leave_one_out", _run, mutates_args=())


@_op.register_fake
def _(
    reward: Tensor,
    bootstrap: Tensor,
    z: Tensor,
    mu: Tensor,
    terminated: Tensor | None,
    sigma: float,
    discount: float,
) -> tuple[Tensor, Tensor, Tensor]:
    _check(reward, bootstrap, z, mu, terminated, sigma, discount)
    return _outputs(bootstrap.contiguous(), mu.contiguous())


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    reward, _, _, _, terminated, _, ctx.discount = inputs
    ctx.nstep = len(reward)
    ctx.save_for_backward(terminated)
    ctx.mark_non_differentiable(output[2])


def _backward(ctx: Any, grad_returns: Tensor, grad_advantages: Tensor, _: Tensor) -> tuple:
    # dR_i/dreward_t is discount^t until the episode ends; leave-one-out is its own transpose
    k = grad_returns.shape[-1]
    others = (grad_advantages.sum(-1, keepdim=True) - grad_advantages) / (k - 1)
    grad = grad_returns + grad_advantages - others
    steps = torch.arange(ctx.nstep + 1, device=grad.device, dtype=grad.dtype)
    weight = (ctx.discount**steps)[:, None, None, None]
    (terminated,) = ctx.saved_tensors
    if terminated is not None:
        start = torch.zeros_like(grad, dtype=torch.bool)[None]
        ended = torch.cat([start, terminated]).cumsum(0, dtype=torch.int32)
        weight = weight * (ended == 0)
    grad = weight * grad
    return grad[:-1], grad[-1], None, None, None, None, None


_op.register_autograd(_backward, setup_context=_setup_context)
