"""Archives that would harm: too large, out of their folder, with links or devices, damaged, or half unpacked."""

import io
import os
import shutil
import signal
import tarfile

import pytest

from carp_nb import datasets
from carp_nb.contents import content_fault, unpack_tar
from carp_nb.datasets import load_dataset
from carp_nb.errors import CarpError


def member(name, content=b"", **attributes):
    "A member of a tar; attributes such as type and linkname make it a link or a device."
    info = tarfile.TarInfo(name)
    info.size = len(content)
    for attribute, value in attributes.items():
        setattr(info, attribute, value)
    return info, content


def tar(path, *members, **options):
    "Write a tar.gz of members."
    with tarfile.open(path, "w:gz", **options) as packed:
        for info, content in members:
            packed.addfile(info, io.BytesIO(content))
    return path


FINE = member("in/a.csv", b"mutant\n")
BAD = {
    "outside": member("../a.csv", b"x"),
    "outside by a way round": member("in/../../a.csv", b"x"),
    "symbolic link": member("a.csv", type=tarfile.SYMTYPE, linkname="/etc/passwd"),
    "link within": member("b.csv", type=tarfile.SYMTYPE, linkname="in/a.csv"),
    "hard link": member("b.csv", type=tarfile.LNKTYPE, linkname="in/a.csv"),
    "pipe": member("b.csv", type=tarfile.FIFOTYPE),
    "device": member("b.csv", type=tarfile.CHRTYPE, devmajor=1, devminor=5),
    "twice": member("in/a.csv", b"x"),
    "file as folder": member("in/a.csv/b.csv", b"x"),
    "long name": member("b.csv/" + "a" * 5000, b"x"),
    "size that is not there": member("b.csv", b"", size=1 << 62),
}


@pytest.mark.parametrize("wanted", [None, ["in/a.csv", "b.csv"]])
@pytest.mark.parametrize("kind", BAD)
def test_a_dangerous_member_makes_one_sentence(tmp_path, kind, wanted):
    archive = tmp_path / "a.tar.gz"
    info, content = BAD[kind]
    with tarfile.open(archive, "w:gz") as packed:
        packed.addfile(FINE[0], io.BytesIO(FINE[1]))
        # as it is: `addfile` would look for the content that a false size announces
        packed.fileobj.write(info.tobuf(tarfile.PAX_FORMAT) + content.ljust(512, b"\0"))
    with pytest.raises(CarpError, match=r"a\.tar\.gz .*\.$") as error:
        unpack_tar(archive, tmp_path / "out", wanted)
    assert "\n" not in str(error.value) and len(str(error.value)) < 600
    # nothing outside of the folder, and nothing in it but regular files
    assert {path.name for path in tmp_path.iterdir()} == {"a.tar.gz", "out"}
    inside = [path for path in (tmp_path / "out").rglob("*") if not path.is_dir()]
    assert all(path.is_file() and not path.is_symlink() for path in inside)


def test_names_that_begin_at_the_root_stay_in_the_folder(tmp_path):
    archive = tar(tmp_path / "a.tar.gz", member("/in/a.csv", b"x"), member("./b.csv", b"y"))
    unpack_tar(archive, tmp_path / "out")
    assert (tmp_path / "out/in/a.csv").read_bytes() == b"x"
    assert (tmp_path / "out/b.csv").read_bytes() == b"y"


def test_bombs_are_refused_before_they_are_written(tmp_path):
    "A member of 1.5 GB; a header of 1.5 GB, which tarfile keeps in memory; a hole of 1 TB."
    # written as a stream, because this archive would take its size in memory
    zeros = io.BufferedReader(Zeros(1_500_000_000))
    whole = member("in/a.csv", size=1_500_000_000)[0]
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz", compresslevel=1) as packed:
        packed.fileobj.write(whole.tobuf())
        # the stated size is enough, so only some of it is there
        packed.fileobj.write(zeros.read(20_000_000))
    header = tarfile.TarInfo("a")
    header.type = tarfile.XHDTYPE
    header.size = 1_500_000_000
    with tarfile.open(tmp_path / "b.tar.gz", "w:gz", compresslevel=6) as packed:
        packed.fileobj.write(header.tobuf(tarfile.USTAR_FORMAT))
        packed.fileobj.write(zeros.read(120_000_000))
    for name in ("a.tar.gz", "b.tar.gz"):
        archive = tmp_path / name
        assert archive.stat().st_size < 1_000_000
        with pytest.raises(CarpError, match=f"{name} unpacks to more than"):
            unpack_tar(archive, tmp_path / "out")
        assert "unpacks to more than" in content_fault(archive, name)
        assert not list((tmp_path / "out").iterdir())
    hole = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": str(10**12)}
    hole |= {"GNU.sparse.name": "in/a.csv"}
    sparse = member("in/a.csv", b"1\n0\n512\n".ljust(1024, b"\0"), pax_headers=hole)
    archive = tar(tmp_path / "c.tar.gz", sparse, format=tarfile.PAX_FORMAT)
    with pytest.raises(CarpError, match=r"c\.tar\.gz unpacks to more than"):
        unpack_tar(archive, tmp_path / "out")


class Zeros(io.RawIOBase):
    "So many zeros, without memory for them."

    def __init__(self, size):
        self.left = size

    def readable(self):
        return True

    def readinto(self, buffer):
        n = min(len(buffer), self.left)
        buffer[:n] = bytes(n)
        self.left -= n
        return n


def test_without_a_filter_unpacking_alone_is_refused(tmp_path, monkeypatch):
    "Python before 3.11.4: sets that are here, and archives that somebody unpacked, are read as ever."
    monkeypatch.delattr(tarfile, "data_filter")
    monkeypatch.setattr(datasets, "cache_dir", lambda: tmp_path / "cache")
    with pytest.raises(CarpError, match=r"tar\.gz cannot be unpacked safely by Python .*3\.11\.4"):
        load_dataset("pdb_chains_sample")
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(load_dataset("abeta42")) > 0


def test_only_what_readers_need_leaves_a_published_tar(tmp_path, monkeypatch):
    splits = [
        member(
            f"stability/stability_{split}.json",
            f'[{{"primary": "MKV{letter}", "stability_score": [1.0]}}]'.encode(),
        )
        for split, letter in zip(("train", "valid", "test"), "ACD", strict=True)
    ]
    more = [member("stability/notes.txt", b"x" * 1000), member("setup.py", b"x")]
    archive = tar(tmp_path / "stability.tar.gz", *splits, *more)
    monkeypatch.setattr(datasets, "cache_dir", lambda: tmp_path / "cache")
    monkeypatch.setattr(datasets, "fetch", lambda url, **options: archive)
    monkeypatch.delenv("CARP_NB_DATA", raising=False)
    for _ in range(2):
        assert len(load_dataset("tape_stability", check=False).table) == 3
    unpacked = [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    assert sorted(path.name for path in unpacked if "lock" not in path.name) == [
        f"stability_{split}.json" for split in ("test", "train", "valid")
    ]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the killed process is a fork")
def test_a_killed_unpack_leaves_no_folder_that_looks_complete(tmp_path, monkeypatch):
    archive = tar(tmp_path / "a.tar.gz", *[member(f"{i}.csv", b"x") for i in range(5)])
    copy = shutil.copyfileobj
    copied = []

    def copy_or_die(*files):
        copy(*files)
        copied.append(files)
        if len(copied) == 3:
            os.kill(os.getpid(), signal.SIGKILL)

    with monkeypatch.context() as m:
        m.setattr("carp_nb.contents.shutil.copyfileobj", copy_or_die)
        child = os.fork()
        if not child:
            datasets._unpack(archive, tmp_path / "out")
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert not (tmp_path / "out").exists()
    out = datasets._unpack(archive, tmp_path / "out")
    assert sorted(path.name for path in out.iterdir()) == [f"{i}.csv" for i in range(5)]
