"""Tensors in safetensors files with a JSON header, and the state of what trains as such tensors."""

import json
import struct
from collections import defaultdict
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from bfmpipe.data.opening import MADE_AGAIN, beginning, refused, unreadable
from bfmpipe.files import replacing
from bfmpipe.types import UserError


def save_tensors(path: Path, tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> None:
    """Write tensors and a JSON header to one safetensors file, whole or not at all.

    The header carries a digest of both, so that `load_tensors` notices an edit.
    """
    contiguous = {name: t.detach().cpu().contiguous() for name, t in sorted(tensors.items())}
    body = json.dumps({**header, "sha256": _digest(contiguous, header)}, sort_keys=True)
    # One metadata entry only: the library writes several in no fixed order.
    data = save(contiguous, metadata={"bfmpipe": body})
    with replacing(path) as temporary:
        temporary.write_bytes(data)


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and header of a file written by `save_tensors`.

    Raises:
        UserError: for a file that is missing, unreadable, truncated, edited, or of another origin.
    """
    beginning(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise unreadable(path, error) from error
    try:
        tensors = load(data)
    except SafetensorError as error:
        raise refused(path, "a safetensors file", str(error)) from error
    (length,) = struct.unpack("<Q", data[:8])
    try:
        header = json.loads(json.loads(data[8 : 8 + length])["__metadata__"]["bfmpipe"])
        stored = header.pop("sha256")
    except (KeyError, ValueError) as error:
        raise UserError(f"{path}: a safetensors file that bfmpipe did not write") from error
    if stored != _digest(tensors, header):
        raise UserError(
            f"{path}: the contents are not those that were saved (checksum differs); {MADE_AGAIN}"
        )
    return tensors, header


def training_state(
    modules: Mapping[str, nn.Module], optimisers: Mapping[str, torch.optim.Optimizer]
) -> dict[str, Tensor]:
    """All tensors of modules and optimisers, under one name each."""
    tensors = {
        f"{prefix}/{name}": tensor
        for prefix, module in modules.items()
        for name, tensor in module.state_dict().items()
    }
    for prefix, optimiser in optimisers.items():
        for i, state in optimiser.state_dict()["state"].items():
            tensors |= {f"optimiser/{prefix}/{i}/{name}": t for name, t in state.items()}
    return tensors


def load_training_state(
    tensors: Mapping[str, Tensor],
    modules: Mapping[str, nn.Module],
    optimisers: Mapping[str, torch.optim.Optimizer],
) -> None:
    """Put what `training_state` gave back into modules and optimisers made as those were."""
    for prefix, module in modules.items():
        module.load_state_dict(_under(tensors, f"{prefix}/"))
    for prefix, optimiser in optimisers.items():
        state: dict[int, dict[str, Tensor]] = defaultdict(dict)
        for key, tensor in _under(tensors, f"optimiser/{prefix}/").items():
            index, name = key.split("/")
            state[int(index)][name] = tensor
        optimiser.load_state_dict({**optimiser.state_dict(), "state": dict(state)})


def _under(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): t for k, t in tensors.items() if k.startswith(prefix)}


def _digest(tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> str:
    total = sha256(json.dumps(header, sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        total.update(tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return total.hexdigest()
