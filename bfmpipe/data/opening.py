"""Why a file is not read: it is missing, cannot be read, is of another kind, or is damaged.

Only the last is a reason to delete anything, and only what can be made again.
"""

import errno
import os
import stat
from pathlib import Path

from bfmpipe.types import UserError

MADE_AGAIN = "if the pipeline made it, delete it and run the pipeline again"

_BEGINNINGS = {
    b"PAR1": "a Parquet file",
    b"PK\x03\x04": "a zip",
    b"\x1f\x8b": "gzipped",
    b"\x89PNG": "a picture",
    b"GIF8": "a picture",
    b"%PDF": "a PDF",
    b"\x89HDF": "an HDF5 file",
    b"\x7fELF": "a program",
}
_READ = 64


class UnreadableError(UserError):
    """A file that the system does not give, and that may be as good as ever."""


def beginning(path: Path) -> bytes:
    """The first bytes of a regular file, at most 64.

    Raises:
        UserError: where there is no such file, or it cannot be read.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # opening a pipe would wait for its other end
            kind = "a directory" if path.is_dir() else "a device, pipe or socket"
            raise UserError(f"{path}: is {kind}, not a file")
        with path.open("rb") as file:
            return file.read(_READ)
    except OSError as error:
        raise unreadable(path, error) from error


def unreadable(path: Path, error: OSError) -> UserError:
    """What an error of the system says of a file."""
    if error.errno in (errno.ENOENT, errno.ENOTDIR):
        return UserError(f"{path}: no such file")
    return UnreadableError(f"{path}: cannot be read: {os.strerror(error.errno or errno.EIO)}")


def refused(path: Path, wanted: str, reason: str) -> UserError:
    """What to say of a file that was read and made no sense.

    Args:
        path: the file.
        wanted: what it should have been, "a Parquet file" or "a safetensors file".
        reason: what its reader says.
    """
    found = _kind(beginning(path))
    if found not in (None, wanted):
        return UserError(f"{path}: is {found}, not {wanted}")
    return UserError(f"{path}: damaged or not {wanted} ({reason}); {MADE_AGAIN}")


def _kind(head: bytes) -> str | None:
    """What a file is that begins so; None where that cannot be told."""
    for magic, kind in _BEGINNINGS.items():
        if head.startswith(magic):
            return kind
    if head[8:9] == b"{" and b"\0" in head[:8]:  # the length of a header, and the header
        return "a safetensors file"
    is_text = len(head) > 4 and all(byte >= 32 or byte in b"\t\n\r" for byte in head)
    return "text" if is_text else None
