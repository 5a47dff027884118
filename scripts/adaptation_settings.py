"""Compare settings of adaptation and weights of the mixture on the validation proteins; a finished row is kept.

    python scripts/adaptation_settings.py ALIGNMENTS outputs/adapt

ALIGNMENTS is a folder of a3m files named after the proteins, such as `carp-nb homologs` makes.
"""

import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import spearmanr

from carp_nb.adaptation import AdaptConfig, adapt
from carp_nb.carp import CARP
from carp_nb.esm import ESM
from carp_nb.families import ProteinFamily, read_families
from carp_nb.files import write_table
from carp_nb.progress import tqdm
from carp_nb.results import provenance
from carp_nb.scans import ScanFacts, find_inputs
from carp_nb.scorers import Blosum62, Substitutions
from carp_nb.scoring import score_mutants

# short ones of different families, so that a setting takes a few minutes
SIX = {"IF1_ECOLI", "UBC9_HUMAN", "BLAT_ECOLX", "DLG4_RAT", "TIM_THEMA", "AMIE_PSEAE"}
# of the profile, of the model and of BLOSUM62
WEIGHTS = [
    (1, 0, 0),
    (0, 0, 1),
    (0, 1, 0),
    (0.5, 0.5, 0),
    (0.65, 0.35, 0),
    (0.55, 0.3, 0.15),
    (0.45, 0.4, 0.15),
    (0.4, 0.4, 0.2),
]


@dataclass(frozen=True)
class Trial:
    "One setting, tried on some proteins."

    label: str
    # of `AdaptConfig`; what is not named is the default, and 300 updates are made
    settings: dict = field(default_factory=dict)
    homologs: int = 0  # drawn at random; 0: all
    start: str = "carp_600k_sprot50"  # the included model when the settings were chosen
    proteins: frozenset | None = frozenset(SIX)  # None: all that are in the group


TRIALS = [
    Trial("default", proteins=None),
    Trial("default", homologs=30),
    Trial("whole sequences", {"unaligned": 1.0}),
    Trial("whole sequences", {"unaligned": 1.0}, homologs=30),
    Trial("never in the query", {"in_query": 0.0}),
    Trial("never in the query", {"in_query": 0.0}, homologs=30),
    Trial("carp_600k_sprot50_v3", {}, 30, "carp_600k_sprot50_v3", None),
    Trial("carp_600k_sprot50_v3", {}, 0, "carp_600k_sprot50_v3", None),
    Trial("carp_600k_sprot50_pairs", {}, 30, "carp_600k_sprot50_pairs", None),
    Trial("carp_600k_sprot50_pairs", {}, 0, "carp_600k_sprot50_pairs", None),
    *(
        Trial(
            f"carp_600k_sprot50_pairs, {label}", settings, homologs, "carp_600k_sprot50_pairs", None
        )
        for homologs in (30, 0)
        for label, settings in {
            "three of four in the query": {"in_query": 0.75},
            "always in the query": {"in_query": 1.0, "unaligned": 0.0},
            "600 updates": {"updates": 600},
        }.items()
    ),
    Trial(
        "carp_600k_sprot50_pairs, 150 updates",
        {"updates": 150},
        30,
        "carp_600k_sprot50_pairs",
        None,
    ),
    *(
        Trial(
            f"carp_2_4m_sprot50_pairs, {updates} updates",
            {"updates": updates},
            homologs,
            "carp_2_4m_sprot50_pairs",
            None,
        )
        for updates in (150, 300)
        for homologs in (30, 0)
    ),
    Trial("bfloat16", {"dtype": "bfloat16"}),
    Trial("bfloat16", {"dtype": "bfloat16"}, homologs=30),
    Trial("bfloat16, Muon, 1e-3", {"dtype": "bfloat16", "optimizer": "muon"}),
    Trial("bfloat16, Muon, 1e-3", {"dtype": "bfloat16", "optimizer": "muon"}, homologs=30),
    Trial("bfloat16, carp_2_4m_sprot50", {"dtype": "bfloat16"}, 0, "carp_2_4m_sprot50"),
    Trial("bfloat16, carp_2_4m_sprot50", {"dtype": "bfloat16"}, 30, "carp_2_4m_sprot50"),
    Trial("always aligned", {"unaligned": 0.0}),
    Trial("always aligned", {"unaligned": 0.0}, homologs=30),
    Trial("15 % selected", {"masking": 15}),
    Trial("40 % selected", {"masking": 40}),
    Trial("150 updates", {"updates": 150}),
    Trial("150 updates", {"updates": 150}, homologs=30),
]


def draw_homologs(path: Path, homologs: int, target: Path) -> Path:
    "Write some rows of an alignment, the query first."
    records = path.read_text().split(">")[1:]
    others = np.random.default_rng([0, homologs]).permutation(len(records) - 1)[:homologs] + 1
    target.write_text("".join(f">{records[i]}" for i in [0, *sorted(others)]))
    return target


def correlations(
    family: ProteinFamily,
    model: CARP | ESM,
    tables: Sequence[Substitutions],
    weights: Sequence[Sequence[float]],  # of the profile, of the model and of each table
) -> list[float]:  # one for each mixture
    "Score the scans of a protein by every mixture, and average its scans."
    found = []
    for profile in family.profiles:
        scan = profile.scan
        given = (scan.wild_type, list(scan.table.mutant), scan.offset)
        scores = [
            np.asarray(score_mutants(profile.pssm, *given, "wild-type")),
            np.asarray(score_mutants(model, *given, "masked")),
            *(np.asarray(score_mutants(table, *given, "wild-type")) for table in tables),
        ]
        measured = scan.direction * scan.table.score
        mixed = np.array(weights) @ np.stack(scores)
        found.append([spearmanr(row, measured).statistic for row in mixed])
    return np.mean(found, axis=0).tolist()


def run_trial(trial: Trial, family: ProteinFamily) -> dict:
    "Adapt to one family and correlate."
    fitted = adapt(
        trial.start, family.path, AdaptConfig(**{"updates": 300, **trial.settings}), progress=False
    )
    names = ["{:g} PSSM {:g} model {:g} BLOSUM62".format(*weights) for weights in WEIGHTS]
    row = dict(zip(names, correlations(family, fitted, [Blosum62()], WEIGHTS)))
    return {"seconds": fitted.card.seconds, "sequences": fitted.card.sequences, **row}


def main() -> None:
    alignments, folder = sys.argv[1:]
    path = Path(folder) / "settings.csv"
    rows = pd.read_csv(path, keep_default_na=False).to_dict("records") if path.exists() else []
    done = {(row["setting"], row["homologs"], row["protein"]) for row in rows}
    scans, _ = find_inputs("validation", "", ScanFacts())
    with tempfile.TemporaryDirectory() as temporary:
        for trial in tqdm(TRIALS, desc="settings"):
            place = Path(alignments)
            if trial.homologs:
                place = Path(temporary) / str(trial.homologs)
                place.mkdir(exist_ok=True)
                for file in Path(alignments).glob("*.a3m"):
                    draw_homologs(file, trial.homologs, place / file.name)
            for family in read_families(scans, str(place)):
                key = (trial.label, trial.homologs, family.protein)
                if key in done or family.protein not in (trial.proteins or [family.protein]):
                    continue
                row = dict(zip(("setting", "homologs", "protein"), key))
                row |= run_trial(trial, family)
                made = provenance("cpu")
                rows.append(row | {name: made[name] for name in ("torch", "commit", "device")})
                write_table(pd.DataFrame(rows), path)


if __name__ == "__main__":
    main()
