"""The sections of the page of results: what was found, how it was measured, what it cost."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml

from bfmpipe.report import captions, html, style, timing
from bfmpipe.report.html import Markup, interval, number, tag
from bfmpipe.report.rows import Columns, count, distinct, select
from bfmpipe.report.runs import ZERO_SHOT
from bfmpipe.report.tabulation import BEST_OF_N, PREDICTED, RANDOM


@dataclass(frozen=True)
class Results:
    """All that the page shows.

    figures: group -> (name, PNG), the group being "" where there is only one; alarms: a sentence
    for each training that diverged; trainings: how many there were; digests: stage -> of its code.
    """

    title: str
    summary: Columns
    best_of: Columns
    verdicts: Columns
    confidence: float
    figures: Mapping[str, Sequence[tuple[str, bytes]]]
    experiment: Mapping[str, Any]
    versions: Mapping[str, str]
    digests: Mapping[str, str]
    jobs: Sequence[timing.Job] = ()
    alarms: Sequence[str] = ()
    trainings: int = 0
    rows: list[dict[str, Any]] = field(init=False)

    def __post_init__(self) -> None:
        """Turn the summary into rows, its methods in the order of legends."""
        names = list(self.summary)
        values = zip(*(self.summary[name].tolist() for name in names), strict=True)
        rows = [dict(zip(names, row, strict=True)) for row in values]
        order = style.ordered({row["method"] for row in rows})
        rows.sort(key=lambda row: order.index(row["method"]))
        object.__setattr__(self, "rows", rows)

    @property
    def mass(self) -> str:
        """The confidence as text."""
        return f"{100 * self.confidence:.3g} %"

    def places(self) -> list[tuple[str, str, str]]:
        """Domain, agent and family of each block of results."""
        return distinct(self.summary, "domain", "agent", "family")

    def of(self, place: tuple[str, str, str]) -> list[dict[str, Any]]:
        """The rows of one block."""
        return [r for r in self.rows if (r["domain"], r["agent"], r["family"]) == place]


def compose(results: Results) -> str:
    """The whole page."""
    sections = [
        *([("Claims", _claims(results))] if count(results.verdicts) else []),
        ("Results at a glance", _glance(results)),
        ("Protocol", _protocol(results)),
        ("Figures", _figures(results, lambda name: name not in captions.TRAINING)),
        ("Tables", _tables(results)),
        ("Training", _training(results)),
        ("Cost", _cost(results)),
        ("Provenance", _provenance(results)),
    ]
    links = (tag("a", title, href=f"#{html.anchor(title)}") for title, _ in sections)
    return html.page(
        results.title,
        tag("h1", results.title),
        tag("p", _lede(results), class_="lede"),
        _banner(results),
        tag("nav", *links),
        *(html.section(title, *parts) for title, parts in sections),
    )


def _lede(results: Results) -> str:
    places = results.places()
    models = ", ".join(dict.fromkeys(f"{agent} on {domain}" for domain, agent, _ in places))
    methods = [
        style.name(m)
        for m in dict.fromkeys(r["method"] for r in results.rows)
        if m not in (ZERO_SHOT, RANDOM, BEST_OF_N, PREDICTED)
    ]
    seeds = max(row["seeds"] for row in results.rows)
    adapted = f"then adapted to each task by {_listed(methods)}" if methods else "not adapted"
    return (
        f"A behavioural foundation model ({models}; {_many(seeds, 'pretraining seed')}) is trained "
        f"without rewards, asked for a policy for each task (zero-shot), and {adapted}."
    )


def _banner(results: Results) -> Markup:
    """What must not be overlooked."""
    if not results.alarms:
        return Markup("")
    many = f"{len(results.alarms)} of {_many(results.trainings, 'training')}"
    link = tag("a", "Training", href=f"#{html.anchor('Training')}")
    return tag("p", f"The divergence alarm rang in {many}: see ", link, ".", class_="alarm")


_SAID = {
    "gain": "gain over zero-shot, %; bar: at least {}, and its interval above 0",
    "monotone": "largest fall between evaluations, standard errors; bar: at most {}",
    "no_drop": "drop, %; bar: at most {}",
    "drop": "drop, %; bar: at least {}",
    "smaller_drop": "drop over that of the other; bar: at most {}",
    "better": "difference of final means, % of zero-shot; bar: its interval above {}",
    "area": "difference of areas under the curves, % of zero-shot; bar: its interval above {}",
    "best_of_n": "gain of the best over zero-shot, %; bar: above {}, and its interval above 0",
    "compute": "CPU time of the other over the method's; bar: at least {}",
}


def _claims(results: Results) -> Iterable[Markup]:
    """The verdicts: what was claimed, what was measured, and whether it held."""
    names = ("statement", "domain", "agent", "family", "kind", "bar", "figure", "low", "high")
    rows = []
    for *place, verdict in zip(
        *(results.verdicts[name].tolist() for name in (*names, "verdict")), strict=True
    ):
        statement, domain, agent, family, kind, bar, figure, low, high = place
        measured = html.interval(figure, low, high) if low == low else html.number(figure, 2)
        where = f"{domain}, {agent}, {family}"
        rows.append((statement, where, _SAID[kind].format(f"{bar:g}"), measured, verdict))
    yield html.table(("claim", "where", "figure and bar", "measured", "verdict"), rows, words=3)
    yield tag(
        "p",
        f"Intervals are Student's, {results.mass}, of the seeds' means over their tasks.",
        class_="note",
    )


def _glance(results: Results) -> Iterable[Markup]:
    cards = []
    for place in results.places():
        rows = [row for row in results.of(place) if row["method"] != RANDOM]
        cells = (
            (
                _method(row["method"]),
                number(row["final_mean"]),
                ""
                if row["method"] == ZERO_SHOT
                else interval(
                    row["improvement"],
                    row["improvement_low"],
                    row["improvement_high"],
                    digits=0,
                    sign=True,
                    unit="%",
                ),
            )
            for row in rows
        )
        about = f"{_many(rows[0]['tasks'], 'task')} × {_many(rows[0]['seeds'], 'seed')}"
        cards.append(
            tag(
                "div",
                tag("h3", _title(results, place)),
                tag("div", about, class_="note"),
                html.table(("", "return", "against zero-shot"), cells),
                class_="card",
            )
        )
    yield tag("div", *cards, class_="cards")
    yield tag(
        "p",
        "Return of an episode at the end of the budget, mean over tasks and seeds, and its change "
        f"against zero-shot with the {results.mass} interval. Best of N latents is no method of "
        "adaptation: it shows what the model holds.",
        class_="note",
    )


def _protocol(results: Results) -> Iterable[Markup]:
    yield html.bullets(
        (
            "Every method starts from the same frozen model and the same inferred latent, and has "
            "the same budget in environment steps a task. Every step of every rollout counts, "
            "those after a simulator reset to a chosen state included; a method stops where its "
            "next update would exceed the budget. The evaluation is not counted, and no method "
            "sees it. Nor is what a method spends on a model before it is given a task: only "
            "amortised does, which plays its training tasks first.",
            "Evaluation: the deterministic policy, from fixed start states that all methods, seeds "
            "and zero-shot share. They are apart from the training's start states. No checkpoint "
            "is chosen by the evaluation: what is reported is the end of the budget.",
            "Returns are undiscounted sums of rewards over an episode.",
            f"Intervals, {results.mass}: of returns, a bootstrap over the seeds. A seed is one "
            "pretrained model and is drawn with all its tasks, since they share what that model is "
            "good at. It shows how these seeds spread: of three, such an interval holds the truth "
            "about three times in four, of nine nine times in ten. Of changes against zero-shot, "
            "Student's interval of the seeds' means, which holds it as often as it says.",
        )
    )
    lines = []
    for place in results.places():
        block = results.of(place)
        spent = [
            f"{style.name(row['method'])} {number(row['episodes'], 0)} "
            f"({number(row['env_steps'], 0)} steps)"
            for row in block
            if row["episodes"] > 0
        ]
        family = tag("b", _title(results, place))
        about = f"{_sample(block)}. Episodes spent a task: {', '.join(spent) or 'none'}."
        lines.append(html.join((family, f": {about}")))
    yield html.bullets(lines)


def _sample(block: Sequence[Mapping[str, Any]]) -> str:
    """What an average is over."""
    row = block[0]
    return (
        f"{_many(row['tasks'], 'task')} ({style.words(row['task_names'])}), "
        f"{_many(row['seeds'], 'seed')}, "
        f"{_many(row['evaluation_episodes'], 'evaluation episode')} each"
    )


def _figures(results: Results, wanted: Any) -> Iterable[Markup]:
    for group, figures in results.figures.items():
        shown = [(name, png) for name, png in figures if wanted(name)]
        if group and shown:
            yield tag("h3", group)
        for name, png in sorted(shown, key=lambda figure: captions.rank(figure[0])):
            yield html.picture(png, *captions.caption(name, results.mass))


def _tables(results: Results) -> Iterable[Markup]:
    head = (
        *("method", "return, IQM", "return, mean", "against zero-shot, %"),
        *("initial drop, %", "largest drop, %"),
        *("monotonicity", "mean height of the curve", "cosine to z₀", "runs improved"),
        *("P(better)", "episodes spent"),
    )
    for place in results.places():
        block = results.of(place)
        yield tag("h3", _title(results, place))
        yield tag("p", f"Over {_sample(block)}.", class_="note")
        yield html.table(head, [_row(row) for row in block])
    yield html.definitions(_DEFINITIONS)
    if len(results.best_of.get("task", ())):
        yield tag("h3", "Zero-shot among the model's other latents")
        yield html.table(
            (
                *("", "task", "random policy", "zero-shot", "best of N", "best by value", "N"),
                *("percentile of zero-shot, each seed", "values order returns, each seed"),
            ),
            _latents(results),
            words=2,
        )
        yield tag(
            "p",
            "Means over the seeds. The percentile is the share of the N latents that score below "
            "zero-shot; 100 means that no other latent is better. “Best by value” is the one that "
            "the model itself values most at the start states, before any episode; the last column "
            "is the rank correlation of those values with the returns of the N.",
            class_="note",
        )


def _row(row: Mapping[str, Any]) -> tuple[str, ...]:
    probability = "probability_of_improvement"
    improved = row["improved"] * row["seeds"] * row["tasks"]
    zero_shot = row["method"] == ZERO_SHOT
    return (
        _method(row["method"]),
        interval(row["final_iqm"], row["final_low"], row["final_high"]),
        number(row["final_mean"]),
        "–"
        if zero_shot
        else interval(
            row["improvement"], row["improvement_low"], row["improvement_high"], sign=True
        ),
        number(row["initial_drop"]),
        number(row["largest_drop"]),
        number(row["monotonicity"], 2),
        "–" if zero_shot else number(row["area_under_curve"]),
        number(row["cosine"], 2),
        "–" if improved != improved else f"{improved:g} of {row['seeds'] * row['tasks']}",
        interval(row[probability], row[f"{probability}_low"], row[f"{probability}_high"], 2),
        number(row["episodes"], 0),
    )


_DEFINITIONS = (
    ("IQM", "Interquartile mean over seeds and tasks: without the lowest and highest quarter."),
    (
        "against zero-shot",
        "Change of the mean over tasks and seeds, in % of zero-shot's mean; its interval is "
        "Student's, of the seeds' changes, each over all its tasks.",
    ),
    (
        "initial drop",
        "Largest fall of the mean curve below zero-shot within the first quarter of the budget, in "
        "% of zero-shot; the largest drop is that within all of it.",
    ),
    (
        "monotonicity",
        "Share of consecutive evaluations that are not below the one before by more than its "
        "standard error, averaged over the runs.",
    ),
    (
        "mean height of the curve",
        "Area under the mean curve, each evaluation held until the next one, over the budget.",
    ),
    (
        "cosine to z₀",
        "Of the final latent to the inferred one; 1 is unmoved, lower is further. Methods that "
        "move the actor's weights leave it at 1.",
    ),
    (
        "P(better)",
        "Probability that a run ends above a zero-shot run of any seed on the same task, averaged "
        "over the tasks (Agarwal et al. 2021). “Runs improved” compares each run with zero-shot "
        "of its own seed; ties count half.",
    ),
)


def _latents(results: Results) -> Iterable[tuple[str, ...]]:
    table = results.best_of
    for domain, agent, family, task in distinct(table, "domain", "agent", "family", "task"):
        rows = select(table, domain=domain, agent=agent, family=family, task=task)
        yield (
            _title(results, (domain, agent, family)),
            style.words(task),
            *(number(rows[name].mean()) for name in ("random", "zero_shot", "best", "predicted")),
            number(rows["latents"].max(), 0),
            ", ".join(number(value, 0) for value in rows["percentile"].tolist()),
            ", ".join(number(value, 2) for value in rows["value_correlation"].tolist()),
        )


def _training(results: Results) -> Iterable[Markup]:
    if results.alarms:
        yield from (tag("p", alarm, class_="alarm") for alarm in results.alarms)
    elif results.trainings:
        many = _many(results.trainings, "training")
        yield tag("p", f"The divergence alarm rang in none of {many}.")
    else:
        yield tag("p", "No model was trained here: no table of losses was given.")
    yield from _figures(results, lambda name: name in captions.TRAINING)


def _cost(results: Results) -> Iterable[Markup]:
    if not results.jobs:
        yield tag("p", "What the jobs cost was not recorded.")
        return
    rules = dict.fromkeys(job.rule for job in sorted(results.jobs, key=_pipeline_order))
    rows = []
    for rule in rules:
        jobs = [job for job in results.jobs if job.rule == rule]
        rows.append(_cost_row(rule, jobs))
    rows.append(_cost_row("all", list(results.jobs)))
    head = ("stage", "jobs", "wall time, sum", "longest job", "CPU time, sum", "peak memory, MB")
    yield html.table(head, rows)
    methods = list(_cost_of_methods(results))
    if methods:
        yield tag("h3", "Cost of a method")
        columns = ("", "method", "wall time a model", "CPU time a model", "CPU time a step, ms")
        yield html.table(columns, methods, words=2)
        yield tag(
            "p",
            "A model is adapted to all tasks of all families side by side, and where a job had the "
            "models of several seeds its time is divided by them. Times include start-up and the "
            "evaluations, which the steps they are divided by do not. Of a job that was killed "
            "they leave out what came after the checkpoint that it went on from.",
            class_="note",
        )


def _cost_row(name: str, jobs: Sequence[timing.Job]) -> tuple[str, ...]:
    return (
        name,
        str(len(jobs)),
        html.duration(sum(job.wall for job in jobs)),
        html.duration(max(job.wall for job in jobs)),
        html.duration(sum(job.cpu for job in jobs)),
        number(max(job.memory for job in jobs), 0),
    )


def _cost_of_methods(results: Results) -> Iterable[tuple[str, ...]]:
    models = dict.fromkeys((domain, agent) for domain, agent, _ in results.places())
    for domain, agent in models:
        rows = [row for row in results.rows if (row["domain"], row["agent"]) == (domain, agent)]
        for method in dict.fromkeys(row["method"] for row in rows):
            own = [row for row in rows if row["method"] == method]
            jobs = timing.of_method(list(results.jobs), domain, agent, method, own[0]["seeds"])
            if not jobs:
                continue
            steps = sum(row["env_steps"] * row["tasks"] for row in own)
            wall = sum(job.wall for job in jobs) / own[0]["seeds"]
            cpu = sum(job.cpu for job in jobs) / own[0]["seeds"]
            yield (
                f"{domain}, {agent}",
                _method(method),
                html.duration(wall),
                html.duration(cpu),
                number(1000 * cpu / steps, 3) if steps else "–",
            )


def _provenance(results: Results) -> Iterable[Markup]:
    yield tag("h3", "Configuration")
    # Innermost lists and mappings in one line, as one would write them.
    text = yaml.safe_dump(
        dict(results.experiment),
        sort_keys=False,
        allow_unicode=True,
        width=88,
        default_flow_style=None,
    )
    yield tag("pre", text)
    yield tag("h3", "Versions")
    yield html.table(("package", "version"), sorted(results.versions.items()), words=2)
    yield tag("h3", "Code")
    yield html.table(("stage", "digest of the code it can reach"), results.digests.items(), words=2)


_STAGES = (
    *("collect", "coverage", "pretrain", "infer", "probe", "diagnose", "adapt", "describe"),
    *("tabulate", "judge", "plot"),
)


def _pipeline_order(job: timing.Job) -> tuple[int, str]:
    known = job.rule in _STAGES
    return (_STAGES.index(job.rule) if known else len(_STAGES), job.rule)


def _title(results: Results, place: tuple[str, str, str]) -> str:
    """The family, with domain and agent where there are several."""
    domain, agent, family = place
    several = len({(d, a) for d, a, _ in results.places()}) > 1
    return ", ".join([domain, agent] * several + [style.words(family)])


def _method(method: str) -> Markup:
    dot = tag("span", class_="dot", style=f"background:{style.colour(method)}")
    return html.join((dot, style.name(method)))


def _many(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
