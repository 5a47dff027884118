"""The Snakefile: every run stands, the cluster profile plans, what was killed is not made
twice, and a changed parameter reaches only what reads it.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from functools import cache
from pathlib import Path

import pytest
from forks import completed
from snakemake.cli import main

from carp_nb.report import _PARTS
from carp_nb.results import notebook_parameters
from carp_nb.workflow import estimate, measured_rates, read_plan

ROOT = Path(__file__).resolve().parent.parent
SNAKEMAKE = Path(sys.executable).with_name("snakemake")

# three runs that do no more than say that they ran, of the shape of the real ones
RUNS = """
[smoke.every]
minutes = 5
[smoke.first]
notebook = "small"
[smoke.second]
notebook = "small"
parameters = {seconds = 0, budget = "smoke"}
[smoke.report]
notebook = "small"
needs = ["first", "second"]
[paper.report]
notebook = "small"
"""
CELL = """import json, time
from pathlib import Path
folder = Path(output_dir); folder.mkdir(parents=True, exist_ok=True)
with open(folder.parent / "ran.txt", "a") as ran: ran.write(folder.name + " begins\\\\n")
time.sleep(seconds)
(folder / "run.json").write_text(json.dumps({"seconds": seconds}))
with open(folder.parent / "ran.txt", "a") as ran: ran.write(folder.name + "\\\\n")"""


def environment() -> dict[str, str]:
    "Where this environment's commands come first."
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT)}


def snakemake(*words: str, cwd: Path = ROOT) -> subprocess.CompletedProcess:
    "Snakemake's command line, in a process that has its imports done."
    return completed(main, words, folder=cwd, environment=environment())


@cache
def dry_run(*words: str) -> subprocess.CompletedProcess:
    "What Snakemake would do in this project, asked once."
    return snakemake("-n", "--forceall", *words)


def planned(output: str) -> dict[str, int]:
    "The rules that a dry run would run, and how often."
    table = output.rpartition("Job stats:")[2].partition("\n\n")[0]
    return {
        name: int(count)
        for name, count in re.findall(r"^(\w+) +(\d+)$", table, re.M)
        if name != "total"
    }


@pytest.fixture
def small(tmp_path) -> Path:
    "A project of three small runs under the real Snakefile."
    import nbformat

    shutil.copy(ROOT / "Snakefile", tmp_path)
    shutil.copytree(ROOT / "profiles", tmp_path / "profiles")
    (tmp_path / "profiles/runs.toml").write_text(RUNS)
    (tmp_path / "settings.ini").write_text("lib_path = carp_nb\n")
    (tmp_path / "nbs").mkdir()
    cells = [
        nbformat.v4.new_code_cell(
            'seconds: int = 0\noutput_dir: str = ""\nbudget: str = ""',
            metadata={"tags": ["parameters"]},
        ),
        nbformat.v4.new_code_cell(CELL.replace("\\\\", "\\")),
    ]
    nbformat.write(
        nbformat.v4.new_notebook(
            cells=cells,
            metadata={
                "kernelspec": {"name": "python3", "display_name": "python3", "language": "python"}
            },
        ),
        tmp_path / "nbs/small.ipynb",
    )
    snakefile = (
        (tmp_path / "Snakefile")
        .read_text()
        .replace("read_plan(plan) for", 'read_plan(plan, "profiles/runs.toml") for')
    )
    (tmp_path / "Snakefile").write_text(snakefile)
    return tmp_path


def ran(folder: Path) -> list[str]:
    return (folder / "outputs/smoke/ran.txt").read_text().splitlines()


@pytest.mark.parametrize("plan", ["smoke", "paper"])
def test_every_run_has_a_notebook_that_takes_its_parameters(plan):
    for run in read_plan(plan):
        known = notebook_parameters(run.notebook)
        assert set(run.parameters) <= set(known), (
            f"{run.name}: nbs/{run.notebook}.ipynb has no parameter {sorted(set(run.parameters) - set(known))}"
        )
        assert "output_dir" in known


@pytest.mark.parametrize(
    "words",
    [
        ["smoke", "--cores", "2"],
        ["paper", "--profile", "profiles/slurm"],
        ["paper", "--profile", "profiles/gpu"],
    ],
    ids=" ".join,
)
def test_dry_run_plans_every_run(words):
    done = dry_run(*words)
    assert done.returncode == 0, done.stdout
    assert {f"{words[0]}_{run.name}" for run in read_plan(words[0])} <= planned(done.stdout).keys()


def test_one_gpu_gets_one_process():
    done = dry_run("paper", "--profile", "profiles/gpu")
    assert set(re.findall(r"-p processes (\d+)", done.stdout)) == {"1"} and set(
        re.findall(r"gpu=(\d+)", done.stdout)
    ) == {"0", "1"}


def test_a_run_may_take_as_long_as_it_is_expected_to():
    attempts = 1 + int(
        re.search(r"retries: (\d+)", (ROOT / "profiles/slurm/config.yaml").read_text())[1]
    )
    runs = read_plan("paper")
    costs = estimate(runs, measured_rates(ROOT / "data"))  # nothing measured: the assumed rates
    late = {
        r.name: costs["GPU hours"][r.name] / r.gpus
        for r in runs
        if r.gpus and costs["GPU hours"][r.name] / r.gpus > r.minutes / 60 * attempts
    }
    assert not late


def test_the_report_names_every_run_of_the_plan():
    assert {name for names in _PARTS.runs for name in names} == {
        run.name for run in read_plan("paper")
    } - {"report"}
    runs = {run.name: run.notebook for run in read_plan("paper")}
    assert all(runs[name] == part.section for part in _PARTS.itertuples() for name in part.runs)


def test_killed_and_started_again_runs_only_what_is_missing(small):
    text = (small / "profiles/runs.toml").read_text()
    assert snakemake("--cores", "1", "smoke_second", cwd=small).returncode == 0
    (small / "profiles/runs.toml").write_text(
        text.replace(
            '[smoke.first]\nnotebook = "small"',
            '[smoke.first]\nnotebook = "small"\nparameters = {seconds = 600}',
        )
    )
    process = subprocess.Popen(
        [SNAKEMAKE, "--cores", "1", "smoke"],
        cwd=small,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    while "first begins" not in ran(small) and process.poll() is None:
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert ran(small) == ["second begins", "second", "first begins"]
    (small / "profiles/runs.toml").write_text(text)
    assert (
        "locked" in snakemake("--cores", "1", "smoke", cwd=small).stdout
    )  # a kill leaves Snakemake's lock: one command removes it
    assert snakemake("--unlock", cwd=small).returncode == 0
    done = snakemake("--cores", "1", "smoke", cwd=small)
    assert done.returncode == 0, done.stdout
    assert ran(small)[3:] == ["first begins", "first", "report begins", "report"]
    assert "Nothing to be done" in snakemake("--cores", "1", "smoke", cwd=small).stdout
    # a changed parameter reaches its own run and the report, nothing else; its folder is emptied first
    (small / "outputs/smoke/second/stale.txt").touch()
    (small / "profiles/runs.toml").write_text(text.replace("seconds = 0", "seconds = 0.1"))
    assert planned(snakemake("-n", "smoke", cwd=small).stdout) == {
        "smoke": 1,
        "smoke_second": 1,
        "smoke_report": 1,
    }
    assert snakemake("--cores", "1", "smoke", cwd=small).returncode == 0
    assert ran(small)[7:] == ["second begins", "second", "report begins", "report"]
    assert not (small / "outputs/smoke/second/stale.txt").exists()


def test_failure_is_kept_in_the_log_and_stops_only_what_reads_it(small):
    path = small / "profiles/runs.toml"
    path.write_text(path.read_text().replace("seconds = 0", 'seconds = "never"'))
    done = snakemake("--cores", "1", "smoke", cwd=small)
    assert done.returncode != 0
    assert "first" in ran(small) and "report begins" not in ran(small)
    assert "TypeError" in (small / "outputs/smoke/logs/second.txt").read_text()
