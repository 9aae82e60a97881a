"""Wheels with and without CUDA kernels, used outside the checkout."""

import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from tests.installed import ROOT, command, environment, pip

pytestmark = pytest.mark.slow

needs_nvcc = pytest.mark.skipif(
    not (shutil.which("nvcc") or "CUDACXX" in os.environ),
    reason="no nvcc on the PATH and none named by CUDACXX: CUDA kernels cannot be built here",
)


@dataclass(frozen=True)
class Built:
    cuda: bool
    log: str
    site: Path
    elsewhere: Path

    def run(self, *arguments):
        return subprocess.run(
            command(*arguments),
            cwd=self.elsewhere,
            env=environment(self.site),
            capture_output=True,
            text=True,
            check=False,
        )


@pytest.fixture(scope="module")
def build_dir(tmp_path_factory):
    """One for all: what the wheels have in common is compiled once."""
    return tmp_path_factory.mktemp("cmake")


@pytest.fixture(scope="module", params=["OFF", pytest.param("ON", marks=needs_nvcc)])
def built(request, tmp_path_factory, build_dir):
    directory = tmp_path_factory.mktemp("wheel")
    options = ["-C", f"build-dir={build_dir}", "--wheel-dir", directory]
    log = pip("wheel", "-v", "--no-deps", *options, ROOT, BFMPIPE_CUDA=request.param)
    (wheel,) = directory.glob("*.whl")
    site, elsewhere = directory / "site", directory / "elsewhere"
    pip("install", "--no-deps", "--no-index", "--target", site, wheel)
    elsewhere.mkdir()
    return Built(request.param == "ON", log, site, elsewhere)


def test_the_log_says_what_was_built(built):
    (said,) = re.findall(r"bfmpipe: CUDA kernels (.*)", built.log)
    if built.cuda:
        architectures = os.environ.get("CUDAARCHS", "80-real 90-real 90-virtual")
        assert re.fullmatch(rf"built for {re.escape(architectures)} by nvcc [\d.]+", said)
    else:
        assert said == "not built (BFMPIPE_CUDA=OFF)"


def test_an_isolated_build_needs_no_torch(built):
    assert "Installing build dependencies" in built.log
    assert "pybind11" in built.log
    assert not re.search(r"(Collecting|Downloading|Using cached|Processing) \S*torch", built.log)


def test_the_wheel_has_the_modules(built):
    modules = {path.name.partition(".")[0] for path in built.site.glob("bfmpipe/kernels/*.so")}
    assert modules == ({"_cpu", "_cuda"} if built.cuda else {"_cpu"})


def test_it_is_imported_from_where_it_was_installed(built):
    code = "import bfmpipe, bfmpipe.kernels._cpu as _cpu; print(bfmpipe.__file__, _cpu.__file__)"
    done = built.run("-c", code)
    assert done.stderr == ""
    for file in done.stdout.split():
        assert Path(file).is_relative_to(built.site)


def test_the_doctor_finds_it_well(built):
    done = built.run("-m", "bfmpipe", "doctor")
    assert done.stderr == ""
    assert done.returncode == 0
    facts = dict(line.split("  ", 1) for line in done.stdout.partition("\n\n")[0].splitlines())
    assert facts["cuda kernels"] in built.log
    assert facts["sources"].endswith("; there is no csrc/ to compare with")
    assert "sanitizers" not in facts["cpu kernels"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU: nothing to complain of")
def test_without_a_gpu_a_cuda_call_is_refused_in_one_sentence(built):
    code = """
import torch
from bfmpipe.kernels import extension
from bfmpipe.types import UserError
try:
    extension.launch("leave_one_out_float32", torch.device("cuda"))
except UserError as error:
    print(error)
"""
    done = built.run("-c", code)
    assert done.stderr == ""
    (sentence,) = done.stdout.splitlines()
    start = (
        "bfmpipe's CUDA kernels cannot use a GPU here (" if built.cuda else "bfmpipe was built w"
    )
    assert sentence.startswith(start)
    assert sentence.endswith(".")


def test_cuda_is_not_left_out_in_silence(tmp_path):
    # not by an emptied PATH: CMake looks in the system's directories too
    no_compiler = {"CUDACXX": str(tmp_path / "nvcc"), "BFMPIPE_CUDA": "ON"}
    options = ["-C", f"build-dir={tmp_path / 'cmake'}", "--wheel-dir", tmp_path]
    said = pip("wheel", "--no-deps", *options, ROOT, check=False, **no_compiler)
    assert "BFMPIPE_CUDA=ON, but no nvcc that works was found" in said
    assert not list(tmp_path.glob("*.whl"))


def test_a_misspelt_option_is_refused(tmp_path):
    options = ["-C", f"build-dir={tmp_path / 'cmake'}", "--wheel-dir", tmp_path]
    said = pip("wheel", "--no-deps", *options, ROOT, check=False, BFMPIPE_CUDA="yes")
    assert "BFMPIPE_CUDA is 'yes'; it must be AUTO, ON or OFF" in " ".join(said.split())
