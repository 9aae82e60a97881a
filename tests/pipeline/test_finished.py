"""Finished models, data that are there and modules of one's own: nothing is trained or forked."""

import numpy as np
import pytest

from bfmpipe.data import transitions
from bfmpipe.data.tables import read_table
from tests.pipeline.conftest import planned

pytestmark = pytest.mark.slow

OF = "results/smoke/point_mass_maze"
MINE = """
from bfmpipe.adaptation import lola

class Config(lola.Config):
    pass

class Method(lola.Method):
    pass
"""


def test_they_are_adapted_beside_each_other_to_the_same_results(checkout, smoke, tmp_path):
    module = tmp_path / "modules" / "adaptation" / "mine.py"
    module.parent.mkdir(parents=True)
    module.write_text(MINE)
    settings = {"states": 2, "latents": 4, "horizon": 5}
    file = checkout.config(
        tmp_path / "config.yaml",
        agents=None,
        pretrain=None,
        collect=None,
        methods=None,
        claims=None,
    )
    file.write_text(
        f"{file.read_text()}\n"
        "plugins: modules\n"
        f'agents: {{fb: {{pretrained: "{smoke}/{OF}/fb/seed{{seed}}/model"}}}}\n'
        f"collect: {{explorer: recorded, settings: {{path: {smoke}/{OF}/data.parquet}}}}\n"
        f"methods: {{zero-shot: {{}}, lola: {settings}, mine: {settings}}}\n"
    )
    there = tmp_path / "run"
    dry = checkout.run(there, dry_run=True, configfile=file)
    assert not any(job.startswith("pretrain") for job in planned(dry.stdout))
    assert {"adopt seed0", "adopt seed1", "adapt seed0 mine"} <= set(planned(dry.stdout))
    done = checkout.run(there, configfile=file)
    assert done.returncode == 0, done.stdout

    mine, theirs = there / OF, smoke / OF
    for seed in ("seed0", "seed1"):
        for name in ("model/config.json", "model/model.safetensors"):
            assert (mine / f"fb/{seed}/{name}").read_bytes() == (
                theirs / f"fb/{seed}/{name}"
            ).read_bytes()
        found, expected, again = (
            read_table(at / f"fb/{seed}/adapt/{method}.parquet", "adaptation")[0]
            for at, method in ((mine, "lola"), (theirs, "lola"), (mine, "mine"))
        )
        np.testing.assert_array_equal(found["returns"], expected["returns"])
        np.testing.assert_array_equal(again["returns"], expected["returns"])
    for name in ("episode", "obs", "action", "physics"):
        columns = [getattr(transitions.read(at / "data.parquet"), name) for at in (mine, theirs)]
        np.testing.assert_array_equal(columns[0][:], columns[1][:])

    assert planned(checkout.run(there, dry_run=True, configfile=file).stdout) == []
    module.write_text(f"{MINE}\nEDITED = 1\n")
    after = planned(checkout.run(there, dry_run=True, configfile=file).stdout)
    assert [job for job in after if job.startswith("adapt")] == [
        "adapt seed0 mine",
        "adapt seed1 mine",
    ]


def test_modules_are_beside_the_file_that_names_them(checkout, tmp_path):
    """Not beside what is laid over it, such as claims of another directory."""
    module = tmp_path / "here" / "modules" / "adaptation" / "mine.py"
    module.parent.mkdir(parents=True)
    module.write_text(MINE)
    file = checkout.config(tmp_path / "here" / "config.yaml", methods=None, claims=None)
    mine = {"states": 2, "latents": 4, "horizon": 5}
    methods = f"methods: {{zero-shot: {{}}, mine: {mine}}}\nplugins: modules\n"
    file.write_text(f"{file.read_text()}\n{methods}")
    claims = tmp_path / "claims.yaml"
    claims.write_text("claims: {mine: {kind: gain, statement: It gains., method: mine, bar: 5}}\n")
    dry = checkout.run(tmp_path / "run", dry_run=True, configfile=file, over=(claims,))
    assert "adapt seed0 mine" in planned(dry.stdout), dry.stdout
