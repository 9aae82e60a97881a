"""Zero-shot: the inferred latent as it is; the baseline that every curve starts from."""

from bfmpipe.adaptation.base import Method as BaseMethod
from bfmpipe.config import Config as BaseConfig


class Config(BaseConfig):
    """No settings."""


class Method(BaseMethod):
    """Moves nothing and spends nothing."""

    def advance(self) -> bool:
        """Nothing to do."""
        return False
