"""Domains, one a module, and the batched simulation they share."""

from collections.abc import Mapping
from typing import Any

from bfmpipe import plugins
from bfmpipe.config import parse
from bfmpipe.envs.domain import Domain

__all__ = ["Domain", "make_domain"]


def make_domain(name: str, settings: Mapping[str, Any]) -> Domain:
    """A domain by name, e.g. ("point_mass_maze", {"physics_steps": 5}).

    Raises:
        UserError: for an unknown domain or setting.
    """
    module = plugins.load("envs", name)
    domain: Domain = module.Domain(name, parse(module.Config, settings, f"domain {name}"))
    return domain
