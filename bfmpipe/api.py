"""The library as a user sees it: load a model, infer a task's latent, adapt it.

pretrained = bfmpipe.load("results/point_mass_maze/fb/seed0/model")
tasks = pretrained.domain.tasks("reach", ["reach_top_right"], {"target_size": 0.05})
data = bfmpipe.read_transitions("results/point_mass_maze/data.parquet")
latent = bfmpipe.infer(pretrained, tasks, data)
for point in bfmpipe.adapt(pretrained, tasks, latent, data, method="lola", episodes=64):
    print(point.env_steps, point.returns.mean())

goal = bfmpipe.infer_goal(pretrained, data.obs[[1000]])  # rewards are not the only way to ask
starts = pretrained.domain.start_states(4, numpy.random.default_rng(0))
print(bfmpipe.play(pretrained, goal.z[0], starts).physics[-1])
"""

import copy
import reprlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from bfmpipe import plugins
from bfmpipe.adaptation.base import Problem
from bfmpipe.adaptation.checkpoint import Checkpoint
from bfmpipe.adaptation.protocol import Evaluated, Evaluation, start_states
from bfmpipe.adaptation.protocol import adapt as run_protocol
from bfmpipe.agents import Model, load_model
from bfmpipe.agents.base import check_outputs
from bfmpipe.agents.learner import check_device
from bfmpipe.agents.stack import Stack
from bfmpipe.config import parse
from bfmpipe.data.transitions import Transitions, check_domain
from bfmpipe.data.transitions import read as read_transitions
from bfmpipe.envs import Domain, make_domain
from bfmpipe.envs.batched import BatchedEnv, threads
from bfmpipe.envs.domain import Task
from bfmpipe.envs.tasks import OwnTask
from bfmpipe.inference import goal, reward, roaming, tracking
from bfmpipe.inference.reward import Inference, Latent
from bfmpipe.types import Array, UserError, counted

__all__ = [
    "Played",
    "Pretrained",
    "adapt",
    "adapt_together",
    "infer",
    "infer_goal",
    "infer_tracking",
    "load",
    "make_domain",
    "play",
    "read_transitions",
    "roam",
]


@dataclass(frozen=True)
class Pretrained:
    """A frozen model and the domain it was trained on; `card` is its config.json.

    A model of one's own, made anywhere, needs no directory: `Pretrained(model, domain)`.

    Raises:
        UserError: for a model that does not fit the domain, or that gives other shapes than the
            interface has.
    """

    model: Model
    domain: Domain
    card: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse what would fail later, or give wrong numbers."""
        model, domain = self.model, self.domain
        if (model.obs_dim, model.action_dim) != (domain.obs_dim, domain.action_dim):
            raise UserError(
                f"a model of {model.obs_dim} observations and {model.action_dim} actions; "
                f"{domain.name} has {domain.obs_dim} and {domain.action_dim}"
            )
        check_outputs(model)


def load(directory: Path | str) -> Pretrained:
    """A pretrained model from its directory.

    Raises:
        UserError: for a model that is missing, damaged, or does not fit its domain.
    """
    if Path(directory).is_file():
        raise UserError(
            f"{directory}: is a file; a model is a directory with config.json and model.safetensors"
        )
    model, card = load_model(directory)
    if "imported" in card and "domain" not in card:
        raise UserError(
            f"{directory}: an imported model without a domain: it has no tasks to infer, adapt to "
            "or play; import it again with --domain where one has its widths, or take its networks "
            "from `bfmpipe.agents.load_model` (see docs/agents.md)"
        )
    for name in ("domain", "domain_settings"):
        if card.get(name) is None:
            raise UserError(f"{directory}: config.json does not say the model's {name}")
    domain = make_domain(card["domain"], card["domain_settings"])
    try:
        return Pretrained(model, domain, card)
    except UserError as error:
        raise UserError(f"{directory}: {error}") from error


def infer(
    pretrained: Pretrained,
    tasks: Sequence[Task],
    data: Transitions,
    *,
    inference: Inference | None = None,
    seed: int = 0,
) -> Latent:
    """Zero-shot inference for each of T tasks: w and z, (T, d).

    Args:
        pretrained: the model.
        tasks: of its domain.
        data: transitions of the same domain, relabelled with each task's reward.
        inference: how; the defaults if None.
        seed: of the choice of samples.

    Raises:
        UserError: for no tasks or what is none, data of another domain, or a task whose reward is
            the same on all samples.
    """
    domain = pretrained.domain
    _check_tasks(tasks, domain)
    inference = inference or Inference()
    rows = _reached(pretrained, data, inference.samples, seed)
    obs = torch.from_numpy(data.obs[rows])
    latents = []
    for task in tasks:
        rewards = domain.relabel(task, data.physics[rows], data.action[rows - 1])
        try:
            latents.append(
                reward.infer(pretrained.model, obs, torch.from_numpy(rewards), inference)
            )
        except UserError as error:
            raise UserError(f"task {task}: {error}") from error
    return Latent(*(torch.stack(column) for column in zip(*latents, strict=True)))


def infer_goal(
    pretrained: Pretrained,
    goal_obs: Array | Tensor,
    data: Transitions | None = None,
    *,
    inference: Inference | None = None,
    seed: int = 0,
) -> Latent:
    """Zero-shot inference of reaching each of G goals: w and z, (G, d); see `inference.goal`.

    Args:
        pretrained: the model.
        goal_obs: (G, obs_dim), observations of the goals.
        data: transitions of the same domain, for a model whose inference is by least squares.
        inference: how; the defaults if None.
        seed: of the choice of samples.

    Raises:
        UserError: where data are needed and there are none, or the observations are none of this
            domain.
    """
    model, inference = pretrained.model, inference or Inference()
    obs = _observations(pretrained, goal_obs, "goal_obs")
    return goal.infer_goal(model, obs, inference, _sample(pretrained, data, inference, seed))


def infer_tracking(
    pretrained: Pretrained,
    frames: Array | Tensor,
    data: Transitions | None = None,
    *,
    window: int = 8,
    inference: Inference | None = None,
    seed: int = 0,
) -> Tensor:
    """Zero-shot inference of tracking a motion: z (T, d), one a step; see `inference.tracking`.

    Args:
        pretrained: the model.
        frames: (T, obs_dim), observations one a control step: row t is where step t should end.
        data: see `infer_goal`.
        window: frames ahead that a latent is the mean of.
        inference: how; the defaults if None.
        seed: of the choice of samples.

    Raises:
        UserError: as `infer_goal`, or for a window of no frames.
    """
    model, inference = pretrained.model, inference or Inference()
    obs = _observations(pretrained, frames, "frames")
    sample = _sample(pretrained, data, inference, seed)
    return tracking.infer_tracking(model, obs, inference, sample, window=window)


def roam(
    pretrained: Pretrained,
    *,
    episodes: int,
    latent_steps: int = 150,
    noise_std: float = 0.0,
    num_envs: int = 32,
    seed: int = 0,
) -> Transitions:
    """A data set of the model's own making: it plays latents uniform on the sphere.

    Args:
        pretrained: the model.
        episodes: how many, each from one of the domain's states for exploration.
        latent_steps: control steps that a latent is played before the next one is drawn.
        noise_std: of Gaussian noise on the actions, which are clipped to [-1, 1].
        num_envs: episodes side by side; the others follow in rounds.
        seed: of starts, latents and noise.

    Raises:
        UserError: for a count that is no positive integer, or a negative `noise_std`.
    """
    counts = {"episodes": episodes, "latent_steps": latent_steps, "num_envs": num_envs}
    counts = {name: counted(name, value) for name, value in counts.items()}
    settings = {**counts, "noise_std": noise_std, "seed": seed}
    config = parse(roaming.Roaming, settings, "roam")
    pieces = list(roaming.rounds(pretrained.model, pretrained.domain, config))
    columns = {name: np.concatenate([piece[name] for piece in pieces]) for name in pieces[0]}
    domain = pretrained.domain
    return Transitions(domain.name, domain.config.model_dump(mode="json"), **columns)


class Played(NamedTuple):
    """What `play` passed through, from n start states in T steps.

    physics (T + 1, n, physics_dim); obs (T + 1, n, obs_dim); action (T, n, action_dim): row t + 1
    is what action t led to.
    """

    physics: Array
    obs: Array
    action: Array


@torch.no_grad()
def play(pretrained: Pretrained, z: Tensor, starts: Array) -> Played:
    """Play a latent, or a sequence of them, from given states.

    Args:
        pretrained: the model.
        z: (d,), for a whole episode; or (T, d), one a step, for T steps.
        starts: (n, physics_dim), e.g. of `Domain.start_states`.

    Raises:
        UserError: where z or starts have another shape.
    """
    model, domain = pretrained.model, pretrained.domain
    if z.dim() not in (1, 2) or z.shape[-1] != model.z_dim:
        raise UserError(
            f"z has the shape {tuple(z.shape)}; valid: ({model.z_dim},), or (steps, {model.z_dim})"
        )
    if starts.ndim != 2 or not len(starts) or starts.shape[1] != domain.physics_dim:
        raise UserError(
            f"starts have the shape {starts.shape}; {domain.name} needs (n, {domain.physics_dim})"
        )
    latents = z.expand(domain.config.episode_steps, -1) if z.dim() == 1 else z
    n = len(starts)
    env = BatchedEnv(domain, n, threads())
    obs = [env.reset(starts)]
    physics, actions = [env.physics], []
    for latent in latents:
        action = model.actor(torch.from_numpy(obs[-1]), latent.expand(n, -1)).numpy()
        obs.append(env.step(action))
        physics.append(env.physics)
        actions.append(action)
    action = np.stack(actions) if actions else np.empty((0, n, domain.action_dim), np.float32)
    return Played(np.stack(physics), np.stack(obs), action)


def _reached(pretrained: Pretrained, data: Transitions, samples: int, seed: int) -> Array:
    """Rows of the data whose states training reached; `samples` of them, or all."""
    check_domain(data, pretrained.domain)
    stride = pretrained.model.config.stride
    reached = data.index_of(stride) + stride
    rng = np.random.default_rng(seed)
    return np.sort(rng.choice(reached, min(samples, len(reached)), replace=False))


def _sample(
    pretrained: Pretrained, data: Transitions | None, inference: Inference, seed: int
) -> Tensor | None:
    """Observations (n, obs_dim) of the data for goals' weights, where these need any."""
    if data is None or not goal.needs_sample(pretrained.model, inference):
        return None
    return torch.from_numpy(data.obs[_reached(pretrained, data, inference.samples, seed)])


def _observations(pretrained: Pretrained, obs: Array | Tensor, name: str) -> Tensor:
    """Observations (n, obs_dim) as the model takes them."""
    obs = torch.as_tensor(obs).to(pretrained.model.obs_mean)
    width = pretrained.domain.obs_dim
    if obs.dim() != 2 or not len(obs) or obs.shape[1] != width:
        raise UserError(f"{name} has the shape {tuple(obs.shape)}; valid: (n, {width})")
    if not bool(obs.isfinite().all()):
        raise UserError(f"{name} holds a number that is not finite")
    return obs


def _check_tasks(tasks: Sequence[Task], domain: Domain) -> None:
    """Refuse what is no list of tasks of the domain, but for their settings."""
    how = 'valid: a list of tasks, such as domain.tasks("mine", ["TASK"], {})'
    if isinstance(tasks, str | Task) or not isinstance(tasks, Iterable):
        raise UserError(f"tasks is {_named(tasks)}, alone; {how}")
    for task in tasks:
        if not isinstance(task, Task):
            raise UserError(f"tasks holds {_named(task)}, which is no task; {how}")
        if not isinstance(task, OwnTask) and not domain.has_task(task.name):
            raise UserError(
                f"task {task} is none of {domain.name}'s, which has {', '.join(domain.task_names)}"
            )
    if not len(tasks):
        raise UserError(f"tasks is empty; {how}")


def _on(device: str, model: Model) -> Model:
    """The model there: itself, or a copy."""
    there = model.obs_mean.device.type == device
    return model if there else copy.deepcopy(model).to(device)


def _named(value: object) -> str:
    return f"the task {value}" if isinstance(value, Task) else reprlib.repr(value)


def _check_latent(latent: Latent, tasks: Sequence[Task], model: Model) -> None:
    shape = (len(tasks), model.z_dim)
    for name, tensor in latent._asdict().items():
        if tuple(tensor.shape) != shape:
            raise UserError(
                f"latent.{name} has the shape {tuple(tensor.shape)}; valid: {shape}, a row a task"
            )


def adapt(
    pretrained: Pretrained,
    tasks: Sequence[Task],
    latent: Latent,
    data: Transitions,
    *,
    method: str,
    episodes: int,
    every: int = 16,
    evaluation: Evaluation | None = None,
    settings: Mapping[str, Any] | None = None,
    seed: int = 0,
    device: str = "cpu",
    watch: Callable[[int], object] | None = None,
) -> Iterator[Evaluated]:
    """Adapt to T tasks at once; an evaluation before, every `every` episodes, and after.

    Args:
        pretrained: the model; it stays as it is.
        tasks: T tasks of its domain.
        latent: where to start: w and z, (T, d).
        data: whose states rollouts may start from; some methods read what was observed there
            too (`columns_of`).
        method: a module of bfmpipe.adaptation, e.g. "lola".
        episodes: the budget a task, in episodes.
        every: episodes between evaluations.
        evaluation: how to evaluate; the defaults if None.
        settings: of the method; what is left out keeps its default, or that of a `preset`.
        seed: of the method's randomness; the evaluation has its own.
        device: of networks and what they learn from, "cpu" or "cuda"; the simulator is on the CPU.
            The random numbers are the same, what is made of them but for rounding.
        watch: called with the environment steps that were spent, a task, whenever there are more.

    Raises:
        UserError: for unknown names or settings, tasks or a latent that do not fit, a budget that
            does not allow one update, or a device that is not there.
    """
    points = adapt_together(
        [pretrained],
        tasks,
        [latent],
        data,
        method=method,
        episodes=episodes,
        every=every,
        evaluation=evaluation,
        settings=settings,
        seeds=[seed],
        device=device,
        watch=watch,
    )
    return (point for (point,) in points)


def columns_of(method: str) -> tuple[str, ...]:
    """Columns of a data set that a method reads; see `read_transitions`."""
    needs_obs = plugins.load("adaptation", method).Method.needs_visited_obs
    return ("obs", "physics") if needs_obs else ("physics",)


def adapt_together(
    pretrained: Sequence[Pretrained],
    tasks: Sequence[Task],
    latents: Sequence[Latent],
    data: Transitions,
    *,
    method: str,
    episodes: int,
    every: int = 16,
    evaluation: Evaluation | None = None,
    settings: Mapping[str, Any] | None = None,
    seeds: Sequence[int],
    device: str = "cpu",
    checkpoint: Checkpoint | None = None,
    watch: Callable[[int], object] | None = None,
) -> Iterator[tuple[Evaluated, ...]]:
    """`adapt` for S models at once, as one batch of S x T tasks; an evaluation of each at a time.

    Each has the random numbers, and but for rounding the results, that it has alone.

    Args:
        pretrained: S models of one domain and agent, with equal settings: e.g. those of S seeds.
        tasks: see `adapt`.
        latents: where each model starts.
        data: see `adapt`.
        method: see `adapt`.
        episodes: see `adapt`.
        every: see `adapt`.
        evaluation: see `adapt`; the same episodes for all.
        settings: see `adapt`.
        seeds: of the method's randomness, one a model.
        device: see `adapt`.
        checkpoint: where to go on, and what to write on the way; nothing if None.
        watch: see `adapt`.

    Raises:
        UserError: as `adapt`, or for models that differ in more than their weights.
    """
    domain = pretrained[0].domain
    episodes, every = counted("episodes", episodes), counted("every", every)
    _check_tasks(tasks, domain)
    if len(latents) != len(pretrained):
        raise UserError(f"{len(latents)} latents for {len(pretrained)} models; give one each")
    for other in pretrained[1:]:
        if (other.domain.name, other.domain.config) != (domain.name, domain.config):
            raise UserError(
                f"models of {domain.name} and of {other.domain.name}, or of other settings of it, "
                "cannot be adapted as one"
            )
    for one, latent in zip(pretrained, latents, strict=True):
        _check_latent(latent, tasks, one.model)
    check_domain(data, domain)
    module = plugins.load("adaptation", method)
    config = parse(module.Config, settings or {}, f"method {method}")
    check_device(device, "device", kernels=True)
    models = [_on(device, one.model) for one in pretrained]
    problem = Problem(
        domain=domain,
        model=models[0] if len(models) == 1 else Stack(models),
        tasks=[*tasks] * len(models),
        w=torch.cat([latent.w for latent in latents]).to(device),
        z=torch.cat([latent.z for latent in latents]).to(device),
        budget=episodes * domain.config.episode_steps,
        visited=data.physics[data.index],
        threads=threads(),
        visited_obs=data.obs[data.index] if module.Method.needs_visited_obs else None,
    )
    running = module.Method(config, problem, seeds)
    starts = start_states(domain, evaluation or Evaluation())
    steps = every * domain.config.episode_steps
    points = run_protocol(running, starts, steps, checkpoint, watch)
    return (point.split(len(models)) for point in points)
