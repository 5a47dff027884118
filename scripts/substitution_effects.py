"""Average what substitutions did in the validation scans, and say what that adds to a mixture.

    CARP_NB_DATA=folder python scripts/substitution_effects.py
    CARP_NB_DATA=folder python scripts/substitution_effects.py ALIGNMENTS MODELS outputs/adapt

The first form writes the table of the package. The second tries weights of the mixture, each protein with
the table of the other proteins: ALIGNMENTS is a folder of a3m files named after the proteins, MODELS one of
the models adapted to them by `carp-nb adapt`, named alike. Finished rows are kept.
"""

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from adaptation_settings import correlations
from scipy.stats import rankdata

from carp_nb.alphabet import AMINO_ACIDS
from carp_nb.datasets import Scan
from carp_nb.families import protein_name, read_families
from carp_nb.files import write_table
from carp_nb.mutants import parse_mutant
from carp_nb.pretrained import load_model
from carp_nb.progress import tqdm
from carp_nb.results import provenance
from carp_nb.scans import ScanFacts, find_inputs
from carp_nb.scorers import EFFECTS, Blosum62, DmsMatrix

# of the profile, of the adapted model, of the table and of BLOSUM62
WEIGHTS = [
    (1, 0, 0, 0),
    (0, 1, 0, 0),
    (0, 0, 1, 0),
    (0.5, 0.5, 0, 0),
    (0.4, 0, 0.6, 0),
    (0.3, 0.1, 0.6, 0),
    (0.25, 0.1, 0.65, 0),
    (0.25, 0.15, 0.6, 0),
    (0.2, 0.2, 0.6, 0),
    (0.3, 0.2, 0.5, 0),
    (0.25, 0.25, 0.5, 0),
    (0, 0, 0, 1),
]
# columns; BLOSUM62 is in no mixture
NAMES = ["{:g} PSSM {:g} model {:g} dms_matrix".format(*weights) for weights in WEIGHTS[:-1]]
NAMES.append("BLOSUM62")


def scan_ranks(scan: Scan) -> tuple[np.ndarray, np.ndarray]:  # float [20, 20], twice
    "Sum the ranks of each substitution in a scan, and count it, per single mutant of the scan."
    singles = scan.table[~scan.table.mutant.str.contains(":", regex=False)]
    ranks = (rankdata(scan.direction * singles.score) - 0.5) / len(singles)
    sums, counts = np.zeros((20, 20)), np.zeros((20, 20))
    for mutant, rank in zip(singles.mutant, ranks):
        (mutation,) = parse_mutant(mutant)
        place = AMINO_ACIDS.find(mutation.wt), AMINO_ACIDS.index(mutation.mt)
        # a wild type may have a letter that is no amino acid
        if place[0] >= 0:
            sums[place] += rank / len(singles)
            counts[place] += 1 / len(singles)
    return sums, counts


def mean_ranks(scans: Iterable[Scan]) -> pd.DataFrame:  # [20, 20], wild type by mutant
    "Return the mean rank of each substitution, where each protein counts once."
    proteins: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {}
    for scan in scans:
        proteins.setdefault(protein_name(scan), []).append(scan_ranks(scan))
    sums, counts = np.sum([np.mean(each, axis=0) for each in proteins.values()], axis=0)
    with np.errstate(invalid="ignore"):
        means = sums / counts
    letters = list(AMINO_ACIDS)
    return pd.DataFrame(means, pd.Index(letters, name="wild type"), letters).round(4)


def compare(scans: Sequence[Scan], alignments: str, models: Path, path: Path) -> None:
    "Write a row for each protein that has an alignment and a model."
    rows = pd.read_csv(path).to_dict("records") if path.exists() else []
    done = {(row["homologs"], row["protein"]) for row in rows}
    for family in tqdm(read_families(scans, alignments), desc="proteins"):
        key = (family.pssm.homologs, family.protein)
        if key in done:
            continue
        others = [scan for scan in scans if protein_name(scan) != family.protein]
        model = load_model(models / f"{family.protein}.safetensors", "cpu")
        tables = [DmsMatrix(mean_ranks(others)), Blosum62()]
        row = {"homologs": key[0], "protein": key[1]}
        row |= dict(zip(NAMES, correlations(family, model, tables, WEIGHTS)))
        made = provenance("cpu")
        rows.append(row | {name: made[name] for name in ("torch", "commit", "device")})
        write_table(pd.DataFrame(rows), path)


def main() -> None:
    scans, _ = find_inputs("validation", "", ScanFacts())
    if len(sys.argv) == 1:
        write_table(mean_ranks(scans).reset_index(), EFFECTS)
        return
    alignments, models, folder = sys.argv[1:]
    compare(scans, alignments, Path(models), Path(folder) / "mixtures.csv")


if __name__ == "__main__":
    main()
