import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from bfmpipe.kernels import _cpu, build_info, extension
from bfmpipe.types import UserError

csrc = Path(__file__).parents[2] / "csrc"


def test_was_built_from_these_sources():
    extension.check_build(csrc)


def test_a_stale_build_is_refused(tmp_path):
    copy = tmp_path / "csrc"
    shutil.copytree(csrc, copy)
    extension.check_build(copy)
    (copy / "CMakeLists.txt").open("a").write("\n")
    with pytest.raises(UserError, match="built from other sources"):
        extension.check_build(copy)
    extension.check_build(tmp_path / "nowhere")


def test_build_info():
    info = build_info()
    assert info["instruction_set"] == _cpu.instruction_sets()[-1]
    assert info["cuda"] is (extension._find_cuda() is not None)


def test_unknown_instruction_set_is_refused():
    with pytest.raises(ValueError, match="no instruction set 'mmx'"):
        _cpu.use_instruction_set("mmx")


def test_devices_without_a_module_are_named():
    with pytest.raises(UserError, match="take cpu and cuda tensors, not meta ones"):
        extension.launch("leave_one_out_float32", torch.device("meta"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU: nothing to complain of")
def test_cuda_without_a_gpu_says_so():
    with pytest.raises(UserError, match=r"built without CUDA kernels|cannot use a GPU here") as e:
        extension.launch("leave_one_out_float32", torch.device("cuda"))
    assert str(e.value).endswith(".")


def test_an_unbuilt_checkout_says_how_to_build():
    # None in sys.modules makes an import fail
    code = "import sys; sys.modules['bfmpipe.kernels._cpu'] = None; import bfmpipe.kernels"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.returncode != 0
    assert "build them with `pip install -e .`" in run.stderr.splitlines()[-1]
