"""An agent trained online beside one that does not: motions in, latents of what it did."""

import numpy as np
import pytest

from bfmpipe.data import transitions
from tests.pipeline.conftest import planned

pytestmark = pytest.mark.slow

TINY = {"model": "concatenated", "hidden_dim": 16}
FB_CPR = {
    "z_dim": 8,
    "batch": 32,
    **{name: TINY for name in ("forward_map", "actor", "critic")},
    **{name: {"hidden_dim": 16} for name in ("backward_map", "discriminator")},
    "online": {"num_envs": 4, "random_steps": 40, "updates": 10, "steps": 10},
}
OF = "results/smoke/point_mass_maze"


@pytest.fixture
def config(checkout, tmp_path):
    """Here the exploration's episodes are the motions, so that both can learn from them."""
    smoke = checkout.config(
        tmp_path / "config.yaml", seeds=[0], agents={"fb_cpr": FB_CPR}, methods=None, claims=None
    )
    methods = "methods: {zero-shot: {}, lola: {states: 2, latents: 4, horizon: 5}}\n"
    smoke.write_text(smoke.read_text() + methods)
    return smoke


def test_the_whole_pipeline_of_both(checkout, config, tmp_path):
    models = {agent: f"{OF}/{agent}/seed0" for agent in ("fb", "fb_cpr")}
    targets = [f"{models['fb_cpr']}/adapt/lola.parquet", f"{models['fb']}/latents.parquet"]
    dry = checkout.run(tmp_path, *targets, dry_run=True, configfile=config)
    assert planned(dry.stdout) == [
        "adapt seed0 lola",
        "collect",
        "infer seed0",
        "infer seed0",
        "pretrain seed0",
        "pretrain_online seed0",
    ]
    done = checkout.run(tmp_path, *targets, configfile=config)
    assert done.returncode == 0, done.stdout
    experience = transitions.read(tmp_path / models["fb_cpr"] / "experience.parquet")
    assert set(np.bincount(experience.episode)) == {21, 11}  # the running round's as they are
    assert not (tmp_path / models["fb"] / "experience.parquet").exists()
    logs = tmp_path / "results/smoke/logs"
    own = f"{models['fb_cpr']}/experience.parquet"
    for job, source in (
        ("infer/point_mass_maze-fb-seed0", f"{OF}/data.parquet"),
        ("infer/point_mass_maze-fb_cpr-seed0", own),
        ("adapt/point_mass_maze-fb_cpr-seed0-lola", own),
    ):
        assert f"--dataset {source} " in (logs / f"{job}.log").read_text()
    again = checkout.run(tmp_path, *targets, dry_run=True, configfile=config)
    assert planned(again.stdout) == []
