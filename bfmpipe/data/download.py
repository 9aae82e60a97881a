"""Download of one large file, which goes on where an earlier attempt was cut."""

import http.client
import os
import re
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from bfmpipe.files import locked
from bfmpipe.types import UserError

_CHUNK = 1 << 20
_TIMEOUT = 60.0


def download(
    url: str,
    path: Path,
    progress: Callable[[int, int | None], object] = lambda done, total: None,
    *,
    check: Callable[[Path], bool] = lambda path: True,
    timeout: float = _TIMEOUT,
) -> None:
    """Fetch a URL to `path`, which appears whole or not at all.

    What has arrived stands in `path` with `.part` behind its name, and is gone on with by the next
    call, if the server can; if it cannot, the download starts again. Attempts are repeated as long
    as each brings something.

    Args:
        url: http or https.
        path: where to; nothing is done if it is there.
        progress: called with the bytes there are and those there will be, if that is known.
        check: whether the finished file is what was asked for.
        timeout: seconds without a byte.

    Raises:
        UserError: where there is no network or no such file, or the connection was cut; what has
            arrived is kept. Where the finished file is not what was asked for; then it is not.
    """
    if path.exists():
        return
    part = path.with_name(f"{path.name}.part")
    try:
        _download(url, path, part, progress, check, timeout)
    except OSError as error:  # of the disk: those of the network have become UserErrors
        raise UserError(f"{part}: cannot be written ({error.strerror or error})") from error


def _download(
    url: str,
    path: Path,
    part: Path,
    progress: Callable[[int, int | None], object],
    check: Callable[[Path], bool],
    timeout: float,
) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with locked(part, f"{part}: another download is writing to it") as file:
        before = -1
        while not _attempt(url, file, progress, timeout):
            there = file.tell()
            if there <= before or not there:
                raise UserError(
                    f"{url}: the connection was cut after {there:,} bytes, which are kept in "
                    f"{part}; the same command goes on from there"
                )
            before = there
        file.flush()
        os.fsync(file.fileno())
        if not check(part):
            part.unlink()
            raise UserError(f"{url}: what arrived is not the file that was asked for; try again")
        os.replace(part, path)


def _attempt(
    url: str, file: BinaryIO, progress: Callable[[int, int | None], object], timeout: float
) -> bool:
    """Append what one request gives; whether the file is whole now."""
    there = file.seek(0, os.SEEK_END)
    request = urllib.request.Request(url, headers={"Range": f"bytes={there}-"} if there else {})
    try:
        response = urllib.request.urlopen(request, timeout=timeout)
    except urllib.error.HTTPError as error:
        with error:
            if error.code == 416 and there:  # nothing lies beyond what is there
                if _total(error.headers.get("Content-Range")) == there:
                    return True
                file.truncate(0)  # it is of another file
                return _attempt(url, file, progress, timeout)
            raise UserError(f"{url}: the server says {error.code} {error.reason}") from error
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", None) or error
        raise UserError(
            f"{url}: cannot be reached ({reason}); this machine may have no network: fetch the "
            "file on another one and name it in the configuration"
        ) from error
    with response:
        length = response.headers.get("Content-Length")
        total = int(length) if length else None
        if response.status == 206:
            found = re.match(r"bytes (\d+)-", response.headers.get("Content-Range") or "")
            if not found or int(found[1]) != there:
                raise UserError(f"{url}: the server sent other bytes than those asked for")
            total = _total(response.headers["Content-Range"]) or (total and there + total)
        else:
            there = 0
            file.truncate(0)  # the server does not send parts
        while True:
            try:
                chunk = response.read1(_CHUNK)
            except (OSError, http.client.HTTPException):
                total = total or -1
                break
            if not chunk:
                break
            there += file.write(chunk)
            progress(there, total)
    file.flush()
    return total is None or there == total


def _total(content_range: str | None) -> int | None:
    """The size of the whole file in a header such as `bytes 5-9/10`."""
    found = re.fullmatch(r"bytes .*/(\d+)", content_range or "")
    return int(found[1]) if found else None
