"""Stage adopt: take over a model that is finished, as if it had been trained here."""

import shutil
from pathlib import Path

from pydantic import Field

from bfmpipe.agents import CONFIG, WEIGHTS
from bfmpipe.config import Config
from bfmpipe.envs import make_domain
from bfmpipe.files import replacing
from bfmpipe.stages.infer import read_model
from bfmpipe.stages.sections import Plugin
from bfmpipe.types import UserError


class Adopt(Config):
    """Settings of the stage."""

    domain: Plugin
    agent: str
    seed: int = Field(ge=0)


def adopt(cfg: Adopt, *, pretrained: Path, model: Path) -> None:
    """Copy a model of the experiment's domain, with this agent and seed, as it is."""
    found = read_model(pretrained, cfg.domain.name, cfg.agent)
    domain = make_domain(cfg.domain.name, cfg.domain.settings)
    wanted = domain.config.model_dump(mode="json")
    for name, value in found.domain.config.model_dump(mode="json").items():
        if value != wanted[name]:
            raise UserError(
                f"{pretrained}: a model of {domain.name} with {name} {value}; the experiment has "
                f"{name} {wanted[name]}; set domains.{domain.name}.settings.{name} to the model's"
            )
    seed = found.card.get("seed", cfg.seed)
    if str(seed) != str(cfg.seed):
        raise UserError(
            f"{pretrained}: was trained with seed {seed}, and stands for seed {cfg.seed} here; "
            "list the models' own seeds"
        )
    model.mkdir(parents=True, exist_ok=True)
    for name in (WEIGHTS, CONFIG):
        with replacing(model / name) as path:
            shutil.copyfile(pretrained / name, path)
    print(f"{model}: {cfg.agent} of {pretrained}")
