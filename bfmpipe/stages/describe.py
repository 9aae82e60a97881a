"""Stage describe: the model card, README.md beside the weights."""

from pathlib import Path

from pydantic import JsonValue

from bfmpipe.agents import load_model
from bfmpipe.agents.card import readme
from bfmpipe.config import Config
from bfmpipe.data.tables import read_table
from bfmpipe.files import replacing
from bfmpipe.types import Array, UserError


class Describe(Config):
    """Settings of the stage."""

    families: dict[str, dict[str, JsonValue]]
    """Task families with their settings, to be shown."""


def describe(cfg: Describe, *, model: Path, zero_shot: Path, card: Path) -> None:
    """Write a model's card; its scores are those of the table of zero-shot's adaptation."""
    loaded, said = load_model(model)
    table, origin = read_table(zero_shot, "adaptation")
    made = origin.settings
    if made["method"]["name"] != "zero-shot":
        raise UserError(f"{zero_shot}: returns of {made['method']['name']}, not of zero-shot")
    seed = made["seeds"][0]
    whose, asked = (
        f"{of['agent']} on {of['domain']} with seed {seed}"
        # a model made elsewhere has no seed
        for of, seed in ((made, seed), (said, said.get("seed", seed)))
    )
    if whose != asked:
        raise UserError(f"{zero_shot}: scores of {whose}, but {model} is {asked}")
    scores = [
        {"family": family, "task": task, **_score(returns)}
        for family, task, returns in zip(
            table["family"], table["task"], table["returns"], strict=True
        )
    ]
    text = readme({**said, "tasks": cfg.families, "zero_shot": scores}, loaded)
    with replacing(card) as path:
        path.write_text(text, "utf-8")
    print(f"{card}: {len(scores)} tasks")


def _score(returns: Array) -> dict[str, float]:
    n = len(returns)
    return {
        "mean": float(returns.mean()),
        "standard_error": float(returns.std(ddof=1) / n**0.5),
        "episodes": n,
    }
