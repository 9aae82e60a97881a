"""Behavioural foundation models, one a module; saving and loading them."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import Field

from bfmpipe import plugins
from bfmpipe.agents.base import Agent, AgentConfig, Model
from bfmpipe.config import Config, parse
from bfmpipe.data.tensors import load_tensors, save_tensors
from bfmpipe.files import file_digest, replacing
from bfmpipe.types import UserError

__all__ = [
    "Agent",
    "AgentConfig",
    "Model",
    "load_model",
    "load_tensors",
    "save_model",
    "save_tensors",
]

CONFIG, WEIGHTS = "config.json", "model.safetensors"


class Card(Config):
    """What of `config.json` a model is loaded by; the rest is for its readers."""

    agent: str
    domain: str | None = None
    domain_settings: dict[str, Any] | None = None
    obs_dim: int = Field(ge=1)
    action_dim: int = Field(ge=1)
    config: dict[str, Any]
    weights_sha256: str | None = None
    """Of the file of weights; models saved by earlier versions do not say it."""


def save_model(directory: Path | str, model: Model, card: Mapping[str, Any]) -> None:
    """Write `model.safetensors`, and then `config.json`, which has its digest.

    Args:
        directory: where to.
        model: the model.
        card: what `config.json` says beside the model's own settings: agent, domain, ...
    """
    directory = Path(directory)
    save_tensors(directory / WEIGHTS, model.state_dict(), {"kind": "model"})
    config = {
        **card,
        "obs_dim": model.obs_dim,
        "action_dim": model.action_dim,
        "config": model.config.model_dump(mode="json"),
        "weights_sha256": file_digest(directory / WEIGHTS),
    }
    with replacing(directory / CONFIG) as temporary:
        temporary.write_text(json.dumps(config, sort_keys=True, indent=2) + "\n")


def load_model(directory: Path | str) -> tuple[Model, dict[str, Any]]:
    """A frozen model and its card, from a directory that `save_model` wrote.

    Raises:
        UserError: for files that are missing, damaged, or were not saved together.
    """
    directory = Path(directory)
    path, weights = directory / CONFIG, directory / WEIGHTS
    content, card = _read_card(path)
    try:
        module = plugins.load("models", card.agent)
    except UserError as error:
        own = f"; where it is one of your own, {plugins.VARIABLE} names the directory of its module"
        hint = "" if plugins.own_directory() else own
        raise UserError(f"{path}: agent: {error}{hint}") from error
    config = parse(module.Config, card.config, str(path), at="config")
    try:
        with torch.device("meta"):  # no initial weights: orthogonal ones take seconds
            model: Model = module.Model(config, card.obs_dim, card.action_dim)
    except UserError as error:
        raise UserError(f"{path}: config: {error}") from error
    except (RuntimeError, TypeError) as error:  # torch's, of sizes beyond its integers
        raise UserError(f"{path}: no network can have the sizes that it names") from error
    tensors, _ = load_tensors(weights)
    expected = {name: tuple(t.shape) for name, t in model.state_dict().items()}
    found = {name: tuple(t.shape) for name, t in tensors.items()}
    if expected != found:
        name = sorted(set(expected.items()) ^ set(found.items()))[0][0]
        raise UserError(
            f"{weights}: does not fit {CONFIG}: tensor '{name}' has shape "
            f"{found.get(name, 'none')}, the configuration asks for {expected.get(name, 'none')}"
        )
    if card.weights_sha256 not in (None, file_digest(weights)):
        raise UserError(
            f"{weights}: is of another model than {CONFIG} beside it, which names weights of "
            "another digest; the two files of a model go together"
        )
    if _computes(model):
        model = module.Model(config, card.obs_dim, card.action_dim)
    model.load_state_dict(tensors, assign=True)
    return model.requires_grad_(False).eval(), content


def _computes(model: Model) -> bool:
    """Whether a model made without memory holds tensors that its file of weights does not."""
    saved = {id(tensor) for tensor in model.state_dict(keep_vars=True).values()}
    held = (v for part in model.modules() for v in (*vars(part).values(), *part.buffers(False)))
    return any(isinstance(v, torch.Tensor) and id(v) not in saved for v in held)


def _read_card(path: Path) -> tuple[dict[str, Any], Card]:
    """All that `config.json` says, and what of it a model is loaded by."""
    what = f"{path}: not the description of a bfmpipe model"
    try:
        content = json.loads(path.read_text("utf-8"))
        known = content
        if isinstance(content, dict):
            known = {name: content[name] for name in Card.model_fields if name in content}
        return content, parse(Card, known, what)
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file; a model is a directory that holds it") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{what} ({error})") from error
