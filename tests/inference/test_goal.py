"""Goal inference: closed forms, and the reward that it stands for."""

import math

import pytest
import torch

from bfmpipe.inference import Inference, infer, infer_goal
from bfmpipe.types import UserError
from tests.inference.models import Fitted, Identity

MODELS = [Identity(4), Fitted(4)]


@pytest.fixture
def data():
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(4, 4, generator=generator)
    return torch.randn(40, 4, generator=generator) @ mixing + torch.tensor([1.0, 0.0, -2.0, 0.0])


def test_the_latent_of_a_goal_is_its_feature_on_the_sphere(data):
    w, z = infer_goal(Identity(4), data[:3], Inference())
    assert torch.equal(w, data[:3])
    expected = torch.stack([math.sqrt(4) * g / g.square().sum().sqrt() for g in data[:3]])
    torch.testing.assert_close(z, expected)


def test_least_squares_divides_by_the_covariance(data):
    w, z = infer_goal(Fitted(4), data[:2], Inference(), data)
    C = sum(torch.outer(s, s) for s in data.double()) / 40
    torch.testing.assert_close(w.double() @ C, data[:2].double(), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(z.norm(dim=-1), torch.full((2,), 2.0))
    assert torch.equal(
        w, infer_goal(Identity(4), data[:2], Inference(weights="least-squares"), data).w
    )


@pytest.mark.parametrize("centred", [False, True])
@pytest.mark.parametrize("model", MODELS)
def test_it_is_the_inference_of_the_goals_own_reward(model, centred, data):
    """A goal among n samples has the density n there and 0 at the others."""
    how = Inference(centred=centred)
    density = torch.zeros(40, dtype=torch.float64)
    density[7] = 40
    found = infer_goal(model, data[[7]], how, data)
    expected = infer(model, data, density, how)
    torch.testing.assert_close(found.w[0], expected.w, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.z[0], expected.z, rtol=1e-4, atol=1e-5)


def test_orthonormal_features_need_no_covariance(data):
    q, _ = torch.linalg.qr(data)
    orthonormal = q * math.sqrt(40)
    one, two = (infer_goal(model, orthonormal[:5], Inference(), orthonormal) for model in MODELS)
    torch.testing.assert_close(one.w, two.w, rtol=1e-5, atol=1e-5)


def test_a_singular_covariance_gives_the_shortest_w(data):
    twice = torch.cat([data[:, :2], data[:, :2]], dim=1)
    w = infer_goal(Fitted(4), twice[:3], Inference(), twice).w
    half = infer_goal(Fitted(2), data[:3, :2], Inference(), data[:, :2]).w
    torch.testing.assert_close(w, torch.cat([half, half], dim=1) / 2, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("sample", [None, torch.ones(0, 4)])
def test_data_that_are_needed_are_asked_for(sample, data):
    with pytest.raises(UserError, match="by least squares needs states of the data set"):
        infer_goal(Fitted(4), data, Inference(), sample)
    with pytest.raises(UserError, match="by centred features needs states of the data set"):
        infer_goal(Identity(4), data, Inference(centred=True), sample)
