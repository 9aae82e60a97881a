import pytest
import torch

from bfmpipe.agents import fb
from bfmpipe.inference.ranking import latent_values
from bfmpipe.networks import project_z


@pytest.mark.parametrize("architecture", ["concatenated", "two_embeddings"])
def test_equals_the_plain_form(architecture):
    torch.manual_seed(0)
    config = fb.Config(z_dim=6, hidden_dim=16, architecture=architecture, stride=3)
    model = fb.Model(config, obs_dim=4, action_dim=2).requires_grad_(False)
    obs, z, w = torch.randn(5, 4), project_z(torch.randn(7, 6)), torch.randn(3, 6)
    values = latent_values(model, obs, z, w)
    assert values.shape == (3, 7)
    for k in range(7):
        latents = z[k].expand(5, -1)
        psi = model.psi(obs, model.actor(obs, latents), latents).mean(0)
        torch.testing.assert_close(values[:, k], (psi @ w.T).mean(0), rtol=1e-5, atol=1e-5)
