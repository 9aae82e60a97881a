"""Stage diagnose: one row a task, on the data's states and the rewards of reaching them."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from bfmpipe import api
from bfmpipe.data.tables import read_table
from bfmpipe.inference.reward import Inference
from bfmpipe.types import UserError

NUMBERS = (
    *("effective_rank", "residual", "mismatch", "extrapolation"),
    *("q_correlation", "q_scale"),
)
KINDS = {
    **dict.fromkeys(("domain", "agent"), pa.string()),
    "seed": pa.int32(),
    **dict.fromkeys(("family", "task"), pa.string()),
    **dict.fromkeys(NUMBERS, pa.float64()),
}
DIAGNOSIS = {"samples": 10**6, "latents": 50, "starts": 4, "tail": 0.5}  # all of the data


def diagnose(tiny, path, latents=None, **changed):
    tiny.run(
        "diagnose",
        settings=tiny.settings("diagnose", **{"diagnosis": DIAGNOSIS, **changed}),
        model=tiny.model,
        dataset=tiny.dataset,
        latents=latents or tiny.latents,
        diagnosis=path,
    )
    return read_table(path, "diagnosis")[0]


@pytest.fixture(scope="module")
def file(tiny, tmp_path_factory):
    path = tmp_path_factory.mktemp("diagnose") / "diagnosis.parquet"
    diagnose(tiny, path)
    return path


@pytest.fixture(scope="module")
def table(file):
    return read_table(file, "diagnosis")[0]


def test_the_file_has_the_declared_schema_and_a_row_a_task(file, table, tiny):
    expected = pa.schema([pa.field(k, v, nullable=False) for k, v in KINDS.items()])
    assert pq.read_schema(file).remove_metadata().equals(expected)
    assert table["task"].tolist() == ["reach_top_left", "reach_bottom_right"]
    assert table["family"].tolist() == ["reach"] * 2
    place = (table["domain"][0], table["agent"][0], table["seed"][0])
    assert place == ("point_mass_maze", "fb", 0)
    _, origin = read_table(file, "diagnosis")
    inference = Inference().model_dump(mode="json")
    assert origin.settings == tiny.settings("diagnose", diagnosis=DIAGNOSIS, inference=inference)


def test_rank_and_fits_are_those_of_the_states_reached_and_their_rewards(table, tiny):
    """By numpy, over all transitions in their own order."""
    pretrained = api.load(tiny.model)
    data = api.read_transitions(tiny.dataset)
    reached = data.index + 1
    phi = pretrained.model.phi(torch.from_numpy(data.obs[reached])).double().numpy()
    covariance = phi.T @ phi / len(phi)
    phi -= phi.mean(0)
    share = np.linalg.svd(phi, compute_uv=False) ** 2
    share /= share.sum()
    np.testing.assert_allclose(table["effective_rank"], np.exp(-(share * np.log(share)).sum()))
    tasks = pretrained.domain.tasks(
        "reach", ["reach_top_left", "reach_bottom_right"], {"target_size": 0.1}
    )
    w = read_table(tiny.latents, "latents")[0]["w"].astype(np.float64)
    for i, task in enumerate(tasks):
        reward = pretrained.domain.relabel(task, data.physics[reached], data.action[data.index])
        reward -= reward.mean()
        assert table["residual"][i] == pytest.approx(unexplained(phi, reward), rel=1e-4)
        by_w = phi @ np.linalg.solve(covariance, w[i])[:, None]
        assert table["mismatch"][i] == pytest.approx(unexplained(by_w, reward), rel=1e-4)
    assert (table["residual"] <= table["mismatch"]).all()


def unexplained(x, y):
    rest = y - x @ np.linalg.lstsq(x, y, rcond=None)[0]
    return (rest @ rest) / (y @ y)


def test_every_quantity_is_in_its_range(table, tiny):
    assert ((table["effective_rank"] >= 1) & (table["effective_rank"] <= 6)).all()
    for name in ("residual", "mismatch"):
        assert ((table[name] >= 0) & (table[name] <= 1)).all()
    assert ((table["extrapolation"] >= -1e-6) & (table["extrapolation"] <= 2)).all()


def test_a_seed_decides_every_byte(tiny, file, table, tmp_path):
    diagnose(tiny, tmp_path / "again.parquet")
    assert (tmp_path / "again.parquet").read_bytes() == file.read_bytes()
    other = diagnose(tiny, tmp_path / "other.parquet", seed=1)
    assert other["seed"].tolist() == [1, 1]
    assert not np.array_equal(other["q_scale"], table["q_scale"])  # other start states
    np.testing.assert_allclose(other["residual"], table["residual"])  # of the same data


def test_the_number_of_samples_is_a_setting(tiny, table, tmp_path):
    few = diagnose(tiny, tmp_path / "few.parquet", diagnosis={**DIAGNOSIS, "samples": 100})
    assert not np.allclose(few["effective_rank"], table["effective_rank"], rtol=1e-3)


def test_a_task_without_a_latent_is_named(tiny, tmp_path):
    tasks = {"families": {"reach": {"names": ["reach_top_right"]}}}
    with pytest.raises(UserError, match="no latent of task reach/reach_top_right; run the stage"):
        diagnose(tiny, tmp_path / "diagnosis.parquet", tasks=tasks)
    assert not list(tmp_path.iterdir())
