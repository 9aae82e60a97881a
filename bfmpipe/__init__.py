"""Fast adaptation of behavioural foundation models (Sikchi et al., arXiv 2504.07896)."""

import importlib
from typing import Any

_HOMES = {
    **dict.fromkeys(
        (
            "Pretrained",
            "adapt",
            "adapt_together",
            "infer",
            "infer_goal",
            "infer_tracking",
            "load",
            "make_domain",
            "play",
            "read_transitions",
            "roam",
        ),
        "bfmpipe.api",
    ),
    **dict.fromkeys(("make", "make_vec"), "bfmpipe.envs.make"),
}

__all__ = [
    "Pretrained",
    "adapt",
    "adapt_together",
    "infer",
    "infer_goal",
    "infer_tracking",
    "load",
    "make",
    "make_domain",
    "make_vec",
    "play",
    "read_transitions",
    "roam",
]


def __getattr__(name: str) -> Any:
    # torch takes two seconds to import; what does not need it should not wait
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'bfmpipe' has no attribute '{name}'")
