"""Fast adaptation of behavioural foundation models (Sikchi et al., arXiv 2504.07896)."""

import importlib
from typing import Any

__all__ = ["Pretrained", "adapt", "infer", "load", "make_domain", "read_transitions"]


def __getattr__(name: str) -> Any:
    # torch takes two seconds to import; what does not need it should not wait
    if name in __all__:
        return getattr(importlib.import_module("bfmpipe.api"), name)
    raise AttributeError(f"module 'bfmpipe' has no attribute '{name}'")
