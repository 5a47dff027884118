"""What does not read well as notebook cells: the shipped inputs against their makers, their README and the training set."""
import gzip
import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from carp_nb import datasets
from carp_nb.datasets import content_sha256, load_dataset, read_fasta

DATA = Path(__file__).resolve().parents[1] / "data"
MAKER = DATA / "make_shipped.py"


def official(path: str) -> Path:
    "A file below CARP_NB_DATA; the test is skipped, and says so, without it."
    found = Path(os.environ.get("CARP_NB_DATA", "nowhere"), path)
    if not found.exists(): pytest.skip(f"{path} is not below CARP_NB_DATA")
    return found


def test_no_heldout_sequence_is_in_the_training_set():
    heldout = {sequence for _, sequence in load_dataset("sprot_heldout_sample")}
    assert len(heldout) == 400
    train = official("pretrain/train.fasta.gz")
    assert not [name for name, sequence in read_fasta(train) if sequence in heldout]


def test_samples_hold_only_entries_that_may_ship():
    for name, n in (("sprot_train_sample", 2000), ("sprot_heldout_sample", 400)):
        headers = [h for h in gzip.open(DATA / f"sequences/{name}.fasta.gz", "rt") if h.startswith(">")]
        assert len(headers) == n
        assert {h.split()[2] for h in headers} <= {"src=SwissProt_2014_01", "src=UniProtKB_MMseqs2_example"}


@pytest.mark.parametrize("what,folder", [("scans", "scans"), ("wild_types", "scans"), ("sequences", "sequences")])
def test_makers_give_the_shipped_content(what, folder, tmp_path):
    if what != "sequences" and importlib.util.find_spec("mavenn") is None: pytest.skip("the package mavenn is not installed")
    if what == "wild_types": official("proteingym/DMS_substitutions.csv")
    if what == "sequences": official("pretrain/train.fasta.gz")
    subprocess.run([sys.executable, MAKER, what, "--out", tmp_path], check=True)
    made = sorted((tmp_path / folder).iterdir())
    assert made and all(content_sha256(p) == content_sha256(DATA / folder / p.name) for p in made)


def test_readme_lists_every_file_with_its_sum():
    listed = dict(re.findall(r"^\| `([^`]+)` .*`([0-9a-f]{64})` \|$", (DATA / "README.md").read_text(), re.M))
    files = {str(p.relative_to(DATA)): content_sha256(p) for p in DATA.rglob("*") if p.suffix in (".gz", ".fasta", ".csv")}
    assert listed == files


def test_a_set_that_is_not_here_is_fetched_by_address_and_sum(monkeypatch, tmp_path):
    "Only the request is looked at; the download itself is tested with `fetch`."
    asked = {}
    monkeypatch.setenv("CARP_NB_DATA", str(tmp_path))
    monkeypatch.setattr(datasets, "cache_dir", lambda: tmp_path / "cache")
    monkeypatch.setattr(datasets, "fetch", lambda url, **options: asked.update(url=url, **options))
    datasets.dataset_path("PA_FLU_Sun2015")
    assert asked["url"].endswith("/data/viral/metadata/IAV_PA_Wu.csv")
    assert asked["folder"] / asked["filename"] == tmp_path / "cache/data/dms_deepsequence/IAV_PA_Wu.csv"
    assert "CARP_NB_DATA to a folder that holds dms_deepsequence/IAV_PA_Wu.csv.gz" in asked["hint"]
    assert re.fullmatch("[0-9a-f]{64}", asked["sha256"])
