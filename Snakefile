"""The experiment: data set -> pretraining -> zero-shot inference -> adaptation -> figures.

`snakemake --cores all` runs config.yaml, `--configfile FILE` another experiment.
"""

import sys
from pathlib import Path

from snakemake.exceptions import WorkflowError

from bfmpipe import experiment
from bfmpipe.agents.learner import check_device
from bfmpipe.config import load_yaml
from bfmpipe.types import UserError

if "domains" not in config:
    if workflow.configfiles:
        raise WorkflowError(
            f"{workflow.configfiles[-1]}: no domains; an experiment file is complete: copy "
            "config.yaml and edit the copy, or name one of configs/suite before one of configs/claims"
        )

    configfile: "config.yaml"


try:
    # refuses what snakemake lets pass, such as a key given twice
    files = {Path(path): load_yaml(Path(path)) for path in workflow.configfiles}
    file = (workflow.configfiles or ["the configuration"])[-1]

    def base(section):
        """Paths are relative to the file that names them, of several the last that has the section."""
        homes = [path.parent for path in files if section in files[path]]
        return homes[-1] if homes else Path()

    exp = experiment.check(config, file, base=base("domains"), modules=base("plugins"))
except UserError as error:
    raise WorkflowError(str(error)) from None

R = exp.results
OUT = f"{R}/{exp.name}" if exp.name else R  # what sums the runs up
MODEL = f"{R}/{{domain}}/{{agent}}/seed{{seed}}"
# bfmpipe is the one installed beside the snakemake that runs.
# A log that cannot be written, on a full disk, fails no job: a training would have been in vain.
shell.prefix(
    f"set -euo pipefail; export PATH='{Path(sys.executable).parent}':$PATH; "
    'tee() {{ command tee "$@" || true; }}; '
)


wildcard_constraints:
    domain="|".join(exp.domains),
    agent="|".join(exp.agents),
    method="|".join(exp.methods),
    seed="|".join(map(str, exp.seeds)),


def cfg(stage):
    """Settings of a job as sorted JSON: Snakemake tracks text, not objects."""
    return lambda wildcards: exp.stage(stage, **dict(wildcards.items()))


def code(stage):
    """Digest of the code a job can reach: Snakemake does not see edits to a package."""

    def digest(wildcards):
        names = {key: value for key, value in wildcards.items() if key != "seed"}
        return exp.code(stage, **names)

    return digest


def growing(amount):
    """A resource that a retry asks more of; what a rule does not say stands in the profile."""
    return lambda wildcards, attempt: amount * attempt


rule all:
    default_target: True
    input:
        f"{OUT}/report.html",
        expand(
            f"{MODEL}/model/README.md",
            domain=exp.domains,
            agent=exp.agents,
            seed=exp.seeds,
        ),


onstart:
    # before any old result is removed, and where the jobs run on this machine
    if workflow.executor_plugin.common_settings.local_exec:
        needed = list(workflow.dag.needrun_jobs())
        try:
            if {job.rule.name for job in needed} & {"pretrain", "pretrain_online"}:
                check_device(exp.trainer.device, "pretrain.device")
            for method in {
                j.wildcards.method for j in needed if j.rule.name == "adapt"
            }:
                check_device(exp.device_of(method), "adapt.device", kernels=True)
        except UserError as error:
            raise WorkflowError(str(error)) from None


onsuccess:
    for name, path in {
        "figures: ": f"{OUT}/figures",
        "report:  ": f"{OUT}/report.html",
    }.items():
        if Path(path).exists():  # other targets may have been asked for
            print(f"{name}{path}")


onerror:
    # in one place: what else was printed may be of a whole night
    for job in sorted(workflow.scheduler.failed, key=lambda job: str(job.log)):
        there = filter(Path.exists, map(Path, job.log))
        said = "".join(file.read_text("utf-8", "replace") for file in there)
        last = said.strip().rpartition("\n")[2] or "nothing"
        print(f"failed: {job.name} {', '.join(job.wildcards)}; {job.log} ends in")
        print(f"    {last}")


rule collect:
    """Explore a domain without rewards."""
    output:
        dataset=f"{R}/{{domain}}/data.parquet",
    log:
        f"{R}/logs/collect/{{domain}}.log",
    benchmark:
        f"{R}/benchmarks/collect/{{domain}}.tsv"
    resources:
        mem_mb=growing(4000),
        runtime=growing(480),
    params:
        cfg=cfg("collect"),
        code=code("collect"),
        cost=f"{R}/benchmarks/collect/{{domain}}.json",
        source=lambda wildcards: exp.source(wildcards.domain),
    shell:
        "bfmpipe collect --cfg {params.cfg:q} --dataset {output.dataset}"
        " --cost {params.cost} 2>&1 | tee -a {log}"


rule coverage:
    """Count the states that a data set covers."""
    input:
        dataset=rules.collect.output.dataset,
    output:
        coverage=f"{R}/{{domain}}/coverage.parquet",
    log:
        f"{R}/logs/coverage/{{domain}}.log",
    benchmark:
        f"{R}/benchmarks/coverage/{{domain}}.tsv"
    params:
        cfg=cfg("coverage"),
        code=code("coverage"),
        cost=f"{R}/benchmarks/coverage/{{domain}}.json",
    shell:
        "bfmpipe coverage --cfg {params.cfg:q} --dataset {input.dataset}"
        " --coverage {output.coverage}"
        " --cost {params.cost} 2>&1 | tee -a {log}"


if exp.trainer.seeds_together:  # one job trains all models of a domain and agent
    TRAINED = expand(MODEL, seed=exp.seeds, allow_missing=True)
    TRAINING = "{domain}-{agent}"
else:
    TRAINED = [MODEL]
    TRAINING = "{domain}-{agent}-seed{seed}"


def only(agents):
    """A pattern of these agents' names, or of none."""
    return "|".join(agents) or "(?!)"


rule pretrain:
    """Train a model without rewards, or a model a seed."""
    input:
        dataset=rules.collect.output.dataset,
    output:
        config=[f"{model}/model/config.json" for model in TRAINED],
        weights=[f"{model}/model/model.safetensors" for model in TRAINED],
        losses=[f"{model}/losses.parquet" for model in TRAINED],
        evaluations=[f"{model}/evaluations.parquet" for model in TRAINED],
        spectrum=[f"{model}/spectrum.parquet" for model in TRAINED],
    log:
        f"{R}/logs/pretrain/{TRAINING}.log",
    benchmark:
        f"{R}/benchmarks/pretrain/{TRAINING}.tsv"
    wildcard_constraints:
        agent=only(a for a in exp.agents if a not in {*exp.online, *exp.finished}),
    priority: 10  # everything else waits for it
    resources:
        mem_mb=growing(8000),
        runtime=1440,  # no more in a retry, which goes on where it was
        gpu=int(exp.trainer.device == "cuda"),
    params:
        cfg=cfg("pretrain"),
        code=code("pretrain"),
        cost=f"{R}/benchmarks/pretrain/{TRAINING}.json",
        model=lambda wildcards, output: [Path(file).parent for file in output.config],
        experience=[],
    shell:
        "bfmpipe pretrain --cfg {params.cfg:q} --dataset {input.dataset}"
        " --model {params.model} --losses {output.losses}"
        " --evaluations {output.evaluations} --spectrum {output.spectrum}"
        " --experience {params.experience}"
        " --cost {params.cost} 2>&1 | tee -a {log}"


# The data set of an agent that explores while it trains is of motions; it leaves one of its own.
use rule pretrain as pretrain_online with:
    output:
        config=f"{MODEL}/model/config.json",
        weights=f"{MODEL}/model/model.safetensors",
        losses=f"{MODEL}/losses.parquet",
        evaluations=f"{MODEL}/evaluations.parquet",
        spectrum=f"{MODEL}/spectrum.parquet",
        experience=f"{MODEL}/experience.parquet",
    log:
        f"{R}/logs/pretrain/{{domain}}-{{agent}}-seed{{seed}}.log",
    benchmark:
        f"{R}/benchmarks/pretrain/{{domain}}-{{agent}}-seed{{seed}}.tsv"
    wildcard_constraints:
        agent=only(exp.online),
    resources:
        mem_mb=growing(16000),  # it remembers its episodes
        runtime=1440,
        gpu=int(exp.trainer.device == "cuda"),
    params:
        cfg=cfg("pretrain"),
        code=code("pretrain"),
        cost=f"{R}/benchmarks/pretrain/{{domain}}-{{agent}}-seed{{seed}}.json",
        model=lambda wildcards, output: Path(output.config).parent,
        experience=lambda wildcards, output: output.experience,


rule adopt:
    """Take over a model that is finished."""
    input:
        config=lambda wildcards: f"{exp.pretrained(**wildcards)}/config.json",
        weights=lambda wildcards: f"{exp.pretrained(**wildcards)}/model.safetensors",
    output:
        config=f"{MODEL}/model/config.json",
        weights=f"{MODEL}/model/model.safetensors",
    log:
        f"{R}/logs/adopt/{{domain}}-{{agent}}-seed{{seed}}.log",
    benchmark:
        f"{R}/benchmarks/adopt/{{domain}}-{{agent}}-seed{{seed}}.tsv"
    wildcard_constraints:
        agent=only(exp.finished),
    params:
        cfg=cfg("adopt"),
        code=code("adopt"),
        cost=f"{R}/benchmarks/adopt/{{domain}}-{{agent}}-seed{{seed}}.json",
        pretrained=subpath(input.config, parent=True),
        model=subpath(output.config, parent=True),
    shell:
        "bfmpipe adopt --cfg {params.cfg:q} --pretrained {params.pretrained:q}"
        " --model {params.model} --cost {params.cost} 2>&1 | tee -a {log}"


def states_of(wildcards):
    """The data set of the states that a model learnt its values of."""
    online = wildcards.agent in exp.online
    name = f"{MODEL}/experience.parquet" if online else rules.collect.output.dataset
    return name.format(**wildcards)


rule infer:
    """Infer each task's weights and latent from its rewards on the data."""
    input:
        config=f"{MODEL}/model/config.json",
        weights=f"{MODEL}/model/model.safetensors",
        dataset=states_of,
    output:
        latents=f"{MODEL}/latents.parquet",
    log:
        f"{R}/logs/infer/{{domain}}-{{agent}}-seed{{seed}}.log",
    benchmark:
        f"{R}/benchmarks/infer/{{domain}}-{{agent}}-seed{{seed}}.tsv"
    params:
        cfg=cfg("infer"),
        code=code("infer"),
        cost=f"{R}/benchmarks/infer/{{domain}}-{{agent}}-seed{{seed}}.json",
        model=subpath(input.config, parent=True),
    shell:
        "bfmpipe infer --cfg {params.cfg:q} --model {params.model}"
        " --dataset {input.dataset} --latents {output.latents}"
        " --cost {params.cost} 2>&1 | tee -a {log}"


rule probe:
    """Score many latents of the model, and the random policy."""
    input:
        config=f"{MODEL}/model/config.json",
        weights=f"{MODEL}/model/model.safetensors",
        dataset=states_of,
        latents=rules.infer.output.latents,
    output:
        scores=f"{MODEL}/probe.parquet",
    log:
        f"{R}/logs/probe/{{domain}}-{{agent}}-seed{{seed}}.log",
    benchmark:
        f"{R}/benchmarks/probe/{{domain}}-{{agent}}-seed{{seed}}.tsv"
    resources:
        mem_mb=growing(4000),
        runtime=growing(240),
    params:
        cfg=cfg("probe"),
        code=code("probe"),
        cost=f"{R}/benchmarks/probe/{{domain}}-{{agent}}-seed{{seed}}.json",
        model=subpath(input.config, parent=True),
    shell:
        "bfmpipe probe --cfg {params.cfg:q} --model {params.model}"
        " --dataset {input.dataset} --latents {input.latents}"
        " --scores {output.scores}"
        " --cost {params.cost} 2>&1 | tee -a {log}"


rule diagnose:
    """Say of every task what can be said before adapting to it."""
    input:
        config=f"{MODEL}/model/config.json",
        weights=f"{MODEL}/model/model.safetensors",
        dataset=states_of,
        latents=rules.infer.output.latents,
    output:
        diagnosis=f"{MODEL}/diagnosis.parquet",
    log:
        f"{R}/logs/diagnose/{{domain}}-{{agent}}-seed{{seed}}.log",
    benchmark:
        f"{R}/benchmarks/diagnose/{{domain}}-{{agent}}-seed{{seed}}.tsv"
    params:
        cfg=cfg("diagnose"),
        code=code("diagnose"),
        cost=f"{R}/benchmarks/diagnose/{{domain}}-{{agent}}-seed{{seed}}.json",
        model=subpath(input.config, parent=True),
    shell:
        "bfmpipe diagnose --cfg {params.cfg:q} --model {params.model}"
        " --dataset {input.dataset} --latents {input.latents}"
        " --diagnosis {output.diagnosis}"
        " --cost {params.cost} 2>&1 | tee -a {log}"


if exp.adapt.seeds_together:  # one job adapts all models of a domain and agent
    MOVED = expand(MODEL, seed=exp.seeds, allow_missing=True)
    MOVING = "{domain}-{agent}-{method}"
else:
    MOVED = [MODEL]
    MOVING = "{domain}-{agent}-seed{seed}-{method}"


rule adapt:
    """Adapt a model, or a model a seed, to every task by one method."""
    input:
        config=[f"{model}/model/config.json" for model in MOVED],
        weights=[f"{model}/model/model.safetensors" for model in MOVED],
        dataset=states_of,
        latents=[f"{model}/latents.parquet" for model in MOVED],
    output:
        curves=[f"{model}/adapt/{{method}}.parquet" for model in MOVED],
        trajectories=[
            f"{model}/adapt/{{method}}.trajectories.parquet" for model in MOVED
        ],
    log:
        f"{R}/logs/adapt/{MOVING}.log",
    benchmark:
        f"{R}/benchmarks/adapt/{MOVING}.tsv"
    resources:
        mem_mb=growing(8000),
        runtime=growing(720),  # a retry goes on, and has longer for what is left
        gpu=lambda wildcards: int(exp.device_of(wildcards.method) == "cuda"),
    params:
        cfg=cfg("adapt"),
        code=code("adapt"),
        cost=f"{R}/benchmarks/adapt/{MOVING}.json",
        model=lambda wildcards, input: [Path(file).parent for file in input.config],
    shell:
        "bfmpipe adapt --cfg {params.cfg:q} --model {params.model} --dataset {input.dataset}"
        " --latents {input.latents} --curves {output.curves}"
        " --trajectories {output.trajectories}"
        " --cost {params.cost} 2>&1 | tee -a {log}"


rule describe:
    """Write the model card, with the scores of zero-shot."""
    input:
        config=f"{MODEL}/model/config.json",
        weights=f"{MODEL}/model/model.safetensors",
        zero_shot=f"{MODEL}/adapt/zero-shot.parquet",
    output:
        card=f"{MODEL}/model/README.md",
    log:
        f"{R}/logs/describe/{{domain}}-{{agent}}-seed{{seed}}.log",
    benchmark:
        f"{R}/benchmarks/describe/{{domain}}-{{agent}}-seed{{seed}}.tsv"
    params:
        cfg=cfg("describe"),
        code=code("describe"),
        cost=f"{R}/benchmarks/describe/{{domain}}-{{agent}}-seed{{seed}}.json",
        model=subpath(input.config, parent=True),
    shell:
        "bfmpipe describe --cfg {params.cfg:q} --model {params.model}"
        " --zero_shot {input.zero_shot} --card {output.card}"
        " --cost {params.cost} 2>&1 | tee -a {log}"


ALL_MODELS = expand(MODEL, domain=exp.domains, agent=exp.agents, seed=exp.seeds)
TRAINED_HERE = expand(
    MODEL,
    domain=exp.domains,
    agent=[agent for agent in exp.agents if agent not in exp.finished],
    seed=exp.seeds,
)
ADAPTED = expand("{model}/adapt/{method}", model=ALL_MODELS, method=exp.methods)


rule tabulate:
    """Gather all curves and compute the protocol's metrics."""
    input:
        adaptation=expand("{run}.parquet", run=ADAPTED),
        probe=expand("{model}/probe.parquet", model=ALL_MODELS),
    output:
        curves=f"{OUT}/tables/curves.parquet",
        aggregate=f"{OUT}/tables/aggregate.parquet",
        summary=f"{OUT}/tables/summary.parquet",
        best_of=f"{OUT}/tables/best_of.parquet",
    log:
        f"{OUT}/logs/tabulate.log",
    benchmark:
        f"{OUT}/benchmarks/tabulate/all.tsv"
    params:
        cfg=cfg("tabulate"),
        code=code("tabulate"),
        cost=f"{OUT}/benchmarks/tabulate/all.json",
    shell:
        "bfmpipe tabulate --cfg {params.cfg:q} --adaptation {input.adaptation}"
        " --probe {input.probe} --curves {output.curves} --aggregate {output.aggregate}"
        " --summary {output.summary} --best_of {output.best_of}"
        " --cost {params.cost} 2>&1 | tee -a {log}"


rule judge:
    """Hold the experiment's claims against the tables."""
    input:
        curves=rules.tabulate.output.curves,
        best_of=rules.tabulate.output.best_of,
    output:
        verdicts=f"{OUT}/tables/verdicts.parquet",
    log:
        f"{OUT}/logs/judge.log",
    benchmark:
        f"{OUT}/benchmarks/judge/all.tsv"
    params:
        cfg=cfg("judge"),
        code=code("judge"),
        cost=f"{OUT}/benchmarks/judge/all.json",
        benchmarks=f"{R}/benchmarks",
    shell:
        "bfmpipe judge --cfg {params.cfg:q} --curves {input.curves} --best_of {input.best_of}"
        " --benchmarks {params.benchmarks} --verdicts {output.verdicts}"
        " --cost {params.cost} 2>&1 | tee -a {log}"


def of_agent(path):
    """The files of all seeds of one domain and agent."""
    return expand(f"{MODEL}/{path}", seed=exp.seeds, allow_missing=True)


def of_training(path):
    """The same of a training; none where the models were finished."""
    return lambda wildcards: (
        [] if wildcards.agent in exp.finished else expand(of_agent(path), **wildcards)
    )


rule plot:
    """Draw every figure of one domain and agent, as PDF and PNG."""
    input:
        curves=rules.tabulate.output.curves,
        aggregate=rules.tabulate.output.aggregate,
        summary=rules.tabulate.output.summary,
        best_of=rules.tabulate.output.best_of,
        probe=of_agent("probe.parquet"),
        losses=of_training("losses.parquet"),
        evaluations=of_training("evaluations.parquet"),
        spectrum=of_training("spectrum.parquet"),
        diagnosis=of_agent("diagnosis.parquet"),
        trajectories=expand(
            of_agent("adapt/{method}.trajectories.parquet"),
            method=exp.methods,
            allow_missing=True,
        ),
        coverage=rules.coverage.output.coverage,
    output:
        figures=directory(f"{OUT}/figures/{{domain}}/{{agent}}"),
    log:
        f"{OUT}/logs/plot/{{domain}}-{{agent}}.log",
    benchmark:
        f"{OUT}/benchmarks/plot/{{domain}}-{{agent}}.tsv"
    params:
        cfg=cfg("plot"),
        code=code("plot"),
        cost=f"{OUT}/benchmarks/plot/{{domain}}-{{agent}}.json",
    shell:
        "bfmpipe plot --cfg {params.cfg:q} --curves {input.curves} --aggregate {input.aggregate}"
        " --summary {input.summary} --best_of {input.best_of} --probe {input.probe}"
        " --losses {input.losses} --evaluations {input.evaluations}"
        " --spectrum {input.spectrum} --diagnosis {input.diagnosis}"
        " --trajectories {input.trajectories}"
        " --coverage {input.coverage}"
        " --figures {output.figures}"
        " --cost {params.cost} 2>&1 | tee -a {log}"


rule report:
    """One self-contained page: results, protocol, configuration, cost."""
    input:
        summary=rules.tabulate.output.summary,
        best_of=rules.tabulate.output.best_of,
        verdicts=rules.judge.output.verdicts,
        losses=expand("{model}/losses.parquet", model=TRAINED_HERE),
        figures=expand(rules.plot.output.figures, domain=exp.domains, agent=exp.agents),
    output:
        page=f"{OUT}/report.html",
    log:
        f"{OUT}/logs/report.log",
    benchmark:
        f"{OUT}/benchmarks/report/all.tsv"
    params:
        cfg=cfg("report"),
        code=code("report"),
        cost=f"{OUT}/benchmarks/report/all.json",
        pictures=lambda wildcards, input: [
            f"{figures}/*.png" for figures in input.figures
        ],
        benchmarks=f"{R}/benchmarks",
    shell:
        "bfmpipe report --cfg {params.cfg:q} --summary {input.summary} --best_of {input.best_of}"
        " --verdicts {input.verdicts} --losses {input.losses} --figures {params.pictures}"
        " --benchmarks {params.benchmarks} --output {output.page}"
        " --cost {params.cost} 2>&1 | tee -a {log}"
