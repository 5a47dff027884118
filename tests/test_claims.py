"""Several processes that want the same file or folder, each of them stopped or killed at will."""

import os
import re
import signal
import tarfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest.mock import patch

import pandas as pd
import pytest
import torch
from forks import Started, start

from carp_nb import datasets, files, pretrain
from carp_nb.batching import Corpus, build_corpus, open_corpus
from carp_nb.carp import CARP, CARPConfig
from carp_nb.embedding import embed
from carp_nb.errors import CarpError
from carp_nb.files import atomic_path, claim, scratch_folder, write_text
from carp_nb.results import Results, Run, notebook_parameters

RECORDS = [(f"p{i}", "MKTAYIAKQR" * (1 + i % 5)) for i in range(40)]


pytestmark = pytest.mark.usefixtures("one_thread")


def wait_for(path: Path) -> None:
    while not path.exists():
        time.sleep(0.01)


@pytest.fixture
def process(tmp_path) -> Iterator[Callable[..., Started]]:
    "Start a function of this file in a process of its own, which does not outlive the test."
    running = []

    def begin(work: Callable, *arguments) -> Started:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        output = tmp_path / f"said_{len(running)}.txt"
        running.append(start(work, *arguments, environment=environment, output=output))
        return running[-1]

    yield begin
    for one in running:
        one.kill()


def refused_by(holder: Started, said: str) -> bool:
    "Whether one sentence names the process that has what was asked for, and what to do."
    sentence = rf"is being written by process {holder.pid} on \S+ \(.+\) since 20.+; wait until it"
    return bool(re.search(sentence, said))


# one file


def write_often(path: Path, letter: str) -> None:
    for number in range(40):
        write_text(path, f"{letter}{number}\n" * 20_000)


def test_hundreds_of_writers_leave_one_whole_file(process, tmp_path):
    path = tmp_path / "out" / "a.txt"
    writers = [process(write_often, path, letter) for letter in "abcdef"]
    wait_for(path)
    while any(writer.alive for writer in writers):
        assert len(set(path.read_text().splitlines())) == 1
        time.sleep(0.05)
    assert [writer.end() for writer in writers] == [0] * 6
    lines = path.read_text().splitlines()
    assert len(lines) == 20_000 and lines[0][1:] == "39"
    assert list(path.parent.iterdir()) == [path]


def hold_temporaries(folder: Path) -> None:
    with scratch_folder(folder) as scratch, atomic_path(folder / "b.npy") as part:
        for name in (scratch / "large.npy", part):
            name.write_bytes(bytes(1000))
        (folder / "begun").touch()
        time.sleep(600)


def test_temporaries_of_the_dead_are_removed_and_those_of_the_living_stay(process, tmp_path):
    folder = tmp_path / "run"
    holder = process(hold_temporaries, folder)
    wait_for(folder / "begun")
    # also one that is stopped lives
    os.kill(holder.pid, signal.SIGSTOP)
    write_text(folder / "a.txt", "beside it")
    assert len(list(folder.rglob("*.npy"))) == 2
    holder.kill()
    write_text(folder / "a.txt", "after it")
    assert sorted(path.name for path in folder.iterdir()) == ["a.txt", "begun"]


def test_names_are_on_the_disk_after_their_content(tmp_path):
    done = []
    fsync, replaced = os.fsync, os.replace

    def note_sync(number: int) -> None:
        done.append(Path(os.readlink(f"/proc/self/fd/{number}")).name)
        fsync(number)

    def note_rename(old, new) -> None:
        done.append("renamed")
        replaced(old, new)

    with (
        patch("os.fsync", note_sync),
        patch("os.replace", note_rename),
        atomic_path(tmp_path / "folder") as part,
    ):
        part.mkdir()
        (part / "file").touch()
    assert done == ["file", "folder", "renamed", tmp_path.name]


# claims


def hold(path: Path) -> None:
    with claim(path):
        (path.parent / "begun").touch()
        time.sleep(600)


def test_a_claim_ends_with_its_holder(process, tmp_path):
    path = tmp_path / "place" / "run"
    holder = process(hold, path)
    wait_for(path.parent / "begun")
    with pytest.raises(CarpError) as refused, claim(path):
        pass
    assert str(path) in str(refused.value) and refused_by(holder, str(refused.value))
    holder.kill()
    with claim(path):
        pass
    assert [p.name for p in path.parent.iterdir()] == ["begun"]


def slow_records(folder: Path) -> Iterator[tuple[str, str]]:
    yield RECORDS[0]
    (folder / "begun").touch()
    wait_for(folder / "go")
    yield from RECORDS[1:]


def build_slowly(folder: Path) -> None:
    build_corpus(slow_records(folder), folder / "corpus", progress=False)


def test_two_corpora(process, tmp_path):
    holder = process(build_slowly, tmp_path)
    wait_for(tmp_path / "begun")
    with pytest.raises(CarpError) as refused:
        build_corpus(RECORDS[::-1], tmp_path / "corpus", progress=False)
    assert refused_by(holder, str(refused.value))
    (tmp_path / "go").touch()
    assert holder.end() == 0, holder.said
    assert (
        open_corpus(tmp_path / "corpus", verify=True).sha256 == Corpus.from_records(RECORDS).sha256
    )


def small_model() -> CARP:
    torch.manual_seed(0)
    return CARP(CARPConfig(8, 2, r=2), "small").eval()


def embed_slowly(folder: Path) -> None:
    from carp_nb import embedding

    noted = embedding._mark_done

    def wait_after(*arguments) -> None:
        noted(*arguments)
        (folder / "begun").touch()
        time.sleep(600)

    with patch.object(embedding, "_mark_done", wait_after):
        embed(small_model(), dict(RECORDS), folder / "e.safetensors", batch_tokens=100)


def test_two_embeddings_and_the_work_of_a_killed_one(process, tmp_path):
    holder = process(embed_slowly, tmp_path)
    wait_for(tmp_path / "begun")
    arguments = (small_model(), dict(RECORDS), tmp_path / "e.safetensors")
    with pytest.raises(CarpError) as refused:
        embed(*arguments, progress=False)
    assert refused_by(holder, str(refused.value))
    holder.kill()
    made = embed(*arguments, batch_tokens=100, progress=False)
    alone = embed(small_model(), dict(RECORDS), tmp_path / "b.safetensors", progress=False)
    assert abs(made["p3"] - alone["p3"]).max() < 1e-5


# runs


def start_run(folder: Path) -> Run:
    namespace = {name: p.default for name, p in notebook_parameters("flip").items()}
    return Run.start("flip", namespace | {"output_dir": str(folder / "run"), "budget": "smoke"})


def run_notebook(folder: Path) -> None:
    run = start_run(folder)
    run.add(pd.DataFrame({"metric": ["spearman"], "value": [0.5], "n": [10]}), model="first")
    run.save()
    (folder / "begun").touch()
    time.sleep(600)


def test_two_runs_with_one_output_folder(process, tmp_path):
    holder = process(run_notebook, tmp_path)
    wait_for(tmp_path / "begun")
    with pytest.raises(CarpError) as refused:
        start_run(tmp_path)
    assert refused_by(holder, str(refused.value)) and "output_dir" in str(refused.value)
    assert Results.read(tmp_path / "run").rows.model.tolist() == ["first"]
    holder.kill()
    assert start_run(tmp_path).folder == tmp_path / "run"


CONFIG = pretrain.PretrainConfig("carp_4k", tokens=4000, batch_tokens=300, max_length=64, name="s")


def train_small(folder: Path) -> None:
    held_out = [sequence for _, sequence in RECORDS[:3]]
    pretrain.pretrain(CONFIG, Corpus.from_records(RECORDS), held_out, folder, progress=False)


def train_and_stop(folder: Path) -> None:
    "Stop while the held-out loss after update 4 is measured, as a batch system or a lid may stop it."
    measure = pretrain.evaluate
    calls = []

    def stop_at_third(*arguments, **options):
        calls.append(None)
        if len(calls) == 3:
            os.kill(os.getpid(), signal.SIGSTOP)
        return measure(*arguments, **options)

    with patch.object(pretrain, "evaluate", stop_at_third):
        train_small(folder)


def test_a_stopped_run_keeps_its_folder_and_does_not_undo_another(process, tmp_path):
    folder = tmp_path / "run"
    holder = process(train_and_stop, folder)
    while not holder.stopped:
        time.sleep(0.01)
    with pytest.raises(CarpError) as refused:
        train_small(folder)
    assert refused_by(holder, str(refused.value))
    # as on a file system without locks
    (folder / ".checkpoints.claim").unlink()
    train_small(folder)
    before = {path: path.read_bytes() for path in folder.rglob("*.*")}
    os.kill(holder.pid, signal.SIGCONT)
    assert holder.end() != 0
    assert f"taken the run in {folder} to update" in holder.said, holder.said
    assert {path: path.read_bytes() for path in folder.rglob("*.*")} == before

    # a run is finished when its last loss is there
    curve = pd.read_parquet(folder / "held_out.parquet")
    curve[:3].to_parquet(folder / "held_out.parquet")
    train_small(folder)
    assert pd.read_parquet(folder / "held_out.parquet").iloc[-1].equals(curve.iloc[-1])


# what is made once


def extract_slowly(folder: Path) -> None:
    extract = datasets.unpack_tar

    def wait_first(*arguments, **options) -> None:
        (folder / "begun").touch()
        wait_for(folder / "go")
        extract(*arguments, **options)

    with patch.object(datasets, "unpack_tar", wait_first):
        unpack(folder)


def unpack(folder: Path) -> None:
    made = datasets._unpack(folder / "a.tar.gz", folder / "unpacked")
    assert len(list(made.iterdir())) == 20


def unpack_never(folder: Path) -> None:
    with patch.object(datasets, "unpack_tar", side_effect=AssertionError("unpacked twice")):
        unpack(folder)


def test_three_processes_unpack_one_archive_once(process, tmp_path):
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as packed:
        for number in range(20):
            (tmp_path / "member").write_text(str(number))
            packed.add(tmp_path / "member", f"{number}.txt")
    first = process(extract_slowly, tmp_path)
    wait_for(tmp_path / "begun")
    others = [process(unpack_never, tmp_path) for _ in range(2)]
    for other in others:
        while "waiting for" not in other.said and other.alive:
            time.sleep(0.01)
        assert f"waiting for {tmp_path / 'unpacked'}: process {first.pid} on" in other.said
    (tmp_path / "go").touch()
    assert [one.end() for one in (first, *others)] == [0, 0, 0], [one.said for one in others]


def test_a_process_that_waits_for_a_killed_one_unpacks_itself(process, tmp_path):
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as packed:
        for number in range(20):
            packed.addfile(tarfile.TarInfo(f"{number}.txt"))
    first = process(extract_slowly, tmp_path)
    wait_for(tmp_path / "begun")
    second = process(unpack, tmp_path)
    while "waiting for" not in second.said and second.alive:
        time.sleep(0.01)
    first.kill()
    assert second.end() == 0, second.said
    assert not list(tmp_path.glob(".carp-*")) and not list(tmp_path.glob(".*.claim"))


def test_without_locks_one_sentence_warns(tmp_path):
    with (
        patch.object(files, "_try_lock", side_effect=OSError(files._NO_LOCKS[0], "none")),
        pytest.warns(UserWarning, match="has no locks, so nothing keeps a second process"),
    ):
        train_small(tmp_path)
    assert (tmp_path / "s.safetensors").exists()
