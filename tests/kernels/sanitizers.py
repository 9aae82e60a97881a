"""The kernels' tests under the address and undefined behaviour sanitizers: `make sanitize`.

They run on a bfmpipe that is built for it and installed in a directory of its own. Every
instruction set that this processor has is run. Not seen are the loads and stores of AMX's tile
registers, nor masked ones, which no compiler instruments: what lies around their addresses is only
checked where ordinary instructions touch it too.
"""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.installed import ROOT, command, environment, pip

_FLAGS = "-fsanitize=address,undefined -fno-sanitize-recover=all -O0 -g"
FILES = ["test_leave_one_out", "test_sf_evaluate", "test_cuda_on_cpu"]


def runtimes() -> list[str]:
    """The compiler's sanitizers as shared libraries; none if it has none."""
    compiler = os.environ.get("CXX", "c++")
    found = []
    for name in ("libasan.so", "libubsan.so"):
        path = subprocess.check_output([compiler, f"-print-file-name={name}"], text=True).strip()
        if not Path(path).is_absolute():  # else the compiler does not know it
            return []
        found.append(path)
    return found


def install() -> Path:
    """Build bfmpipe with sanitizers; return the directory that it is in."""
    directory = ROOT / "build" / "sanitized"
    settings = [
        f"build-dir={directory / 'cmake'}",
        "cmake.define.BFMPIPE_SANITIZE=ON",
        "cmake.define.BFMPIPE_CUDA=OFF",
        "cmake.build-type=Debug",  # of the bindings, which compile slowly; and it strips nothing
        "install.strip=false",
    ]
    options = [part for setting in settings for part in ("-C", setting)]
    site = directory / "site"
    pip("install", "--no-deps", "--upgrade", "--target", site, *options, ROOT)
    return site


def run(site: Path, *arguments: str | Path, **settings: Any) -> subprocess.CompletedProcess:
    """Run Python on the bfmpipe in `site`, with the sanitizers loaded before all else."""
    sanitized = {
        "LD_PRELOAD": " ".join(runtimes()),
        "ASAN_OPTIONS": "detect_leaks=0:halt_on_error=1",  # Python leaks by intention
        "UBSAN_OPTIONS": "halt_on_error=1:print_stacktrace=1",
        "CXXFLAGS": _FLAGS,  # of the CUDA kernels, which the tests compile for the CPU
    }
    env = environment(site, ROOT) | sanitized
    return subprocess.run(command(*arguments), cwd=ROOT, env=env, check=False, **settings)


def run_tests(
    site: Path, *options: str, files: Sequence[str] = FILES, **settings: Any
) -> subprocess.CompletedProcess:
    """Run tests of this directory, after some that assert that what they run is sanitized."""
    paths = [f"tests/kernels/{name}.py" for name in ("is_sanitized", *files)]
    # pythonpath: not this checkout before `site`; capture: the sanitizers' last words are shown
    pytest = ["-m", "pytest", "-o", "pythonpath=", "--capture=sys", "-p", "no:cacheprovider"]
    return run(site, *pytest, *options, *paths, **settings)


if __name__ == "__main__":
    if not runtimes():
        sys.exit("make sanitize: the compiler has no libasan.so and libubsan.so; GCC has")
    sys.exit(run_tests(install(), *sys.argv[1:]).returncode)
