"""The command line: `bfmpipe STAGE --cfg JSON --FILE PATH ...`, derived from the signatures.

Every function of bfmpipe.stages named like its module is a command. Its first parameter is the
settings, given as JSON or as @file; its keyword-only parameters are files. `bfmpipe doctor` is no
stage: it has neither, and says whether the installation is well.
"""

import argparse
import importlib
import inspect
import json
import os
import pkgutil
import shlex
import sys
from pathlib import Path
from typing import Any, get_args, get_origin

from bfmpipe import stages
from bfmpipe.config import canonical, parse
from bfmpipe.types import UserError

NAMES = tuple(
    sorted(
        module.name
        for module in pkgutil.iter_modules(stages.__path__)
        if module.name not in ("sections",)
    )
)


def main(argv: list[str] | None = None) -> int:
    """Run a stage; 0, or 2 after one sentence on bad input, or 1 where the doctor finds a fault."""
    argv = sys.argv[1:] if argv is None else argv
    # idle threads must not spin on the cores that the simulator needs; torch reads it on import
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # as a rule gives it: by hand, the same bytes
    os.environ.setdefault("MUJOCO_GL", "disabled")
    top = argparse.ArgumentParser(
        prog="bfmpipe",
        description="Fast adaptation of behavioural foundation models.",
        epilog=f"`bfmpipe doctor`: {_DOCTOR}",
    )
    names = (*NAMES, "doctor")
    top.add_argument("stage", choices=names, help="what to do; `bfmpipe STAGE --help` says more")
    if not argv or argv[0] not in names:
        top.parse_args(argv)
        return 2
    name = argv[0]
    try:
        if name == "doctor":
            return _doctor(argv[1:])
        _run(name, argv[1:])
    except UserError as error:
        print(f"bfmpipe {name}: error: {error}", file=sys.stderr)
        return 2
    except OSError as error:  # a full disk, a missing permission
        print(f"bfmpipe {name}: error: {error.filename}: {error.strerror}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"bfmpipe {name}: interrupted", file=sys.stderr)
        return 130
    return 0


def _run(name: str, argv: list[str]) -> None:
    stage = getattr(importlib.import_module(f"bfmpipe.stages.{name}"), name)
    hints = inspect.get_annotations(stage, eval_str=True)
    cfg_name, *files = inspect.signature(stage).parameters
    parser = argparse.ArgumentParser(prog=f"bfmpipe {name}", description=inspect.getdoc(stage))
    parser.add_argument(f"--{cfg_name}", required=True, help="settings as JSON, or @file")
    for file in files:
        many = get_origin(hints[file]) is list
        kind = get_args(hints[file])[0] if many else hints[file]
        parser.add_argument(
            f"--{file}", required=True, type=kind, nargs="*" if many else None, metavar="PATH"
        )
    given = vars(parser.parse_args(argv))
    cfg = parse(hints[cfg_name], _json(given.pop(cfg_name)), f"--{cfg_name}")
    # what a log begins with: pasted into a shell, it does the same again
    words = ["bfmpipe", name, f"--{cfg_name}", canonical(cfg)]
    for file, path in given.items():
        words += [f"--{file}", *map(str, path if isinstance(path, list) else [path])]
    print(shlex.join(words), file=sys.stderr, flush=True)
    stage(cfg, **given)


_DOCTOR = "say what was built, and check every kernel against its reference on this machine"


def _doctor(argv: list[str]) -> int:
    argparse.ArgumentParser(prog="bfmpipe doctor", description=_DOCTOR).parse_args(argv)
    from bfmpipe.kernels import selfcheck

    for name, fact in selfcheck.facts().items():
        print(f"{name:<14}{fact}")
    print()
    faults = []
    for check in selfcheck.checks():
        said = check.problem or f"error {check.error:.1e}, tolerance {check.tolerance:.0e}"
        print(f"{'ok' if check.ok else 'FAILED':<8}{check.name}: {said}", flush=True)
        if not check.ok:
            faults.append(f"{check.name}: {said}")
    if not faults:
        return 0
    more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
    print(f"bfmpipe doctor: error: {faults[0]}{more}", file=sys.stderr)
    return 1


def _json(text: str) -> Any:
    where = "--cfg"
    if text.startswith("@"):
        where = text[1:]
        try:
            text = Path(where).read_text("utf-8")
        except OSError as error:
            raise UserError(f"{where}: {error.strerror}") from error
        except UnicodeDecodeError as error:
            raise UserError(f"{where}: not UTF-8 text") from error
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"{where}: not JSON ({error})") from error
