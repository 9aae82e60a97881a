"""Stage adopt: a finished model is taken over as it is, or refused by name."""

import pytest

from bfmpipe.types import UserError


def adopt(tiny, pretrained, model, **changed):
    settings = {"domain": tiny.domain, "agent": tiny.agent["name"], "seed": 0, **changed}
    tiny.run("adopt", settings=settings, pretrained=pretrained, model=model)


def test_it_is_the_same_model(tiny, tmp_path):
    adopt(tiny, tiny.model, tmp_path / "model")
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / "model" / name).read_bytes() == (tiny.model / name).read_bytes()


def test_one_that_has_no_seed_stands_for_any(tiny, tmp_path, edit_card):
    adopt(tiny, edit_card(seed=None), tmp_path / "there", seed=7)
    assert (tmp_path / "there" / "config.json").exists()


def test_a_seed_may_be_saved_as_text(tiny, tmp_path, edit_card):
    adopt(tiny, edit_card(seed="7"), tmp_path / "there", seed=7)
    with pytest.raises(UserError, match="trained with seed 7, and stands for seed 0 here"):
        adopt(tiny, edit_card(seed="7"), tmp_path / "other")


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"agent": "hilp"}, "the model's agent is fb, but the settings say hilp"),
        ({"domain": {"name": "walker"}}, "the model's domain is point_mass_maze, but the settings"),
        (
            {"domain": {"name": "point_mass_maze", "settings": {"episode_steps": 20}}},
            "a model of point_mass_maze with physics_steps 5; the experiment has physics_steps 1; "
            "set domains.point_mass_maze.settings.physics_steps to the model's",
        ),
        ({"seed": 1}, "was trained with seed 0, and stands for seed 1 here; list the models' own"),
    ],
)
def test_one_of_something_else_is_refused(tiny, tmp_path, changed, said):
    with pytest.raises(UserError, match=said):
        adopt(tiny, tiny.model, tmp_path / "model", **changed)
    assert not (tmp_path / "model").exists()


def test_a_damaged_one_is_refused(tiny, model_copy, tmp_path):
    weights = model_copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"model\.safetensors"):
        adopt(tiny, model_copy, tmp_path / "there")
