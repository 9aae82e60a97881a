"""From a task to the weights w of its reward and the latent z that plays it."""

from bfmpipe.inference.reward import Inference, Latent, infer

__all__ = ["Inference", "Latent", "infer"]
