"""Settings that several stages are given."""

from collections.abc import Mapping

from pydantic import Field, JsonValue

from bfmpipe import code, plugins
from bfmpipe.config import Config
from bfmpipe.data.tables import Provenance
from bfmpipe.envs.domain import Domain, Task
from bfmpipe.types import UserError


class Plugin(Config):
    """A plugin by name, with the settings that differ from its defaults."""

    name: str
    settings: dict[str, JsonValue] = Field(default_factory=dict)


class Families(Config):
    """Task families of a domain: family -> its tasks' names and their common settings."""

    families: dict[str, dict[str, JsonValue]]

    def tasks(self, domain: Domain) -> list[Task]:
        """The tasks of all families, by family name and then as listed.

        Raises:
            UserError: for a family without names, or an unknown task or setting.
        """
        found: list[Task] = []
        for family, settings in self.families.items():
            names = settings.get("names")
            if not isinstance(names, list) or not names:
                has = f"{domain.name} has {', '.join(domain.task_names)}"
                if "file" in settings:
                    has = f"they are functions of {settings['file']}"
                raise UserError(
                    f"domain {domain.name}: task family {family} needs 'names', a list of tasks; "
                    f"{has}"
                )
            if len(set(map(str, names))) < len(names):
                raise UserError(
                    f"domain {domain.name}: task family {family} names a task twice; its results "
                    "would count twice"
                )
            rest = {key: value for key, value in settings.items() if key != "names"}
            found += domain.tasks(family, [str(name) for name in names], rest)
        return found


def provenance(kind: str, stage: str, cfg: Config, **used: str) -> Provenance:
    """Where an artifact comes from; `used` are the plugins by kind, e.g. agents="fb"."""
    return Provenance(kind, cfg.model_dump(mode="json"), digest(stage, used))


def digest(stage: str, used: Mapping[str, str]) -> str:
    """Digest of the code a stage can reach with these plugins (kind -> name)."""
    modules = [plugins.module_name(kind, name) for kind, name in used.items()]
    return code.digest(f"bfmpipe.stages.{stage}", *modules, own=plugins.own_directory())
