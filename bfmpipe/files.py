"""Artifacts appear whole or not at all."""

import errno
import fcntl
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from bfmpipe.types import UserError

_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP}
"""What a file system says that knows no locks, as Lustre mounted without them does."""


@contextmanager
def locked(path: Path, refusal: str) -> Iterator[BinaryIO]:
    """A file opened to append, which no other process gets until the block ends.

    The lock ends with its process, however that ends. It holds between the nodes of a cluster
    where their file system has locks; where it says that it has none, there is none.

    Args:
        path: made if it is not there; it may be renamed or removed in the block.
        refusal: what is said, in one sentence, if another process holds it.

    Raises:
        UserError: see `refusal`.
    """
    while True:
        with path.open("ab") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except (BlockingIOError, PermissionError) as error:
                raise UserError(refusal) from error
            except OSError as error:
                if error.errno not in _NO_LOCKS:
                    raise
            if _is_at(file, path):  # or its last holder renamed or removed it meanwhile
                yield file
                return


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` to write to; renamed to `path` when the block succeeds.

    The name is fixed, so what a killed run left behind is removed by the next one. The file is its
    own lock, so nothing else is left beside `path`.

    Raises:
        UserError: if another process is writing to it.
        OSError: of the disk; it always names a file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _partial(path)
    refusal = (
        f"{path}: another process is writing it, perhaps a job that an earlier run left behind; "
        "end that job (on a cluster: scancel), or wait for it"
    )
    if temporary.exists():
        with locked(temporary, refusal):  # not truncated: where locks do not reach from node to
            temporary.unlink()  # node, another may be writing to it, who sees that it is gone
    with locked(temporary, refusal) as file:
        try:
            yield temporary
            if not _is_at(file, temporary):
                raise UserError(refusal)
            if not os.fstat(file.fileno()).st_size:
                raise FileNotFoundError(errno.ENOENT, "nothing was written", str(path))
            os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException as error:
            if _is_at(file, temporary):
                temporary.unlink()
            if isinstance(error, OSError) and error.filename is None:
                error.filename = str(path)  # pyarrow does not say which
            raise


def remove(path: Path) -> None:
    """Remove a file, where there is one, and what a killed writer of it left behind."""
    path.unlink(missing_ok=True)
    temporary = _partial(path)
    if temporary.exists():
        with suppress(UserError), locked(temporary, "it is being written"):
            temporary.unlink()


def _partial(path: Path) -> Path:
    return path.with_name(f".{path.name}.partial")


def _is_at(file: BinaryIO, path: Path) -> bool:
    """Whether a path still leads to this open file."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
