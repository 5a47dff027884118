"""What moves while a notebook runs: in its output, which is kept, and at the terminal that runs it."""

import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).resolve().parents[1]
CELLS = (
    "import time\n"
    "from carp_nb.progress import tell_terminal, tqdm\n"
    "for fit in tqdm(range(3), desc='fits'):\n"
    "    for update in tqdm(range(2), desc='updates'):\n"
    "        time.sleep(0.3)\n"
    "tell_terminal('toy: results.parquet in outputs/toy')",
    "bar = tqdm(range(2), desc='broken')\nhalf_way = iter(bar)\nnext(half_way)",
    "for late in tqdm(range(2), desc='late'):\n    pass",
)


def run_at_terminal(*command: object, **settings) -> str:
    "What a command shows at a terminal."
    ours, theirs = pty.openpty()
    process = subprocess.Popen(list(map(str, command)), stdout=theirs, stderr=theirs, **settings)
    os.close(theirs)
    shown = b""
    try:
        while piece := os.read(ours, 65536):
            shown += piece
    except OSError:
        pass  # so a terminal says that nobody writes any more
    assert process.wait() == 0, shown.decode()
    return shown.decode()


@pytest.fixture(scope="module")
def papermill_run(tmp_path_factory) -> tuple[list, str]:  # cells, what the terminal showed
    folder = tmp_path_factory.mktemp("progress")
    kernel = {"name": "python3", "display_name": "python3", "language": "python"}
    cells = [nbformat.v4.new_code_cell(cell) for cell in CELLS]
    notebook = nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernel})
    nbformat.write(notebook, folder / "toy.ipynb")
    # under a test a kernel leaves its streams as they are
    of_test = ("PYTEST_CURRENT_TEST", "TQDM_DISABLE")
    environment = {name: value for name, value in os.environ.items() if name not in of_test}
    environment["PYTHONPATH"] = str(ROOT)
    shown = run_at_terminal(
        *(Path(sys.executable).with_name("papermill"), "toy.ipynb", "made.ipynb"),
        cwd=folder,
        env=environment,
    )
    return nbformat.read(folder / "made.ipynb", as_version=4).cells, shown


def outputs(cell) -> list[str]:
    return [output["data"]["text/plain"] for output in cell.outputs if "data" in output]


def test_bars_stay_as_they_were_last(papermill_run):
    "One line per cell, not 0 %; a bar that was left open does not take the next cell's."
    cells, _ = papermill_run
    (line,) = outputs(cells[0])
    assert line.startswith("fits: 100%") and "3/3" in line
    assert outputs(cells[2])[0].startswith("late: 100%")


def test_bars_move_at_the_terminal(papermill_run):
    _, shown = papermill_run
    for moving in ("fits:  33%", "fits: 100%", "updates:   0%"):
        assert moving in shown
    assert "toy: results.parquet in outputs/toy\r\n" in shown


def test_kept_notebooks_show_no_bar_at_its_beginning():
    "What GitHub draws of a kept notebook: how a loop ended."
    if not (ROOT / ".git").exists():
        pytest.skip("not a clone")
    kept = subprocess.check_output(["git", "ls-files", "-z", "outputs"], cwd=ROOT, text=True)
    notebooks = [ROOT / name for name in kept.split("\0") if name.endswith(".ipynb")]
    assert notebooks
    for path in notebooks:
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"\b0%\||\b0it \[", text), path
