"""Stage download: a set of ExORL's, as a zip to import. It is run by hand, not by the Snakefile.

bfmpipe download --cfg '{"domain": "walker", "algorithm": "rnd"}' --archive exorl/walker/rnd.zip

It is then named in an experiment's `collect: {explorer: exorl, settings: {path: ...}}`.
"""

import zipfile
from pathlib import Path
from typing import Annotated, Literal

from bfmpipe.config import Config, spelt
from bfmpipe.data.download import download as fetch
from bfmpipe.data.opening import beginning
from bfmpipe.progress import progress
from bfmpipe.types import UserError


class Download(Config):
    """Settings of the stage: which set. Each has 10,000 episodes and is some gigabytes large."""

    domain: Literal["cheetah", "jaco", "point_mass_maze", "quadruped", "walker"]
    algorithm: Literal[
        "aps", "diayn", "disagreement", "icm", "icm_apt", "proto", "random", "rnd", "smm"
    ]
    """That explored."""
    server: Annotated[
        str, spelt("https?://.+", "an address that begins with http:// or https://")
    ] = "https://dl.fbaipublicfiles.com/exorl"
    """Where the sets are, as DOMAIN/ALGORITHM.zip."""


def download(cfg: Download, *, archive: Path) -> None:
    """Download a set of ExORL's; one that was interrupted goes on where it was cut.

    Raises:
        UserError: where `archive` is there and is no zip, or the server does not give the set.
    """
    url = f"{cfg.server.rstrip('/')}/{cfg.domain}/{cfg.algorithm}.zip"
    if archive.exists():
        beginning(archive)
        if not zipfile.is_zipfile(archive):
            raise UserError(
                f"{archive}: is there already and is no whole zip; move it away, or name another "
                "file"
            )
        print(f"{archive}: is there already; delete it to download it again")
        return
    with progress(0, f"download {cfg.domain} {cfg.algorithm}", "B") as bar:
        bar.unit_scale = True

        def show(done: int, total: int | None) -> None:
            bar.total = total
            bar.update(done - bar.n)

        fetch(url, archive, show, check=zipfile.is_zipfile)
    print(f"{archive}: {archive.stat().st_size:,} bytes of {url}")
