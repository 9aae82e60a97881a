"""From a task to the weights w of its reward and the latent z that plays it."""

from bfmpipe.inference.goal import infer_goal
from bfmpipe.inference.reward import Inference, Latent, infer
from bfmpipe.inference.tracking import infer_tracking

__all__ = ["Inference", "Latent", "infer", "infer_goal", "infer_tracking"]
