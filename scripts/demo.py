"""A map of mutations before and after a model is adapted to the family of a protein, from homologs that ship.

python scripts/demo.py             # into outputs/demo/: the picture, the adapted model and its card
python scripts/demo.py FILE.png    # the picture there as well
"""

import argparse
import re
import shutil
import sys
from pathlib import Path

from carp_nb import load_model, mutation_scan
from carp_nb.adaptation import AdaptConfig, adapt, save_adapted
from carp_nb.charts import carp_style
from carp_nb.defaults import DEFAULT_MODEL
from carp_nb.files import atomic_path, in_project
from carp_nb.maps import compare_scans_figure
from carp_nb.readers import read_alignment

FAMILY = "data/homologs/pk1_asfwa.a3m.gz"
# a third of what `carp-nb adapt` makes, so that two cores need about a minute
UPDATES = 100
PROTEIN = "protein kinase 1 of the African swine fever virus"
# where a kinase holds ATP and its magnesium: PROSITE PS00108, and the motif that is called DFG
MOTIFS = {"catalytic loop": "[LIVMFYC].[HY].D[LIVMFY]K..N[LIVMFYCT]{3}", "DFG": "DFG"}


def find_motifs(sequence: str) -> dict[str, tuple[int, int]]:  # first and last residue number
    "Find the motifs of the protein, to mark them in the picture."
    found = {name: re.search(pattern, sequence) for name, pattern in MOTIFS.items()}
    return {name: (hit.start() + 1, hit.end()) for name, hit in found.items() if hit}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("picture", nargs="?", type=Path, help="a .png to write as well")
    parser.add_argument("--updates", type=int, default=UPDATES, help="at most")
    options = parser.parse_args()
    family = in_project(FAMILY)
    protein = read_alignment(family).query
    model = load_model(DEFAULT_MODEL, device="cpu")
    adapted = adapt(model, family, AdaptConfig(updates=options.updates))
    card = adapted.card
    # by one method, so that the two can be compared
    scans = {
        f"before: {model.name}": mutation_scan(model, protein, progress=sys.stderr.isatty()),
        f"after: adapted to {card.sequences - 1} homologs": mutation_scan(adapted, protein),
    }
    loss = f"held-out loss {card.loss_before:.2f} → {card.loss_after:.2f} nats"
    title = f"{PROTEIN}: {loss}"
    figure = compare_scans_figure(scans, protein, title, find_motifs(protein))
    folder = in_project("outputs/demo")
    folder.mkdir(parents=True, exist_ok=True)
    made = folder / "map.png"
    with atomic_path(made) as temporary, carp_style():
        figure.savefig(temporary, format="png", dpi=160)
    weights = save_adapted(adapted, folder / "adapted.safetensors")
    if options.picture:
        shutil.copy(made, options.picture)
    print(card.describe())
    print(f"Done. The picture is {made}, the adapted model {weights}.")


if __name__ == "__main__":
    main()
