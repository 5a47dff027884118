"""Fetch the structures in Biopython's source distribution, against which the reader is tested.

python tests/fetch_biopython_structures.py
"""

import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

FOLDER = Path(__file__).parent / "cache" / "biopython_structures"
VERSION = "1.88"


def fetch() -> None:
    "Download the distribution and keep its folder Tests/PDB."
    with tempfile.TemporaryDirectory() as temporary:
        command = [sys.executable, "-m", "pip", "download", f"biopython=={VERSION}"]
        options = ["--no-deps", "--no-binary", ":all:", "--no-build-isolation", "-d", temporary]
        subprocess.run([*command, *options], check=True)
        FOLDER.mkdir(parents=True, exist_ok=True)
        with tarfile.open(next(Path(temporary).glob("*.tar.gz"))) as archive:
            for member in archive.getmembers():
                path = Path(member.name)
                if member.isfile() and path.parent.parts[1:] == ("Tests", "PDB"):
                    content = archive.extractfile(member)
                    assert content is not None
                    (FOLDER / path.name).write_bytes(content.read())


if __name__ == "__main__":
    fetch()
