"""scaling.ipynb the way its users start it, on shapes that take seconds."""
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

ROOT = Path(__file__).resolve().parent.parent


def scaling(tmp_path: Path, **parameters: str) -> tuple[subprocess.CompletedProcess, Path]:
    "What papermill did, and the folder that it wrote to."
    words = [w for name, value in {"output_dir": str(tmp_path / "out"), "budget": "smoke", **parameters}.items() for w in ("-p", name, value)]
    command = [sys.executable, "-m", "papermill", ROOT / "nbs/scaling.ipynb", tmp_path / "executed.ipynb", "--no-progress-bar", *words]
    return subprocess.run([str(c) for c in command], cwd=tmp_path, text=True, capture_output=True, stdin=subprocess.DEVNULL), tmp_path / "out"


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux enforces a limit on memory")
def test_out_of_memory_is_the_end_of_a_line(tmp_path):
    done, out = scaling(tmp_path, model="carp_40k,esm_41k:plain", lengths="64,256,8192", repeats="2", memory_limit="0.3")
    assert done.returncode == 0, done.stderr
    cost = pd.read_csv(out / "cost.csv")
    assert cost[cost["shape"] == "carp_40k"].groupby("length").wall.count().tolist() == [2, 2, 2]
    assert cost[cost.wall.isna()][["shape", "length"]].values.tolist() == [["esm_41k:plain", 8192]]
    assert (cost.dropna().peak > 0).all() and (out / "figure_1f.svg").stat().st_size > 10_000
    claims = pd.read_csv(out / "claims.csv")
    assert (claims.answer == "not measured here").all()     # its shapes are others
    assert "esm_41k:plain in 0.3 GiB" in set(claims["same question of"])
    rows = pd.read_parquet(out / "results.parquet")
    assert set(rows.model) == {"carp_40k", "esm_41k:plain"} and (rows.device.str.len() > 0).all()


def test_an_unknown_shape_is_named(tmp_path):
    done, _ = scaling(tmp_path, model="carp_40k,esm_2")
    assert done.returncode and "'esm_2' is no shape to measure" in done.stderr
