"""Checkpoints of Meta Motivo (Tirinzoni et al. 2025), read as models of `fb_cpr`.

A checkpoint is a directory with config.json and model.safetensors. The numbers stay the same; what
differs is how they are laid out:

    one head        weight (out, in), vectors (out,)        here as several heads have it:
    several heads   weight (heads, in, out), vectors (heads, 1, out)
    "seq" ensemble  one network a head, under models.0, models.1, ...
    simple trunk    reads [(s, a), (s, z)]; here [(s, z), (s, a)]
    observations    BatchNorm's running mean and variance, variance + 1e-5 under the root

Target networks and whatever else a checkpoint holds are left out.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pydantic
import torch
from pydantic import Field
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from bfmpipe.agents import CONFIG, WEIGHTS, fb_cpr, save_model
from bfmpipe.config import Config, parse
from bfmpipe.data.opening import beginning
from bfmpipe.data.transitions import DomainLike
from bfmpipe.files import file_digest
from bfmpipe.networks import ConditionedMap, ParallelLayerNorm, ParallelLinear, ResidualMap
from bfmpipe.types import UserError

_BATCH_NORM_EPS = 1e-5


class _Section(Config):
    model_config = pydantic.ConfigDict(extra="ignore")


class _MLP(_Section):
    hidden_dim: int = Field(ge=1)
    hidden_layers: int = Field(ge=1)


class _Backward(_MLP):
    norm: bool


class _Map(_Section):
    model: Literal["simple", "residual"]
    hidden_dim: int = Field(ge=2, multiple_of=2)
    hidden_layers: int = Field(ge=0)
    embedding_layers: int = Field(ge=2)


class _Ensemble(_Map):
    num_parallel: int = Field(ge=1)
    ensemble_mode: Literal["batch", "seq"]


class _Archi(_Section):
    z_dim: int = Field(ge=2)
    norm_z: Literal[True]  # latents of bfmpipe are on the sphere
    f: _Ensemble
    b: _Backward
    actor: _Map
    critic: _Ensemble
    discriminator: _MLP


class _Checkpoint(_Section):
    obs_dim: int = Field(ge=1)
    action_dim: int = Field(ge=1)
    norm_obs: bool
    archi: _Archi


def widths(source: Path) -> tuple[int, int]:
    """Widths of observations and actions of the checkpoint in `source`.

    Raises:
        UserError: for a checkpoint that is missing, or of an architecture that fb_cpr does not
            have.
    """
    checkpoint = _read_config(source)
    return checkpoint.obs_dim, checkpoint.action_dim


def import_metamotivo(source: Path, destination: Path, domain: DomainLike | None = None) -> None:
    """Write the checkpoint in `source` as a model that `load_model` reads, into `destination`.

    Args:
        source: the checkpoint's directory.
        destination: a new directory, or an empty one.
        domain: what the model is said to be of; without one it has no tasks.

    Raises:
        UserError: for a checkpoint that is missing, damaged, inconsistent, or of an architecture
            that fb_cpr does not have, a `destination` that holds anything, or a domain of other
            widths.
    """
    checkpoint = _read_config(source)
    if destination.resolve() == source.resolve():
        raise UserError(f"{destination}: is the checkpoint itself; choose another directory")
    _check_empty(destination)
    card: dict[str, Any] = {"agent": "fb_cpr"}
    if domain:
        _check_widths(source, checkpoint, domain)
        settings = domain.config.model_dump(mode="json")
        card |= {"domain": domain.name, "domain_settings": settings}
    with torch.device("meta"):  # shapes only: every number comes from the checkpoint
        model = fb_cpr.Model(_settings(checkpoint), checkpoint.obs_dim, checkpoint.action_dim)
    weights = source / WEIGHTS
    beginning(weights)
    try:
        with safe_open(weights, framework="pt") as file:
            tensors = _tensors(model, checkpoint, _reader(file, weights))
    except (SafetensorError, OSError) as error:
        raise UserError(f"{weights}: damaged or not a safetensors file ({error})") from error
    model.load_state_dict(tensors, assign=True)
    digests = {name: file_digest(source / name) for name in (CONFIG, WEIGHTS)}
    save_model(destination, model, {**card, "imported": {"metamotivo": digests}})


def _check_widths(source: Path, checkpoint: _Checkpoint, domain: DomainLike) -> None:
    if (checkpoint.obs_dim, checkpoint.action_dim) != (domain.obs_dim, domain.action_dim):
        raise UserError(
            f"{source}: a checkpoint of {checkpoint.obs_dim} observations and "
            f"{checkpoint.action_dim} actions; {domain.name} has {domain.obs_dim} and "
            f"{domain.action_dim}"
        )


def _check_empty(directory: Path) -> None:
    """Refuse to write over what is there, which may be a model that took days."""
    if directory.is_symlink() or directory.exists():
        if not directory.is_dir():
            raise UserError(f"{directory}: is no directory; name a new one, or an empty one")
        if found := sorted(path.name for path in directory.iterdir()):
            raise UserError(
                f"{directory}: holds {found[0]} already; name a new directory, or an empty one"
            )


def _read_config(source: Path) -> _Checkpoint:
    if not source.is_dir():
        raise UserError(
            f"{source}: no such directory; a Meta Motivo checkpoint is one with {CONFIG} and "
            f"{WEIGHTS}"
        )
    path = source / CONFIG
    try:
        content = json.loads(path.read_text("utf-8"))
    except FileNotFoundError as error:
        raise UserError(
            f"{path}: no such file; a Meta Motivo checkpoint is a directory that holds it"
        ) from error
    except ValueError as error:
        raise UserError(f"{path}: not JSON ({error})") from error
    return parse(_Checkpoint, content, str(path))


def _settings(checkpoint: _Checkpoint) -> fb_cpr.Config:
    archi = checkpoint.archi
    return fb_cpr.Config(
        z_dim=archi.z_dim,
        forward_map=fb_cpr.EnsembleConfig(**archi.f.model_dump(exclude={"ensemble_mode"})),
        backward_map=fb_cpr.BackwardConfig(**archi.b.model_dump()),
        actor=fb_cpr.MapConfig(**archi.actor.model_dump()),
        critic=fb_cpr.EnsembleConfig(**archi.critic.model_dump(exclude={"ensemble_mode"})),
        discriminator=fb_cpr.MLPConfig(**archi.discriminator.model_dump()),
    )


#: A tensor of the checkpoint by name, float32, checked to have a shape.
Read = Callable[[str, tuple[int, ...]], Tensor]


def _reader(file: Any, path: Path) -> Read:
    names = set(file.keys())

    def read(name: str, shape: tuple[int, ...]) -> Tensor:
        found = tuple(file.get_slice(name).get_shape()) if name in names else "none"
        if found != shape:
            raise UserError(
                f"{path}: does not fit {CONFIG}: tensor '{name}' has shape {found}, the "
                f"configuration asks for {shape}"
            )
        tensor: Tensor = file.get_tensor(name)
        if not tensor.is_floating_point() or not tensor.isfinite().all():
            raise UserError(f"{path}: tensor '{name}' holds values that are no finite numbers")
        return tensor.float()

    return read


def _tensors(model: fb_cpr.Model, checkpoint: _Checkpoint, read: Read) -> dict[str, Tensor]:
    """The state of `model`, from the checkpoint's tensors."""
    archi, obs_dim = checkpoint.archi, checkpoint.obs_dim
    mean, std = torch.zeros(obs_dim), torch.ones(obs_dim)
    if checkpoint.norm_obs:
        mean = read("_obs_normalizer.running_mean", (obs_dim,))
        variance = read("_obs_normalizer.running_var", (obs_dim,)).double()
        std = (variance + _BATCH_NORM_EPS).sqrt().float()
    parts = {
        "backward_map.layers": _of_mlp(model.backward_map.layers, "_backward_map.net", read),
        "discriminator_map.layers": _of_mlp(
            model.discriminator_map.layers, "_discriminator.trunk", read
        ),
        "forward_map": _of_map(
            model.forward_map, "_forward_map", "embed_sa", "Fs", read, _heads(archi.f)
        ),
        "policy": _of_map(model.policy, "_actor", "embed_s", "policy", read, None),
        "critic_map": _of_map(
            model.critic_map, "_critic", "embed_sa", "Fs", read, _heads(archi.critic)
        ),
    }
    return {"obs_mean": mean, "obs_std": std} | {
        f"{part}.{name}": tensor
        for part, tensors in parts.items()
        for name, tensor in tensors.items()
    }


def _heads(ensemble: _Ensemble) -> int | None:
    """The number of networks that stand apart, or None."""
    return ensemble.num_parallel if ensemble.ensemble_mode == "seq" else None


def _of_mlp(mlp: nn.Module, place: str, read: Read) -> dict[str, Tensor]:
    return {name: read(f"{place}.{name}", tuple(t.shape)) for name, t in mlp.state_dict().items()}


_OF_RESIDUAL_LAYER = {"norm": "mlp.0", "linear": "mlp.1"}


def _of_map(
    network: ConditionedMap | ResidualMap,
    place: str,
    right: str,
    trunk: str,
    read: Read,
    apart: int | None,
) -> dict[str, Tensor]:
    """The tensors of a network, whose embedding and trunk the checkpoint calls `right`, `trunk`.

    `apart` is the number of heads that are networks of their own there, if they are.
    """
    last = f"{trunk}.{len(network.trunk)}"
    parts = {"left": "embed_z", "right": right, "trunk": trunk, "out": last}
    places = [place] if apart is None else [f"{place}.models.{head}" for head in range(apart)]
    tensors = {}
    for module_name, module in network.named_modules():
        if not isinstance(module, ParallelLinear | ParallelLayerNorm):
            continue
        part, *rest = module_name.split(".")
        theirs = ".".join([parts[part], *(_OF_RESIDUAL_LAYER.get(name, name) for name in rest)])
        for name, tensor in module.named_parameters():
            heads, *shape = tensor.shape
            if apart is None and heads > 1:
                found = read(f"{place}.{theirs}.{name}", tuple(tensor.shape))
            else:
                is_matrix = isinstance(module, ParallelLinear) and name == "weight"
                wanted = tuple(reversed(shape)) if is_matrix else tuple(shape[1:])
                alone = [read(f"{at}.{theirs}.{name}", wanted) for at in places]
                found = torch.stack([t.T if is_matrix else t[None] for t in alone])
            tensors[f"{module_name}.{name}"] = found
    if isinstance(network, ConditionedMap):
        first = "trunk.0.weight" if len(network.trunk) else "out.weight"
        tensors[first] = tensors[first].roll(tensors[first].shape[1] // 2, dims=1)
    return tensors
