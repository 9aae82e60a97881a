"""The command line: `bfmpipe STAGE --cfg JSON --FILE PATH ...`, derived from the signatures.

Every function of bfmpipe.stages named like its module is a command. Its first parameter is the
settings, given as JSON or as @file; its keyword-only parameters are files. `bfmpipe doctor` is no
stage: it has neither, and says whether the installation is well. Nor are `bfmpipe import-metamotivo
DIR OUT`, which brings a model that others trained, and `bfmpipe roam`, which lets a model make its
own data. `bfmpipe adapt` without the stage's settings adapts to one task by hand, and `bfmpipe
play` plays what came of it.
"""

import argparse
import ast
import importlib
import inspect
import json
import os
import pkgutil
import shlex
import signal
import subprocess
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, get_args, get_origin

from bfmpipe import plugins, stages
from bfmpipe.config import canonical, parse
from bfmpipe.report import timing
from bfmpipe.types import UserError, meant

NAMES = tuple(
    sorted(
        module.name
        for module in pkgutil.iter_modules(stages.__path__)
        if module.name not in ("sections",)
    )
)


def let_threads_sleep() -> None:
    """Keep idle threads of torch off the cores that the simulator needs; torch reads it on import.

    They spin first for about as long as a network's next operation takes to come: where each had
    to wake them, two threads were slower than one.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")


def main(argv: list[str] | None = None) -> int:
    """Run a stage; 0, or 2 after one sentence on bad input, or 1 where the doctor finds a fault."""
    argv = sys.argv[1:] if argv is None else argv
    let_threads_sleep()
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # as a rule gives it: by hand, the same bytes
    if argv[:1] != ["play"]:  # which may draw
        os.environ.setdefault("MUJOCO_GL", "disabled")
    top = argparse.ArgumentParser(
        prog="bfmpipe",
        description="Fast adaptation of behavioural foundation models.",
        epilog=_commands(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    names = (*NAMES, *_OTHERS)
    top.add_argument("--version", action="version", version=metadata.version("bfmpipe"))
    top.add_argument("command", metavar="COMMAND", help="`bfmpipe COMMAND --help` says more")
    name = argv[0] if argv else ""
    if name in ("-h", "--help", "--version"):
        top.parse_args(argv[:1])
    if name not in names:
        said = f"no command '{name}'{meant(name, names)}" if name else "no command"
        top.error(f"{said}; there are {', '.join(names)}")
    try:
        if name in _OTHERS:
            return _OTHERS[name][1](argv[1:])
        if name == "adapt" and not _is_stage(argv[1:]):
            return _adapt_by_hand(argv[1:])
        _run(name, argv[1:])
    except UserError as error:
        print(f"bfmpipe {name}: error: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # whoever reads has had enough: `bfmpipe doctor | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the rest goes nowhere
        return 128 + signal.SIGPIPE
    except OSError as error:  # a full disk, a missing permission
        where = f"{error.filename}: " if error.filename else ""
        said = error.strerror or " ".join(map(str, error.args)) or type(error).__name__
        print(f"bfmpipe {name}: error: {where}{said}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"bfmpipe {name}: interrupted", file=sys.stderr)
        return 130
    return 0


class _Once(argparse.Action):
    """Store a value, as argparse does, but not over another one that was given."""

    def __call__(
        self, parser: Any, namespace: argparse.Namespace, values: Any, option: str | None = None
    ) -> None:
        if getattr(namespace, self.dest) is not None:
            raise UserError(f"{option} is given twice")
        setattr(namespace, self.dest, values)


def _parser(**settings: Any) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(**settings)
    parser.register("action", None, _Once)
    return parser


def _commands() -> str:
    """Every command and the sentence it begins with; read, not imported, since torch is slow."""
    said = {name: first for name, (first, _) in _OTHERS.items()}
    stage = {name: _first_sentence(Path(stages.__path__[0], f"{name}.py")) for name in NAMES}
    width = max(map(len, (*said, *stage))) + 2
    lines = ["stages of the pipeline:", *(f"  {n:<{width}}{s}" for n, s in stage.items())]
    lines += ["", "others:", *(f"  {n:<{width}}{s}" for n, s in said.items())]
    lines += [f"  {'adapt':<{width}}without --cfg: adapt to one task by hand"]
    return "\n".join(lines)


def _first_sentence(path: Path) -> str:
    head = (ast.get_docstring(ast.parse(path.read_text("utf-8"))) or "").split("\n\n")[0]
    return " ".join(head.split()).partition(": ")[2]


def _run(name: str, argv: list[str]) -> None:
    stage = getattr(importlib.import_module(f"bfmpipe.stages.{name}"), name)
    hints = inspect.get_annotations(stage, eval_str=True)
    parameters = inspect.signature(stage).parameters
    cfg_name, *files = parameters
    parser = _parser(prog=f"bfmpipe {name}", description=inspect.getdoc(stage))
    parser.add_argument(f"--{cfg_name}", required=True, help="settings as JSON, or @file")
    for file in files:
        many = get_origin(hints[file]) in (list, Sequence)
        kind = get_args(hints[file])[0] if many else hints[file]
        parser.add_argument(
            f"--{file}",
            required=parameters[file].default is inspect.Parameter.empty,
            type=kind,
            nargs="*" if many else None,
            metavar="PATH",
        )
    parser.add_argument("--cost", type=Path, metavar="PATH", help="where to say what the job cost")
    given = {k: v for k, v in vars(parser.parse_args(argv)).items() if v is not None}
    cost = given.pop("cost", None)
    cfg = parse(hints[cfg_name], _json(given.pop(cfg_name)), f"--{cfg_name}")
    # what a log begins with: pasted into a shell, it does the same again
    words = ["bfmpipe", name, f"--{cfg_name}", canonical(cfg)]
    for file, path in given.items():
        words += [f"--{file}", *map(str, path if isinstance(path, list) else [path])]
    own = plugins.own_directory()
    where = "" if own is None else f"{plugins.VARIABLE}={shlex.quote(str(own))} "
    print(where + shlex.join(words), file=sys.stderr, flush=True)
    stage(cfg, **given)
    if cost is not None:
        try:
            timing.write(cost)
        except (OSError, UserError) as error:  # a job that failed would lose what it has made
            print(f"warning: what this job cost is not known: {error}", file=sys.stderr)


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


_IMPORT = "write a checkpoint of Meta Motivo as a model directory"


def _import_metamotivo(argv: list[str]) -> int:
    parser = _parser(prog="bfmpipe import-metamotivo", description=_IMPORT, allow_abbrev=False)
    parser.add_argument("source", type=Path, metavar="DIR", help="config.json, model.safetensors")
    parser.add_argument("destination", type=Path, metavar="OUT", help="the directory to write")
    parser.add_argument(
        "--domain",
        help="what it is a model of (humanoid where it has 358 observations and 69 actions, as "
        "public checkpoints have; else none, which leaves networks to load from Python)",
    )
    _add_settings(
        parser,
        "--domain-set",
        "settings of the domain; body=humenv for HumEnv's own body, the only one on which returns "
        "are comparable with published ones",
    )
    given = vars(parser.parse_args(argv))
    files = {name: given.pop(name) for name in ("source", "destination")}
    settings = {"domain_settings": _settings(given.pop("domain_set"), "--domain-set")}
    from bfmpipe import by_hand

    cfg = parse(by_hand.Import, {**settings, **_chosen(given)}, "the arguments")
    by_hand.import_metamotivo(cfg, **files)
    return 0


_ROAM = "let a model play latents drawn at random: a data set to infer from, of its own making"


def _roam(argv: list[str]) -> int:
    parser = _parser(
        prog="bfmpipe roam",
        description="Let a model play latents drawn uniformly from the sphere, from the states "
        "that exploration begins in, and store where it came: a data set for `bfmpipe adapt` and "
        "`bfmpipe play`.",
        allow_abbrev=False,
    )
    parser.add_argument("--model", required=True, type=Path, metavar="DIR", help="the model")
    parser.add_argument("--data", required=True, type=Path, metavar="FILE", help="to write")
    for name, said in (
        ("episodes", "episodes to play (100)"),
        ("latent-steps", "control steps that a latent is played before the next is drawn (150)"),
        ("noise-std", "of Gaussian noise on the actions, which are clipped to [-1, 1] (0)"),
        ("num-envs", "episodes side by side, which are in memory (32)"),
        ("seed", "of all randomness (0)"),
    ):
        parser.add_argument(f"--{name}", type=_value, metavar="N", help=said)
    given = vars(parser.parse_args(argv))
    files = {name: given.pop(name) for name in ("model", "data")}
    from bfmpipe import by_hand

    by_hand.roam(parse(by_hand.Roaming, _chosen(given), "the arguments"), **files)
    return 0


_BY_HAND = """\
Adapt a model to one task by hand: infer its latent from the data set, adapt it, say what was
gained, and save it for `bfmpipe play`. With --cfg it is the pipeline's stage instead, on all tasks
of a domain: the usage below."""


def _is_stage(argv: list[str]) -> bool:
    """Whether `bfmpipe adapt` is meant as the stage: by the options that it alone has."""
    own = {"--cfg", "--dataset", "--latents", "--curves", "--trajectories", "--cost"}
    return any(word.partition("=")[0] in own for word in argv)


def _adapt_by_hand(argv: list[str]) -> int:
    parser = _parser(
        prog="bfmpipe adapt",
        description=_BY_HAND,
        epilog="the stage, which `bfmpipe adapt --cfg {} --help` explains:\n"
        "  bfmpipe adapt --cfg JSON --model DIR --dataset FILE --latents FILE --curves FILE\n"
        "                --trajectories FILE",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--model", required=True, type=Path, metavar="DIR", help="the model")
    _add_task(parser, required=True)
    parser.add_argument(
        "--method", required=True, help="a module of bfmpipe.adaptation, such as lola"
    )
    _add_settings(
        parser,
        "--set",
        "settings of the method; preset=small for those of a small model on two cores, where the "
        "method has presets",
    )
    for name, said in (
        ("episodes", "budget in episodes' worth of steps (50)"),
        ("every", "episodes between evaluations (5)"),
        ("evaluate", "episodes an evaluation, which cost the budget nothing (32)"),
    ):
        parser.add_argument(f"--{name}", type=_value, metavar="N", help=said)
    parser.add_argument("--device", metavar="NAME", help="of the networks: cpu, or cuda (cpu)")
    parser.add_argument(
        "--latent-out",
        type=Path,
        metavar="FILE",
        help="where the adapted latent goes (TASK-METHOD.safetensors)",
    )
    given = vars(parser.parse_args(argv))
    files = {"model": given.pop("model"), "data": given.pop("data")}
    latent = given.pop("latent_out")
    settings = {"method_settings": _settings(given.pop("set"), "--set"), **_task(given)}
    from bfmpipe import by_hand

    by_hand.adapt(parse(by_hand.Adapt, settings, "the arguments"), **files, latent=latent)
    return 0


_PLAY = "play a latent that `bfmpipe adapt` saved, or zero-shot, and make a film of it"


def _play(argv: list[str]) -> int:
    parser = _parser(
        prog="bfmpipe play",
        usage="bfmpipe play FILE [--model DIR] [--task-set file=FILE.py] [--episodes N] "
        "[--video FILE]\n"
        "       bfmpipe play --model DIR --task TASK [--domain DOMAIN] [--task-set KEY=VALUE ...]\n"
        "                    [--infer KEY=VALUE ...] [--data FILE] [--seed N] [--episodes N]\n"
        "                    [--video FILE]",
        description="Play a latent that `bfmpipe adapt` saved, from the start states that it was "
        "evaluated at; or zero-shot, what inference gives for a task.",
        allow_abbrev=False,
    )
    parser.add_argument("latent", nargs="?", type=Path, metavar="FILE", help="a saved latent")
    parser.add_argument(
        "--model", type=Path, metavar="DIR", help="of the model; that of a saved latent is known"
    )
    _add_task(parser, required=False)
    parser.add_argument("--episodes", type=_value, metavar="N", help="episodes to play (4)")
    parser.add_argument(
        "--video", type=Path, metavar="FILE", help="a .gif, .mp4 or .png to draw them into"
    )
    given = vars(parser.parse_args(argv))
    latent, model, data, video = (given.pop(n) for n in ("latent", "model", "data", "video"))
    settings = _task(given)
    episodes = {k: settings.pop(k) for k in ("episodes",) if k in settings}
    task_file = None
    if latent is not None and list(settings["task_settings"]) == ["file"]:  # it has moved
        task_file = str(settings["task_settings"].pop("file"))
    named = {**settings, **({"data": data} if data else {})}
    if latent is None and (model is None or "task" not in named):
        raise UserError("name the file of a latent, or a --model and a --task to play zero-shot")
    asked = next((name for name, value in named.items() if value != {}), None)
    if latent is not None and asked:
        option = asked.replace("_settings", "_set").replace("_", "-")
        raise UserError(f"{latent} says what is played; leave --{option} out")
    if "MUJOCO_GL" not in os.environ:  # it is read when mujoco is imported
        os.environ["MUJOCO_GL"] = _opengl() if video else "disabled"
    from bfmpipe import by_hand

    cfg = parse(by_hand.Play, episodes, "the arguments")
    if latent is not None:
        by_hand.play_saved(cfg, latent=latent, model=model, task_file=task_file, video=video)
        return 0
    zero_shot = parse(by_hand.ZeroShot, settings, "the arguments")
    by_hand.play_zero_shot(cfg, zero_shot, model=model, data=data, video=video)
    return 0


def _opengl() -> str:
    """The first of MuJoCo's backends that works here without a display, or "disabled"."""
    for name in ("egl", "osmesa"):
        # tried in a process of its own: where its library is missing, mujoco cannot be imported
        tried = subprocess.run(
            [sys.executable, "-c", "import mujoco; mujoco.GLContext(8, 8).make_current()"],
            env={**os.environ, "MUJOCO_GL": name},
            capture_output=True,
            check=False,
        )
        if tried.returncode == 0:
            return name
    return "glfw" if "DISPLAY" in os.environ else "disabled"


def _add_task(parser: argparse.ArgumentParser, *, required: bool) -> None:
    """The options that say which task of which model."""
    parser.add_argument("--domain", help="the model's; refused if it is another")
    parser.add_argument("--task", required=required, help="a task of the domain, such as run")
    _add_settings(parser, "--task-set", "settings of the task; file=FILE.py for one of your own")
    parser.add_argument(
        "--data",
        type=Path,
        metavar="FILE",
        help="data set to infer from (data.parquet where the pipeline puts it, DIR/../../..)",
    )
    _add_settings(parser, "--infer", "settings of the inference, such as reward_weighting=softmax")
    parser.add_argument("--seed", type=_value, metavar="N", help="of all randomness (0)")


def _add_settings(parser: argparse.ArgumentParser, option: str, said: str) -> None:
    parser.add_argument(
        option, nargs="+", action="extend", default=[], metavar="KEY=VALUE", help=said
    )


def _task(given: dict[str, Any]) -> dict[str, Any]:
    """Settings from options: those not given keep their defaults."""
    task_settings = _settings(given.pop("task_set"), "--task-set")
    infer = _settings(given.pop("infer"), "--infer")
    return {**_chosen(given), "task_settings": task_settings, "infer": infer}


def _chosen(given: dict[str, Any]) -> dict[str, Any]:
    """The options that were given."""
    return {name: value for name, value in given.items() if value is not None}


def _settings(words: list[str], option: str) -> dict[str, Any]:
    """Settings as they stand on the command line, KEY=VALUE."""
    settings: dict[str, Any] = {}
    for word in words:
        key, equals, text = word.partition("=")
        if not (key and equals):
            raise UserError(f"{option}: '{word}' is not KEY=VALUE")
        if key in settings:
            raise UserError(f"{option}: {key} is given twice")
        settings[key] = _value(text)
    return settings


def _value(text: str) -> Any:
    """A value as JSON has it, or text."""
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


#: The commands that are no stages, each with what it does.
_OTHERS = {
    "doctor": (_DOCTOR, _doctor),
    "import-metamotivo": (_IMPORT, _import_metamotivo),
    "play": (_PLAY, _play),
    "roam": (_ROAM, _roam),
}


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
        raise UserError(
            f"{where}: not JSON ({error}); a stage takes the settings of one job, which stand in "
            "the first line of its log, and snakemake takes the experiment file"
        ) from error
