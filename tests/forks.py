"""Processes that begin with their imports done.

A fresh interpreter takes seconds to import what a notebook uses. One server process imports it once,
and every process here is forked from that, with an environment and a folder of its own.
"""

import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

FORKS = multiprocessing.get_context("forkserver")
# packages of others only: carp_nb itself is imported by each process, as a user's would
FORKS.set_forkserver_preload(
    "accelerate biotite.structure ipykernel.kernelapp matplotlib.pyplot pandas pyarrow.parquet"
    " scipy.stats sklearn.linear_model safetensors.torch snakemake.cli torch torch.distributed".split()
)


def _begin(environment: dict, folder: str) -> None:
    "Make a forked process like one that a terminal started: a group, an environment and a folder."
    os.setsid()
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    # tqdm reads its settings, and whether this is a notebook, when it is imported
    for name in [name for name in sys.modules if name.partition(".")[0] == "tqdm"]:
        del sys.modules[name]


def _kernel(arguments: list[str], environment: dict, folder: str, begun) -> None:
    _begin(environment, folder)
    import matplotlib

    # ipykernel says so by an environment variable, which matplotlib read long ago
    matplotlib.rcParams["backend"] = "module://matplotlib_inline.backend_inline"
    # so that it ends with its parent, and does not explain itself to a terminal
    os.environ["JPY_PARENT_PID"] = str(os.getppid())
    begun.close()
    from ipykernel.kernelapp import launch_new_instance

    launch_new_instance(argv=arguments)


class Kernel:
    "What jupyter_client asks of a process that it started, of a forked one."

    stdin = stdout = stderr = None

    def __init__(self, process: multiprocessing.Process):
        self.process = process
        self.pid = process.pid

    def poll(self) -> int | None:
        return self.process.exitcode

    def wait(self, timeout: float | None = None) -> int | None:
        self.process.join(timeout)
        return self.process.exitcode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def launch_kernel(command: list[str], cwd=None, env: dict | None = None, **_) -> Kernel:
    "Stand in for `jupyter_client.launcher.launch_kernel`: fork the kernel that a command asks for."
    arguments = command[command.index("ipykernel_launcher") + 1 :]
    ours, theirs = FORKS.Pipe(duplex=False)
    folder = str(cwd or Path.cwd())
    process = FORKS.Process(
        target=_kernel, args=(arguments, dict(env or os.environ), folder, theirs)
    )
    process.start()
    theirs.close()
    # it has to lead a group of its own before anybody signals that group
    ours.poll(None)
    return Kernel(process)


def _written(
    work: Callable, arguments: tuple, environment: dict, folder: str, output: Path
) -> None:
    with open(output, "wb") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    _begin(environment, folder)
    work(*arguments)


class Started:
    "A process that goes on while the test does something else."

    def __init__(self, process: multiprocessing.Process, output: Path):
        self.process = process
        self.output = output
        self.pid = process.pid

    @property
    def alive(self) -> bool:
        return self.process.is_alive()

    @property
    def stopped(self) -> bool:
        "Whether a signal has stopped it."
        return Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"

    @property
    def said(self) -> str:
        "What it has written to the terminal so far."
        return self.output.read_text() if self.output.exists() else ""

    def end(self) -> int | None:
        "Wait until it has ended; its exit code."
        self.process.join(300)
        return self.process.exitcode

    def kill(self) -> None:
        "End it at once, also if it is stopped."
        self.process.kill()
        self.process.join()


def start(work: Callable, *arguments, environment: dict, output: Path) -> Started:
    "Call a function in a process of its own, in the folder of what it writes to the terminal."
    folder = str(output.parent)
    process = FORKS.Process(target=_written, args=(work, arguments, environment, folder, output))
    process.start()
    return Started(process, output)


def completed(
    work: Callable, *arguments, folder: Path, environment: dict
) -> subprocess.CompletedProcess:
    "Call a function in a process of its own: its exit code, and all that it wrote to the terminal."
    with tempfile.TemporaryDirectory() as place:
        output = Path(place) / "output"
        process = FORKS.Process(
            target=_written, args=(work, arguments, environment, str(folder), output)
        )
        process.start()
        process.join()
        return subprocess.CompletedProcess(arguments, process.exitcode, output.read_text())


def _rank(work: Callable, arguments: tuple, environment: dict, folder: str) -> None:
    _begin(environment, folder)
    import torch

    torch.set_num_threads(1)
    work(*arguments)


def on_two_processes(work: Callable, *arguments) -> list[int]:
    """Run a function in two processes that know of each other, as torchrun's do; their exit codes.

    The launcher itself is under test in `test_cli`, and in `test_pretrain` by `pretrain_here`.
    """
    with socket.socket() as place:
        place.bind(("127.0.0.1", 0))
        port = place.getsockname()[1]
    common = {
        **os.environ,
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "ACCELERATE_USE_CPU": "true",
        "CUDA_VISIBLE_DEVICES": "",
        "OMP_NUM_THREADS": "1",
    }
    processes = [
        FORKS.Process(
            target=_rank,
            args=(work, arguments, common | {"RANK": rank, "LOCAL_RANK": rank}, str(Path.cwd())),
        )
        for rank in "01"
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(600)
        process.kill()  # one that waits for the other in vain
    return [process.exitcode for process in processes]
