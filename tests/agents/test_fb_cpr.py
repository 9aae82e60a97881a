"""FB-CPR's model: its values and its policy agree with its parts, saved and loaded ones too."""

import json

import pytest
import torch

from bfmpipe.agents import fb_cpr, load_model, save_model
from bfmpipe.config import parse
from bfmpipe.kernels import sf_evaluate_reference
from bfmpipe.types import UserError

OBS, ACTION, D, N = 5, 3, 4, 7
FAMILIES = {
    "simple": {"model": "simple"},
    "simple, deep embeddings": {"model": "simple", "embedding_layers": 3},
    "simple, no trunk": {"model": "simple", "hidden_layers": 0},
    "residual": {"model": "residual"},
    "residual, deep": {"model": "residual", "embedding_layers": 4, "hidden_layers": 3},
}


def make(heads=2, **family):
    torch.manual_seed(0)
    map_ = {"hidden_dim": 16, **family}
    ensemble = {**map_, "num_parallel": heads}
    mlp = {"hidden_dim": 8}
    config = parse(
        fb_cpr.Config,
        {
            "z_dim": D,
            "forward_map": ensemble,
            "backward_map": mlp,
            "actor": map_,
            "critic": ensemble,
            "discriminator": mlp,
        },
        "test",
    )
    model = fb_cpr.Model(config, OBS, ACTION)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    model.obs_mean.copy_(torch.linspace(-1, 1, OBS))
    model.obs_std.copy_(torch.linspace(0.5, 2, OBS))
    return model.requires_grad_(False).eval()


@pytest.fixture(params=FAMILIES.values(), ids=FAMILIES)
def model(request):
    return make(**request.param)


@pytest.fixture
def inputs():
    generator = torch.Generator().manual_seed(1)
    shapes = ((N, OBS), (N, ACTION), (N, D), (N, D))
    return [torch.randn(shape, generator=generator) for shape in shapes]


def outputs(model, obs, action, z, w):
    return {
        "phi": model.phi(obs),
        "psi": model.psi(obs, action, z),
        "actor": model.actor(obs, z),
        "q": model.q(obs, action, z, w),
        "critic": model.critic(obs, action, z),
        "discriminator": model.discriminator(obs, z),
    }


def test_shapes_of_the_outputs(model, inputs):
    shapes = {name: tuple(x.shape) for name, x in outputs(model, *inputs).items()}
    assert shapes == {
        "phi": (N, D),
        "psi": (2, N, D),
        "actor": (N, ACTION),
        "q": (N,),
        "critic": (2, N, 1),
        "discriminator": (N, 1),
    }


def test_values_are_the_mean_of_the_heads_psi_times_w(model, inputs):
    obs, action, z, w = inputs
    psi = model.psi(obs, action, z)
    wanted = torch.stack([sum((head @ w[i])[i] for head in psi) / 2 for i in range(N)])
    torch.testing.assert_close(model.q(obs, action, z, w), wanted, rtol=1e-5, atol=1e-5)


def test_values_of_pairs_are_those_of_rows(model, inputs):
    obs, action, z, w = inputs
    pairs = model.q_pairs(obs, action, z[:3], w[:3])
    assert pairs.shape == (N, 3)
    for k in range(3):
        rows = model.q(obs, action, z[k].expand(N, -1), w[k].expand(N, -1))
        torch.testing.assert_close(pairs[:, k], rows, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", FAMILIES)
def test_the_kernels_serve_the_simple_family_with_two_layers_an_embedding(name, inputs):
    model = make(**FAMILIES[name])
    layers = model.psi_layers()
    if name not in ("simple", "simple, no trunk"):
        assert layers is None
        return
    obs, action, z, w = inputs
    normalised = (obs - model.obs_mean) / model.obs_std
    pairs = sf_evaluate_reference(layers, normalised, action, z, w)
    torch.testing.assert_close(pairs, model.q_pairs(obs, action, z, w), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("heads", "trunk"), [(9, 1), (2, 8)])
def test_more_than_the_kernels_take_is_computed_without_them(heads, trunk, inputs):
    model = make(heads, hidden_layers=trunk)
    obs, action, z, w = inputs
    assert model.psi_layers() is None
    wanted = torch.einsum("hnd,nd->n", model.psi(obs, action, z), w) / heads
    torch.testing.assert_close(model.q(obs, action, z, w), wanted, rtol=1e-4, atol=1e-4)


def test_every_network_reads_normalised_observations(model, inputs):
    obs, *rest = inputs
    before = outputs(model, obs, *rest)
    model.obs_mean.zero_()
    model.obs_std.fill_(1)
    normalised = (obs - torch.linspace(-1, 1, OBS)) / torch.linspace(0.5, 2, OBS)
    for name, after in outputs(model, normalised, *rest).items():
        torch.testing.assert_close(after, before[name], msg=name)


def test_actions_and_features_are_where_they_belong(model, inputs):
    obs, _, z, _ = inputs
    assert (model.actor(100 * obs, z).abs() <= 1).all()
    torch.testing.assert_close(model.phi(obs).norm(dim=-1), torch.full((N,), D**0.5))


def test_a_loaded_model_gives_the_same_bits(model, inputs, tmp_path):
    save_model(tmp_path, model, {"agent": "fb_cpr"})
    loaded, card = load_model(tmp_path)
    assert isinstance(loaded, fb_cpr.Model)
    assert card["agent"] == "fb_cpr"
    assert loaded.config == model.config
    before = outputs(model, *inputs)
    for name, after in outputs(loaded, *inputs).items():
        assert torch.equal(after, before[name]), name


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"actor": {"hidden_dim": 15}}, "actor.hidden_dim: 15"),
        ({"forward_map": {"embedding_layers": 1}}, "forward_map.embedding_layers: 1"),
        ({"critic": {"model": "deep"}}, "critic.model: 'deep' is not a choice; valid: simple"),
        ({"discriminator": {"model": "residual"}}, "discriminator.model is not a setting"),
        ({"norm_z": False}, "norm_z: false is not a choice"),
        ({"stride": 2}, "stride: 2 is not a choice"),
    ],
)
def test_settings_that_there_are_not(changed, said):
    with pytest.raises(UserError, match="test: ") as caught:
        parse(fb_cpr.Config, json.loads(json.dumps(changed)), "test")
    assert said in str(caught.value)
