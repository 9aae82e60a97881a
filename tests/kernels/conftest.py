"""csrc/cuda as a module that runs on the CPU, and what the kernels' tests share."""

import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sysconfig
from pathlib import Path

import pybind11
import pytest

CSRC = Path(__file__).parents[2] / "csrc"
STAND_IN = Path(__file__).parent / "cuda_on_cpu"


@pytest.fixture(scope="session")
def cuda_on_cpu(tmp_path_factory):
    """bfmpipe.kernels._cuda with a runtime that needs no GPU."""
    csrc = tmp_path_factory.mktemp("cuda_on_cpu") / "csrc"
    shutil.copytree(CSRC, csrc)
    sources = [csrc / "cuda/module.cpp"]
    for path in sorted((csrc / "cuda").glob("*.cu")):
        # name<<<grid, block, 0, stream>>>(arguments); is the only thing that is not C++
        text = re.sub(
            r"(\w+)<<<(.*?)>>>\((.*?)\);",
            r"cuda_on_cpu::launch([&] { \1(\3); }, \2);",
            path.read_text(),
            flags=re.DOTALL,
        )
        sources.append(path.with_suffix(".cu.cpp"))
        sources[-1].write_text(text)
    module = csrc / f"_cuda{sysconfig.get_config_var('EXT_SUFFIX')}"
    includes = [STAND_IN, pybind11.get_include(), sysconfig.get_paths()["include"]]
    flags = ["-std=c++17", "-O1", "-shared", "-fPIC", "-fvisibility=hidden"]
    flags += [*shlex.split(os.environ.get("CXXFLAGS", "")), *(f"-I{path}" for path in includes)]
    # LD_PRELOAD: the compiler itself needs no sanitizers
    env = os.environ | {"LD_PRELOAD": ""}
    subprocess.run(["c++", *flags, *sources, "-o", module], env=env, check=True)
    spec = importlib.util.spec_from_file_location("_cuda", module)
    built = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(built)
    return built
