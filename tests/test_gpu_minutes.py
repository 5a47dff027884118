"""`make gpu` rehearsed on the processor: no step loses another, the time is kept, and a run that leaves
in pieces goes on elsewhere.
"""

import argparse
import json
import os
import subprocess
import sys
import tarfile
import time
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch

from benchmarks import gpu, pieces
from carp_nb.batching import Corpus
from carp_nb.datasets import load_dataset
from carp_nb.errors import CarpError
from carp_nb.pretrain import PretrainConfig, pretrain
from carp_nb.pretrained import load_model
from carp_nb.training import last_update

ROOT = Path(gpu.ROOT)
TRAIN = [r for r in load_dataset("sprot_train_sample") if len(r[1]) < 200][:60]
VALID = [s for _, s in load_dataset("sprot_heldout_sample") if len(s) < 150][:4]
CONFIG = PretrainConfig("carp_4k", 20_000, 1024, max_length=64, lr=1e-2, snapshots=0)


def session_in(folder: Path, seconds: float = 3600, **others) -> gpu.Session:
    until = time.time() + seconds
    return gpu.Session("cpu", "a device", "abc", "src", folder, folder / "lines", until, **others)


def statuses(session: gpu.Session) -> list[tuple[str, str]]:
    return list(gpu.read_steps(session)[["step", "status"]].itertuples(index=False, name=None))


def test_a_step_that_fails_or_hangs_loses_no_other(tmp_path):
    session = session_in(tmp_path)
    assert gpu.run_step(session, gpu.Step("good", ["-c", "print('well')"], 1)) == "ok"
    assert (
        gpu.run_step(session, gpu.Step("bad", ["-c", "raise SystemExit('no GPU')"], 1)) == "failed"
    )
    hangs = "import time; print('began', flush=True); time.sleep(1000)"
    short = replace(session, until=time.time() + gpu.END + 5)
    assert gpu.run_step(short, gpu.Step("hangs", ["-c", hangs], 1)) == "out of time"
    assert gpu.run_step(session, gpu.Step("after", ["-c", ""], 1)) == "ok"
    expected = [("good", "ok"), ("bad", "failed"), ("hangs", "out of time"), ("after", "ok")]
    assert statuses(session) == expected
    said = gpu.read_steps(session).said.tolist()
    assert said[:2] == ["well", "no GPU"]


def test_a_step_starts_only_if_it_fits_and_is_done_once(tmp_path):
    session = session_in(tmp_path, seconds=100)
    step = gpu.Step("long", ["-c", "raise SystemExit(3)"], 95)
    assert gpu.run_step(session, step) == "no time"
    assert gpu.run_step(session, replace(step, seconds=1, reserve=95)) == "no time"
    # it is known now to take longer than the guess
    gpu.write_step(session, "long", "ok", 90, "done")
    assert gpu.took(session, step) == pytest.approx(108)
    assert gpu.run_step(session, step) == "done"
    again = replace(step, again=True, seconds=1)
    assert gpu.run_step(session, again) == "no time"
    other = replace(session, name="another device")
    assert gpu.run_step(other, replace(step, seconds=1)) == "failed"


def test_tests_are_done_again_after_a_change(tmp_path):
    session = session_in(tmp_path)
    step = gpu.Step("tests", ["-c", ""], 1, of_source=True)
    gpu.run_step(session, step)
    assert gpu.run_step(session, step) == "done"
    assert gpu.run_step(replace(session, source="other"), step) == "ok"


def test_the_most_valuable_comes_first(tmp_path):
    given = argparse.Namespace(corpus="", valid="", lines=[], tokens=1e6, precision="int8")
    steps = gpu.steps_of(session_in(tmp_path), given)
    assert [step.name for step in steps] == ["tests", "lines", "figure_1f", "pretrain", "pack"]
    assert gpu.gpu_lines()[:2] == ["gpu-carp_640m-train", "gpu-carp_640m-train-rate"]


@pytest.mark.parametrize("precision", ["bf16", "int8"])
def test_a_run_goes_on_from_its_pieces(tmp_path, monkeypatch, precision):
    monkeypatch.setattr(pieces, "LARGEST", 5000)
    corpus, whole, part = Corpus.from_records(TRAIN), tmp_path / "whole", tmp_path / "part"
    model = pretrain(CONFIG, corpus, VALID, whole, device="cpu", progress=False)
    last = last_update(whole)
    # as if the run had been stopped at the checkpoint before its last
    checkpoints = sorted((whole / "checkpoints").glob("*.pt"))
    checkpoints[-1].unlink()
    said = pieces.pack(whole, model, tmp_path / "pieces", VALID, precision)
    assert len(said["pieces"]) > 1 and max(p["bytes"] for p in said["pieces"]) <= 5000
    assert abs(said["loss"]["packed"] - said["loss"]["exact"]) < 0.01
    assert pieces.restore(tmp_path / "pieces", part) == said["update"] < last
    again = pretrain(CONFIG, corpus, VALID, part, device="cpu", progress=False)
    assert last_update(part) == last
    first, second = (
        pd.read_parquet(f / "held_out.parquet").set_index("step").loss for f in (whole, part)
    )
    # Adam's first moment began again, so the last updates differ by less than they bring
    assert abs(second[last] - first[last]) < 0.5 * (first[said["update"]] - first[last])
    seen = [pd.read_parquet(f / "metrics.parquet").tokens.iloc[-1] for f in (whole, part)]
    assert seen[0] == seen[1]
    # what is as new as the pieces is left alone
    assert pieces.restore(tmp_path / "pieces", part) == last
    before = again.state_dict()
    pieces.pack(part, again, tmp_path / "pieces", VALID, precision)
    named = {p["file"] for p in json.loads((tmp_path / "pieces/pieces.json").read_text())["pieces"]}
    assert {p.name for p in (tmp_path / "pieces").glob("*.piece")} == named
    assert all(torch.equal(a, b) for a, b in zip(before.values(), again.state_dict().values()))


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("packed")
    corpus = Corpus.from_records(TRAIN)
    small = replace(CONFIG, tokens=3000)
    model = pretrain(small, corpus, VALID, folder / "run", device="cpu", progress=False)
    pieces.pack(folder / "run", model, folder / "pieces", VALID, "bf16")
    return folder


def test_pieces_make_a_model(packed, capsys, monkeypatch):
    out = packed / "joined.safetensors"
    monkeypatch.setattr("sys.argv", ["x", "join", str(packed / "pieces"), "--output", str(out)])
    assert pieces.main() == 0
    trained = load_model(packed / "run" / "carp_4k.safetensors", "cpu")
    for a, b in zip(trained.parameters(), load_model(out, "cpu").parameters()):
        torch.testing.assert_close(a, b, rtol=2**-8, atol=0)


@pytest.mark.parametrize("fault", ["missing", "damaged", "manifest"])
def test_a_faulty_piece_is_named(packed, tmp_path, fault):
    for path in (packed / "pieces").iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    piece = next(tmp_path.glob("*.piece"))
    if fault == "missing":
        piece.unlink()
    elif fault == "damaged":
        data = bytearray(piece.read_bytes())
        data[-1] ^= 1
        piece.write_bytes(data)
    else:
        (tmp_path / "pieces.json").write_text("{")
    named = "pieces.json" if fault == "manifest" else piece.name
    with pytest.raises(CarpError, match=named):
        pieces.join(tmp_path, tmp_path / "whole")
    assert not (tmp_path / "whole").exists()


def test_int8_keeps_each_channel_to_half_a_step():
    weight = torch.randn(6, 5, 3) * torch.tensor([1e-3, 1, 10, 0, 1, 1])[:, None, None]
    low, scale = pieces.quantized(weight)
    error = (pieces.dequantized(low, scale) - weight).flatten(1).abs().amax(1)
    assert low.dtype == torch.int8 and (error <= scale * 0.5001).all() and error[3] == 0


def test_a_factored_moment_has_the_sums_of_the_whole():
    moment = torch.rand(7, 4, 3)
    parts = pieces.factored(moment)
    there = pieces.unfactored(parts, moment)
    torch.testing.assert_close(there.flatten(1).mean(1), parts["rows"])
    torch.testing.assert_close(there.flatten(1).mean(0), parts["columns"])
    nothing = torch.zeros(3, 2)
    assert torch.equal(pieces.unfactored(pieces.factored(nothing), nothing), nothing)


def test_the_rehearsal_does_all_and_goes_on(tmp_path):
    command = [sys.executable, "-m", "benchmarks.gpu", "--device", "cpu", "--minutes", "15"]
    command += ["--output", f"{tmp_path}/out", "--bring", f"{tmp_path}/bring"]
    command += ["--leave-out", "tests", "figure_1f", "--tokens", "2e8"]
    command += ["--lines", "gpu-carp_640m-train", "gpu-carp_640m-train-rate", "gpu-carp_38m-scan"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    steps = pd.read_csv(tmp_path / "out/steps.csv")
    assert steps.step.tolist() == ["lines", "pretrain", "pack"] and (steps.status == "ok").all()
    with tarfile.open(tmp_path / "bring/results.tar.gz") as archive:
        names = set(archive.getnames())
    assert {"out/steps.csv", "lines/benchmarks.csv", "out/pretrain/carp_4k/config.json"} <= names
    assert (tmp_path / "bring/pieces.json").exists() and len(os.listdir(tmp_path / "bring")) <= 8
    table = pd.read_csv(tmp_path / "out/lines/benchmarks.csv").dropna(subset="ratio")
    assert len(table) == 3 and table.processor.str.startswith("rehearsal on ").all()


def test_training_stops_at_its_time_with_a_checkpoint(tmp_path, capsys):
    given = argparse.Namespace(
        device="cpu", output=tmp_path, corpus="", valid="", tokens=1e9, until=time.time()
    )
    # the time is over before the first update: nothing is trained and nothing is lost
    assert gpu.pretrain_until(given) == 0
    assert "from update 0 to update 0" in capsys.readouterr().out
    given.until = float("inf")
    given.tokens = 2e7
    run = gpu.pretraining(given)
    with pytest.raises(CarpError, match="tokens"):
        # a run is planned once: sessions with other tokens would be another run
        gpu.pretrain_until(given)
    assert run.folder.is_dir()
