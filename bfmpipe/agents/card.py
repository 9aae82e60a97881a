"""The model card: what a model is, what it was made from, what it can do, and how it is loaded."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from bfmpipe import plugins
from bfmpipe.agents.base import Model

_HEAD = """\
---
library_name: bfmpipe
pipeline_tag: reinforcement-learning
tags: [behavioural-foundation-model, zero-shot-reinforcement-learning, {agent}, {domain}]
---
"""

_LOADING = """\
```python
import bfmpipe

pretrained = bfmpipe.load("path/to/this/directory")  # {needs}
data = bfmpipe.read_transitions("path/to/{data}.parquet")
tasks = pretrained.domain.tasks({tasks})
latent = bfmpipe.infer(pretrained, tasks, data)
```
"""


def readme(card: Mapping[str, Any], model: Model) -> str:
    """The card of a model as Markdown; the same model has the same bytes.

    Args:
        card: what config.json says of the model beside its settings; and `tasks`, families with
            their settings, and `zero_shot`, a row a task. Of a model made elsewhere, imported or
            saved by hand, it says nothing of a training.
        model: the model.
    """
    agent, domain = card["agent"], card["domain"]
    config = model.config.model_dump(mode="json")
    defaults = type(model.config)().model_dump(mode="json")
    changed = {name: value for name, value in config.items() if value != defaults[name]}
    parameters = sum(weights.numel() for weights in model.parameters())
    families = {
        family: {k: v for k, v in settings.items() if k != "names"}
        for family, settings in card["tasks"].items()
    }
    # a family whose tasks stand in a user's file loads only beside that file
    rows = sorted(card["zero_shot"], key=lambda row: "file" in families.get(row["family"], {}))
    first = next(iter(rows), {"family": "mine", "task": "..."})
    family, task = first["family"], first["task"]
    example = ", ".join(map(repr, (family, [task], families.get(family, {})))).replace("'", '"')
    parts = [
        _HEAD.format(agent=agent, domain=domain),
        f"# {agent} on {domain}\n",
        f"A behavioural foundation model. Method: {card.get('paper', agent)}. "
        f"It was {_made(card)}, and has {parameters:,} parameters.\n",
        "## Loading\n",
        _LOADING.format(
            needs=_needs(agent),
            tasks=example,
            data="experience" if "env_steps" in card else "data",
        ),
        "## Zero-shot scores\n",
        "Returns of whole episodes of the policy that is inferred from a task's rewards on the "
        "data, from start states that no adaptation uses.\n",
        _table(
            ("family", "task", "return", "standard error", "episodes"),
            (
                (
                    row["family"],
                    row["task"],
                    _number(row["mean"]),
                    _number(row["standard_error"]),
                    str(row["episodes"]),
                )
                for row in card["zero_shot"]
            ),
        ),
        _table(("family", "settings"), ((k, _settings(v)) for k, v in sorted(families.items()))),
        *(_training(card) if "trainer" in card else ()),
        "## Settings\n",
        f"Of the domain: {_settings(card['domain_settings'])}.\n",
        f"Of the agent, where they differ from its defaults: {_settings(changed)}.\n",
        *([f"Of the training: {_settings(_trainer(card))}.\n"] if "trainer" in card else ()),
        "All of the agent's:\n",
        _table(("setting", "value"), ((f"`{k}`", _value(v)) for k, v in sorted(config.items()))),
        *(_code(card) if "trainer" in card else ()),
    ]
    return "\n".join(parts)


def _needs(agent: str) -> str:
    """What loading the model takes beside its directory."""
    if plugins.is_own("models", agent):
        return f"{plugins.VARIABLE} names the directory that has agents/{agent}.py"
    return "needs no knowledge of the agent's class"


def _made(card: Mapping[str, Any]) -> str:
    """How the model came to be; a card without a trainer is of one made elsewhere."""
    if "trainer" not in card:
        return "not trained by bfmpipe, but made elsewhere"
    seeds = card.get("seeds_together")
    numbers = ", ".join(map(str, seeds or ()))
    together = f", as one batched model with the seeds {numbers}" if seeds else ""
    updates = f"{card['trainer']['updates']:,} updates"
    return f"trained without rewards for {updates} with seed {card['seed']}{together}"


def _trainer(card: Mapping[str, Any]) -> dict[str, Any]:
    return {**card["trainer"], "seed": card["seed"]}


def _training(card: Mapping[str, Any]) -> list[str]:
    return [
        "## Training\n",
        _alarm(card),
        f"The eigenvalues of E[phi phi^T] over the data have the effective rank "
        f"{card['effective_rank']:.1f} of {card['config']['z_dim']} "
        "(the exponential of their entropy).\n",
        "## Data\n",
        f"{card['transitions']:,} transitions{_explored(card)}; SHA-256 of the file "
        f"`{card['dataset_sha256']}`.{_online(card)}\n",
    ]


def _code(card: Mapping[str, Any]) -> list[str]:
    return [
        "## Versions\n",
        _table(("package", "version"), sorted(card["versions"].items())),
        f"Digest of the code: `{card['code']}`.\n",
    ]


def _alarm(card: Mapping[str, Any]) -> str:
    at = card["diverged_at"]
    if at is None:
        return "The divergence alarm did not ring.\n"
    return (
        f"**The divergence alarm rang at update {at:,}**: the watched loss had turned while q kept "
        "climbing. Do not trust the model's values.\n"
    )


def _online(card: Mapping[str, Any]) -> str:
    steps = card.get("env_steps")
    return (
        f" It was trained online, for {steps:,} control steps of its own, with these as motions."
        if steps
        else ""
    )


def _explored(card: Mapping[str, Any]) -> str:
    explorer = card.get("explorer")
    return f", explored by `{explorer}`" if explorer else ""


def _number(value: float) -> str:
    return f"{value:.2f}" if math.isfinite(value) else "–"


def _value(value: object) -> str:
    return f"`{json.dumps(value)}`"


def _settings(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"{k} {_value(v)}" for k, v in sorted(settings.items())) or "none"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
