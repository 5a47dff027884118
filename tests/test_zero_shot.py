"""zero_shot.ipynb the way its users start it: papermill, at a terminal, with parameters right and wrong."""

import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from carp_nb.defaults import DEFAULT_MODEL

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOK = ROOT / "nbs/zero_shot.ipynb"
NO_NETWORK = {
    "https_proxy": "http://127.0.0.1:9",
    "http_proxy": "http://127.0.0.1:9",
    "HTTPS_PROXY": "http://127.0.0.1:9",
}
MISSPELT = "zero_shot.ipynb has no parameter 'modle'; did you mean 'model'"


def at_a_terminal(tmp_path: Path, *parameters: str) -> tuple[int, str]:
    "Exit status and what the terminal shows, of papermill under a pseudo-terminal."
    words = [
        sys.executable,
        "-m",
        "papermill",
        str(NOTEBOOK),
        str(tmp_path / "executed.ipynb"),
        "--no-progress-bar",
    ]
    for name, value in {
        "output_dir": str(tmp_path / "out"),
        "budget": "smoke",
        **dict(zip(parameters[::2], parameters[1::2])),
    }.items():
        words += ["-p", name, value]
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        words,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env={**os.environ, "TQDM_DISABLE": "1"},
        cwd=tmp_path,
    )
    os.close(theirs)
    shown = b""
    while True:
        try:
            part = os.read(ours, 65536)
        except OSError:
            break
        if not part:
            break
        shown += part
    os.close(ours)
    return process.wait(), shown.decode(errors="replace")


def test_default_scores_the_shipped_scans(tmp_path):
    status, shown = at_a_terminal(tmp_path)
    assert status == 0, shown
    rows = pd.read_parquet(tmp_path / "out/results.parquet")
    assert set(rows.task) == {"abeta42", "tdp43", "gb1_olson_sample"} and {
        DEFAULT_MODEL,
        "blosum62",
    } == set(rows.model)
    assert (
        rows[rows.metric == "spearman"].value.between(-1, 1).all()
        and rows.data_sha.str.len().eq(64).all()
    )
    assert (tmp_path / "out/figure.svg").stat().st_size > 5000
    record = json.loads((tmp_path / "out/run.json").read_text())
    assert record["parameters"]["budget"] == "smoke" and record["commit"] and record["torch"]


def test_own_protein(papermill, tmp_path):
    (tmp_path / "mine.fasta").write_text(">mine\nMQYKLILNGKTLKGETTTEA\n")
    done = papermill("zero_shot", fasta="mine.fasta", mutants="Y26W,K27A:L28V", offset=24)
    assert done.status == 0, done.shown
    table = pd.read_csv(done.out / f"mutants_mine_{DEFAULT_MODEL}.csv")
    assert set(table.mutant) == {"Y26W", "K27A:L28V"} and table.percentile.tolist() == [100.0, 50.0]
    done = papermill("zero_shot", fasta="mine.fasta")
    assert done.status == 0, done.shown
    assert (
        len(pd.read_csv(done.out / f"mutants_mine_{DEFAULT_MODEL}.csv")) == 19 * 20
        and (done.out / f"mutants_mine_{DEFAULT_MODEL}.svg").exists()
    )


def test_a_wrong_name_is_shown_at_the_terminal(tmp_path):
    status, shown = at_a_terminal(tmp_path, "modle", "x")
    assert status != 0 and MISSPELT in " ".join(shown.split()), shown
    assert not list(tmp_path.glob("out/*.parquet"))


@pytest.mark.parametrize(
    "parameters, sentence",
    [
        ({"modle": "x"}, MISSPELT),
        ({"seed": "abc"}, "seed is 'abc'; it must be a whole number"),
        ({"budget": "huge"}, "budget is 'huge'; use one of smoke, laptop, paper."),
        ({"output_dir": "/proc/nowhere"}, "the output folder /proc/nowhere cannot be written"),
        ({"model": "carp_6000k"}, "carp_600k"),
    ],
)
def test_wrong_parameters(papermill, parameters, sentence):
    done = papermill("zero_shot", **parameters)
    assert done.status != 0 and sentence in done.shown, done.shown
    assert not list(done.out.glob("*.parquet"))


def test_published_weights_without_a_connection(papermill, tmp_path):
    cache = {
        "HOME": str(tmp_path),
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
        "CARP_NB_WEIGHTS": "",
    }
    done = papermill("zero_shot", environment=NO_NETWORK | cache, model="carp_640m")
    assert done.status != 0 and all(
        word in done.shown
        for word in ("carp_640M.pt", "https://zenodo.org/record/6564798", "CARP_NB_WEIGHTS")
    ), done.shown


GYM = "mutant,mutated_sequence,DMS_score,DMS_score_bin\n"
WILD_TYPE = "MQYKLILNGKTLKGETTTEA"


def write_scan(path: Path) -> None:
    "A made-up scan of 19 mutants in ProteinGym's layout."
    rows = []
    for i, letter in enumerate(WILD_TYPE[1:], 2):
        rows.append(f"{letter}{i}W,{WILD_TYPE[: i - 1]}W{WILD_TYPE[i:]},{i % 7},0\n")
    path.write_text(GYM + "".join(rows))


def correlations(out: Path) -> pd.DataFrame:
    rows = pd.read_parquet(out / "results.parquet")
    return rows[rows.metric == "spearman"].set_index(["task", "model", "method"])


def test_own_scan_by_path_with_fasta_and_alignment(papermill, tmp_path):
    table = "".join(f"{a}{i}W,{i % 7}\n" for i, a in enumerate(WILD_TYPE, 1))
    (tmp_path / "mine.csv").write_text("mutant,score\n" + table)
    (tmp_path / "wt.fasta").write_text(f">protein\n{WILD_TYPE}\n")
    (tmp_path / "ali").mkdir()
    part = WILD_TYPE[4:14]
    (tmp_path / "ali/mine.a3m").write_text(f">q\n{part}\n>a\n{part[::-1]}\n")
    settings = {"datasets": "mine.csv", "fasta": "wt.fasta", "alignments": "ali"}
    done = papermill("zero_shot", adapt="false", **settings)
    assert done.status == 0, done.shown
    n = correlations(done.out).n
    assert n["mine", DEFAULT_MODEL, "masked"] == 20
    # only what the alignment covers
    assert n["mine", "pssm", "wild-type"] == n["mine", f"{DEFAULT_MODEL}+pssm", "masked"] == 10
    assert set(pd.read_csv(done.out / "by_protein_means.csv").what) == {
        "unadapted", "BLOSUM62", "other scans", "PSSM", "mixture without model", "mixture"
    }  # fmt: skip
    assert "mixture" in (done.out / "by_protein.svg").read_text()
    assert "mine" in (done.out / "figure.html").read_text()
    assert "pssm" in (done.out / "figure.svg").read_text()


def test_proteingym_layout_needs_nothing_else(papermill, tmp_path):
    (tmp_path / "gym").mkdir()
    write_scan(tmp_path / "gym/ASSAY_2020.csv")
    done = papermill("zero_shot", datasets="gym,abeta42", direction="-1")
    assert done.status == 0, done.shown
    rows = correlations(done.out)
    assert set(rows.index.get_level_values("task")) == {"ASSAY_2020", "abeta42"}
    assert rows.n["ASSAY_2020", DEFAULT_MODEL, "masked"] == 19


@pytest.mark.parametrize(
    "parameters, sentence",
    [
        ({"datasets": "gym.csv", "fasta": "gym.csv"}, "expected a header that starts with '>'"),
        ({"datasets": "nowhere.csv"}, "nowhere.csv is neither a file nor a folder"),
        ({"datasets": "bare.csv"}, "its wild type is not known; give it with -p fasta"),
        ({"datasets": "abeta42", "fasta": "wt.fasta"}, "datasets=abeta42 has their own"),
        ({"datasets": "gym.csv", "mutants": "Q2W"}, "mutants belong to the protein of a fasta"),
        ({"datasets": "gym.csv", "alignments": "ali"}, "is not the wild type of gym"),
    ],
)
def test_scans_that_cannot_be_scored(papermill, tmp_path, parameters, sentence):
    write_scan(tmp_path / "gym.csv")
    (tmp_path / "bare.csv").write_text("mutant,score\nQ2W,1\n")
    (tmp_path / "wt.fasta").write_text(f">protein\n{WILD_TYPE}\n")
    (tmp_path / "ali").mkdir()
    (tmp_path / "ali/gym.fasta").write_text(">q\nMKV\n>a\nMRV\n")
    done = papermill("zero_shot", **parameters)
    assert done.status != 0 and sentence in done.shown, done.shown
    assert not list(done.out.glob("*.parquet"))
