"""Stage report: one self-contained page: the results, how they were measured, what they cost."""

import platform
from collections import defaultdict
from pathlib import Path

from pydantic import JsonValue

from bfmpipe.config import Config
from bfmpipe.data.tables import read_table
from bfmpipe.files import replacing
from bfmpipe.report import timing
from bfmpipe.report.page import Results, compose
from bfmpipe.report.rows import count
from bfmpipe.stages.plot import Trained, read_losses
from bfmpipe.types import UserError

TITLE = "Fast adaptation of a behavioural foundation model"


class Report(Config):
    """Settings of the stage."""

    name: str = ""
    """The experiment's; it stands in the title."""
    experiment: dict[str, JsonValue]
    """The whole configuration, to be shown as it is."""


def report(
    cfg: Report,
    *,
    summary: Path,
    best_of: Path,
    verdicts: Path,
    figures: list[Path],
    benchmarks: Path,
    losses: list[Path],
    output: Path,
) -> None:
    """Write the page of results, a single HTML file.

    `figures` are PNG files named as the stage plot names them, below <domain>/<agent>/;
    `benchmarks` is the directory of what each job cost, <rule>/<job>.json, and may be missing.
    """
    table, origin = read_table(summary, "summary")
    if count(table) == 0:
        raise UserError(f"{summary}: has no rows, so there is nothing to report")
    trained = read_losses(losses)
    digests = {"tabulate": origin.code}
    if losses:
        codes = dict.fromkeys(read_table(path, "losses")[1].code for path in losses)
        digests = {"pretrain": ", ".join(codes), **digests}
    results = Results(
        title=": ".join(filter(None, (TITLE, cfg.name))),
        summary=table,
        best_of=read_table(best_of, "best_of")[0],
        verdicts=read_table(verdicts, "verdicts")[0],
        confidence=origin.settings["confidence"],
        figures=_pictures(figures),
        experiment=cfg.experiment,
        versions={**origin.versions, "processor, of this page's job": _processor()},
        digests=digests,
        jobs=timing.of_experiment(timing.read(benchmarks), cfg.experiment),
        alarms=[_alarm(t) for t in trained if t.diverged_at is not None],
        trainings=len(trained),
    )
    page = compose(results)
    with replacing(output) as path:
        path.write_text(page, encoding="utf-8")
    print(f"{output}: {len(page) / 1e6:.1f} MB, {len(figures)} figures")


def _processor() -> str:
    """What the system calls the processor: other ones round otherwise."""
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _alarm(trained: Trained) -> str:
    return (
        f"Divergence alarm: in the pretraining of {trained.agent} on {trained.domain} with seed "
        f"{trained.seed}, the loss turned at update {trained.diverged_at:,} while q kept climbing."
    )


def _pictures(paths: list[Path]) -> dict[str, list[tuple[str, bytes]]]:
    """PNG files by the two directories above them; one group needs no name."""
    groups = defaultdict(list)
    for path in paths:
        try:
            png = path.read_bytes()
        except OSError as error:
            raise UserError(f"{path}: cannot be read: {error.strerror}") from None
        if not png.startswith(b"\x89PNG"):
            raise UserError(f"{path}: not a PNG file")
        groups[", ".join(path.resolve().parts[-3:-1])].append((path.stem, png))
    if len(groups) == 1:
        groups[""] = groups.pop(next(iter(groups)))
    return dict(groups)
