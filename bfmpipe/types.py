"""What every layer may use: array types, and the error for bad input and its sentences."""

import difflib
import operator
import traceback
from collections.abc import Iterable
from pathlib import Path
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


def counted(name: str, value: Any) -> int:
    """A whole number, 1 or more, that a caller from Python gives as `name`.

    Raises:
        UserError: it is none.
    """
    try:
        number = operator.index(value)
    except TypeError:
        number = 0
    if number < 1 or isinstance(value, bool):
        raise UserError(f"{name} is {value!r}; valid: a whole number, 1 or more")
    return number


def at(file: Path | str, error: BaseException | None) -> str:
    """Name a user's file, and the last line of it that an exception passed."""
    frames = traceback.extract_tb(error.__traceback__) if error else []
    lines = [frame.lineno for frame in frames if frame.filename == str(file)]
    return f"{file}, line {lines[-1]}" if lines else str(file)


def raised(error: BaseException) -> str:
    """What a user's code raised, in words."""
    said = " ".join(str(error).split())
    return f"raised {type(error).__name__}" + (f": {said}" if said else "")


def not_python(file: Path | str, error: Exception) -> UserError:
    """Why a user's file cannot be parsed, by the SyntaxError or ValueError of trying to."""
    line = f"line {error.lineno}: " if isinstance(error, SyntaxError) and error.lineno else ""
    said = error.msg if isinstance(error, SyntaxError) else str(error)
    return UserError(f"{file}: {line}is not Python: {said}")
