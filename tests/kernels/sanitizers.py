"""The kernels' tests under sanitizers: `make sanitize`, and on a GPU `make sanitize-cuda`.

On the CPU these are the compiler's, for addresses and undefined behaviour. The tests run on a
bfmpipe that is built for it and installed in a directory of its own. Every instruction set that
this processor has is run. Not seen are the loads and stores of AMX's tile registers, nor masked
ones, which no compiler instruments: what lies around their addresses is only checked where ordinary
instructions touch it too.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bfmpipe.kernels.selfcheck import gpu_problem
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


def run_tests_on_gpu() -> int:
    """Run the kernels' CUDA tests under compute-sanitizer's memcheck and racecheck: 0 if clean."""
    if problem := gpu_problem():
        sys.exit(f"make sanitize-cuda: {problem}")
    if not shutil.which("compute-sanitizer"):
        sys.exit("make sanitize-cuda: there is no compute-sanitizer here; CUDA's toolkit has it")
    # every tensor an allocation of its own, so that what lies beyond it is nobody's
    env = os.environ | {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    paths = [f"tests/kernels/{name}.py" for name in ("test_leave_one_out", "test_sf_evaluate")]
    # what torch compiles or looks into has no kernels of ours that the other tests have not
    wanted = "(cuda or gpu) and not (opcheck or compile or gradcheck or sweep)"
    for tool in ("memcheck", "racecheck"):
        checked = ["compute-sanitizer", "--tool", tool, "--error-exitcode", "9"]
        checked += ["--kernel-name", "kernel_substring=bfmpipe"]
        pytest = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-k", wanted, *paths]
        if code := subprocess.run([*checked, *pytest], cwd=ROOT, env=env, check=False).returncode:
            return code
    return 0


if __name__ == "__main__":
    if sys.argv[1:] == ["cuda"]:
        sys.exit(run_tests_on_gpu())
    if not runtimes():
        sys.exit("make sanitize: the compiler has no libasan.so and libubsan.so; GCC has")
    sys.exit(run_tests(install(), *sys.argv[1:]).returncode)
