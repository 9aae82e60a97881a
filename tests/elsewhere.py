"""Another device, pretended: what fails on a GPU fails here, and all else is bit for bit the CPU's.

Tensors there hold one of the CPU's, and say that they are on the device `meta`, which torch has
guards for everywhere. An operation is done by the CPU on what they hold. One whose tensors are
partly here is refused as a GPU's is, but for a single number, and so is `numpy()` of one there.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing

THERE = torch.device("meta")

_COPIES = (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default)


class There(Tensor):
    """A tensor there; `held` is its like here."""

    @staticmethod
    def __new__(cls, held):
        return Tensor._make_wrapper_subclass(
            cls,
            held.shape,
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=THERE,
        )

    def __init__(self, held):
        self.held = held

    def __repr__(self):
        return f"There({self.held})"

    def untyped_storage(self):
        return self.held.untyped_storage()

    def numpy(self, *, force=False):
        if not force:
            raise TypeError("numpy() of a tensor that is there")
        return self.detach().cpu().numpy()

    def tolist(self):
        return self.detach().cpu().tolist()

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        return _call(function, args, kwargs or {})


class Generator(torch.Generator):
    """One that says it is where it was made for; its numbers are the CPU's."""

    def __new__(cls, device="cpu"):
        generator = super().__new__(cls)
        generator.where = torch.device(device)
        return generator

    def __init__(self, device="cpu"):
        pass

    @property
    def device(self):
        return self.where


class _Mode(TorchDispatchMode):
    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        return _call(function, args, kwargs or {})


def _each(value, change):
    """The same with every tensor changed."""
    if isinstance(value, Tensor):
        return change(value)
    if type(value) in (list, tuple):
        return type(value)([_each(one, change) for one in value])
    return value


def _call(function, args, kwargs):
    tensors: list[Tensor] = []
    _each((args, tuple(kwargs.values())), tensors.append)
    any_there = any(isinstance(x, There) for x in tensors)
    if any_there and function not in _COPIES:
        here = [x for x in tensors if not isinstance(x, There) and x.dim()]
        if here:
            raise RuntimeError(
                f"{function}: one tensor is there, one of shape {tuple(here[0].shape)} is here"
            )
    device = kwargs.get("device")
    if device is not None:
        kwargs = {**kwargs, "device": "cpu"}
        stays_there = torch.device(device) == THERE
    elif function is torch.ops.aten.copy_.default:
        stays_there = isinstance(args[0], There)
    else:
        stays_there = any_there

    def held(x):
        return x.held if isinstance(x, There) else x

    result = function(*_each(args, held), **{k: _each(v, held) for k, v in kwargs.items()})
    if not stays_there:
        return result
    result = _each(result, There)
    if any_there and function._schema.is_mutable:  # what was written to is itself what is returned
        return return_and_correct_aliasing(function, args, kwargs, result)
    return result


@contextmanager
def pretended() -> Iterator[torch.device]:
    """The device, while this lasts."""
    with _Mode():
        yield THERE
