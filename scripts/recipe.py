"""Compare recipes of pretraining in short runs, by the loss on validation sequences; a finished row is kept.

python scripts/recipe.py outputs/pretrain/recipe
"""

import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import pandas as pd
import torch

from carp_nb.batching import Corpus
from carp_nb.files import write_table
from carp_nb.mlm import evaluate
from carp_nb.pretrain import PretrainConfig, as_corpus, pretrain, read_records
from carp_nb.pretrained import load_model
from carp_nb.progress import tqdm
from carp_nb.results import provenance

TOKENS = 3e6  # residues of a run
VALIDATION = 256  # sequences, the first of pretrain_valid

ADAM = PretrainConfig(
    "carp_600k", TOKENS, 8192, 1022, lr=1e-3, cooldown=0.8, dtype="bfloat16", snapshots=4
)
MUON = replace(ADAM, optimizer="muon", lr=3e-3)
KNOWN = replace(MUON, init="carp_600k_sprot50")
WIDE = replace(MUON, size="carp_2_4m", masking=25, dtype="float32")

# what a row is called, how it is trained, seeds
TRIALS: list[tuple[str, PretrainConfig, tuple[int, ...]]] = [
    ("Adam, 1e-3", ADAM, (0, 1)),
    ("Muon, 3e-3", MUON, (0, 1)),
    ("Adam, 3e-3", replace(ADAM, lr=3e-3), (0, 1)),
    ("from carp_600k_sprot50, Muon, 3e-3", KNOWN, (0,)),
    ("from carp_600k_sprot50, Muon, 1e-3", replace(KNOWN, lr=1e-3), (0,)),
    ("from carp_600k_sprot50, Adam, 1e-3", replace(ADAM, init="carp_600k_sprot50"), (0,)),
    ("Muon, 1e-2", replace(MUON, lr=1e-2), (0,)),
    ("Muon, 4,096 residues per update", replace(MUON, batch_tokens=4096), (0,)),
    ("Muon, 20 % selected", replace(MUON, masking=20), (0, 1)),
    ("Muon, 25 % selected", replace(MUON, masking=25), (0, 1)),
    ("Muon, constant rate", replace(MUON, cooldown=0.0), (0,)),
    ("Muon, fall over the last 30 %", replace(MUON, cooldown=0.3), (0,)),
    ("Muon, windows of 256 residues", replace(MUON, max_length=256), (0,)),
    ("2.4M, Muon, from the 2.4M (v3)", replace(WIDE, init="carp_2_4m_sprot50_v3"), (0,)),
    ("2.4M, Muon, from the 600k (v3)", replace(WIDE, init="carp_600k_sprot50_v3"), (0,)),
]


def averaged_loss(folder: Path, valid: list[str]) -> float:  # nats
    "Compute the loss of the mean of the last weights, from half of the run on."
    files = sorted((folder / "snapshots").glob("step_*.safetensors"))[-4:]
    model = load_model(files[-1], "cpu")
    states = [load_model(file, "cpu").state_dict() for file in files]
    mean = {name: torch.stack([state[name] for state in states]).mean(0) for name in states[0]}
    model.load_state_dict(mean)
    return evaluate(model, valid).loss


def run_trial(config: PretrainConfig, train: Corpus, valid: list[str]) -> dict:
    "Train one recipe and measure its loss, of the last weights and of a mean of weights."
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        model = pretrain(config, train, valid, folder, device="cpu", progress=False)
        metrics = pd.read_parquet(folder / "metrics.parquet")
        return {
            "updates": int(metrics.step.max()),
            "loss": evaluate(model, valid).loss,
            "loss of averaged weights": averaged_loss(folder, valid),
        }


def main() -> None:
    folder = Path(sys.argv[1])
    path = folder / "recipe.csv"
    rows = pd.read_csv(path).to_dict("records") if path.exists() else []
    done = {(row["recipe"], row["seed"]) for row in rows}
    train = as_corpus("pretrain_train")
    valid = [sequence for _, sequence in read_records("pretrain_valid")[:VALIDATION]]
    todo = [(label, replace(c, seed=seed)) for label, c, seeds in TRIALS for seed in seeds]
    todo = [(label, config) for label, config in todo if (label, config.seed) not in done]
    for label, config in tqdm(todo, desc="recipes"):
        made = provenance("cpu")
        row = {"recipe": label, "seed": config.seed, **run_trial(config, train, valid)}
        row |= {name: made[name] for name in ("torch", "commit", "device", "when")}
        rows.append(row)
        write_table(pd.DataFrame(rows), path)
        print(row, flush=True)


if __name__ == "__main__":
    main()
