"""What a GPU that is there for a few minutes is asked, the most valuable first: `make gpu`.

1. tests/test_gpu.py.
2. The lines `gpu-*` of the table of benchmarks, in the order in which `python -m benchmarks --list`
   names them.
3. Figure 1f with the paper's shapes, up to 65,536 residues.
4. Pretraining of CARP-38M for the time that is left, from a checkpoint or from pieces, and to them.

Each step is a process of its own, so that a failure, a hang or a lack of memory loses that step
alone; what it has said so far is written. A step starts only if what it took on this kind of
device before (a guess, the first time) fits into the time that is left. A step that this kind of
device has done is not done again, so that the next minutes go to what is missing. `--device cpu`
rehearses all of it with tiny models.
"""

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

# what the steps import, by the name that pip knows
NEEDED = {
    "torch": "torch",
    "numpy": "numpy",
    "pandas": "pandas",
    "pyarrow": "pyarrow",
    "scipy": "scipy",
    "sklearn": "scikit-learn",
    "safetensors": "safetensors",
    "accelerate": "accelerate",
    "biotite": "biotite",
    "filelock": "filelock",
    "platformdirs": "platformdirs",
    "requests": "requests",
    "matplotlib": "matplotlib",
    "tqdm": "tqdm",
    "pytest": "pytest",
}
ROOT = Path(__file__).resolve().parent.parent
LEFT_FOR_PACKING = 40.0  # seconds, until it is known
SHORTEST_TRAINING = 30.0  # seconds; less would go into the start alone
SAVING = 10.0  # seconds from the end of training to its checkpoint
END = 10.0  # seconds that a step gets to stop in, and the driver to pack up


@dataclass
class Step:
    "A part of the work, in a process of its own."

    name: str
    arguments: list[str]  # of Python
    seconds: float  # guess, for a device that has not done it
    reserve: float = 0.0  # seconds that it leaves for what comes after it
    elastic: bool = False  # takes the time that there is, so a guess is the least it needs
    again: bool = False  # also where this device has done it
    of_source: bool = False  # done only if it was done with the same code


@dataclass
class Session:
    "The time, the place and the device of a run of all steps."

    device: str  # cuda, cpu
    name: str  # of the device, in words
    commit: str
    source: str  # checksum of the code
    output: Path
    lines: Path  # folder of the table of benchmarks
    until: float  # seconds since 1970
    bring: Path | None = None  # folder for what leaves the machine, in few files
    again: bool = False

    def left(self) -> float:
        return self.until - time.time()


# what was done


def read_steps(session: Session):
    import pandas as pd

    path = session.output / "steps.csv"
    if not path.exists():
        columns = ["step", "status", "seconds", "device", "commit", "source", "when", "said"]
        return pd.DataFrame(columns=columns)
    return pd.read_csv(path)


def write_step(session: Session, name: str, status: str, seconds: float, said: str) -> None:
    "Add a row to steps.csv, and pack up what there is."
    import pandas as pd

    from carp_nb.files import write_table

    when = time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime())
    row = [
        name,
        status,
        round(seconds, 1),
        session.name,
        session.commit,
        session.source,
        when,
        said,
    ]
    steps = read_steps(session)
    rows = [*steps.values.tolist(), row]
    write_table(pd.DataFrame(rows, columns=steps.columns), session.output / "steps.csv")
    print(
        f"{name}: {status} after {seconds:.0f} s, {max(0, session.left()):.0f} s left", flush=True
    )
    bring(session)


def bring(session: Session) -> None:
    "Pack all that is small into one file, to be unpacked in outputs/, and put the pieces beside it."
    from carp_nb.files import atomic_path

    if session.bring is None:
        return
    session.bring.mkdir(parents=True, exist_ok=True)
    leaves = (".csv", ".json", ".parquet", ".md", ".xml", ".svg", ".log")
    with (
        atomic_path(session.bring / "results.tar.gz") as temporary,
        tarfile.open(temporary, "w:gz") as archive,
    ):
        for folder in {session.output, session.lines}:
            for path in sorted(folder.rglob("*")):
                inside = path.relative_to(folder)
                if path.suffix in leaves and not {"snapshots", "pieces"} & set(inside.parts):
                    archive.add(path, f"{folder.name}/{inside}")
    pieces = session.output / "pieces"
    named = {path.name for path in pieces.glob("*.piece")}
    for old in session.bring.glob("*.piece"):
        if old.name not in named:
            old.unlink()
    for path in [*sorted(pieces.glob("*.piece")), pieces / "pieces.json"]:
        if path.exists():
            with atomic_path(session.bring / path.name) as temporary:
                shutil.copyfile(path, temporary)


def done_before(session: Session, step: Step):
    "The rows of steps.csv of this step, done on this kind of device."
    steps = read_steps(session)
    return steps[
        (steps.step == step.name) & (steps.device == session.name) & (steps.status == "ok")
    ]


def took(session: Session, step: Step) -> float:  # seconds
    "What a step took when it was last done, and a fifth more; or its guess."
    before = done_before(session, step)
    if step.elastic or not len(before):
        return step.seconds
    return 1.2 * float(before.seconds.iloc[-1])


def is_done(session: Session, step: Step) -> bool:
    before = done_before(session, step)
    if step.of_source:
        before = before[before.source == session.source]
    return bool(len(before)) and not (step.again or session.again)


def source_checksum() -> str:
    "What the tests depend on, in 12 hexadecimal digits."
    from carp_nb.files import file_sha256, joined_sha256

    paths = [*sorted((ROOT / "carp_nb").glob("*.py")), ROOT / "tests" / "test_gpu.py"]
    return joined_sha256([file_sha256(path) for path in paths])[:12]


# one step


def stop(process: subprocess.Popen) -> None:
    "End a step and all that it has started: as Ctrl-C does, and if that takes long, at once."
    for number in (signal.SIGINT, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with suppress(subprocess.TimeoutExpired):
            process.wait(END / 2)
            return


def run_step(session: Session, step: Step) -> str:  # its status
    "Do a step if it fits, and write down what became of it."
    if is_done(session, step):
        print(f"{step.name}: done before on {session.name}; --again does it again", flush=True)
        return "done"
    needed, left = took(session, step), session.left() - END - step.reserve
    if needed > left:
        said = f"takes about {needed:.0f} s, and {max(0, left):.0f} s are left for it"
        write_step(session, step.name, "no time", 0, said)
        return "no time"
    began = time.time()
    log = session.output / f"{step.name}.log"
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "PYTHONUNBUFFERED": "1",
    }
    print(f"{step.name}: at most {left:.0f} s", flush=True)
    with open(log, "w") as file:
        process = subprocess.Popen(
            [sys.executable, *step.arguments],
            cwd=ROOT,
            env=environment,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        status = "out of time"
        try:
            status = "ok" if process.wait(left) == 0 else "failed"
        except subprocess.TimeoutExpired:
            stop(process)
        except BaseException:
            stop(process)
            raise
    lines = log.read_text(errors="replace").strip().splitlines() or ["it said nothing"]
    write_step(session, step.name, status, time.time() - began, lines[-1][:300])
    if status != "ok":
        print("\n".join(lines[-12:]), flush=True)
    return status


def steps_of(session: Session, given: argparse.Namespace) -> list[Step]:
    "All steps, the most valuable first."
    rehearsal = session.device == "cpu"
    here = ["--device", session.device, "--output", str(session.output)]
    training = [*here, "--tokens", str(given.tokens), "--precision", given.precision]
    for name in ("corpus", "valid"):
        if getattr(given, name):
            training += [f"--{name}", getattr(given, name)]
    packing = 15.0 if rehearsal else LEFT_FOR_PACKING
    until = ["--until", str(session.until - END - packing - SAVING)]
    # the driver's own deadline is later, so that a line which takes longer than it did is stopped
    lines = ["--deadline", str(session.until - END), "--output", str(session.lines)]
    tests = ["-m", "pytest", "-q", "--noconftest", "-o", "addopts=", "-p", "no:cacheprovider"]
    names = list(given.lines) or gpu_lines()
    lines += ["--device", session.device] + ["--skip-measured"] * (not session.again)
    return [
        Step(
            "tests",
            [*tests, f"--junitxml={session.output}/tests.xml", "tests/test_gpu.py"],
            5 if rehearsal else 90,
            of_source=True,
        ),
        Step("lines", ["-m", "benchmarks", *names, *lines], 5, elastic=True, again=True),
        Step("figure_1f", ["-m", "benchmarks.gpu", "figure", *here], 10 if rehearsal else 120),
        Step(
            "pretrain",
            ["-m", "benchmarks.gpu", "pretrain", *training, *until],
            SAVING + (10 if rehearsal else SHORTEST_TRAINING),
            reserve=packing,
            elastic=True,
            again=True,
        ),
        Step("pack", ["-m", "benchmarks.gpu", "pack", *training], packing / 2, again=True),
    ]


def gpu_lines() -> list[str]:
    from benchmarks.lines import LINES

    return [line.name for line in LINES.values() if line.gpu]


def run_all(given: argparse.Namespace) -> int:
    "Do the steps until the time is over. Returns 1 if one of them failed."
    # the clock runs from here: the imports below take seconds, too
    until = time.time() + 60 * given.minutes
    if missing := [pip for name, pip in NEEDED.items() if find_spec(name) is None]:
        print(
            f"{sys.executable} lacks {', '.join(missing)}: install them, or carry their wheels and "
            "`python3 -m pip install --no-index --no-deps WHEELS`.",
            file=sys.stderr,
        )
        return 1
    from carp_nb.devices import device_name, pick_device
    from carp_nb.errors import CarpError
    from carp_nb.results import provenance

    try:
        device = str(pick_device(given.device))
    except CarpError as error:
        print(f"{error} `make gpu DEVICE=cpu` rehearses on this machine.", file=sys.stderr)
        return 1
    name = device_name(device)
    output = given.output or ROOT / "outputs" / ("gpu" if device != "cpu" else "gpu_rehearsal")
    output.mkdir(parents=True, exist_ok=True)
    commit = provenance(device)["commit"]
    lines = ROOT / "outputs" / "benchmarks"
    if given.output or device == "cpu":
        lines = output / "lines"
    session = Session(
        device, name, commit, source_checksum(), output, lines, until, given.bring, given.again
    )
    print(f"{name}, {session.left():.0f} s, results in {output}", flush=True)
    statuses = []
    for step in steps_of(session, given):
        if step.name not in given.leave_out:
            statuses.append(run_step(session, step))
    bring(session)
    return int("failed" in statuses)


# the steps that are no command of their own


def figure(given: argparse.Namespace) -> int:
    "Measure Figure 1f; every length is written when it is done."
    from carp_nb.budgets import get_budget
    from carp_nb.files import write_table
    from carp_nb.paper import published
    from carp_nb.scaling import cost_against_length, cost_claims, cost_exponents

    on_gpu = given.device != "cpu"
    budget = get_budget("scaling", "paper" if on_gpu else "smoke")
    # the memory of the paper's device
    memory = 48.0 if on_gpu else 0.25
    shapes, lengths = budget.shapes.split(","), list(budget.lengths)
    if not on_gpu:
        shapes, lengths = ["carp_4k", "esm_4_9k"], lengths[:3]
    folder = given.output / "figure_1f"
    cost = cost_against_length(
        shapes,
        lengths,
        repeats=5 if on_gpu else 2,
        dtype="autocast",
        device=given.device,
        memory=memory * 2**30,
        path=folder / "cost.csv",
    )
    clock = "wall" if on_gpu else "cpu"
    exponents = write_table(cost_exponents(cost, clock), folder / "exponents.csv")
    claims = cost_claims(cost, exponents, published("scaling"), memory, clock)
    write_table(claims, folder / "claims.csv")
    print(f"{cost['shape'].nunique()} shapes up to {cost.length.max():,} residues")
    return 0


@dataclass
class Pretraining:
    "The run that all sessions add to."

    config: object  # PretrainConfig
    corpus: str
    valid: str
    folder: Path

    def held_out(self, n: int = 64) -> list[str]:
        from carp_nb.pretrain import read_records

        return [s for _, s in read_records(self.valid) if len(s) <= 1022][:n]


def pretraining(given: argparse.Namespace) -> Pretraining:
    from carp_nb.pretrain import PretrainConfig

    if given.device == "cpu":
        config = PretrainConfig(
            "carp_4k", 20 * given.tokens / 1e5, 2048, max_length=128, dtype="bfloat16", snapshots=0
        )
        corpus, valid = "sprot_train_sample", "sprot_heldout_sample"
    else:
        config = PretrainConfig(
            "carp_38m", given.tokens, 65536, 1024, cooldown=0.3, dtype="bfloat16", snapshots=0
        )
        corpus, valid = "pretrain_train", "pretrain_valid"
    name = config.model_name
    return Pretraining(
        config, given.corpus or corpus, given.valid or valid, given.output / "pretrain" / name
    )


@contextmanager
def counted(run: Path) -> Iterator[None]:
    "Say how many updates a run makes in this block."
    from carp_nb.training import last_update

    before = last_update(run)
    yield
    print(f"from update {before} to update {last_update(run)}", flush=True)


def pretrain_until(given: argparse.Namespace) -> int:
    "Pretrain until a time, from the newest of checkpoint and pieces, to a checkpoint."
    from benchmarks.pieces import MANIFEST, restore
    from carp_nb.batching import Corpus
    from carp_nb.pretrain import as_corpus, pretrain
    from carp_nb.results import provenance

    class UntilThen(Corpus):
        """A corpus that is interrupted at a time. `train` meets that between two updates, where
        weights and counters agree, and saves a checkpoint as after Ctrl-C.
        """

        def __getitem__(self, i: int):
            if time.time() > given.until:
                raise KeyboardInterrupt
            return super().__getitem__(i)

    run = pretraining(given)
    pieces = given.output / "pieces"
    if (pieces / MANIFEST).exists():
        restore(pieces, run.folder)
    whole = as_corpus(run.corpus)
    corpus = UntilThen(whole.tokens, whole.offsets, whole.stated)
    sets = {"train": {"name": run.corpus}, "valid": {"name": run.valid}}
    record = {**sets, **provenance(given.device)}
    with counted(run.folder):
        try:
            pretrain(
                run.config, corpus, run.held_out(), run.folder, record, given.device, progress=False
            )
        except KeyboardInterrupt:
            print("the time is over", flush=True)
    return 0


def pack_weights(given: argparse.Namespace) -> int:
    "Cut the newest checkpoint into pieces."
    from benchmarks.pieces import pack
    from carp_nb.timing import random_model
    from carp_nb.training import last_update

    run = pretraining(given)
    if not last_update(run.folder):
        print("there is no checkpoint yet, so nothing is packed")
        return 0
    model = random_model(run.config.size, 1, given.device)
    model.name = run.config.model_name
    said = pack(run.folder, model, given.output / "pieces", run.held_out(), given.precision)
    exact, packed = said["loss"]["exact"], said["loss"]["packed"]
    print(
        f"update {said['update']}, {said['tokens']:,} residues: {len(said['pieces'])} pieces, "
        f"{said['bytes'] / 1e6:.1f} MB, held-out loss {exact:.4f}, as {given.precision} {packed:.4f}"
    )
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    steps = {"all": run_all, "figure": figure, "pretrain": pretrain_until, "pack": pack_weights}
    parser.add_argument(
        "what", nargs="?", choices=list(steps), default="all", help="one step alone"
    )
    parser.add_argument("--minutes", type=float, default=9.0, help="for all steps; default 9")
    parser.add_argument("--device", default="cuda", help="cuda, or cpu to rehearse")
    parser.add_argument(
        "--output", type=Path, help="default: outputs/gpu, or outputs/gpu_rehearsal"
    )
    parser.add_argument("--bring", type=Path, help="folder that gets all of it in few files")
    parser.add_argument(
        "--again", action="store_true", help="also what this kind of device has done"
    )
    parser.add_argument("--leave-out", nargs="*", default=[], help="names of steps")
    parser.add_argument(
        "--lines", nargs="*", default=[], help="of the benchmarks; default: all gpu-*"
    )
    parser.add_argument("--corpus", default="", help="FASTA or built corpus to pretrain on")
    parser.add_argument("--valid", default="", help="held-out FASTA")
    parser.add_argument(
        "--tokens", type=float, default=2e9, help="residues, over all runs together"
    )
    parser.add_argument(
        "--precision", choices=["int8", "bf16"], default="int8", help="of the pieces"
    )
    parser.add_argument("--until", type=float, default=float("inf"), help="seconds since 1970")
    given = parser.parse_args()
    if given.what != "all":
        # a path that does not depend on where the driver was started
        given.output = (given.output or ROOT / "outputs" / "gpu").resolve()
    elif given.output:
        given.output = given.output.resolve()
    return steps[given.what](given)


if __name__ == "__main__":
    sys.exit(main())
