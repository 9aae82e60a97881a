"""One task of any domain as a Gymnasium environment, for other libraries.

Gymnasium is optional, so this module can be imported without it.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pydantic import create_model

from bfmpipe import plugins
from bfmpipe.config import Config, parse
from bfmpipe.envs import make_domain
from bfmpipe.envs.domain import Domain
from bfmpipe.envs.tasks import Function, Task, TaskFile
from bfmpipe.types import UserError, counted

if TYPE_CHECKING:
    from bfmpipe.envs.gym import TaskEnv, TaskVectorEnv


def make(
    task: str, *, reward: Function | None = None, render_mode: str | None = None, **settings: Any
) -> "TaskEnv":
    """A `gymnasium.Env` of one task.

    Args:
        task: "domain/task", e.g. "walker/run".
        reward: the reward of a task of one's own, of that name; see docs/tasks.md.
        render_mode: None or "rgb_array".
        settings: of the domain and of the task, e.g. physics_steps=5, target_size=0.05, or
            file="my_tasks.py" for a task that is a function of that file.

    Raises:
        UserError: for an unknown name or setting, or where Gymnasium is not installed.
    """
    domain, found = _look_up(task, reward, settings)
    arguments = {"task": task, **({"reward": reward} if reward else {}), **settings}
    return _gym().TaskEnv(domain, found, render_mode=render_mode, arguments=arguments)


def make_vec(
    task: str, num_envs: int, *, reward: Function | None = None, **settings: Any
) -> "TaskVectorEnv":
    """A `gymnasium.vector.VectorEnv` of `num_envs` copies of one task, stepped as one batch.

    Its arguments and errors are those of `make`, but that it does not render, and that `num_envs`
    is a whole number, 1 or more.
    """
    num_envs = counted("num_envs", num_envs)
    domain, found = _look_up(task, reward, settings)
    return _gym().TaskVectorEnv(domain, found, num_envs)


def _look_up(
    name: str, reward: Function | None, settings: Mapping[str, Any]
) -> tuple[Domain, Task]:
    domain_name, slash, task_name = name.partition("/")
    if not (domain_name and slash and task_name):
        valid = ", ".join(plugins.names("envs"))
        raise UserError(f"'{name}' is not domain/task, such as walker/run; the domains are {valid}")
    module = plugins.load("envs", domain_name)
    # both kinds of settings are checked as one, so that a message names all that there are
    kinds: list[type[Config]] = [module.Config]
    if reward is None:
        kinds.insert(0, TaskFile if "file" in settings else module.Domain.TaskConfig)
    parse(create_model("Settings", __base__=tuple(kinds)), dict(settings), f"task {name}")
    of_domain = {k: v for k, v in settings.items() if k in module.Config.model_fields}
    of_task = {k: v for k, v in settings.items() if k not in of_domain}
    domain = make_domain(domain_name, of_domain)
    if reward is not None:
        return domain, domain.task_from(reward, name=task_name)
    (task,) = domain.tasks("gymnasium", [task_name], of_task)
    return domain, task


def _gym() -> Any:
    try:
        import gymnasium  # noqa: F401
    except ImportError:
        raise UserError(
            "bfmpipe.make needs Gymnasium, which is not installed: pip install 'bfmpipe[gym]'"
        ) from None
    from bfmpipe.envs import gym

    return gym
