"""Run lines of the table: `python -m benchmarks` all of them, `python -m benchmarks linearity train-carp_600k` some, `--list` names them.

Every line is measured in one process, all its ways in turns, so that a machine that is slower for a while is slower for all of them. The ratio is the
median over repeats of neighbours. Lines measured before stay in the table until they are measured again.
"""
import argparse
import functools
import os
import sys
from pathlib import Path

import altair as alt
import pandas as pd
import torch
from tqdm.auto import tqdm

from benchmarks.lines import LINES, Line, Ways
from carp_nb.datasets import project_root
from carp_nb.results import provenance
from carp_nb.timing import interleave, paired_ratio
from carp_nb.training import write_table

COLUMNS = ["line", "work", "peer", "unit", "ratio", "lo", "hi", "fp32 against fp32", "peer at its best", "against its best", "floor", "aim", "meets", "timed", "clock", "repeats",
           "threads", "load", "dtype path", "device", "cpu flags", "torch", "commit", "when", "command"]


def with_threads(compute, n: int):
    "The call with a number of threads of its own."
    @functools.wraps(compute)
    def call():
        before = torch.get_num_threads()
        torch.set_num_threads(n)
        try: return compute()
        finally: torch.set_num_threads(before)
    return call


def per_unit(times: pd.DataFrame, job: Ways) -> pd.DataFrame:
    "Seconds per unit of work instead of seconds per call."
    worth = times.way.map(job.worth)
    return times.assign(wall=times.wall / worth, cpu=times.cpu / worth)


def measure(line: Line, repeats: int, clock: str, best: bool, more_threads: int) -> dict:
    "One row of the table."
    job = line.build()
    if line.gpu:
        seconds = interleave(job.ways, repeats, "cuda").wall
        lo, value, hi = (job.worth["ours"] / seconds.quantile([0.975, 0.5, 0.025])).tolist()
        return {"ratio": value, "lo": lo, "hi": hi, "timed": job.note}
    chosen = {name: call for name, call in job.ways.items() if "," not in name or "autocast" in name or best and job.threads.get(name, 1) <= more_threads}
    times = per_unit(interleave({n: with_threads(c, job.threads.get(n, 1)) for n, c in chosen.items()}, repeats), job)
    ratio, lo, hi = paired_ratio(times, "peer", "ours", clock)
    row = {"ratio": ratio, "lo": lo, "hi": hi, "timed": job.note}
    if "fp32" in chosen: row["fp32 against fp32"] = paired_ratio(times, "fp32 peer" if "fp32 peer" in chosen else "peer", "fp32", clock)[0]
    medians = times.groupby("way")[clock].median()
    if len(peers := [n for n in chosen if n.startswith("peer")]) > 1:
        fastest, ours = medians[peers].idxmin(), medians[[n for n in chosen if n == "ours" or n == "ours, 2 threads"]].idxmin()
        row |= {"peer at its best": fastest.removeprefix("peer, ") if fastest != "peer" else "as stated", "against its best": paired_ratio(times, fastest, ours, clock)[0]}
    print(f"{line.name}: {ratio:.2f} ({lo:.2f} to {hi:.2f}); seconds per unit, {clock} clock: " + ", ".join(f"{n} {v:.3g}" for n, v in medians.items()), flush=True)
    return row


def verdict(line: Line, value: float) -> str:
    "How a value stands to its floor and aim."
    if line.floor is None: return "no target"
    reaches = lambda target: value <= target if line.lower_is_better else value >= target
    return "aim" if reaches(line.aim) else "floor" if reaches(line.floor) else f"misses the floor by {abs(value / line.floor - 1):.0%}"


def chart(table: pd.DataFrame) -> alt.Chart:
    "Ratios with their intervals, floor and aim; lines without a number stay as empty rows. Those on a GPU are shares of a peak and stand below."
    rows = table[~table.line.str.startswith("gpu-")].assign(label=lambda t: t.work + " | " + t.peer)
    gpu = table[table.line.str.startswith("gpu-")]
    shown = alt.Chart(rows).encode(y=alt.Y("label:N", sort=list(rows.label), title=None, axis=alt.Axis(labelLimit=640)))
    x = alt.X("ratio:Q", scale=alt.Scale(type="log"), title=["peer / ours (log scale), 95 % interval; grey: floor, black: aim", "hollow: against the peer at its best"])
    layers = [shown.mark_rule(color="#1f6fb4", strokeWidth=2).encode(x=alt.X("lo:Q", scale=alt.Scale(type="log")), x2="hi:Q"), shown.mark_point(filled=True, size=70, color="#1f6fb4").encode(x=x),
              shown.mark_point(size=70, color="#1f6fb4").encode(x="against its best:Q"), shown.mark_tick(color="#9a9a9a", thickness=2).encode(x="floor:Q"), shown.mark_tick(color="black", thickness=2).encode(x="aim:Q")]
    return alt.layer(*layers).properties(width=420, height=alt.Step(22), title=alt.Title(
        "On a GPU", fontSize=11, anchor="start", offset=8, subtitle=[f"{r.work}, share of the peak rate: {'not measured, needs a GPU' if pd.isna(r.ratio) else f'{r.ratio:.0f} %'}; {r.command}" for r in gpu.itertuples()], orient="bottom"))


def empty_table() -> pd.DataFrame:
    "All lines, without a number, each with the command that fills it."
    return pd.DataFrame([{"line": l.name, "work": l.work, "peer": l.peer, "unit": l.unit, "floor": l.floor, "aim": l.aim, "meets": "not measured: needs a GPU" if l.gpu else "not measured",
                          "command": f"make bench LINES={l.name}"} for l in LINES.values()], columns=COLUMNS)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("lines", nargs="*", metavar="LINE", help="names of lines; none: all")
    parser.add_argument("--list", action="store_true", help="name the lines and stop")
    parser.add_argument("--clock", choices=["cpu", "wall"], default="cpu", help="processor time of the process, which other programs disturb little, or the wall clock for an idle machine; default cpu")
    parser.add_argument("--repeats", type=int, help="turns; default: as the line says")
    parser.add_argument("--stated-only", action="store_true", help="leave out the settings in which the peer may be better")
    parser.add_argument("--output", type=Path, default=project_root() / "outputs" / "benchmarks")
    given = parser.parse_args()
    if unknown := [n for n in given.lines if n not in LINES]: parser.error(f"there is no line {unknown[0]!r}; the lines are {', '.join(LINES)}")
    if given.list:
        for line in LINES.values(): print(f"{line.name:28} {line.work}, against {line.peer}")
        return 0
    torch.set_num_threads(1)
    table, flags = empty_table().set_index("line", drop=False).astype(object), Path("/proc/cpuinfo")
    if (path := given.output / "benchmarks.parquet").exists():
        for _, row in pd.read_parquet(path).iterrows():
            if row.line in LINES and pd.notna(row.ratio): table.loc[row.line] = row.reindex(COLUMNS)
    said = {f for l in flags.read_text().splitlines() if l.startswith("flags") for f in l.split()} if flags.exists() else set()
    features = " ".join(sorted(said & {"avx2", "avx512f", "avx512_bf16", "amx_bf16"}))
    for name in tqdm(given.lines or list(LINES), desc="lines"):
        line, repeats = LINES[name], given.repeats or LINES[name].repeats
        if line.gpu and not torch.cuda.is_available(): continue
        row, made = measure(line, repeats, given.clock, not given.stated_only, os.cpu_count() or 1), provenance("cuda" if line.gpu else "cpu")
        row |= {"meets": verdict(line, row["ratio"]), "clock": "wall" if line.gpu else given.clock, "repeats": repeats, "threads": "1 unless stated", "load": round(os.getloadavg()[0], 2), "cpu flags": features,
                "dtype path": "bf16 without AMX" if "bf16" in line.work and not line.gpu and "amx_bf16" not in features else "", **{k: made[k] for k in ("device", "torch", "commit", "when")}}
        for column, value in row.items(): table.loc[name, column] = value
        save(table, given.output)
    save(table, given.output)
    print(table[["line", "ratio", "against its best", "floor", "aim", "meets"]].to_string(index=False))
    print(given.output)
    return 0


def save(table: pd.DataFrame, folder: Path) -> None:
    numbers = ["ratio", "lo", "hi", "fp32 against fp32", "against its best", "floor", "aim", "repeats", "load"]
    table = table.astype({c: float for c in numbers}).astype({c: "string" for c in COLUMNS if c not in numbers})
    for name in ("benchmarks.parquet", "benchmarks.csv"): write_table(table, folder / name)
    temporary = folder / ".benchmarks.svg"
    chart(table).save(temporary, format="svg")
    temporary.replace(folder / "benchmarks.svg")


if __name__ == "__main__": sys.exit(main())
