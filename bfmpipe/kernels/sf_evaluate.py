"""Values of many latents at many states, without materialising the successor features.

    Q[b, k] = reduce_p psi_p(s_b, a_b, z_k)^T w_k        reduce: mean_p - pessimism |Q_0 - Q_1|

for all B x K pairs of a state and action with a latent, exactly restructured:

- the first layer of (s, z) is a part of s, computed B times, plus a part of z, computed K times;
  what depends on (s, a) alone is computed B times;
- a pair's own work starts at their sum: LayerNorm, tanh, and the layers that follow;
- the last layer is folded into w: instead of d x h products a pair, one dot product of length h.

The pairs' part is the compiled operation; the parts before it are plain products in torch. Two
kinds of network, both with `heads` copies side by side (arrays (heads, in, out)):

    two embeddings   out(trunk([left(s, z), right(s, a)]))
    one embedding    out(left(s, z, a))
    embedding(x) = relu(second(tanh(LayerNorm(first(x)))))
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from bfmpipe.kernels.extension import SF_MAX_HEADS, SF_MAX_LAYERS, SF_WIDTH, launch
from bfmpipe.types import UserError

Precision = Literal["full", "half"]


class Linear(NamedTuple):
    """x weight + bias: weight (heads, in, out), bias (heads, 1, out)."""

    weight: Tensor
    bias: Tensor


class Embedding(NamedTuple):
    """relu(second(tanh(LayerNorm(first(x))))), the LayerNorm with scale and shift (heads, 1, h)."""

    first: Linear
    scale: Tensor
    shift: Tensor
    second: Linear

    def __call__(self, x: Tensor) -> Tensor:
        """Features (heads, ..., out) of x (heads or 1, ..., in)."""
        heads, _, hidden = self.first.weight.shape
        flat = x.expand(heads, *x.shape[1:]).flatten(1, -2)
        hidden_units = torch.baddbmm(self.first.bias, flat, self.first.weight)
        normalised = torch.nn.functional.layer_norm(hidden_units, (hidden,))
        hidden_units = torch.addcmul(self.shift, normalised, self.scale).tanh()
        features = torch.baddbmm(self.second.bias, hidden_units, self.second.weight).relu()
        return features.unflatten(1, x.shape[1:-1])


class Network(NamedTuple):
    """The layers of psi. `right` is None in a network of one embedding, which has no trunk."""

    left: Embedding
    right: Embedding | None
    trunk: tuple[Linear, ...]
    out: Linear


def sf_evaluate(
    network: Network,
    obs: Tensor,
    action: Tensor,
    z: Tensor,
    w: Tensor,
    *,
    pessimism: float = 0.0,
    precision: Precision = "full",
) -> Tensor:
    """Return Q (..., B, K) of the module's equation.

    obs (..., B, obs_dim), action (..., B, action_dim), z (..., K, d), w (..., K, d): the same
    leading axes, which group states with latents, or none. All float32 or all float64 like the
    network, on one device; any strides. One state to a latent, the diagonal of the above:
    sf_evaluate_rows.

    precision "half", of float32 inputs, allows 16 bits a number in the pairs' matrix products
    where the processor is faster with them: on a CPU with a matrix unit (AMX) bfloat16
    activations, and weights of two bfloat16 parts; on one with AVX-512 VNNI integers of 12 bits and
    a sign, relative to the largest activation of a pair or weight of a unit, so that units a
    hundred times as large as the others cost them precision; on CUDA float16, which overflows
    beyond 65504. Sums stay float32 (of integers exact). Expect a relative error of 5e-4 (CUDA,
    VNNI: 2e-4 on trained models, up to 9e-4 on deep ones) to 1.6e-3 (AMX). On CUDA, "full" follows
    torch's float32 matmul precision (tf32 where it is allowed). On AMD's Zen 5, in
    a network whose first layer and shift are zero or nearly so for some state and latent (the
    square of what is normalised is below LayerNorm's epsilon, 1e-5), "full" is less exact for that
    pair: 2e-6 for inputs of 1e-4 in a network without biases, 2e-4 for inputs of 1e-6.

    Differentiable once in obs, action, z and w, in full precision; the network is taken as frozen.
    Two calls give the same bits; on the CPU so does any number of threads, and any batch that a
    pair is part of where torch's own products have that property.

    UserError for shapes, types or devices that do not match, pessimism without two heads, or a
    deeper network than the kernel takes.
    """
    _check(network, obs, action, z, w, pessimism, precision)
    lead = obs.shape[:-2]
    groups = lead.numel()
    obs, action, z, w = (x.reshape(groups, *x.shape[-2:]) for x in (obs, action, z, w))
    parts = _restructure(network, obs, action, z, w)
    value = _evaluate(parts, float(pessimism), precision)
    return value.view(*lead, obs.shape[1], z.shape[1])


def sf_evaluate_rows(
    network: Network,
    obs: Tensor,
    action: Tensor,
    z: Tensor,
    w: Tensor,
    *,
    pessimism: float = 0.0,
    precision: Precision = "full",
) -> Tensor:
    """Return Q (n,) of n rows, each with a state, an action, a latent and weights of its own.

    obs (n, obs_dim), action (n, action_dim), z (n, d), w (n, d); the rest as sf_evaluate, but that
    on CUDA "half" is no faster than "full", and the same.
    """
    obs, action, z, w = (x.unsqueeze(-2) for x in (obs, action, z, w))
    if obs.is_cuda:  # there is nothing to share between rows: plain layers are fewer launches
        _check(network, obs, action, z, w, pessimism, precision)
        value = sf_evaluate_reference(_detached(network), obs, action, z, w, pessimism=pessimism)
        return value[..., 0, 0]
    value = sf_evaluate(network, obs, action, z, w, pessimism=pessimism, precision=precision)
    return value[..., 0, 0]


def sf_evaluate_reference(
    network: Network,
    obs: Tensor,
    action: Tensor,
    z: Tensor,
    w: Tensor,
    *,
    pessimism: float = 0.0,
) -> Tensor:
    """Compute sf_evaluate as it is defined, all psi at once.

    The oracle of its tests, and on CUDA what evaluates rows.
    """
    B, K = obs.shape[-2], z.shape[-2]
    obs, action = (x.unsqueeze(-2).expand(*x.shape[:-1], K, -1) for x in (obs, action))
    z = z.unsqueeze(-3).expand(*z.shape[:-2], B, -1, -1)
    if network.right is None:
        hidden = network.left(torch.cat([obs, z, action], dim=-1)[None])
    else:
        left = network.left(torch.cat([obs, z], dim=-1)[None])
        right = network.right(torch.cat([obs, action], dim=-1)[None])
        hidden = torch.cat([left, right], dim=-1)
    heads, width = len(hidden), hidden.shape[-1]
    flat = hidden.reshape(heads, -1, width)
    for layer in network.trunk:
        flat = torch.baddbmm(layer.bias, flat, layer.weight).relu()
    psi = torch.baddbmm(network.out.bias, flat, network.out.weight)
    q = (psi.view(heads, *z.shape[:-1], psi.shape[-1]) * w.unsqueeze(-3)).sum(-1)
    return _reduce(q, pessimism)


def _reduce(q: Tensor, pessimism: float) -> Tensor:
    if pessimism == 0:
        return q.mean(0)
    return q.mean(0) - pessimism * (q[0] - q[1]).abs()


def _check(
    network: Network,
    obs: Tensor,
    action: Tensor,
    z: Tensor,
    w: Tensor,
    pessimism: float,
    precision: str,
) -> None:
    dtype, device = obs.dtype, obs.device
    inputs = {"obs": obs, "action": action, "z": z, "w": w}
    weights = {"the network": network.out.weight}
    for name, tensor in (inputs | weights).items():
        if tensor.dtype != dtype:
            raise UserError(f"{name} is {tensor.dtype} but obs is {dtype}.")
        if tensor.device != device:
            raise UserError(f"{name} is on {tensor.device} but obs is on {device}.")
    if dtype not in (torch.float32, torch.float64):
        raise UserError(f"obs must be torch.float32 or torch.float64, not {dtype}.")
    if precision not in ("full", "half"):
        raise UserError(f"precision must be 'full' or 'half', not '{precision}'.")
    if precision == "half" and dtype != torch.float32:
        raise UserError(f"precision 'half' is for float32 inputs, not {dtype}.")
    for name, tensor in inputs.items():
        if tensor.dim() < 2:
            raise UserError(f"{name} must have at least two axes, not the shape {_shape(tensor)}.")
    heads, inputs_of_left, _ = network.left.first.weight.shape
    d = network.out.weight.shape[-1]
    *lead, B, obs_dim = obs.shape
    *_, K, z_dim = z.shape
    expected = [
        ("action", action, (*lead, B, action.shape[-1])),
        ("z", z, (*lead, K, z_dim)),
        ("w", w, (*lead, K, d)),
    ]
    for name, tensor, shape in expected:
        if tensor.shape != shape:
            raise UserError(
                f"{name} must be {tuple(shape)} beside obs of {_shape(obs)} and z of {_shape(z)}, "
                f"not {_shape(tensor)}."
            )
    reads = obs_dim + z_dim + (action.shape[-1] if network.right is None else 0)
    if reads != inputs_of_left:
        raise UserError(
            f"the network's first layer reads {inputs_of_left} numbers; obs, z"
            f"{' and action' if network.right is None else ''} have {reads}."
        )
    if network.right is not None:
        reads, has = obs_dim + action.shape[-1], network.right.first.weight.shape[1]
        if reads != has:
            raise UserError(
                f"the network's embedding of (obs, action) reads {has} numbers; they have {reads}."
            )
    if heads > SF_MAX_HEADS or 1 + len(network.trunk) > SF_MAX_LAYERS:
        raise UserError(
            f"the kernel takes up to {SF_MAX_HEADS} heads and {SF_MAX_LAYERS - 1} trunk layers; "
            f"the network has {heads} and {len(network.trunk)}."
        )
    if pessimism and heads != 2:
        raise UserError(f"pessimism is the distance of two heads; the network has {heads}.")


def _shape(tensor: Tensor) -> tuple[int, ...]:
    return tuple(tensor.shape)


class _Parts(NamedTuple):
    """What the pairs' part reads, for G groups.

    state (heads, G, B, h) and latent (heads, G, K, h), each with mean zero over h: their sum needs
    no mean to be normalised; scale, shift (heads, h); weights (heads, in, out) and addends
    (heads, 1, 1, out), or (heads, G, B, out) where each state has its own; readout (heads, G, K,
    out); offset (heads, G, 1 or B, K).
    """

    state: Tensor
    latent: Tensor
    scale: Tensor
    shift: Tensor
    weights: list[Tensor]
    addends: list[Tensor]
    readout: Tensor
    offset: Tensor

    def of_state(self, addend: Tensor) -> bool:
        """Whether an addend has a row for each state."""
        return addend.shape[:3] == self.state.shape[:3]


def _restructure(network: Network, obs: Tensor, action: Tensor, z: Tensor, w: Tensor) -> _Parts:
    left, right, trunk, out = _detached(network)
    by_obs, by_z, by_action = left.first.weight.tensor_split(
        [obs.shape[-1], obs.shape[-1] + z.shape[-1]], dim=1
    )
    if right is None:
        inputs, by_inputs = torch.cat([obs, action], -1), torch.cat([by_obs, by_action], 1)
    else:
        inputs, by_inputs = obs, by_obs
    # the mean over h is taken off the weights, which are fewer than the rows
    state = _product(inputs, _centred(by_inputs), _centred(left.first.bias))
    latent = _product(z, _centred(by_z))

    readout = _product(w, out.weight.mT)
    offset = _product(w, out.bias.mT).mT
    weights, addends = [left.second.weight], [left.second.bias[:, None]]
    if right is not None:
        features = right(torch.cat([obs, action], dim=-1)[None])
        widths = [left.second.weight.shape[-1], features.shape[-1]]
        if trunk:
            of_pair, of_state = trunk[0].weight.split(widths, dim=1)
            weights.append(of_pair)
            addends.append(_product(features, of_state, trunk[0].bias))
        else:
            readout, of_right = readout.split(widths, dim=-1)
            offset = offset + features @ of_right.mT
    for layer in trunk[1:]:
        weights.append(layer.weight)
        addends.append(layer.bias[:, None])
    scale, shift = left.scale[:, 0], left.shift[:, 0]
    return _Parts(state, latent, scale, shift, weights, addends, readout, offset)


def _detached(x: Any) -> Any:
    """The same tuples, of detached tensors."""
    if isinstance(x, tuple):
        parts = [_detached(part) for part in x]
        return tuple(parts) if type(x) is tuple else type(x)(*parts)
    return x.detach() if isinstance(x, Tensor) else x


def _centred(x: Tensor) -> Tensor:
    return x - x.mean(-1, keepdim=True)


def _product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """(G, n, in) or (heads, G, n, in) times (heads, in, out), plus bias: (heads, G, n, out)."""
    groups, rows = x.shape[-3:-1]
    flat = x.flatten(-3, -2).expand(len(weight), -1, -1)
    y = torch.bmm(flat, weight) if bias is None else torch.baddbmm(bias, flat, weight)
    return y.unflatten(1, (groups, rows))


def _evaluate(parts: _Parts, pessimism: float, precision: str) -> Tensor:
    tensors = (parts.state, parts.latent, parts.readout, parts.offset, *parts.addends)
    differentiate = torch.is_grad_enabled() and any(x.requires_grad for x in tensors)
    plain = all(type(x) is Tensor for x in tensors)
    # the dispatcher costs more than a small kernel: go through it only where it does something
    through_dispatcher = differentiate or torch.compiler.is_compiling() or not plain
    op: Callable[..., Tensor] = _op if through_dispatcher else _run
    return op(*parts, pessimism, precision)


def _run(
    state: Tensor,
    latent: Tensor,
    scale: Tensor,
    shift: Tensor,
    weights: Sequence[Tensor],
    addends: Sequence[Tensor],
    readout: Tensor,
    offset: Tensor,
    pessimism: float,
    precision: str,
) -> Tensor:
    parts = _Parts(state, latent, scale, shift, [*weights], [*addends], readout, offset)
    q = state.new_empty(*state.shape[1:3], latent.shape[2])
    if q.numel() == 0:
        return q
    if state.is_cuda:
        return _run_on_cuda(parts, pessimism, precision)
    _launch(_padded(parts), state.shape[-1], pessimism, precision == "half", q=q)
    return q


_op = torch.library.custom_op("bfmpipe::sf_evaluate", _run, mutates_args=())


@_op.register_fake
def _(
    state: Tensor,
    latent: Tensor,
    scale: Tensor,
    shift: Tensor,
    weights: Sequence[Tensor],
    addends: Sequence[Tensor],
    readout: Tensor,
    offset: Tensor,
    pessimism: float,
    precision: str,
) -> Tensor:
    return state.new_empty(*state.shape[1:3], latent.shape[2])


def _run_gradient(
    grad_q: Tensor,
    state: Tensor,
    latent: Tensor,
    scale: Tensor,
    shift: Tensor,
    weights: Sequence[Tensor],
    addends: Sequence[Tensor],
    readout: Tensor,
    offset: Tensor,
    pessimism: float,
) -> list[Tensor]:
    """Gradients of state, latent, readout, offset and addends; shared addends have none: empty."""
    parts = _Parts(state, latent, scale, shift, [*weights], [*addends], readout, offset)
    if state.is_cuda:
        return _differentiate(parts, grad_q, pessimism)
    heads, groups, B, hidden = state.shape
    K = latent.shape[2]
    padded = _padded(parts)
    # Each block of a group's states sums the gradient of the group's latents by itself: any number
    # of threads gives the same sums.
    splits = min(B, 16, max(1, B * K // 4096))
    of_latent = state.new_zeros(splits, *padded.latent.shape)
    of_readout = state.new_zeros(splits, *padded.readout.shape)
    of_state, of_head = torch.zeros_like(padded.state), state.new_empty(heads, groups, B, K)
    of_addends = [
        torch.zeros_like(addend) if parts.of_state(addend) else addend.new_empty(0)
        for addend in padded.addends
    ]
    if grad_q.numel():
        gradients = [grad_q.contiguous(), of_state, of_latent, of_readout, of_head, *of_addends]
        _launch(padded, hidden, pessimism, False, gradients=gradients, splits=splits)
    return [
        _cut(of_state, state),
        _cut(of_latent.sum(0), latent),
        _cut(of_readout.sum(0), readout),
        of_head if offset.shape[2] == B else of_head.sum(2, keepdim=True),
        *(_cut(of, addend) for of, addend in zip(of_addends, addends, strict=True)),
    ]


def _cut(padded: Tensor, like: Tensor) -> Tensor:
    width = like.shape[-1]
    return padded if padded.shape[-1] in (0, width) else padded[..., :width].contiguous()


_gradient_op = torch.library.custom_op(
    "bfmpipe::sf_evaluate_gradient", _run_gradient, mutates_args=()
)


@_gradient_op.register_fake
def _(
    grad_q: Tensor,
    state: Tensor,
    latent: Tensor,
    scale: Tensor,
    shift: Tensor,
    weights: Sequence[Tensor],
    addends: Sequence[Tensor],
    readout: Tensor,
    offset: Tensor,
    pessimism: float,
) -> list[Tensor]:
    parts = _Parts(state, latent, scale, shift, [*weights], [*addends], readout, offset)
    of_addends = [
        addend.new_empty(addend.shape if parts.of_state(addend) else (0,)) for addend in addends
    ]
    return [*(x.new_empty(x.shape) for x in (state, latent, readout, offset)), *of_addends]


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    state, latent, scale, shift, weights, addends, readout, offset, ctx.pessimism, _ = inputs
    ctx.layers = len(weights)
    ctx.save_for_backward(state, latent, scale, shift, readout, offset, *weights, *addends)


def _backward(ctx: Any, grad_q: Tensor) -> tuple:
    state, latent, scale, shift, readout, offset, *layers = ctx.saved_tensors
    weights, addends = layers[: ctx.layers], layers[ctx.layers :]
    of_state, of_latent, of_readout, of_offset, *of_addends = _gradient_op(
        grad_q, state, latent, scale, shift, weights, addends, readout, offset, ctx.pessimism
    )
    grads = [
        of if of.shape == addend.shape else None
        for of, addend in zip(of_addends, addends, strict=True)
    ]
    none = [None] * ctx.layers
    return of_state, of_latent, None, None, none, grads, of_readout, of_offset, None, None


_op.register_autograd(_backward, setup_context=_setup_context)


# ---- CPU


def _padded(parts: _Parts) -> _Parts:
    """Contiguous parts, every width a multiple of SF_WIDTH: the kernel knows no remainders."""

    def pad(x: Tensor, axes: int = 1) -> Tensor:
        missing = [-n % SF_WIDTH for n in reversed(x.shape[-axes:])]
        if not any(missing):
            return x.contiguous()
        return torch.nn.functional.pad(x, [n for m in missing for n in (0, m)])

    return _Parts(
        pad(parts.state),
        pad(parts.latent),
        pad(parts.scale),
        pad(parts.shift),
        [pad(weight, 2) for weight in parts.weights],
        [pad(addend) for addend in parts.addends],
        pad(parts.readout),
        parts.offset.contiguous(),
    )


def _launch(
    padded: _Parts,
    hidden_used: int,
    pessimism: float,
    half: bool,
    *,
    q: Tensor | None = None,
    gradients: Sequence[Tensor] = (),
    splits: int = 1,
) -> None:
    heads, groups, B, hidden = padded.state.shape
    layers = [
        (weight.data_ptr(), addend.data_ptr(), *weight.shape[1:], padded.of_state(addend))
        for weight, addend in zip(padded.weights, padded.addends, strict=True)
    ]
    launch(
        "sf_evaluate_float32" if padded.state.dtype == torch.float32 else "sf_evaluate_float64",
        padded.state.device,
        padded.state.data_ptr(),
        padded.latent.data_ptr(),
        padded.scale.data_ptr(),
        padded.shift.data_ptr(),
        layers,
        padded.readout.data_ptr(),
        padded.offset.data_ptr(),
        padded.offset.shape[2] == B,
        0 if q is None else q.data_ptr(),
        [gradient.data_ptr() for gradient in gradients],
        (groups, B, padded.latent.shape[2]),
        heads,
        hidden,
        hidden_used,
        pessimism,
        half,
        splits,
        torch.get_num_threads(),
    )


# ---- CUDA: kernels around the products, which are cuBLAS's

_CUDA_ROWS = 65536  # pairs that pass the layers together: enough that launching takes no time


def _run_on_cuda(parts: _Parts, pessimism: float, precision: str) -> Tensor:
    state, latent, scale, shift, readout = map(
        _aligned, (parts.state, parts.latent, parts.scale, parts.shift, parts.readout)
    )
    addends = [_aligned(addend) for addend in parts.addends]
    heads, groups, B, hidden = state.shape
    sizes = (groups, B, latent.shape[2])
    pairs = groups * B * sizes[2]
    half = precision == "half"
    kept = torch.float16 if half else state.dtype
    weights = [weight.to(kept) for weight in parts.weights]
    biases = [addend.flatten(1).to(kept) for addend in addends]
    suffix = "float32" if state.dtype == torch.float32 else "float64"
    q = state.new_empty(heads, pairs)
    for head in range(heads):
        for first in range(0, pairs, _CUDA_ROWS):
            rows = min(_CUDA_ROWS, pairs - first)
            x = torch.empty(rows, hidden, dtype=kept, device=state.device)
            launch(
                f"sf_join_{suffix}",
                state.device,
                *(t[head].data_ptr() for t in (state, latent, scale, shift)),
                x.data_ptr(),
                *sizes,
                hidden,
                first,
                rows,
                half,
            )
            for layer, (weight, addend) in enumerate(zip(weights, addends, strict=True)):
                last = layer + 1 == len(weights)
                if half and not last and not parts.of_state(addend):
                    # the product's own epilogue: one passage through memory less
                    x = torch._addmm_activation(biases[layer][head], x, weight[head])
                    continue
                x = x @ weight[head]
                launch(
                    f"sf_layer_{suffix}",
                    state.device,
                    x.data_ptr(),
                    addend[head].data_ptr(),
                    parts.of_state(addend),
                    readout[head].data_ptr() if last else 0,
                    q[head, first:].data_ptr(),
                    *sizes,
                    x.shape[1],
                    first,
                    rows,
                    half,
                )
    q = q.view(heads, *sizes) + parts.offset
    if half:  # that epilogue may make zero of what is not a number: it shows all the same
        q = q + 0 * (state.sum(-1)[..., None] + latent.sum(-1)[:, :, None])
    return _reduce(q, pessimism)


def _aligned(x: Tensor) -> Tensor:
    """Contiguous, at an address from which the kernels can read four numbers at once."""
    x = x.contiguous()
    return x.clone() if x.data_ptr() % 16 else x


def _differentiate(
    parts: _Parts, grad_q: Tensor, pessimism: float, pairs: int = 65536
) -> list[Tensor]:
    """What _run_gradient returns, by plain products, about `pairs` pairs at a time.

    Written out: inside an operation of its own torch records nothing to differentiate.
    """
    B = parts.state.shape[2]
    of_state, of_latent, of_readout = map(
        torch.zeros_like, (parts.state, parts.latent, parts.readout)
    )
    of_offset = torch.zeros_like(parts.offset)
    of_addends = [
        torch.zeros_like(addend) if parts.of_state(addend) else addend.new_empty(0)
        for addend in parts.addends
    ]
    block = max(1, pairs // max(1, grad_q.shape[0] * grad_q.shape[2]))
    for first in range(0, B, block):
        rows = slice(first, first + block)
        own = of_offset.shape[2] == B
        piece = parts._replace(
            state=parts.state[:, :, rows],
            offset=parts.offset[:, :, rows] if own else parts.offset,
            addends=[x[:, :, rows] if parts.of_state(x) else x for x in parts.addends],
        )
        state, latent, readout, head, addends = _gradients_of_pairs(
            piece, grad_q[:, rows], pessimism
        )
        of_state[:, :, rows] = state
        of_latent += latent
        of_readout += readout
        if own:
            of_offset[:, :, rows] = head
        else:
            of_offset += head.sum(2, keepdim=True)
        for of, addend in zip(of_addends, addends, strict=True):
            if of.numel():
                of[:, :, rows] = addend.sum(3)
    return [of_state, of_latent, of_readout, of_offset, *of_addends]


def _gradients_of_pairs(
    parts: _Parts, grad_q: Tensor, pessimism: float
) -> tuple[Tensor, Tensor, Tensor, Tensor, list[Tensor]]:
    """Gradients of state, latent and readout; of the pairs' heads; of what is added in a layer.

    The last ones are the pairs' own, (heads, G, B, K, out).
    """
    y = parts.state[:, :, :, None] + parts.latent[:, :, None]
    heads, *sizes, _ = y.shape
    factor = torch.rsqrt(y.square().mean(-1, keepdim=True) + 1e-5)
    normalised = y * factor
    scale, shift = parts.scale[:, None, None, None], parts.shift[:, None, None, None]
    joined = torch.tanh(normalised * scale + shift)

    def product(x: Tensor, weight: Tensor) -> Tensor:
        return torch.bmm(x.flatten(1, 3), weight).view(heads, *sizes, weight.shape[-1])

    layers = [joined]
    for weight, addend in zip(parts.weights, parts.addends, strict=True):
        layers.append(torch.relu(product(layers[-1], weight) + addend[:, :, :, None]))

    of_head = grad_q.expand(heads, *grad_q.shape) / heads
    if pessimism:
        q = (layers[-1] * parts.readout[:, :, None]).sum(-1) + parts.offset
        nearer = pessimism * grad_q * (q[0] - q[1]).sign()
        of_head = of_head + torch.stack([-nearer, nearer])
    of_readout = torch.einsum("hgbk,hgbkj->hgkj", of_head, layers[-1])
    of_x = of_head[..., None] * parts.readout[:, :, None]
    of_addends = []
    for weight, x in zip(reversed(parts.weights), reversed(layers[1:]), strict=True):
        of_addends.append(of_x * (x > 0))
        of_x = product(of_addends[-1], weight.mT)
    of_normalised = of_x * (1 - joined.square()) * scale
    along = (of_normalised * normalised).mean(-1, keepdim=True)
    of_y = factor * (of_normalised - normalised * along)
    return of_y.sum(3), of_y.sum(2), of_readout, of_head, of_addends[::-1]
