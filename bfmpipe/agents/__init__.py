"""Behavioural foundation models, one a module; saving and loading them."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from bfmpipe import plugins
from bfmpipe.agents.base import Agent, AgentConfig, Model
from bfmpipe.config import parse
from bfmpipe.data.tensors import load_tensors, save_tensors
from bfmpipe.files import replacing
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


def save_model(directory: Path, model: Model, card: Mapping[str, Any]) -> None:
    """Write `config.json` and `model.safetensors`.

    Args:
        directory: where to.
        model: the model.
        card: what `config.json` says beside the model's own settings: agent, domain, ...
    """
    config = {
        **card,
        "obs_dim": model.obs_dim,
        "action_dim": model.action_dim,
        "config": model.config.model_dump(mode="json"),
    }
    with replacing(directory / CONFIG) as temporary:
        temporary.write_text(json.dumps(config, sort_keys=True, indent=2) + "\n")
    save_tensors(directory / WEIGHTS, model.state_dict(), {"kind": "model"})


def load_model(directory: Path | str) -> tuple[Model, dict[str, Any]]:
    """A frozen model and its card, from a directory that `save_model` wrote.

    Raises:
        UserError: for files that are missing, damaged, or do not belong together.
    """
    directory = Path(directory)
    path = directory / CONFIG
    try:
        card = json.loads(path.read_text())
        agent, dims = card["agent"], (int(card["obs_dim"]), int(card["action_dim"]))
        settings = card["config"]
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file; a model is a directory that holds it") from error
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: not the description of a bfmpipe model ({error!r})") from error
    try:
        module = plugins.load("models", agent)
    except UserError as error:
        raise UserError(f"{path}: agent: {error}") from error
    config = parse(module.Config, settings, str(path), at="config")
    with torch.device("meta"):  # no initial weights: orthogonal ones take seconds
        model: Model = module.Model(config, *dims)
    tensors, _ = load_tensors(directory / WEIGHTS)
    expected = {name: tuple(t.shape) for name, t in model.state_dict().items()}
    found = {name: tuple(t.shape) for name, t in tensors.items()}
    if expected != found:
        name = sorted(set(expected.items()) ^ set(found.items()))[0][0]
        raise UserError(
            f"{directory / WEIGHTS}: does not fit {CONFIG}: tensor '{name}' has shape "
            f"{found.get(name, 'none')}, the configuration asks for {expected.get(name, 'none')}"
        )
    model.load_state_dict(tensors, assign=True)
    return model.requires_grad_(False).eval(), card
