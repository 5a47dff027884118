"""zero_shot.ipynb the way its users start it: papermill, at a terminal, with parameters right and wrong."""

import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

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
        "carp_600k_sprot50",
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
    table = pd.read_csv(done.out / "mutants_mine_carp_600k_sprot50.csv")
    assert set(table.mutant) == {"Y26W", "K27A:L28V"} and table.percentile.tolist() == [100.0, 50.0]
    done = papermill("zero_shot", fasta="mine.fasta")
    assert done.status == 0, done.shown
    assert (
        len(pd.read_csv(done.out / "mutants_mine_carp_600k_sprot50.csv")) == 19 * 20
        and (done.out / "mutants_mine_carp_600k_sprot50.svg").exists()
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
