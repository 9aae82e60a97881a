"""bfmpipe, built by pip into a directory of its own and run from there, not from this checkout.

pip builds in isolation, as for a user: it takes what `build-system.requires` names, a megabyte
that installing this checkout has just put into its cache, and CMake where the system has none. An
environment with scikit-build-core and without isolation would need all of that in the dev extra,
and would not notice a build requirement that is missing, or torch as one.
"""

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

ROOT = Path(__file__).parents[1]


def pip(*arguments: str | Path, check: bool = True, **environment: str) -> str:
    """Run pip and return all that it says; RuntimeError with that if it fails and should not."""
    done = subprocess.run(
        [sys.executable, "-m", "pip", *arguments],
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if check and done.returncode:
        raise RuntimeError(done.stdout)
    assert check or done.returncode != 0
    return done.stdout


def command(*arguments: str | Path) -> list[str | Path]:
    """Python as it must start for `environment` to decide what is imported."""
    # -S: without .pth files, of which one makes this checkout's bfmpipe come before any path;
    # -P: without the working directory
    return [sys.executable, "-S", "-P", *arguments]


def environment(site: Path, *more: Path) -> dict[str, str]:
    """Import bfmpipe from `site`, what it depends on from where this Python has it, then `more`."""
    paths = [site, *dict.fromkeys(sysconfig.get_path(name) for name in ("purelib", "platlib"))]
    return os.environ | {"PYTHONPATH": os.pathsep.join(map(str, [*paths, *more]))}
