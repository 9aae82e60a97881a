"""One task by hand: adapt to it, keep the latent in a file, play it again and look at it.

The pipeline adapts to all tasks of a domain and tabulates. Here it is one task of one model, with
the same inference, methods and evaluation, and what comes out is the latent z. A model that others
trained is brought by an import, and makes a data set to infer from by roaming.
"""

import os
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from pydantic import Field, JsonValue
from torch import Tensor

from bfmpipe import api, code, plugins
from bfmpipe.adaptation.base import Problem, act_by_latent
from bfmpipe.adaptation.protocol import Evaluated, Evaluation, rollout_returns, start_states
from bfmpipe.agents import WEIGHTS, metamotivo
from bfmpipe.agents.learner import check_device
from bfmpipe.config import Config, parse
from bfmpipe.data.tables import Provenance, open_table
from bfmpipe.data.tensors import load_tensors, save_tensors
from bfmpipe.data.transitions import KIND, schema, write_pieces
from bfmpipe.envs import make_domain
from bfmpipe.envs import tasks as own_tasks
from bfmpipe.envs.batched import threads
from bfmpipe.envs.domain import Task
from bfmpipe.envs.rendering import check_film, film
from bfmpipe.files import file_digest
from bfmpipe.inference import Inference
from bfmpipe.inference.roaming import Roaming, rounds
from bfmpipe.metrics.adaptation import improvement
from bfmpipe.progress import progress
from bfmpipe.types import Array, UserError

Settings = dict[str, JsonValue]

_FAMILY = "by-hand"  # every task belongs to a family; here it is its only one
_HUMANOID = "humanoid"  # what public checkpoints were trained on
_ROUND = 256  # episodes that are played side by side
_ROAM = "roam"  # what settings of a data set are called that says how a model roamed


class Adapt(Config):
    """What to adapt to, and how."""

    domain: str = ""
    """The model's, if it is given at all."""
    task: str
    task_settings: Settings = Field(default_factory=dict)
    infer: Inference = Inference()
    method: str
    method_settings: Settings = Field(default_factory=dict)
    episodes: int = Field(50, ge=1)
    """Budget, in episodes' worth of environment steps."""
    every: int = Field(5, ge=1)
    """Episodes between evaluations."""
    evaluate: int = Field(32, ge=2)
    """Episodes an evaluation."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Of the networks and what they learn from."""
    seed: int = Field(0, ge=0)
    """Of the inference and the method."""


class ZeroShot(Config):
    """What to infer a latent for."""

    domain: str = ""
    task: str
    task_settings: Settings = Field(default_factory=dict)
    infer: Inference = Inference()
    seed: int = Field(0, ge=0)


class Import(Config):
    """Which domain an imported model is of."""

    domain: str = ""
    """The humanoid if it is not given and the widths fit."""
    domain_settings: Settings = Field(default_factory=dict)


class Play(Config):
    """How much to play."""

    episodes: int = Field(4, ge=1)


class Saved(Config):
    """The header of a latent's file."""

    kind: Literal["latent"] = "latent"
    agent: str
    domain: str
    domain_settings: Settings
    model: str
    """The model's directory when it was adapted."""
    model_sha256: str
    """Of the model's weights."""
    task: str
    task_settings: Settings
    infer: Inference = Inference()
    """How z_0 was inferred; files of earlier versions, which had the defaults, do not say it."""
    method: str
    method_settings: Settings
    seed: int
    env_steps: int
    """Spent by the method."""
    evaluation: Evaluation
    returns_before: tuple[float, ...]
    """Zero-shot, one an episode of the evaluation."""
    returns_after: tuple[float, ...]


def adapt(cfg: Adapt, *, model: Path, data: Path | None = None, latent: Path | None = None) -> None:
    """Infer a task's latent, adapt it, say what was gained, and save it.

    Args:
        cfg: the task and the method.
        model: the model's directory.
        data: the data set; the one that the pipeline puts beside its models if None.
        latent: the file to write; TASK-METHOD.safetensors here if None.

    Raises:
        UserError: for an unknown name or setting, a file that cannot be read or written, a
            `latent` that is no latent file, or a budget that does not allow one update.
    """
    pretrained, task = _prepare(model, cfg.domain, cfg.task, cfg.task_settings)
    method = plugins.load("adaptation", cfg.method)
    settings = parse(method.Config, cfg.method_settings, f"method {cfg.method}")
    latent = latent or Path(f"{cfg.task}-{cfg.method}.safetensors")
    check_device(cfg.device, "--device", kernels=True)
    _check_writable(latent)
    _check_replaceable(latent)
    transitions = api.read_transitions(_dataset(model, data))
    inferred = api.infer(pretrained, [task], transitions, inference=cfg.infer, seed=cfg.seed)
    evaluation = Evaluation(episodes=cfg.evaluate)
    began = time.perf_counter()
    evaluations = api.adapt(
        pretrained,
        [task],
        inferred,
        transitions,
        method=cfg.method,
        episodes=cfg.episodes,
        every=cfg.every,
        evaluation=evaluation,
        settings=cfg.method_settings,
        seed=cfg.seed,
        device=cfg.device,
        watch=lambda steps: bar.update(max(0, steps - bar.n)),
    )
    points, budget = [], cfg.episodes * pretrained.domain.config.episode_steps
    with progress(budget, f"{cfg.method} {cfg.task}", "step") as bar:
        for point in evaluations:
            points.append(point)
            seen = {"return": f"{point.returns.mean():.2f}", "cosine": f"{point.cosine[0]:.3f}"}
            bar.set_postfix(seen, refresh=False)
    seconds = time.perf_counter() - began
    first, last = points[0], points[-1]
    spent = last.env_steps / pretrained.domain.config.episode_steps
    print(
        f"{_described(pretrained, task)}: zero-shot {_mean(first.returns)} -> {cfg.method} "
        f"{_mean(last.returns)}{_gain(first, last)}, after {spent:.4g} of {cfg.episodes} episodes "
        f"and {seconds:.1f} s"
    )
    if _moved_weights(first, last):
        print(
            f"no latent is saved: {cfg.method} moves the actor's weights, and its latent is still "
            "the inferred one"
        )
        return
    header = Saved(
        agent=pretrained.card["agent"],
        domain=pretrained.domain.name,
        domain_settings=pretrained.domain.config.model_dump(mode="json"),
        model=os.path.abspath(model),
        model_sha256=file_digest(model / WEIGHTS),
        task=task.name,
        task_settings=task.settings.model_dump(mode="json"),
        infer=cfg.infer,
        method=cfg.method,
        method_settings=settings.model_dump(mode="json"),
        seed=cfg.seed,
        env_steps=last.env_steps,
        evaluation=evaluation,
        returns_before=tuple(first.returns[0].tolist()),
        returns_after=tuple(last.returns[0].tolist()),
    )
    tensors = {"z": torch.from_numpy(last.z[0]), "z_0": inferred.z[0], "w": inferred.w[0]}
    save_tensors(latent, tensors, header.model_dump(mode="json"))
    print(f"{latent}: the latent; `bfmpipe play {latent}` plays it")


def play_saved(
    cfg: Play,
    *,
    latent: Path,
    model: Path | None = None,
    task_file: str | None = None,
    video: Path | None = None,
) -> None:
    """Play a latent that `adapt` saved.

    Args:
        cfg: how much.
        latent: the file.
        model: the model's directory, if it is no longer where it was.
        task_file: the file of a task of one's own, if it is no longer where it was.
        video: a .gif, .mp4 or .png to draw.

    Raises:
        UserError: for a file that is damaged or none of `adapt`'s, a latent of another model, or a
            video that cannot be made.
    """
    tensors, header = load_tensors(latent)
    if header.get("kind") != "latent":
        raise UserError(
            f"{latent}: holds a {header.get('kind')}; expected a latent that `bfmpipe adapt` saved"
        )
    saved = parse(Saved, header, str(latent))
    if model is None and not Path(saved.model).is_dir():
        raise UserError(
            f"{latent}: its model was in {saved.model}, where there is none; say where it is now "
            "with --model"
        )
    model = model or Path(saved.model)
    settings = _task_now(latent, saved.task_settings, task_file)
    pretrained, task = _prepare(model, "", saved.task, settings)
    domain = pretrained.domain
    if file_digest(model / WEIGHTS) != saved.model_sha256:
        raise UserError(
            f"{latent}: a latent of another model than {model}, whose weights differ; it was "
            f"adapted with {saved.model}"
        )
    if domain.config.model_dump(mode="json") != saved.domain_settings:
        raise UserError(
            f"{latent}: was adapted under other settings of {domain.name} than those of {model}"
        )
    z = tensors.get("z", torch.empty(0))
    if z.shape != (pretrained.model.z_dim,) or not bool(z.isfinite().all()):
        raise UserError(f"{latent}: z must be {pretrained.model.z_dim} finite numbers")
    if video:
        _check_video(pretrained, video)
    _play(cfg, pretrained, task, z, saved.evaluation, saved.method, video)


def play_zero_shot(
    cfg: Play,
    zero_shot: ZeroShot,
    *,
    model: Path,
    data: Path | None = None,
    video: Path | None = None,
) -> None:
    """Infer a task's latent and play it; files and errors as for `adapt` and `play_saved`."""
    pretrained, task = _prepare(model, zero_shot.domain, zero_shot.task, zero_shot.task_settings)
    if video:
        _check_video(pretrained, video)
    transitions = api.read_transitions(_dataset(model, data))
    latent = api.infer(
        pretrained, [task], transitions, inference=zero_shot.infer, seed=zero_shot.seed
    )
    _play(cfg, pretrained, task, latent.z[0], Evaluation(), "zero-shot", video)


def import_metamotivo(cfg: Import, *, source: Path, destination: Path) -> None:
    """Write a checkpoint of Meta Motivo as a model of a domain.

    Args:
        cfg: the domain. If it is not said, and the checkpoint has not the humanoid's widths, the
            model is of none.
        source: the checkpoint's directory.
        destination: the model's directory, new or empty.

    Raises:
        UserError: see `agents.metamotivo.import_metamotivo`; or for an unknown domain or setting.
    """
    widths = metamotivo.widths(source)
    domain = make_domain(cfg.domain or _HUMANOID, cfg.domain_settings)
    fits = widths == (domain.obs_dim, domain.action_dim)
    if fits or cfg.domain or cfg.domain_settings:
        metamotivo.import_metamotivo(source, destination, domain)
        settings = domain.config.model_dump(mode="json")
        told = ", ".join(f"{name} {value}" for name, value in settings.items())
        print(f"{destination}: a model of {domain.name} ({told})")
        if settings.get("body") == "own":
            print(
                "returns on this body are not comparable with published ones, which are on "
                "HumEnv's (--domain-set body=humenv)"
            )
        return
    metamotivo.import_metamotivo(source, destination)
    print(
        f"{destination}: networks without a domain, since {domain.name} has {domain.obs_dim} "
        f"observations and {domain.action_dim} actions, and these {widths[0]} and {widths[1]}"
    )


def roam(cfg: Roaming, *, model: Path, data: Path) -> None:
    """Let a model play latents drawn at random, and store where it came.

    Args:
        cfg: how.
        model: the model's directory.
        data: the data set to write.

    Raises:
        UserError: for a model that cannot be loaded, or a `data` that cannot be written or is there
            and is none that this function wrote.
    """
    pretrained = api.load(model)
    _check_writable(data)
    _check_roamed(data)
    domain = pretrained.domain
    provenance = Provenance(
        KIND,
        {
            "domain": {"name": domain.name, "settings": domain.config.model_dump(mode="json")},
            _ROAM: cfg.model_dump(mode="json"),
        },
        code.digest(
            "bfmpipe.inference.roaming",
            plugins.module_name("envs", domain.name),
            plugins.module_name("models", pretrained.card["agent"]),
            own=plugins.own_directory(),
        ),
        source={"weights_sha256": file_digest(model / WEIGHTS)},
    )

    def pieces() -> Iterator[dict[str, Array]]:
        with progress(cfg.episodes, f"roam {domain.name}", "episode") as bar:
            for piece in rounds(pretrained.model, domain, cfg):
                yield piece
                bar.update(int(np.count_nonzero(piece["step"] == 0)))

    shape = schema(domain.obs_dim, domain.action_dim, domain.physics_dim)
    write_pieces(data, shape, pieces(), lambda: provenance)
    count = cfg.episodes * domain.config.episode_steps
    print(f"{data}: {count:,} transitions of {domain.name} in {cfg.episodes:,} episodes")


def _prepare(
    model: Path, domain: str, task: str, settings: Settings
) -> tuple[api.Pretrained, Task]:
    """Load a model, and make a task of its domain."""
    pretrained = api.load(model)
    name = pretrained.domain.name
    if domain and domain != name:
        raise UserError(f"--domain: {model} is a model of {name}, not of {domain}")
    file = settings.get("file")
    if isinstance(file, str):
        # played later, from elsewhere, it must be the same file
        file = os.path.abspath(file)
        settings = {"digest": own_tasks.digest(file), **settings, "file": file}
    (made,) = pretrained.domain.tasks(_FAMILY, [task], settings)
    return pretrained, made


def _task_now(latent: Path, settings: Settings, moved: str | None) -> Settings:
    """Settings of a saved latent's task, with its file as it is now.

    A latent plays the same whatever has become of the file: only the returns are the task's.
    """
    if "file" not in settings:
        if moved:
            raise UserError(f"{latent}: its task is built in; leave --task-set out")
        return settings
    file = moved or str(settings["file"])
    if not Path(file).is_file():
        raise UserError(
            f"{latent}: its task is a function of {file}, where there is none; say where it is now "
            "with --task-set file=FILE.py"
        )
    found = own_tasks.digest(file)
    if found != settings.get("digest"):
        print(
            f"warning: {file} has changed since {latent} was adapted to it; the returns are those "
            "of the task as it is now",
            file=sys.stderr,
        )
    return {**settings, "file": file, "digest": found}


def _dataset(model: Path, given: Path | None) -> Path:
    """The data set: the one given, or the pipeline's.

    That is its own episodes, experience.parquet beside it, where there is one, and else
    DOMAIN/data.parquet of DOMAIN/AGENT/SEED/.
    """
    if given:
        return given
    experience = Path(os.path.normpath(model / "../experience.parquet"))
    if experience.is_file():
        return experience
    path = Path(os.path.normpath(model / "../../../data.parquet"))
    if not path.is_file():
        raise UserError(
            f"{path}: no such file, where the pipeline puts the data set of {model}; say where it "
            "is with --data"
        )
    return path


def _check_writable(path: Path) -> None:
    """Find out before the work is done whether its file can be written."""
    if path.is_dir():
        raise UserError(f"{path}: is a directory; name a file to write")
    if path.is_symlink() or (path.exists() and not path.is_file()):
        raise UserError(f"{path}: is a link, device or pipe; name a plain file to write")
    existing = next(parent for parent in path.absolute().parents if parent.exists())
    try:
        tempfile.TemporaryFile(dir=existing).close()
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror}") from error


def _check_replaceable(path: Path) -> None:
    """Refuse to write over anything but an earlier latent, and announce that."""
    if not path.exists():
        return
    try:
        there = parse(Saved, load_tensors(path)[1], str(path))
    except UserError as error:
        raise UserError(
            f"{path}: is there already, and is no latent that `bfmpipe adapt` saved; name another "
            "file with --latent-out"
        ) from error
    print(
        f"{path}: holds a latent of {there.method} that returns {np.mean(there.returns_after):.2f};"
        " what this run saves will replace it",
        file=sys.stderr,
    )


def _check_roamed(path: Path) -> None:
    """Refuse to write over anything but what `roam` wrote, and announce that."""
    if not path.exists():
        return
    refusal = (
        f"{path}: is there already, and is no data set that `bfmpipe roam` wrote; name another file"
    )
    try:
        file, there = open_table(path, KIND)
    except UserError as error:
        raise UserError(refusal) from error
    file.close()
    if _ROAM not in there.settings:  # explored, which may have taken days
        raise UserError(refusal)
    print(f"{path}: holds an earlier data set of `bfmpipe roam`, to be replaced", file=sys.stderr)


def _check_video(pretrained: api.Pretrained, video: Path) -> None:
    check_film(pretrained.domain, video)
    _check_writable(video)


def _described(pretrained: api.Pretrained, task: Task) -> str:
    """The task with its settings: they are the domain's defaults where none were given."""
    settings = task.settings.model_dump(mode="json", exclude={"digest"})
    told = ", ".join(f"{name} {value}" for name, value in settings.items())
    return f"{pretrained.domain.name} {task.name}" + (f" ({told})" if told else "")


def _mean(returns: Array) -> str:
    """Mean of an evaluation's returns, with its standard error if there are several."""
    n = returns.size
    return f"{returns.mean():.2f}" + (f" ± {returns.std(ddof=1) / np.sqrt(n):.2f}" if n > 1 else "")


def _gain(first: Evaluated, last: Evaluated) -> str:
    if abs(first.returns.mean()) < 0.005:  # shown as zero
        return ""
    percent = improvement(last.returns.mean(), first.returns.mean())
    return f" ({round(float(percent)):+d} %)" if np.isfinite(percent) else ""  # no -0


def _moved_weights(first: Evaluated, last: Evaluated) -> bool:
    """Whether the policy became another while its latent stayed."""
    return np.array_equal(first.z, last.z) and not np.array_equal(first.physics, last.physics)


def _play(
    cfg: Play,
    pretrained: api.Pretrained,
    task: Task,
    z: Tensor,
    evaluation: Evaluation,
    method: str,
    video: Path | None,
) -> None:
    """Play episodes from the evaluation's start states, the first of them; say what they return."""
    domain = pretrained.domain
    drawn = evaluation.model_copy(update={"episodes": max(evaluation.episodes, cfg.episodes)})
    starts = start_states(domain, drawn)[: cfg.episodes]
    rounds, shown = [], (np.empty(0), np.empty(0))
    for first in range(0, len(starts), _ROUND):
        of_round, *paths = played(pretrained, task, z, starts[first : first + _ROUND])
        rounds.append(of_round)
        if first == 0:
            shown = (paths[0], paths[1])
    returns = np.concatenate(rounds)
    for i, value in enumerate(returns, start=1):
        print(f"episode {i:<4}{value:10.2f}")
    part = f", the first of the evaluation's {drawn.episodes}"
    print(
        f"{_described(pretrained, task)}, {method}: mean return {_mean(returns)} of {len(returns)} "
        f"episode{'s' * (len(returns) > 1)}{part * (len(returns) < drawn.episodes)}"
    )
    if video:
        physics, rewards = shown
        so_far = np.concatenate([np.zeros_like(rewards[:1]), np.cumsum(rewards, axis=0)])

        def caption(step: int, episode: int) -> str:
            return f"step {step}  return {so_far[step, episode]:.1f}"

        film(domain, video, physics, caption, task)
        print(video)


def played(
    pretrained: api.Pretrained, task: Task, z: Tensor, starts: Array
) -> tuple[Array, Array, Array]:
    """Play a latent as an evaluation does, to the same bits.

    Args:
        pretrained: the model.
        task: of its domain.
        z: (d,).
        starts: (n, physics_dim).

    Returns:
        Returns (n,), states passed (episode_steps + 1, n, physics_dim), and the rewards on the way
        (episode_steps, n).
    """
    model, domain = pretrained.model, pretrained.domain
    problem = Problem(
        domain=domain,
        model=model,
        tasks=[task],
        w=z[None],  # of no use to a rollout
        z=z[None],
        budget=0,
        visited=starts,
        threads=threads(),
    )
    actions: list[Array] = []

    def act(obs: Tensor) -> Tensor:
        action = act_by_latent(model, obs, problem.z)
        actions.append(action[0].numpy())
        return action

    with torch.no_grad():
        returns, physics = rollout_returns(problem, act, starts)
    physics = physics[:, 0]
    pairs = zip(physics[1:], actions, strict=True)
    rewards = np.stack([domain.relabel(task, state, action) for state, action in pairs])
    return returns[0], physics, rewards
