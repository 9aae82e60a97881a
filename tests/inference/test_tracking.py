"""Tracking inference: windows by a plain loop."""

import math

import pytest
import torch

from bfmpipe.inference import Inference, infer_goal, infer_tracking
from bfmpipe.types import UserError
from tests.inference.models import Fitted, Identity


@pytest.fixture
def frames():
    return torch.randn(11, 3, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("model", [Identity(3), Fitted(3)])
@pytest.mark.parametrize("length", [1, 2, 7, 11])
@pytest.mark.parametrize("window", [1, 2, 8, 11, 50])
def test_windows_equal_a_plain_loop(model, length, window, frames):
    sample = frames + 1
    motion = frames[:length]
    w = infer_goal(model, motion, Inference(), sample).w
    z = infer_tracking(model, motion, Inference(), sample, window=window)
    assert z.shape == (length, 3)
    for t in range(length):
        ahead = [w[i] for i in range(t, t + window) if i < length]
        mean = sum(ahead) / len(ahead)
        torch.testing.assert_close(z[t], math.sqrt(3) * mean / mean.square().sum().sqrt())


def test_the_published_window_is_eight(frames):
    eight = infer_tracking(Identity(3), frames, Inference(), window=8)
    assert torch.equal(infer_tracking(Identity(3), frames, Inference()), eight)
    assert not torch.allclose(infer_tracking(Identity(3), frames, Inference(), window=7), eight)


def test_tracking_one_frame_ahead_is_reaching_goal_after_goal(frames):
    z = infer_tracking(Identity(3), frames, Inference(), window=1)
    torch.testing.assert_close(z, infer_goal(Identity(3), frames, Inference()).z)


def test_the_frames_stay_as_they_are(frames):
    before = frames.clone()
    infer_tracking(Identity(3), frames, Inference())  # whose features are the frames themselves
    assert torch.equal(frames, before)


def test_a_window_of_nothing_is_refused(frames):
    with pytest.raises(UserError, match="a tracking window of 0 frames; at least 1 is needed"):
        infer_tracking(Identity(3), frames, Inference(), window=0)
