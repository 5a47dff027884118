"""The whole paper: `snakemake --cores 2 smoke` on a laptop, `snakemake --profile profiles/gpu paper` or `profiles/slurm` in full.

One rule per run of profiles/runs.toml, called PLAN_RUN; each executes a section notebook into outputs/PLAN/RUN/. `carp-nb plan` says what it costs.
The paper's UniRef50 (uniref50.tar.gz of Zenodo record 6564798) is read from uniref50/ below CARP_NB_DATA, or `--config uniref50=FOLDER`.
"""
import os
import shlex
from math import ceil

from carp_nb.workflow import NAME, read_plan

UNIREF50 = config.get("uniref50", os.path.join(os.environ.get("CARP_NB_DATA", "data"), "uniref50"))
GPUS = int(config.get("gpus", 8))   # of one machine: runs that want more take longer
PLANS = {plan: read_plan(plan) for plan in ("smoke", "paper")}


def parameters(plan, run):
    "What papermill is given; pretraining uses all GPUs of its job, and cuts the batch finer where they are fewer."
    given = {**run.parameters, "output_dir": run.folder(plan)}
    if run.gpus > 1: given |= {"processes": min(run.gpus, GPUS), "accumulate": ceil(given.get("accumulate", 1) * run.gpus / min(run.gpus, GPUS))}
    return given


def words(given):
    "Parameters as papermill takes them."
    return " ".join(f"-p {shlex.quote(name)} {shlex.quote(str(value))}" for name, value in given.items())


def inputs(plan, run):
    "The runs, sets and corpora that a run reads."
    runs = {r.name: r for r in PLANS[plan]}
    return ([f"{runs[need].folder(plan)}/notebook.ipynb" for need in run.needs] + [f"outputs/fetched/{name}.txt" for name in run.fetch]
            + [value for value in run.parameters.values() if str(value).startswith(f"outputs/{plan}/corpus/")])


# Whatever stands between braces in a shell command has :q, which quotes it for the shell.
localrules: smoke, paper, fetch

rule smoke:
    input: "outputs/smoke/report/notebook.ipynb"

rule paper:
    input: "outputs/paper/report/notebook.ipynb"

rule fetch:
    output: "outputs/fetched/{name}.txt"
    log: "outputs/fetched/logs/{name}.txt"
    wildcard_constraints: name=NAME   # a target is typed by hand, and must be no option and no command
    shell: "carp-nb fetch {wildcards.name:q} > {output:q} 2> {log:q}"

rule paper_corpus:
    output: directory("outputs/paper/corpus/train")
    params: uniref50=UNIREF50
    log: "outputs/paper/logs/corpus.txt"
    resources: mem_mb=8000, runtime=1440
    shell: "carp-nb corpus {params.uniref50:q} {output:q} --split train > {log:q} 2>&1"

rule paper_held_out:
    output: "outputs/paper/corpus/{split}.fasta"
    params: uniref50=UNIREF50
    log: "outputs/paper/logs/corpus_{split}.txt"
    wildcard_constraints: split="valid|test"
    resources: mem_mb=8000, runtime=60
    shell: "carp-nb corpus {params.uniref50:q} {output:q} --split {wildcards.split:q} > {log:q} 2>&1"

# A run that was stopped goes on where it was; with other parameters it begins in an empty folder.
for plan, runs in PLANS.items():
    for run in runs:
        rule:
            name: f"{plan}_{run.name}"
            input: f"nbs/{run.notebook}.ipynb", inputs(plan, run)
            output:
                notebook=f"{run.folder(plan)}/notebook.ipynb",
                record=f"{run.folder(plan)}/run.json",
            params:
                folder=run.folder(plan),
                given=words(parameters(plan, run)),   # quoted already, one word for each value
                same=words({name: value for name, value in parameters(plan, run).items() if name not in ("processes", "accumulate")}),   # on other GPUs it is the same run
            log: f"outputs/{plan}/logs/{run.name}.txt"
            threads: run.cpus
            resources:
                mem_mb=int(1000 * run.memory_gb),
                runtime=int(run.minutes),
                gpu=min(run.gpus, GPUS),
            shell:
                """
                printf '%s\\n' {params.same:q} | cmp -s - {params.folder:q}/.parameters || rm -rf -- {params.folder:q}
                mkdir -p -- {params.folder:q}
                printf '%s\\n' {params.same:q} > {params.folder:q}/.parameters
                OMP_NUM_THREADS={threads:q} papermill --no-progress-bar {input[0]:q} {output.notebook:q} {params.given} > {log:q} 2>&1
                """
