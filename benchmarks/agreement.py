"""What half precision costs in accuracy: every scan that is here, scored in fp32 and in bf16."""

from pathlib import Path

import pandas as pd
from tqdm.auto import tqdm

from carp_nb.files import write_table
from carp_nb.metrics import spearman
from carp_nb.pretrained import load_model
from carp_nb.results import provenance
from carp_nb.scans import find_scans
from carp_nb.scoring import score_mutants

SCANS = "bf16-scans"
LARGEST_CHANGE = 0.002  # of a Spearman correlation, per scan
MASKED_UP_TO = 300  # residues: longer proteins are read in one unmasked pass only, for time


def bf16_scans(folder: Path, model: str = "carp_600k_sprot50") -> pd.DataFrame:
    "One row per scan and method; the same masks, mutants and measurements in both precisions."
    scorer, made, rows = load_model(model, "cpu"), provenance("cpu"), []
    for scan in tqdm(find_scans("here"), desc=SCANS):
        table = scan.table.dropna(subset="score")
        for method in ["wild-type"] + ["masked"] * (len(scan.wild_type) <= MASKED_UP_TO):
            scores = {
                dtype: score_mutants(
                    scorer, scan.wild_type, table.mutant, scan.offset, method, dtype
                )
                for dtype in ("float32", "bfloat16")
            }
            exact, half = (scan.direction * spearman(table.score, s) for s in scores.values())
            rows.append(
                {
                    "scan": scan.name,
                    "residues": len(scan.wild_type),
                    "mutants": len(table),
                    "model": model,
                    "method": method,
                    "spearman float32": exact,
                    "spearman bfloat16": half,
                    "change": half - exact,
                    "within 0.002": abs(half - exact) < LARGEST_CHANGE,
                    "spearman of the two scores": spearman(scores["bfloat16"], scores["float32"]),
                    "largest change of a score (nats)": abs(
                        scores["float32"] - scores["bfloat16"]
                    ).max(),
                    "spread of the scores (nats)": scores["float32"].std(),
                    **{k: made[k] for k in ("device", "torch", "commit", "when")},
                }
            )
    table = pd.DataFrame(rows)
    write_table(table, folder / "bf16_scans.csv")
    print("\n".join(summary(table)))
    return table


def summary(table: pd.DataFrame) -> list[str]:
    "How many scans stay within the limit, per method, and each that does not."
    lines = [
        (
            f"{method}: {g['within 0.002'].sum()} of {len(g)} scans move by less than "
            f"{LARGEST_CHANGE}; median {g.change.abs().median():.4f}, largest "
            f"{g.change.abs().max():.4f}."
        )
        for method, g in table.groupby("method", sort=False)
    ]
    return lines + [
        f"{r.scan}, {r.method}: {r['spearman float32']:.4f} becomes "
        f"{r['spearman bfloat16']:.4f} over {r.mutants:,} mutants of {r.residues} "
        "residues; the two scores agree at "
        f"{r['spearman of the two scores']:.5f}, and no score changes by more "
        f"than {r['largest change of a score (nats)']:.3f} nats where their "
        f"spread is {r['spread of the scores (nats)']:.2f}."
        for _, r in table[~table["within 0.002"]].iterrows()
    ]
