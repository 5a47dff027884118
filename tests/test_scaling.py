"""scaling.ipynb the way its users start it, on shapes that take seconds; and what the table of
benchmarks says of its numbers.
"""

import sys
from pathlib import Path

import pandas as pd
import pytest


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux enforces a limit on memory")
def test_out_of_memory_is_the_end_of_a_line(papermill):
    done = papermill(
        "scaling",
        model="carp_40k,esm_41k:plain",
        lengths="64,256,8192",
        repeats="2",
        memory_limit="0.3",
    )
    assert done.status == 0, done.shown
    out = done.out
    cost = pd.read_csv(out / "cost.csv")
    assert cost[cost["shape"] == "carp_40k"].groupby("length").wall.count().tolist() == [2, 2, 2]
    assert cost[cost.wall.isna()][["shape", "length"]].values.tolist() == [["esm_41k:plain", 8192]]
    assert (
        (cost.dropna().peak > 0).all()
        and (cost.dropna().groupby(["shape", "length"]).peak.nunique() == 1).all()
        and (out / "figure_1f.svg").stat().st_size > 10_000
    )
    claims = pd.read_csv(out / "claims.csv")
    assert (claims.answer == "not measured here").all() and claims[
        "yes means"
    ].notna().all()  # its shapes are others
    assert "esm_41k:plain in 0.3 GiB" in set(claims["same question of"])
    rows = pd.read_parquet(out / "results.parquet")
    assert set(rows.model) == {"carp_40k", "esm_41k:plain"} and (rows.device.str.len() > 0).all()


def test_an_unknown_shape_is_named(papermill):
    done = papermill("scaling", model="carp_40k,esm_2")
    assert done.status and "'esm_2' is no shape to measure" in done.shown


@pytest.mark.parametrize("peers", [1, 2])
def test_benchmarks_claim_no_more_than_ran(peers):
    pytest.importorskip("altair")
    from benchmarks.__main__ import empty_table, measure, readme
    from benchmarks.lines import Line, Ways

    work = {n: lambda: sum(range(200_000)) for n in ("ours", "peer", "peer, batch 8")[: 1 + peers]}
    line = Line("embed-carp_38m", "work", "peer", lambda: Ways(work, dict.fromkeys(work, 1.0)))
    row = measure(line, 3, "cpu", True, 1)
    assert row["interval"] == "range" and ("against its best" in row) == (peers == 2)
    table = empty_table().set_index("line", drop=False).astype(object)
    for column, value in {
        **row,
        "repeats": 1,
        "clock": "cpu",
        "load": 1.0,
        "meets": "no target",
    }.items():
        table.loc[line.name, column] = value
    said = next(text for text in readme(table, Path("none")).splitlines() if "(range " in text)
    assert (
        "n = 1 of 2 intended" in said
        and "95 %" not in said
        and ("only as stated" in said) == (peers == 1)
    )


def test_a_benchmark_may_be_a_number():
    pytest.importorskip("altair")
    from benchmarks.__main__ import measure
    from benchmarks.lines import LINES, Line, Ways

    found = iter([(5.0, 1.0), (7.0, 3.0), (6.0, 2.0)])
    row = measure(
        Line(
            "x",
            "work",
            "2000 MB",
            lambda: Ways({}, {}, "said", probe=lambda: next(found)),
            unit="MB",
        ),
        3,
        "cpu",
        True,
        1,
    )
    assert (row["ratio"], row["lo"], row["hi"], row["timed"]) == (6, 5, 7, "2 s; said")
    assert {
        f"gpu-{size}-train{ending}"
        for size in ("carp_38m", "carp_76m", "carp_640m")
        for ending in ("", "-rate", "-memory")
    } <= set(LINES)
