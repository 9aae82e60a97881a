"""What every layer may use: array types, and the error for bad input."""

import difflib
from collections.abc import Iterable
from typing import Any

from numpy.typing import NDArray

Array = NDArray[Any]


class UserError(Exception):
    """Bad input, said in one sentence: what is wrong, where, and what would be valid.

    The command line and the Snakefile print the message alone, without a traceback.
    """


def meant(given: str, valid: Iterable[str]) -> str:
    """What an unknown name was probably meant to be, as the end of a sentence; or nothing."""
    near = difflib.get_close_matches(given, list(valid), n=1)
    return f"; did you mean {near[0]}?" if near else ""
