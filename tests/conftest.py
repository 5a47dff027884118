"""What several test files share: notebooks run as papermill runs them."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import forks
import pytest
import torch
from click.testing import CliRunner
from jupyter_client.provisioning import local_provisioner
from papermill.cli import papermill as papermill_command

from carp_nb.results import notebook_parameters

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def one_thread():
    "Sums in one order: bits are only comparable between runs on as many threads."
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@dataclass
class Executed:
    "What papermill did with a notebook."

    status: int  # 0: every cell ran
    shown: str  # what a terminal shows, in one line
    out: Path  # output_dir of the notebook
    notebook: Path  # the executed notebook


@pytest.fixture(scope="session")
def papermill_in() -> Callable[..., Executed]:
    """Run a section notebook in a folder by papermill's command line, as its users do, with the smallest budget.

    Its kernel is forked from a process that has the imports done (`forks`); everything else is papermill's own.
    """

    def run(
        folder: Path,  # where papermill is started, and where its files go
        name: str,  # of the notebook
        environment: dict[str, str] | None = None,  # beside what is set
        **parameters,
    ) -> Executed:
        out, executed = folder / "out", folder / "executed.ipynb"
        given = {"output_dir": out, **parameters}
        if "budget" in notebook_parameters(name):
            given.setdefault("budget", "smoke")
        words = [word for key, value in given.items() for word in ("-p", key, str(value))]
        with pytest.MonkeyPatch.context() as m:
            m.setattr(local_provisioner, "launch_kernel", forks.launch_kernel)
            m.chdir(folder)
            for key, value in {"TQDM_DISABLE": "1", **(environment or {})}.items():
                m.setenv(key, value)
            done = CliRunner().invoke(
                papermill_command,
                [f"{ROOT}/nbs/{name}.ipynb", str(executed), "--no-progress-bar", *words],
            )
        shown = " ".join(f"{done.output} {done.exception or ''}".split())
        return Executed(done.exit_code, shown, out, executed)

    return run


@pytest.fixture
def papermill(papermill_in, tmp_path) -> Callable[..., Executed]:
    "The same in the folder of a test."
    return partial(papermill_in, tmp_path)
