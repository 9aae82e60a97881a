"""Gymnasium is optional: only `bfmpipe.make` needs it, see tests/test_gymnasium.py."""

import subprocess
import sys

from bfmpipe import code


def test_without_gymnasium_one_sentence_says_how_to_get_it():
    code = (
        "import sys; sys.modules['gymnasium'] = None\n"
        "import bfmpipe\nfrom bfmpipe import *\n"
        "try: make('walker/run')\n"
        "except bfmpipe.types.UserError as error: print(error)"
    )
    said = subprocess.check_output([sys.executable, "-c", code], text=True)
    assert said == (
        "bfmpipe.make needs Gymnasium, which is not installed: pip install 'bfmpipe[gym]'\n"
    )


def test_stages_do_not_reach_gymnasium():
    modules = [f"bfmpipe.stages.{name}" for name in ("collect", "infer", "probe", "adapt")]
    assert not {"bfmpipe.envs.gym", "bfmpipe.envs.make"} & set(code.reachable(*modules))
