"""Stage pretrain: model, card and losses, and what is refused."""

import json
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bfmpipe.agents import load_model, load_tensors
from bfmpipe.data import transitions
from bfmpipe.data.tables import Provenance, read_table
from bfmpipe.files import file_digest
from bfmpipe.types import UserError

FILES = ("model/config.json", "model/model.safetensors", "losses.parquet")


def train(tiny, directory, dataset=None, **changed):
    tiny.run(
        "pretrain",
        settings=tiny.settings("pretrain", **changed),
        dataset=dataset or tiny.dataset,
        model=directory / "model",
        losses=directory / "losses.parquet",
    )


def trained(tiny, directory, **changed):
    train(tiny, directory, **changed)
    return [(directory / name).read_bytes() for name in FILES]


def test_the_card_says_what_the_model_was_made_from(tiny):
    _, card = load_model(tiny.model)
    assert (card["agent"], card["domain"], card["seed"]) == ("fb", "point_mass_maze", 0)
    assert card["domain_settings"] == tiny.domain["settings"]
    assert card["transitions"] == tiny.episodes * tiny.episode_steps
    assert card["dataset_sha256"] == file_digest(tiny.dataset)
    assert card["trainer"]["updates"] == 40
    assert card["versions"]["numpy"] == np.__version__
    assert set(card["config"]) > set(tiny.agent["settings"])  # defaults are written out


def test_observations_are_normalised_by_the_data(tiny):
    model, _ = load_model(tiny.model)
    obs = np.asarray(transitions.read(tiny.dataset).obs)
    np.testing.assert_allclose(model.obs_mean, obs.mean(0), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(model.obs_std, obs.std(0, ddof=1), rtol=1e-4)


def test_losses_have_the_declared_schema_and_one_row_every_log_every_updates(tiny):
    columns, origin = read_table(tiny.losses, "losses")
    assert columns["update"].tolist() == [10, 20, 30, 40]
    assert np.isfinite([columns[name] for name in columns]).all()
    schema = pq.read_schema(tiny.losses)
    kinds = {field.name: field.type for field in schema}
    assert (kinds.pop("update"), kinds.pop("alarm")) == (pa.int64(), pa.bool_())
    assert {"fb_loss", "ortho_loss", "q"} <= kinds.keys()
    assert set(kinds.values()) == {pa.float64()}
    assert not any(field.nullable for field in schema)
    assert origin.settings["agent"] == tiny.agent


def test_a_seed_decides_every_byte(tiny, tmp_path):
    expected = [(tiny.model.parent / name).read_bytes() for name in FILES]
    assert trained(tiny, tmp_path / "again") == expected
    other = trained(tiny, tmp_path / "other", seed=1)
    assert all(a != b for a, b in zip(other, expected, strict=True))


def test_a_data_set_of_compressed_pages_trains_the_same_weights(tiny, tmp_path):
    origin = pq.read_metadata(tiny.dataset).metadata[b"bfmpipe"]
    table = pq.read_table(tiny.dataset).replace_schema_metadata({b"bfmpipe": origin})
    pq.write_table(table, tmp_path / "data.parquet", compression="zstd")
    train(tiny, tmp_path, dataset=tmp_path / "data.parquet")
    for name in FILES[1:]:
        assert (tmp_path / name).read_bytes() == (tiny.model.parent / name).read_bytes()


def test_nothing_but_model_and_losses_is_left(tiny, tmp_path):
    train(tiny, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"model", "losses.parquet"}
    assert {p.name for p in (tmp_path / "model").iterdir()} == {"config.json", "model.safetensors"}


def test_no_updates_past_the_last_row_are_lost(tiny, tmp_path):
    trainer = {"updates": 25, "checkpoint_every": 10, "log_every": 10}
    train(tiny, tmp_path, trainer=trainer)
    columns, _ = read_table(tmp_path / "losses.parquet", "losses")
    assert columns["update"].tolist() == [10, 20, 25]


def test_rows_shorter_than_the_interval_of_the_actor_are_whole(tiny, tmp_path):
    train(tiny, tmp_path, trainer={"updates": 4, "checkpoint_every": 4, "log_every": 1})
    columns, _ = read_table(tmp_path / "losses.parquet", "losses")
    assert np.isfinite(columns["q"]).all()


def test_a_training_that_breaks_down_resumes_from_its_checkpoint(tiny, tmp_path):
    # at such a rate float32 overflows a few updates after the first checkpoint
    wild = {**tiny.agent, "settings": {**tiny.agent["settings"], "learning_rate": 1e8}}
    trainer = {"updates": 40, "checkpoint_every": 1, "log_every": 1}
    with pytest.raises(UserError, match=r"training broke down: '.*' is (nan|inf|-inf) by"):
        train(tiny, tmp_path, agent=wild, trainer=trainer)
    assert not (tmp_path / "model").exists()
    assert not (tmp_path / "losses.parquet").exists()
    _, header = load_tensors(tmp_path / ".model.checkpoint.safetensors")
    assert 1 <= header["done"] < 40
    assert header["identity"]["dataset"] == file_digest(tiny.dataset)
    json.dumps(header["losses"], allow_nan=False)  # the last good state


@pytest.mark.parametrize(
    ("domain", "settings", "said"),
    [
        ("walker", {}, "the data set is of walker, the model of point_mass_maze"),
        (
            "point_mass_maze",
            {"physics_steps": 2},
            "the data set has 2 physics steps a control step, the model 5; collect the data with",
        ),
    ],
)
def test_data_of_another_domain_are_refused(tiny, tmp_path, domain, settings, said):
    data = replace(transitions.read(tiny.dataset), domain=domain, domain_settings=settings)
    origin = Provenance("transitions", {"domain": {"name": domain, "settings": settings}}, "code")
    dataset = tmp_path / "data.parquet"
    transitions.write(dataset, data, origin)
    with pytest.raises(UserError, match=said):
        train(tiny, tmp_path, dataset=dataset)
    assert [path.name for path in tmp_path.iterdir()] == ["data.parquet"]


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"agent": {"name": "bf"}}, "no 'bf' in bfmpipe.agents; it has fb"),
        (
            {"agent": {"name": "fb", "settings": {"z_dmi": 8}}},
            "agent fb: z_dmi is not a setting; did you mean z_dim?",
        ),
        (
            {"agent": {"name": "fb", "settings": {"batch": 601}}},
            "the data set has 600 transitions, fewer than one batch of 601",
        ),
    ],
)
def test_bad_settings_are_refused_and_nothing_is_written(tiny, tmp_path, changed, said):
    with pytest.raises(UserError) as caught:
        train(tiny, tmp_path, **changed)
    assert said in str(caught.value)
    assert not list(tmp_path.iterdir())
