"""What does not read well as notebook cells: the shipped inputs against their makers, their
README and the training set.
"""

import gzip
import importlib.util
import os
import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from carp_nb import datasets
from carp_nb.clusters import find_mmseqs
from carp_nb.datasets import load_dataset, read_fasta
from carp_nb.files import content_sha256
from carp_nb.readers import read_aligned

DATA = Path(__file__).resolve().parents[1] / "data"
MAKER = DATA / "make_shipped.py"


def official(path: str) -> Path:
    "A file below CARP_NB_DATA; the test is skipped, and says so, without it."
    found = Path(os.environ.get("CARP_NB_DATA", "nowhere"), path)
    if not found.exists():
        pytest.skip(f"{path} is not below CARP_NB_DATA")
    return found


def needs_examples() -> None:
    "Skip a test, and say so, without Debian's mmseqs2-examples or MMseqs2."
    place = os.environ.get("MMSEQS2_EXAMPLES", "/usr/share/doc/mmseqs2/example-data")
    if not Path(place, "DB.fasta.gz").exists():
        pytest.skip("Debian's package mmseqs2-examples is not installed")
    try:
        find_mmseqs()
    except FileNotFoundError:
        pytest.skip("MMseqs2 is not installed")


def test_no_heldout_sequence_is_in_the_training_set():
    heldout = {
        sequence
        for name in ("sprot_valid_sample", "sprot_heldout_sample")
        for _, sequence in load_dataset(name)
    }
    assert len(heldout) == 600
    train = official("pretrain/train.fasta.gz")
    assert not [name for name, sequence in read_fasta(train) if sequence in heldout]


def test_samples_hold_only_entries_that_may_ship():
    for name, n in (
        ("sprot_train_sample", 2000),
        ("sprot_valid_sample", 200),
        ("sprot_heldout_sample", 400),
    ):
        with gzip.open(DATA / f"sequences/{name}.fasta.gz", "rt") as file:
            headers = [line for line in file if line.startswith(">")]
        assert len(headers) == n
        assert {h.split()[2] for h in headers} <= {
            "src=SwissProt_2014_01",
            "src=UniProtKB_MMseqs2_example",
        }


def test_the_alignment_that_ships_is_of_the_whole_entries_that_ship():
    "Each row of it is a piece of the entry of that name, as it stands in the FASTA file."
    whole = {name.split("|")[1]: entry for name, entry in load_dataset("pk1_asfwa_homologs")}
    rows = list(read_aligned(DATA / "homologs/pk1_asfwa.a3m.gz"))
    assert len(rows) == len(whole) == 352
    for name, row in rows:
        assert re.sub("[^A-Za-z]", "", row).upper() in whole[name], name
    assert rows[0] == ("P0C8F3", whole["P0C8F3"])
    with gzip.open(DATA / "homologs/pk1_asfwa.fasta.gz", "rt") as file:
        headers = [line for line in file if line.startswith(">")]
    assert all(re.match(r">(sp|tr)\|\w+\|\w+ .+ OS=.+ PE=\d SV=\d+$", line) for line in headers)
    assert not any("Fragment" in line for line in headers)


@pytest.mark.parametrize(
    "what,folder",
    [
        ("scans", "scans"),
        ("wild_types", "scans"),
        ("sequences", "sequences"),
        ("chains", "chains"),
        ("homologs", "homologs"),
    ],
)
def test_makers_give_the_shipped_content(what, folder, tmp_path):
    if what in ("scans", "wild_types") and importlib.util.find_spec("mavenn") is None:
        pytest.skip("the package mavenn is not installed")
    if what == "wild_types":
        official("proteingym/DMS_substitutions.csv")
    if what == "sequences":
        official("pretrain/train.fasta.gz")
    if what == "chains":
        official("structures/chains.tsv.gz")
    if what == "homologs":
        needs_examples()
    subprocess.run([sys.executable, MAKER, what, "--out", tmp_path], check=True)
    made = sorted((tmp_path / folder).iterdir())
    assert made and all(content_sha256(p) == content_sha256(DATA / folder / p.name) for p in made)


def test_readme_lists_every_file_with_its_sum():
    listed = dict(
        re.findall(r"^\| `([^`]+)` .*`([0-9a-f]{64})` \|$", (DATA / "README.md").read_text(), re.M)
    )
    files = {
        str(p.relative_to(DATA)): content_sha256(p)
        for p in DATA.rglob("*")
        if p.suffix in (".gz", ".fasta", ".csv")
    }
    assert listed == files


def test_a_set_that_is_not_here_is_fetched_by_address_and_sum(monkeypatch, tmp_path):
    "Only the request is looked at; the download itself is tested with `fetch`."
    asked = {}
    monkeypatch.setenv("CARP_NB_DATA", str(tmp_path))
    monkeypatch.setattr(datasets, "cache_dir", lambda: tmp_path / "cache")
    monkeypatch.setattr(datasets, "fetch", lambda url, **options: asked.update(url=url, **options))
    datasets.dataset_path("PA_FLU_Sun2015")
    assert asked["url"].endswith("/data/viral/metadata/IAV_PA_Wu.csv")
    assert (
        asked["folder"] / asked["filename"]
        == tmp_path / "cache/data/dms_deepsequence/IAV_PA_Wu.csv"
    )
    assert "CARP_NB_DATA to a folder that holds dms_deepsequence/IAV_PA_Wu.csv.gz" in asked["hint"]
    assert re.fullmatch("[0-9a-f]{64}", asked["sha256"])


def test_all_41_scans_have_a_loader(monkeypatch, tmp_path):
    "The scans that are in no table of their own come out of the one of all 41, with a parent by name."
    missing = [
        s for s in datasets.SOURCES if s.benchmark and s.path.startswith("dms_official_format/")
    ]
    assert len({s.benchmark for s in datasets.SOURCES} - {""}) == 41
    (tmp_path / "proteingym").mkdir()
    (tmp_path / "uniprot").mkdir()
    (tmp_path / "dms_official_format").mkdir()
    reference = ["DMS_id,target_seq"]
    # the stabilised parents differ from UniProt at these residues
    protein = "MKV" * 200
    rows = ["protein_name,mutant,gt"]
    official = [s for s in missing if s.n == 0]
    for source in official:
        if source.wild_type.startswith("proteingym"):
            reference.append(f"{source.wild_type.partition('#')[2]},{protein}")
        elif source.wild_type.startswith("uniprot"):
            path = tmp_path / source.wild_type.partition("#")[0]
            path.write_text(f">sp|X|X_X\n{protein}\n")
        first = 1 if source.offset is None else source.offset
        letters = source.residues.get("207") or source.residues.get("373")
        number = {"F": 207, "C": 373}.get(letters, first)
        rows += [f"{source.name},{letters or 'M'}{number}W,1.5"]
        # each letter once, so that only one numbering fits
        if source.offset is None:
            rows += [f"{source.name},{a}{i}W,1" for i, a in enumerate(protein, 1) if i > 1]
    assert len(official) == 16
    (tmp_path / "dms_official_format/raw_df.csv").write_text("\n".join(rows) + "\n")
    (tmp_path / "proteingym/DMS_substitutions.csv").write_text("\n".join(reference) + "\n")
    monkeypatch.setenv("CARP_NB_DATA", str(tmp_path))
    monkeypatch.setattr(datasets, "cache_dir", lambda: tmp_path / "cache")
    for source in official:
        scan = load_dataset(source.name)
        assert scan.benchmark == source.name and len(scan) >= 1
        assert scan.columns == ("mutant", "gt")
        assert not scan.verified


def test_a_published_tar_is_fetched_once_and_unpacked(monkeypatch, tmp_path):
    "TAPE's sets are tars of three files; the member is found whatever its layout, and a damaged tar is one sentence."
    (tmp_path / "stability").mkdir()
    for split, letter in zip(("train", "valid", "test"), "ACD"):
        (tmp_path / f"stability/stability_{split}.json").write_text(
            f'[{{"primary": "MKV{letter}", "stability_score": [1.0]}}]'
        )
    with tarfile.open(tmp_path / "stability.tar.gz", "w:gz") as packed:
        packed.add(tmp_path / "stability", "stability")
    asked = []
    (tmp_path / "empty").mkdir()
    monkeypatch.setenv("CARP_NB_DATA", str(tmp_path / "empty"))
    monkeypatch.setattr(datasets, "cache_dir", lambda: tmp_path / "cache")
    monkeypatch.setattr(
        datasets, "fetch", lambda url, **options: asked.append(url) or tmp_path / "stability.tar.gz"
    )
    table = load_dataset("tape_stability", check=False).table
    assert table.sequence.tolist() == ["MKVA", "MKVC", "MKVD"] and table.split.tolist() == [
        "train",
        "valid",
        "test",
    ]
    assert set(asked) == {
        "http://s3.amazonaws.com/songlabdata/proteindata/data_raw_pytorch/stability.tar.gz"
    }
    with pytest.raises(ValueError, match=r"1 \+ 1 \+ 1 rows read where 53614"):
        load_dataset("tape_stability")
    (tmp_path / "stability.tar.gz").write_bytes(b"\x1f\x8bcut off")
    monkeypatch.setattr(datasets, "cache_dir", lambda: tmp_path / "other")
    with pytest.raises(ValueError, match="cannot be unpacked"):
        load_dataset("tape_stability")


def test_aav_splits_drop_rows_outside_the_split(monkeypatch, tmp_path):
    "The official file, which could not be had, in its own layout: rows of another split have an empty `set`."
    (tmp_path / "flip/aav").mkdir(parents=True)
    with zipfile.ZipFile(tmp_path / "flip/aav/splits.zip", "w") as packed:
        for split in (
            "des_mut",
            "mut_des",
            "one_vs_many",
            "two_vs_many",
            "seven_vs_many",
            "low_vs_high",
            "sampled",
        ):
            packed.writestr(
                f"splits/{split}.csv",
                "sequence,target,set,validation\nMAADGY,1.5,train,\nMAADGF,0.5,train,True\nMA*DGW,-1,test,\nMAADGV,2,,\n",
            )
    monkeypatch.setenv("CARP_NB_DATA", str(tmp_path))
    names = [
        n for n in datasets.list_datasets().index if re.fullmatch("flip_aav_(?!substitutions).*", n)
    ]
    assert len(names) == 7
    for name in names:
        task = load_dataset(name, check=False)
        assert task.table.split.tolist() == ["train", "valid", "test"]
        assert task.table.sequence[2] == "MADGW"
        assert task.dropped["no split"] == 1 and task.stripped == 1 and not task.verified
    with pytest.raises(ValueError, match=r"2 \+ 1 rows read where 1170 \+ 81413"):
        load_dataset("flip_aav_one_vs_many")


def test_chains_are_unpacked_in_the_cache(monkeypatch, tmp_path):
    monkeypatch.setattr(datasets, "cache_dir", lambda: tmp_path)
    table = load_dataset("pdb_chains_sample").table
    assert table.target.nunique() == 60 and all(
        Path(p).is_relative_to(tmp_path) for p in table.target
    )
    assert not list(tmp_path.rglob(".unpack-*"))
