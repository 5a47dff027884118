"""Run lines of the table: `python -m benchmarks` all of them, `python -m benchmarks linearity
train-carp_600k` some, `--list` names them.

Every line is measured in one process, all its ways in turns, so that a machine that is slower
for a while is slower for all of them. The ratio is the median over repeats of neighbours. Lines
measured before stay in the table until they are measured again on the same kind of processor.
A line that fails does not stop the others, and is named at the end. `bf16-scans` is no line of
speed: it says how far bf16 moves the Spearman correlation of every scan that is here.
"""

import argparse
import functools
import os
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from tqdm.auto import tqdm

from benchmarks.agreement import SCANS, bf16_scans, summary
from benchmarks.draw import chart
from benchmarks.lines import LINES, Line, Ways, matrix_product
from carp_nb.files import atomic_path, in_project, write_table, write_text
from carp_nb.results import provenance
from carp_nb.timing import interleave, paired_ratio

COLUMNS = [
    "line",
    "work",
    "peer",
    "unit",
    "ratio",
    "lo",
    "hi",
    "interval",
    "fp32 against fp32",
    "peer at its best",
    "against its best",
    "floor",
    "aim",
    "meets",
    "what holds it back",
    "timed",
    "clock",
    "repeats",
    "threads",
    "load",
    "dtype path",
    "device",
    "cpu flags",
    "processor",
    "seconds",
    "torch",
    "commit",
    "when",
    "command",
]


MEASURED = [
    c
    for c in COLUMNS
    if c not in ("line", "work", "peer", "unit", "floor", "aim", "meets", "command")
]  # the others are said by the line itself

# what makes one kind of processor faster than another in a line of the table, on x86 and on Arm
FEATURES = {"avx2", "avx512f", "avx512_bf16", "amx_bf16", "asimd", "sve", "bf16", "i8mm"}
# Nothing uses this one. AMD's Zen 5 has it; Zen 4, whose products are slower, has not.
FEATURES |= {"avx512_vp2intersect"}
BFLOAT16 = {"avx512_bf16", "amx_bf16", "bf16"}  # without one of these bfloat16 is emulated


def cpu_features(info: Path = Path("/proc/cpuinfo")) -> str:
    "The features of this processor that decide its speed, in order; empty where nothing says them."
    if not info.exists():
        return ""
    named: set[str] = set()
    for said in info.read_text().splitlines():
        if said.startswith(("flags", "Features")):
            named |= set(said.split())
    return " ".join(sorted(named & FEATURES))


def processor_of(row: dict) -> str:
    "The kind of processor that a row was measured on: the name of a GPU, the features of a CPU."
    kept = row.get("processor")
    if isinstance(kept, str) and kept:
        return kept
    # tables were once without this column
    device = str(row["device"])
    if not device.startswith("cpu"):
        return device
    return str(row["cpu flags"] or "cpu")


def with_threads(compute, n: int):
    "The call with a number of threads of its own."

    @functools.wraps(compute)
    def call():
        before = torch.get_num_threads()
        torch.set_num_threads(n)
        try:
            return compute()
        finally:
            torch.set_num_threads(before)

    return call


def per_unit(times: pd.DataFrame, worth: dict[str, float]) -> pd.DataFrame:
    "Seconds per unit of work instead of seconds per call."
    worth = times.way.map(worth)
    return times.assign(wall=times.wall / worth, cpu=times.cpu / worth)


def limits(line: Line, ratio: float, job: Ways, medians: pd.Series, dtype: str) -> str:
    """Where a target is missed: the time of the matrix products alone, at the rate that this
    processor reaches on large ones, against ours. That rate is a reference, not a bound.
    """
    if line.floor is None or verdict(line, ratio) == "aim":
        return ""
    rates = {
        t: 1 / medians[f"products {t}"] for t in ("float32", "bfloat16")
    }  # operations per second
    least = job.operations / rates[dtype]
    share = least / medians["ours"]
    takes = (
        f"{share:.0%} of our time; with nothing else it would be {medians['peer'] / least:.1f} times"
        if share < 1
        else "all of our time"
    )
    said = f"matrix products alone, at {rates[dtype] / 1e9:.0f} GFLOP/s ({dtype}, one thread), take {takes}"
    slow = (
        f"; this processor has no fast bf16 products (fp32: {rates['float32'] / 1e9:.0f} GFLOP/s)"
    )
    return said + (slow if dtype == "bfloat16" and rates["bfloat16"] < 2 * rates["float32"] else "")


def interval(repeats: float) -> str:
    "What `paired_ratio` gives: the 95 % bootstrap interval of the median of up to five numbers is just their range."
    return "range" if repeats <= 5 else "95 %"


def measure(
    line: Line, repeats: int, clock: str, best: bool, more_threads: int, device: str = "cuda"
) -> dict:
    "One row of the table."
    job = line.build(device=device) if line.gpu else line.build()
    if job.probe:
        found = pd.DataFrame([job.probe() for _ in range(repeats)])
        (value, seconds), lo, hi = found.median(), found[0].min(), found[0].max()
        print(
            f"{line.name}: {value:.4g} {line.unit} ({lo:.4g} to {hi:.4g}), {seconds:.3g} s",
            flush=True,
        )
        return {
            "ratio": value,
            "lo": lo,
            "hi": hi,
            "interval": "range",
            "timed": f"{seconds:.3g} s; {job.note}",
        }
    row = {"interval": interval(repeats), "timed": job.note}
    if line.gpu:
        times = interleave(job.ways, repeats, device)
        whole = times.assign(
            way="peer", wall=job.worth["ours"]
        )  # worth / time is a ratio like the others, with their interval
        ratio, lo, hi = paired_ratio(pd.concat([times, whole]), "peer", "ours", "wall")
        print(f"{line.name}: {ratio:.4g} {line.unit} ({lo:.4g} to {hi:.4g})", flush=True)
        return row | {"ratio": ratio, "lo": lo, "hi": hi}
    more_threads = (
        more_threads if clock == "wall" else 1
    )  # processor time counts every thread, so that more of them only cost more

    def wanted(name):
        return (
            "," not in name
            or "autocast" in name
            or (best and job.threads.get(name, 1) <= more_threads)
        )

    chosen = {name: call for name, call in job.ways.items() if wanted(name)}
    alone = (
        {f"products {dtype}": matrix_product(dtype) for dtype in ("float32", "bfloat16")}
        if job.operations
        else {}
    )
    calls = {n: with_threads(c, job.threads.get(n, 1)) for n, c in chosen.items()} | {
        n: c for n, (c, _) in alone.items()
    }
    times = per_unit(
        interleave(calls, repeats, warm=line.warm),
        job.worth | {n: worth for n, (_, worth) in alone.items()},
    )
    ratio, lo, hi = paired_ratio(times, "peer", "ours", clock)
    row |= {"ratio": ratio, "lo": lo, "hi": hi}
    if "fp32" in chosen:
        row["fp32 against fp32"] = paired_ratio(
            times, "fp32 peer" if "fp32 peer" in chosen else "peer", "fp32", clock
        )[0]
    medians = times.groupby("way")[clock].median()
    if len(peers := [n for n in chosen if n.startswith("peer")]) > 1:
        fastest, ours = (
            medians[peers].idxmin(),
            medians[[n for n in chosen if n == "ours" or n == "ours, 2 threads"]].idxmin(),
        )

        def say(n):
            return n.removeprefix("peer, ") if n != "peer" else "as stated"

        row |= {
            "peer at its best": (
                f"{say(fastest)} (of {'; '.join(map(say, peers))}; {more_threads} "
                f"thread{'s' if more_threads > 1 else ''} at most)"
            ),
            "against its best": paired_ratio(times, fastest, ours, clock)[0],
        }
    if alone:
        row["what holds it back"] = limits(
            line, ratio, job, medians, "bfloat16" if "fp32" in chosen else "float32"
        )
    print(
        f"{line.name}: {ratio:.2f} ({lo:.2f} to {hi:.2f}); seconds per unit, {clock} clock: "
        + ", ".join(f"{n} {v:.3g}" for n, v in medians.items()),
        flush=True,
    )
    return row


def verdict(line: Line, value: float) -> str:
    "How a value stands to its floor and aim."
    if line.floor is None:
        return "no target"

    def reaches(target):
        return value <= target if line.lower_is_better else value >= target

    return (
        "aim"
        if reaches(line.aim)
        else "floor"
        if reaches(line.floor)
        else f"misses the floor by {abs(value / line.floor - 1):.0%}"
    )


def empty_table() -> pd.DataFrame:
    "All lines, without a number, each with the command that fills it."
    return pd.DataFrame(
        [
            {
                "line": line.name,
                "work": line.work,
                "peer": line.peer,
                "unit": line.unit,
                "floor": line.floor,
                "aim": line.aim,
                "meets": "not measured: needs a GPU" if line.gpu else "not measured",
                "command": f"make bench LINES={line.name}",
            }
            for line in LINES.values()
        ],
        columns=COLUMNS,
    )


def read_measured(folder: Path) -> pd.DataFrame:
    "The rows that were measured before, of lines that there still are, one for each kind of processor."
    path = folder / "benchmarks.parquet"
    if not path.exists():
        return pd.DataFrame(columns=COLUMNS)
    said = empty_table().set_index("line")
    rows = []
    for kept in pd.read_parquet(path).to_dict("records"):
        name = kept["line"]
        if name not in LINES or pd.isna(kept["ratio"]):
            continue
        row: dict[str, Any] = {"line": name, **said.loc[name].to_dict()}
        row |= {column: kept.get(column) for column in MEASURED}
        row |= {"processor": processor_of(kept), "interval": interval(kept["repeats"])}
        if ";" not in str(kept["peer at its best"]):
            # one setting has no best
            row |= {"peer at its best": None, "against its best": None}
        row["meets"] = verdict(LINES[name], kept["ratio"])
        rows.append(row)
    return pd.DataFrame(rows, columns=COLUMNS).astype(object)


def with_row(table: pd.DataFrame, row: dict) -> pd.DataFrame:
    "The measured rows with this one, in place of what its kind of processor said of the line before."
    same = (table.line == row["line"]) & (table.processor == row["processor"])
    added = pd.DataFrame([row], columns=COLUMNS).astype(object)
    # nothing is lost by it: a table of no rows has no types either
    return pd.concat([table[~same], added], ignore_index=True) if len(table) else added


def whole_table(measured: pd.DataFrame) -> pd.DataFrame:
    "All lines in their order: the rows of each, or one without a number."
    parts = []
    for row in empty_table().to_dict("records"):
        found = measured[measured.line == row["line"]].to_dict("records")
        parts += sorted(found, key=processor_of) or [row]
    return pd.DataFrame(parts, columns=COLUMNS).astype(object)


def estimate(line: Line, measured: pd.DataFrame, processor: str) -> float:  # seconds
    "What a line took on this kind of processor, or the line's own guess."
    same = measured[(measured.line == line.name) & (measured.processor == processor)]
    took = same.seconds.dropna()
    return float(took.iloc[-1]) if len(took) else line.seconds


def row_of(line: Line, given: argparse.Namespace) -> dict:
    "Measure a line, and say under which circumstances."
    began, repeats = time.perf_counter(), given.repeats or line.repeats
    row = measure(
        line, repeats, given.clock, not given.stated_only, os.cpu_count() or 1, given.device
    )
    on_gpu = line.gpu and given.device != "cpu"
    made = provenance(given.device if line.gpu else "cpu")
    features = cpu_features()
    row |= {
        "line": line.name,
        "meets": verdict(line, row["ratio"]),
        "clock": "wall" if line.gpu else given.clock,
        "repeats": repeats,
        "threads": "1" if given.clock == "cpu" else "1 unless stated",
        "load": round(os.getloadavg()[0], 2),
        "cpu flags": features,
        "processor": processor_here(line, given.device),
        "seconds": round(time.perf_counter() - began, 1),
        "dtype path": "bf16 without AMX"
        if "bf16" in line.work and not on_gpu and "amx_bf16" not in features
        else "",
        **{k: made[k] for k in ("device", "torch", "commit", "when")},
    }
    return {**empty_table().set_index("line").loc[line.name].to_dict(), **row}


def processor_here(line: Line, device: str) -> str:
    "The kind of processor that a line runs on here."
    if line.gpu and device != "cpu":
        return torch.cuda.get_device_name(device)
    return ("rehearsal on " if line.gpu else "") + (cpu_features() or "cpu")


def why_not(line: Line, measured: pd.DataFrame, given: argparse.Namespace) -> str:
    "Why a line is not measured now; empty: it is."
    if line.gpu and given.device != "cpu" and not torch.cuda.is_available():
        return "needs a GPU"
    here = processor_here(line, given.device)
    features = set(cpu_features().split())
    # nothing is known of a processor without features
    emulated = bool(features) and not features & BFLOAT16
    if emulated and not line.gpu and "bf16" in f"{line.name} {line.work}":
        return "needs a processor with products in bfloat16"
    same = measured[(measured.line == line.name) & (measured.processor == here)]
    if given.skip_measured and len(same):
        return f"was measured on {here}"
    needed, left = estimate(line, measured, here), given.deadline - time.time()
    if given.deadline and needed > left:
        return f"takes about {needed:.0f} s, and {max(0, left):.0f} s are left"
    return ""


def parser_of_lines() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("lines", nargs="*", metavar="LINE", help="names of lines; none: all")
    parser.add_argument("--list", action="store_true", help="name the lines and stop")
    parser.add_argument(
        "--clock",
        choices=["cpu", "wall"],
        default="cpu",
        help=(
            "processor time of the process, which other programs disturb little, or "
            "the wall clock for an idle machine; default cpu"
        ),
    )
    parser.add_argument("--repeats", type=int, help="turns; default: as the line says")
    parser.add_argument(
        "--stated-only",
        action="store_true",
        help="leave out the settings in which the peer may be better",
    )
    parser.add_argument(
        "--device",
        default="cuda",
        help="of the lines for a GPU; cpu: rehearse them with a tiny model (give an --output)",
    )
    parser.add_argument(
        "--deadline",
        type=float,
        default=0.0,
        help="seconds since 1970; a line starts only if what it took before fits; default: none",
    )
    parser.add_argument(
        "--skip-measured",
        action="store_true",
        help="leave out the lines that this kind of processor has",
    )
    parser.add_argument("--output", type=Path, default=in_project("outputs/benchmarks"))
    return parser


def main() -> int:
    parser = parser_of_lines()
    given = parser.parse_args()
    if unknown := [n for n in given.lines if n not in LINES and n != SCANS]:
        parser.error(f"there is no line {unknown[0]!r}; the lines are {', '.join([*LINES, SCANS])}")
    if given.list:
        for line in LINES.values():
            print(f"{line.name:28} {line.work}, against {line.peer}")
        print(f"{SCANS:28} how far bf16 moves the correlation with measured mutants, against fp32")
        return 0
    if given.device == "cpu" and given.output == in_project("outputs/benchmarks"):
        parser.error("a rehearsal is no measurement; give it an --output of its own.")
    torch.set_num_threads(1)
    if SCANS in given.lines or not given.lines:
        bf16_scans(given.output)
    names = [name for name in given.lines or LINES if name != SCANS]
    kept, failed, now = read_measured(given.output), [], 0
    for name in tqdm(names, desc="lines"):
        if reason := why_not(LINES[name], kept, given):
            print(f"{name}: not measured now: {reason}", flush=True)
            continue
        try:
            row = row_of(LINES[name], given)
        # whatever it is, the lines after it are not to be lost
        except Exception:
            traceback.print_exc()
            failed.append(name)
            continue
        kept = with_row(kept, row)
        now += 1
        save(whole_table(kept), given.output)
    table = whole_table(kept)
    save(table, given.output)
    shown = ["line", "processor", "ratio", "against its best", "floor", "aim", "meets"]
    if names:
        print(table[table.line.isin(names)][shown].to_string(index=False))
    print(f"{now} of {len(names)} lines measured now, in {given.output}", flush=True)
    if failed:
        print(f"failed, as said above: {', '.join(failed)}", file=sys.stderr)
    return int(bool(failed))


def save(table: pd.DataFrame, folder: Path) -> None:
    "Write the table and what is drawn and said of it; the numbers first."
    numbers = [
        "ratio",
        "lo",
        "hi",
        "fp32 against fp32",
        "against its best",
        "floor",
        "aim",
        "repeats",
        "load",
        "seconds",
    ]
    table = table.astype(dict.fromkeys(numbers, float)).astype(
        {c: "string" for c in COLUMNS if c not in numbers}
    )
    for name in ("benchmarks.parquet", "benchmarks.csv"):
        write_table(table, folder / name)
    write_text(folder / "README.md", readme(table, folder / "bf16_scans.csv"))
    try:
        with atomic_path(folder / "benchmarks.svg") as temporary:
            chart(table).save(temporary, format="svg")
    # a measured line is worth more than its picture, which the next run draws
    except Exception as error:
        reason = (str(error) or repr(error)).splitlines()[0]
        print(
            f"the table is written, but the chart is not drawn ({reason}); the next run draws it.",
            file=sys.stderr,
        )


def readme(table: pd.DataFrame, scans: Path) -> str:
    "The table for a reader of the folder."

    def number(value, digits=2):
        return "" if pd.isna(value) else f"{value:.{digits}f}"

    def text(value):
        return "" if pd.isna(value) else str(value)

    def needed(r):
        return (
            f"; the floor leaves {r.ratio / r.floor:.0%} of our time"
            if text(r.meets).startswith("misses") and text(r["what holds it back"])
            else ""
        )

    columns = [
        "work",
        "against",
        "ratio",
        "fp32 against fp32",
        "against the peer at its best",
        "floor / aim",
        "meets",
        "what holds it back",
        "timed",
        "processor",
    ]

    def unit(r):
        return "" if r.unit == "times faster" else f" {r.unit}"

    def repeats(r):
        return f"n = {r.repeats:.0f}" + (
            f" of {LINES[r.line].repeats} intended" if r.repeats < LINES[r.line].repeats else ""
        )

    def best(r):
        return (
            f"{number(r['against its best'])}, {r['peer at its best']}"
            if pd.notna(r["against its best"])
            else "only as stated"
            if pd.notna(r.ratio) and r.unit == "times faster"
            else ""
        )

    rows = [
        [
            r.work,
            r.peer,
            f"{r.ratio:.{digits}f}{unit(r)} ({r.interval} {r.lo:.{digits}f} to {r.hi:.{digits}f})"
            if pd.notna(r.ratio)
            else "",
            number(r["fp32 against fp32"]),
            best(r),
            "" if pd.isna(r.floor) else f"{r.floor:g} / {r.aim:g}",
            text(r.meets) if pd.notna(r.ratio) else f"{r.meets}: `{r.command}`",
            text(r["what holds it back"]) + needed(r),
            f"{text(r.timed)}, {repeats(r)}, {r.clock} clock, load {r.load:g}"
            if pd.notna(r.ratio)
            else "",
            text(r.processor),
        ]
        for _, r in table.iterrows()
        for digits in [0 if text(r.unit).startswith(("MB", "kB", "%", "thousand")) else 2]
    ]
    return "\n".join(
        [
            "# Speed beside other software",
            "",
            (
                "`make bench` writes this folder; `make bench LINES=linearity` one line "
                "of it. A line has a row for each kind of processor on which it was measured. "
                "All ways of one line are timed in turns in one process, and the ratio is the "
                "median over"
            ),
            (
                "repeats of neighbours: above 1 ours is the faster one; behind it stands "
                "the range of up to five repeats, or the 95 % bootstrap interval of "
                "more. Weights are random. With the clock `cpu`, the processor time of "
                "the process, other programs disturb little;"
            ),
            (
                "the peer's best is then taken over batches on one thread, because "
                'processor time counts every thread. On an idle machine `ARGS="--clock '
                'wall"` adds two threads.'
            ),
            (
                "A peer that ran in one setting only has no best. Where another unit "
                "stands beside the number, it is no ratio of times."
            ),
            "",
            (
                "The model is not compiled: measured by hand on two cores without AMX, "
                "`torch.compile` with dynamic shapes took 50 s (block by block) to 130 s "
                "(whole) and left 0.95 to 1.0 of an update's time."
            ),
            "",
            (
                "What holds a line back is computed: the operations of our matrix "
                "products at the rate that this processor reaches on large ones in the "
                "same minutes, against our whole time."
            ),
            (
                "That rate is a reference, not a bound: products of our shapes may run "
                "faster, and then they take all of our time."
            ),
            (
                "Beside them there are element-wise work (layer norms, GELU, sums), "
                "memory, and products too small for that rate."
            ),
            "",
            *("| " + " | ".join(row) + " |" for row in [columns, ["---"] * len(columns), *rows]),
            "",
            "## bf16 against fp32 on measured mutants",
            "",
            (
                "Spearman correlations with every scan that is here, in both precisions "
                "(`make bench LINES=bf16-scans`, rows in `bf16_scans.csv`):"
            ),
            "",
            *(
                [f"- {line}" for line in summary(pd.read_csv(scans))]
                if scans.exists()
                else ["- not measured"]
            ),
            "",
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
