"""Stage coverage: which states a data set covers, and what random actions would have covered."""

from pathlib import Path

import numpy as np
import pyarrow as pa
from pydantic import Field

from bfmpipe.config import Config
from bfmpipe.data import transitions
from bfmpipe.data.tables import write_table
from bfmpipe.envs import Domain, make_domain
from bfmpipe.envs.axes import axes_of, coordinates
from bfmpipe.envs.batched import BatchedEnv, threads
from bfmpipe.metrics.coverage import Visits
from bfmpipe.progress import progress
from bfmpipe.stages.sections import provenance
from bfmpipe.types import UserError

_BLOCK = 2**18  # rows at a time
_NUM_ENVS = 256


class Coverage(Config):
    """Settings of the stage."""

    seed: int = Field(0, ge=0)
    """Of the random actions."""


def schema(axes: int) -> pa.Schema:
    """Columns of the table: a row a visited cell.

    source: "data" or "random"; cell: its bins along the domain's axes; visits: states in it; first:
    states that the source saw before the first one there.
    """
    return pa.schema(
        [
            pa.field("source", pa.string(), nullable=False),
            pa.field("cell", pa.list_(pa.int16(), axes), nullable=False),
            pa.field("visits", pa.int64(), nullable=False),
            pa.field("first", pa.int64(), nullable=False),
        ]
    )


def coverage(cfg: Coverage, *, dataset: Path, coverage: Path) -> None:
    """Count the cells of the domain's grid that a data set visits, and those of random actions.

    The random actions are uniform, new at every step, and make as many steps from the domain's
    exploration starts. See bfmpipe.metrics.coverage for the measure.
    """
    data = transitions.read(dataset, columns=["physics"])
    domain = make_domain(data.domain, data.domain_settings)
    if data.physics.shape[1] != domain.physics_dim:
        raise UserError(
            f"{dataset}: physics states are {data.physics.shape[1]} wide; {domain.name} has "
            f"{domain.physics_dim}"
        )
    axes = axes_of(domain.name)
    columns: dict[str, list] = {"source": [], "cell": [], "visits": [], "first": []}
    said = f"no axes of {domain.name} are named in bfmpipe.envs.axes"
    if axes:
        found = {"data": visits_of(domain, data), "random": visits_of_random(domain, cfg, data)}
        for source, visits in found.items():
            cells = visits.occupied
            columns["source"] += [source] * len(cells)
            columns["cell"].append(np.stack(np.unravel_index(cells, visits.shape), axis=1))
            columns["visits"].append(visits.visits[cells])
            columns["first"].append(visits.first[cells])
        of_data, of_random = (visits.covered for visits in found.values())
        said = (
            f"{of_data:,} of {len(found['data'].visits):,} cells visited by the data, "
            f"{of_random:,} by as many random actions"
        )
    table = {
        "source": columns["source"],
        "cell": np.concatenate(columns["cell"] or [np.empty((0, 1))]).astype(np.int16),
        "visits": np.concatenate(columns["visits"] or [[]]).astype(np.int64),
        "first": np.concatenate(columns["first"] or [[]]).astype(np.int64),
    }
    origin = provenance("coverage", "coverage", cfg, envs=domain.name)
    write_table(coverage, schema(max(len(axes), 1)), table, origin)
    print(f"{coverage}: {said}")


def visits_of(domain: Domain, data: transitions.Transitions) -> Visits:
    """Visits of all rows of a data set, in their order."""
    visits = Visits(axes_of(domain.name))
    for start in range(0, len(data.episode), _BLOCK):
        rows = data.physics[start : start + _BLOCK]
        visits.add(coordinates(domain, rows))
    return visits


def visits_of_random(domain: Domain, cfg: Coverage, data: transitions.Transitions) -> Visits:
    """Visits of random actions over as many rows, one episode after the other."""
    rng = np.random.default_rng(cfg.seed)
    visits = Visits(axes_of(domain.name))
    rows, steps = len(data.episode), domain.config.episode_steps
    num_envs = min(_NUM_ENVS, -(-rows // (steps + 1)))
    env = BatchedEnv(domain, num_envs, threads())
    values = np.empty((num_envs, steps + 1, len(visits.axes)))
    rounds = -(-rows // (num_envs * (steps + 1)))
    with progress(rounds * steps, f"random actions in {domain.name}", "step") as bar:
        while visits.seen < rows:
            env.reset(domain.exploration_states(num_envs, rng))
            values[:, 0] = coordinates(domain, env.physics)
            for t in range(steps):
                env.step(rng.uniform(-1, 1, (num_envs, domain.action_dim)).astype(np.float32))
                values[:, t + 1] = coordinates(domain, env.physics)
                bar.update()
            visits.add(values.reshape(-1, len(visits.axes))[: rows - visits.seen])
    return visits
