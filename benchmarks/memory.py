"""What a very long protein costs in memory, seen from outside: one process for each measurement."""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

TITIN = 34350  # residues of Q8WZ42, the longest protein of the pretraining set

CHILD = """
import json, sys, time, torch
from carp_nb.carp import CARP, TABLE_S1
from carp_nb.embedding import embed
from carp_nb.scoring import score_mutants

def peak():  # MB of this process since it began
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) / 1024

size, sequence, work, path = json.load(sys.stdin)
torch.set_num_threads(1)
torch.manual_seed(0)
model = CARP(TABLE_S1[size], size).eval()
with torch.inference_mode(): model(torch.zeros(1, 16, dtype=torch.long))
before, start = peak(), time.process_time()
if work in ("sequence", "residue"): embed(model, {"long": sequence}, path, work, progress=False)
places = (0, len(sequence) // 2, len(sequence) - 1)
mutants = [f"{sequence[i]}{i + 1}{'A' if sequence[i] != 'A' else 'W'}" for i in places]
mutants.append(f"{mutants[0]}:{mutants[1]}")
if work in ("masked", "wild-type"): assert score_mutants(model, sequence, mutants, method=work).all()
print(json.dumps([peak() - before, time.process_time() - start]))
"""


def long_protein(
    size: str,  # of Table S1, random weights
    sequence: str,
    work: str,  # sequence, residue: embed it; masked, wild-type: score four mutants of it
) -> tuple[float, float]:  # MB above the weights at the peak, seconds of processor time
    "Needs Linux. Raises RuntimeError with what the process said."
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [sys.executable, "-c", CHILD],
            input=json.dumps([size, sequence, work, str(Path(folder) / "long.safetensors")]),
            capture_output=True,
            text=True,
        )
    if done.returncode:
        raise RuntimeError(done.stderr)
    return tuple(json.loads(done.stdout))
