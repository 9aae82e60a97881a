"""The state of a method: what its attributes hold, but for what it was made from.

`State.of` follows the attributes to numbers, tensors, arrays, generators of random numbers,
optimisers, modules, and objects of this package; `load` puts what they held into a method that was
made with the same arguments. So no class says what its state is, and none can forget a part of it:
what is met and cannot be kept, such as a function, a generator or an object of another package, is
refused. An object may say for itself what its state is, with `state()` and `load_state(state)`.

A tensor goes back to its place in memory where there is one like it, since optimisers and modules
hold on to theirs, and with its strides, since these decide how products round. What was one object
in two places is one again.
"""

import abc
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bfmpipe.adaptation.base import Method
from bfmpipe.config import Config
from bfmpipe.types import UserError

_OF_EVERY_MODULE = vars(nn.Module()).keys() - {"training", "_parameters", "_buffers", "_modules"}


class NoStateError(UserError):
    """A method holds what cannot be kept or put back."""


@dataclass(frozen=True)
class State:
    """All that a method goes on from.

    tree: JSON: the values, and where the tensors belong; tensors: by the name of their place;
    places: what only its like can take back, an optimiser or a module, and of what type it is.
    """

    tree: Any
    tensors: dict[str, Tensor]
    places: dict[str, str]

    @classmethod
    def of(cls, method: Method) -> "State":
        """The state of a method; the tensors are its own, not copies.

        Raises:
            NoStateError: where it holds what cannot be kept.
        """
        keeper = _Keeper(method)
        return cls(keeper.attributes(method, ""), keeper.tensors, keeper.places)

    def check(self, fresh: "State") -> None:
        """Refuse a state that the method whose own state is `fresh` could not take.

        Raises:
            NoStateError: where it has no place for something.
        """
        for name, kind in self.places.items():
            if fresh.places.get(name) != kind:
                raise NoStateError(f"its {name} ({kind}) is not there from the beginning")

    def load(self, method: Method) -> None:
        """Put a method that has not advanced where another, made with the same arguments, was.

        Raises:
            NoStateError: see `check`; nothing has changed then.
        """
        self.check(State.of(method))
        with torch.no_grad():
            _Loader(method, self.tensors).attributes(method, self.tree, "")


def _given(method: Method) -> dict[str, Any]:
    """What all methods with the same arguments have in common, by name; none of it changes."""
    problem = method.problem
    named = {
        "problem": problem,
        "domain": problem.domain,
        "model": problem.model,
        "tasks": problem.tasks,
        "w": problem.w,
        "z": problem.z,
        "visited": problem.visited,
        "visited_obs": problem.visited_obs,
    }
    for i, model in enumerate(problem.models):
        tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        named |= {f"models/{i}": model, **{f"models/{i}/{key}": t for key, t in tensors.items()}}
    return {**named, **{f"tasks/{i}": task for i, task in enumerate(problem.tasks)}}


def _memory(value: Any) -> int:
    """Where the memory of a tensor or an array begins."""
    while isinstance(value, np.ndarray) and value.base is not None:
        value = value.base
    if isinstance(value, Tensor):
        return value.untyped_storage().data_ptr()
    return value.ctypes.data if isinstance(value, np.ndarray) else id(value)


def _type(value: Any) -> str:
    return f"{type(value).__module__}.{type(value).__qualname__}".removeprefix("builtins.")


def _is_ours(value: Any) -> bool:
    """Whether all that an object holds is in its attributes."""
    return hasattr(value, "__dict__") and all(
        kind in (object, abc.ABC) or kind.__module__.split(".")[0] in ("bfmpipe", "torch")
        for kind in type(value).__mro__
    )


def _is_named(value: Any) -> bool:
    return isinstance(value, tuple) and hasattr(value, "_fields")


def _under(name: str, key: Any) -> str:
    return f"{name}/{key}" if name else str(key)


class _Keeper:
    """Makes the tree of a method: a value as it is, all else a list that begins with its kind."""

    def __init__(self, method: Method) -> None:
        self.device = method.problem.device
        given = _given(method)
        self.given = {id(value): name for name, value in given.items()}
        self.given_memory = {_memory(value) for value in given.values()}
        self.tensors: dict[str, Tensor] = {}
        self.places: dict[str, str] = {}
        # with the objects, whose identities would else be those of others once they are gone
        self.names: dict[int, tuple[str, Any]] = {id(method): ("", method)}
        self.memory: dict[int, str] = {}

    def attributes(self, value: Any, name: str) -> list[Any]:
        if any(vars(kind).get("__slots__") for kind in type(value).__mro__):
            raise NoStateError(f"its {name or 'class'} has slots")
        skipped = _OF_EVERY_MODULE if isinstance(value, nn.Module) else ()
        held = {key: one for key, one in vars(value).items() if key not in skipped}
        return self._pairs(held, name)

    def node(self, value: Any, name: str) -> Any:
        if value is None or type(value) in (bool, int, float, str):
            return value
        if id(value) in self.given:
            return ["given", self.given[id(value)]]
        if id(value) in self.names:
            return ["again", self.names[id(value)][0]]
        self.names[id(value)] = name, value
        if isinstance(value, Tensor):
            return self._tensor(value, name)
        if isinstance(value, np.ndarray | np.generic):
            return self._array(value, name)
        if type(value) is dict:
            return ["dict", self._pairs(value, name)]
        if type(value) in (list, tuple) or _is_named(value):
            if _is_named(value):
                self.places[name] = _type(value)
            kind = "list" if type(value) is list else "tuple"
            return [kind, [self.node(one, _under(name, i)) for i, one in enumerate(value)]]
        return self._object(value, name)

    def _pairs(self, values: dict[Any, Any], name: str) -> list[Any]:
        for key in values:
            if type(key) not in (int, str):
                raise NoStateError(f"its {name} has a {_type(key)} for a key")
        return [[key, self.node(value, _under(name, key))] for key, value in values.items()]

    def _object(self, value: Any, name: str) -> Any:
        self.places[name] = _type(value)
        if isinstance(value, Config | torch.device | torch.dtype):  # what the new one must have too
            said = value.model_dump_json() if isinstance(value, Config) else value
            self.places[name] += f" {said}"
            return ["same"]
        if isinstance(value, torch.Generator):
            self.tensors[name] = value.get_state()
            return ["torch generator"]
        if isinstance(value, np.random.Generator):
            return ["numpy generator", self.node(value.bit_generator.state, _under(name, "state"))]
        if isinstance(value, torch.optim.Optimizer):
            moved = [group["params"] for group in value.param_groups]
            state = self.node(value.state_dict(), _under(name, "state"))
            return ["optimiser", self.node(moved, _under(name, "moved")), state]
        if hasattr(value, "load_state"):
            state = value.state()
            self.places[name] += f" {getattr(state, 'shape', '')}"
            return ["stateful", self.node(state, _under(name, "state"))]
        if not _is_ours(value):
            raise NoStateError(f"its {name} is a {_type(value)}")
        return ["object", self.attributes(value, name)]

    def _tensor(self, value: Tensor, name: str) -> Any:
        here = value.device in (torch.device("cpu"), self.device)
        if not here or value.layout != torch.strided or value.is_complex():
            raise NoStateError(f"its {name} is a tensor of {value.dtype} on {value.device}")
        if value.grad_fn is not None:
            raise NoStateError(f"its {name} is a tensor that gradients flow through")
        if value.requires_grad:
            self.places[name] = f"a tensor {tuple(value.shape)} that asks for gradients"
        self._keep(value, value, name)
        return ["tensor", list(value.stride()), value.device.type]

    def _array(self, value: Any, name: str) -> Any:
        if value.dtype.kind not in "biuf":
            raise NoStateError(f"its {name} is an array of {value.dtype}")
        copy = torch.from_numpy(np.array(value, order="K"))
        self._keep(value, copy, name)
        return ["array" if isinstance(value, np.ndarray) else "scalar", list(copy.stride()), "cpu"]

    def _keep(self, value: Any, tensor: Tensor, name: str) -> None:
        memory = _memory(value)
        if memory in self.given_memory:  # which nothing writes to
            tensor = tensor.clone()
        elif tensor.numel() and self.memory.setdefault(memory, name) != name:
            # where one wrote, the other would not see it any more
            raise NoStateError(f"its {name} shares memory with its {self.memory[memory]}")
        self.tensors[name] = tensor


class _Loader:
    """Puts what `_Keeper` made of one method into another."""

    def __init__(self, method: Method, tensors: dict[str, Tensor]) -> None:
        self.device = method.problem.device
        self.given = _given(method)
        self.tensors = tensors
        self.made: dict[str, Any] = {"": method}
        # what must not be written to: all methods' own, or the place of something else already
        self.taken = {_memory(value) for value in self.given.values()}

    def attributes(self, value: Any, pairs: list[Any], name: str) -> None:
        held = vars(value)
        for key, node in pairs:
            held[key] = self.value(held.get(key), node, _under(name, key))

    def value(self, now: Any, node: Any, name: str) -> Any:
        """What belongs where `now` is; `now` itself, changed, where it can take that."""
        if not isinstance(node, list):
            return node
        kind, *rest = node
        if kind in ("given", "again"):
            return (self.given if kind == "given" else self.made)[rest[0]]
        self.made[name] = now
        match kind:
            case "tensor" | "array" | "scalar":
                self.made[name] = self._numbers(now, kind, rest[0], rest[1], name)
            case "list" | "tuple" | "dict":
                self._container(now, kind, rest[0], name)
            case "object":
                self.attributes(now, rest[0], name)
            case "stateful":
                now.load_state(self.value(None, rest[0], _under(name, "state")))
            case "torch generator":
                now.set_state(self.tensors[name])
            case "numpy generator":
                now.bit_generator.state = self.value(None, rest[0], _under(name, "state"))
            case "optimiser":
                moved = [group["params"] for group in now.param_groups]
                moved = self.value(moved, rest[0], _under(name, "moved"))
                for group, tensors in zip(now.param_groups, moved, strict=True):
                    group["params"] = tensors
                now.load_state_dict(self.value(None, rest[1], _under(name, "state")))
        return self.made[name]

    def _numbers(self, now: Any, kind: str, stride: list[int], where: str, name: str) -> Any:
        stored = self.tensors[name]
        if kind == "tensor" and isinstance(now, Tensor) and self._is_free(now):
            same = now.shape == stored.shape and now.dtype == stored.dtype
            same = same and now.device.type == where
            if same and (list(now.stride()) == stride or now.requires_grad) and 0 not in stride:
                return now.copy_(stored)
        device = torch.device("cpu") if where == "cpu" else self.device
        tensor = _laid_out(stored, stride, device)
        if kind == "tensor":
            return tensor
        return tensor.numpy() if kind == "array" else tensor.numpy()[()]

    def _container(self, now: Any, kind: str, nodes: list[Any], name: str) -> None:
        if kind == "dict":
            entries: dict[Any, Any] = now if type(now) is dict and self._is_free(now) else {}
            before = dict(entries)
            entries.clear()
            self.made[name] = entries
            for key, node in nodes:
                entries[key] = self.value(before.get(key), node, _under(name, key))
            return
        items: list[Any] = now if type(now) is list and self._is_free(now) else []
        held = list(now) if isinstance(now, list | tuple) else []
        items.clear()
        self.made[name] = items
        for i, (one, node) in enumerate(list(zip_longest(held, nodes))[: len(nodes)]):
            items.append(self.value(one, node, _under(name, i)))
        if kind == "tuple":
            self.made[name] = type(now)(*items) if _is_named(now) else tuple(items)

    def _is_free(self, now: Any) -> bool:
        """Whether something may still have its place here; then it has."""
        memory = _memory(now)
        free = memory not in self.taken
        self.taken.add(memory)
        return free


def _laid_out(stored: Tensor, stride: list[int], device: torch.device) -> Tensor:
    """The same numbers there, with these strides; 0 stands for one number on a whole axis."""
    one = stored
    for axis, step in enumerate(stride):
        one = one.narrow(axis, 0, 1) if step == 0 else one
    laid = torch.empty_strided(one.shape, stride, dtype=one.dtype, device=device)
    return laid.copy_(one).expand(stored.shape)
