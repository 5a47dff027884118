"""The table of benchmarks loses nothing: not to a chart, not to a line that fails, not to another processor."""

import json
import math
import time

import pandas as pd
import pytest

from benchmarks import __main__ as table_of
from benchmarks.draw import other_units
from benchmarks.lines import LINES, Line, Ways

AMX, PLAIN = "amx_bf16 avx2 avx512_bf16 avx512f", "avx2"


def probe(value: float) -> Ways:
    return Ways({}, {}, "said", probe=lambda: (value, 1.0))


def undrawn(table):
    raise ValueError("vl-convert-python is not here")


@pytest.fixture
def bench(monkeypatch, tmp_path):
    "Runs `python -m benchmarks` over three lines that take no time, one of which fails."

    def fail() -> Ways:
        raise RuntimeError("no such peer")

    # put back as a whole: one by one, the lines would come back in another order
    all_lines = dict(LINES)
    LINES.clear()
    for name, build in {
        "first": lambda: probe(1.0),
        "broken": fail,
        "last": lambda: probe(3.0),
    }.items():
        line = Line(name, f"work of {name}", "a peer", build, unit="MB", seconds=30)
        LINES[name] = line

    # no picture is drawn, and git is not asked
    monkeypatch.setattr(table_of, "chart", undrawn)
    made = {"device": "cpu (1 threads)", "torch": "2", "commit": "abc", "when": "now"}
    monkeypatch.setattr(table_of, "provenance", lambda device: made)

    def run(*words: str, features: str = PLAIN) -> tuple[int, pd.DataFrame]:
        monkeypatch.setattr(table_of, "cpu_features", lambda: features)
        monkeypatch.setattr("sys.argv", ["benchmarks", *words, "--output", str(tmp_path)])
        status = table_of.main()
        kept = pd.read_parquet(tmp_path / "benchmarks.parquet")
        return status, kept.dropna(subset="ratio")

    yield run
    LINES.clear()
    LINES.update(all_lines)


def test_a_chart_that_cannot_be_drawn_loses_no_line(bench, capsys, tmp_path):
    status, kept = bench("first", "last")
    assert status == 0 and kept.line.tolist() == ["first", "last"]
    assert "the chart is not drawn (vl-convert-python is not here)" in capsys.readouterr().err
    assert "work of last" in (tmp_path / "README.md").read_text()


def test_a_line_that_fails_loses_no_other(bench, capsys):
    status, kept = bench("first", "broken", "last")
    assert status == 1 and kept.line.tolist() == ["first", "last"]
    error = capsys.readouterr().err
    assert "no such peer" in error and "failed, as said above: broken" in error


def test_a_row_is_kept_for_each_kind_of_processor(bench, monkeypatch, capsys):
    bench("first", "last", features=AMX)
    monkeypatch.setattr(LINES["first"], "build", lambda: probe(5.0))
    _, kept = bench("first")
    rows = kept.set_index(["line", "processor"]).ratio.to_dict()
    assert rows == {("first", AMX): 1, ("first", PLAIN): 5, ("last", AMX): 3}
    _, kept = bench("first", features=AMX)
    rows = kept.set_index(["line", "processor"]).ratio.to_dict()
    assert rows == {("first", AMX): 5, ("first", PLAIN): 5, ("last", AMX): 3}


def test_a_run_of_one_line_prints_that_line_alone(bench, capsys):
    bench("first", "last")
    capsys.readouterr()
    bench("last")
    shown = capsys.readouterr().out
    assert "last" in shown and "first" not in shown and "broken" not in shown


def test_a_line_starts_only_if_it_fits(bench, capsys):
    soon = time.time() + 20
    _, kept = bench("first", "--deadline", str(soon))
    assert kept.empty and "takes about 30 s" in capsys.readouterr().out
    bench("first")
    # now it is known to take less than its guess
    kept = bench("first", "--deadline", str(soon + 20))[1]
    assert kept.seconds.max() < 20
    bench("first", "--skip-measured")
    assert f"was measured on {PLAIN}" in capsys.readouterr().out


def test_bfloat16_is_measured_where_it_is_not_emulated(bench, monkeypatch, capsys):
    line = Line("some-bf16", "work in bf16", "a peer", lambda: probe(1.0), unit="MB")
    monkeypatch.setitem(LINES, line.name, line)
    _, kept = bench("some-bf16", "first", features=PLAIN)
    assert kept.line.tolist() == ["first"]
    assert "needs a processor with products in bfloat16" in capsys.readouterr().out
    for features in (AMX, "avx2 avx512_bf16 avx512f", ""):
        _, kept = bench("some-bf16", features=features)
        assert "some-bf16" in kept[kept.processor == (features or "cpu")].line.tolist()


@pytest.mark.parametrize(
    "row, kind",
    [
        ({"device": "cpu (1 threads)", "cpu flags": AMX}, AMX),
        ({"device": "NVIDIA H100 80GB HBM3", "cpu flags": AMX}, "NVIDIA H100 80GB HBM3"),
        ({"device": "cpu (1 threads)", "cpu flags": ""}, "cpu"),
        ({"device": "cpu", "cpu flags": AMX, "processor": "said"}, "said"),
        ({"device": "cpu", "cpu flags": AMX, "processor": math.nan}, AMX),
    ],
)
def test_rows_of_earlier_tables_name_their_processor(row, kind):
    assert table_of.processor_of(row) == kind


@pytest.mark.parametrize(
    "text, features",
    [
        ("flags\t\t: fpu avx2 amx_bf16 avx512f\n", "amx_bf16 avx2 avx512f"),
        ("Features\t: fp asimd i8mm\n", "asimd i8mm"),
        ("", ""),
    ],
)
def test_features_of_processors_are_read(text, features, tmp_path):
    path = tmp_path / "cpuinfo"
    path.write_text(text)
    assert table_of.cpu_features(path) == features
    assert table_of.cpu_features(tmp_path / "none") == ""


def test_two_kinds_of_processor_are_two_rows_of_the_chart():
    pytest.importorskip("altair")
    table = table_of.empty_table().head(2)
    rows = pd.concat([table, table.head(1)], ignore_index=True)
    rows = rows.assign(processor=["avx2", None, "amx"], ratio=1.0, lo=1.0, hi=1.0)
    drawn = json.dumps(table_of.chart(rows).to_dict())
    assert "fp32 | avx2" in drawn and "fp32 | amx" in drawn


def test_the_chart_counts_what_was_not_measured_and_gives_each_number_its_unit():
    rows = pd.DataFrame(
        {
            "work": ["titin", "pretraining", "scan"],
            "unit": ["MB above the weights", "% of the peak", "positions/s"],
            "ratio": [830.6, None, None],
            "meets": ["aim", "not measured: needs a GPU", "not measured: needs a GPU"],
        }
    )
    said = other_units(rows)
    assert said == ["titin: 831 MB above the weights", "2 lines not measured: needs a GPU"]
