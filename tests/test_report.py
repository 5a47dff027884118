"""checkpoints.ipynb and report.ipynb: the page is made of rows, and of nothing else."""

import json
import random
import re
import shutil
from html import unescape
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from carp_nb.coverage import fill_command
from carp_nb.experiments import PAPER_COLUMNS
from carp_nb.figures import against_paper_figure
from carp_nb.paper import against_paper, other_table, paper_table, stated_table, summarised
from carp_nb.report import compared_tables
from carp_nb.results import COLUMNS, Results, best_rows, unfinished_runs
from carp_nb.structure import TABLE_1_METRICS, TABLE_1_NOTE, table_1_columns

ROOT = Path(__file__).resolve().parent.parent


def outputs_of(path: Path) -> list[str]:
    "What the code cells of an executed notebook show."
    cells = json.loads(path.read_text())["cells"]
    return [
        "".join(o.get("text", ""))
        + "".join("".join(v) for k, v in o.get("data", {}).items() if k != "image/png")
        + "image" * ("image/png" in o.get("data", {}))
        for c in cells
        if c["cell_type"] == "code"
        for o in c["outputs"]
        if o.get("name") != "stderr"
    ]


def scores(values: list[float], **other) -> pd.DataFrame:
    """Results rows of a fine-tuned CARP on a split of Table 3, one for each seed."""
    common = {"section": "flip", "task": "flip_gb1", "split": "three_vs_rest", "model": "carp_4k"}
    common |= {"method": "pt-ft", "metric": "spearman", "budget": "laptop", "n": 100, **other}
    rows = pd.DataFrame({"seed": range(len(values)), "value": values, **common})
    return rows.assign(lo=rows.value - 0.1, hi=rows.value + 0.1).reindex(columns=COLUMNS)


def test_of_equal_budgets_the_last_run_counts():
    """A run that is made again replaces the one before: `rows_so_far` and `Results.read` append."""
    rows = pd.concat([scores([0.1, 0.2]), scores([0.3, 0.4]), scores([0.9], budget="smoke")])
    assert best_rows(rows).value.tolist() == [0.3, 0.4]
    assert summarised(rows).here.tolist() == [0.35]


@pytest.mark.parametrize("seeds, partial", [(1, True), (2, True), (3, False)])
def test_fewer_than_three_seeds_are_partial_and_drawn_hollow(seeds, partial):
    """The paper's own uncertainties are "standard deviations over 3 random seeds" (Tables 2 to 4)."""
    rows = scores([0.5, 0.6, 0.7][:seeds])
    assert summarised(rows).partial.tolist() == [partial]
    columns = {("flip_gb1", "three_vs_rest"): "3-vs-many"}
    figure = against_paper_figure(
        {"Table 3": against_paper(rows, stated_table("table_3"), columns)}
    )
    marks = [c for c in figure.axes[0].collections if c.get_label() == "carp_4k pt-ft"]
    assert [(m.get_facecolor() == 1).all() for m in marks] == [partial]


def fit_rows(values: dict[int, float], fitted=20, tested=100, **other) -> pd.DataFrame:
    """Results rows of fits (seed -> score) on so many of 20 training and 100 test rows."""
    tables = [scores(list(values.values()), n=tested, **other).assign(seed=list(values))]
    for metric, used, all_rows in (("train_rows", fitted, 20), ("test_rows", tested, 100)):
        sizes = scores([used] * len(values), n=all_rows, metric=metric, **other)
        tables.append(sizes.assign(seed=list(values)))
    # early stopping ended them
    for metric, value, limit in (("epochs_run", 60, 100), ("epochs_without_gain", 10, 10)):
        epochs = scores([value] * len(values), n=limit, metric=metric, **other)
        tables.append(epochs.assign(seed=list(values)))
    return pd.concat(tables)


def keep(folder: Path, rows: pd.DataFrame, when: str, **parameters) -> None:
    """Write a run as `Run.save` does."""
    folder.mkdir(parents=True)
    rows.to_parquet(folder / "results.parquet", index=False)
    record = {"section": "flip", "when": when, "parameters": parameters}
    (folder / "run.json").write_text(json.dumps(record))


FULL = {0: 0.5, 1: 0.6, 2: 0.7}
CNN = {"model": "cnn", "method": "train"}
LATER = {"epochs": 300, "patience": 40}
# (runs of one cell: rows, date, parameters) -> value shown, whether partial
CASES = {
    "a late seed on part of the rows": (
        [(fit_rows(FULL), "2026-01-01", {}), (fit_rows({0: 0.1}, 5), "2026-01-02", {})],
        (0.6, False),
    ),
    "a late run on part of the test rows": (
        [(fit_rows(FULL), "2026-01-01", {}), (fit_rows(FULL, tested=9), "2026-01-02", {})],
        (0.6, False),
    ),
    "fewer seeds of the same rows, other limits": (
        [
            (fit_rows(FULL), "2026-01-01", {}),
            (fit_rows({0: 0.1}).replace({"n": {10: 30}}), "2026-01-02", {}),
        ],
        (0.6, False),
    ),
    "the later of two equal runs": (
        [(fit_rows(FULL), "2026-01-02", {}), (fit_rows({0: 0, 1: 0, 2: 0}), "2026-01-01", {})],
        (0.6, False),
    ),
    "a seed of an equal run fills up": (
        [(fit_rows({0: 0.5, 1: 0.6}), "2026-01-02", {}), (fit_rows({2: 0.7}), "2026-01-01", {})],
        (0.6, False),
    ),
    "the larger budget with fewer seeds": (
        [
            (fit_rows(FULL), "2026-01-02", {}),
            (fit_rows({0: 0.3}, budget="paper"), "2026-01-01", {}),
        ],
        (0.3, True),
    ),
    "a setting chosen by test scores": (
        [
            (scores([0.5, 0.6, 0.7], **CNN), "2026-01-01", {"epochs": 100, "patience": 0}),
            (scores([0.9, 0.9, 0.9], **CNN), "2026-01-02", LATER),
        ],
        (0.6, False),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_which_row_is_shown_does_not_depend_on_the_names_of_folders(case, tmp_path):
    runs, expected = CASES[case]
    names = ["a", "b", "z", "0", "m/n"]
    shuffled = random.Random(0)
    shown = set()
    for attempt in range(6):
        shuffled.shuffle(names)
        outputs = tmp_path / str(attempt)
        for name, (rows, when, parameters) in zip(names, runs):
            keep(outputs / name, rows, when, **parameters)
        line = summarised(Results.read(outputs).rows).iloc[0]
        shown.add((round(line.here, 9), bool(line.partial)))
    assert shown == {expected}


def test_a_setting_chosen_by_test_scores_stands_in_the_cell_and_nowhere_else():
    chosen = scores([0.9, 0.9, 0.9], **CNN).assign(**LATER, when="2")
    rows = pd.concat([scores([0.5, 0.6, 0.7], **CNN).assign(epochs=100, patience=0), chosen])
    columns = {("flip_gb1", "three_vs_rest"): "3-vs-many"}
    html = paper_table(against_paper(rows, stated_table("table_3"), columns), fill_command, columns)
    assert "<b>0.600" in html.to_html() and "not the result: 0.900" in html.to_html()
    # alone it is shown, hollow and with the reason
    line = summarised(chosen).iloc[0]
    assert line.partial and "after the test scores" in line.why


@pytest.mark.parametrize(
    "metrics, why",
    [
        ({"epochs_run": (100, 100), "epochs_without_gain": (2, 10)}, "3 of 3 fits cut short"),
        ({"epochs_run": (100, 100), "epochs_without_gain": (10, 10)}, ""),
        ({"epochs_run": (40, 100), "epochs_without_gain": (10, 10)}, ""),
        ({}, "epochs not recorded"),
        (
            {"epochs_run": (40, 100), "layers": (8, 24), "channels": (16, 64)},
            "head of 8 of 24 layers and 16 of 64 channels",
        ),
    ],
)
def test_full_fits_that_were_cut_short_are_hollow_and_say_why(metrics, why):
    sizes = {"train_rows": (20, 20), "test_rows": (100, 100), **metrics}
    said = [
        scores([value] * 3, metric=name, n=n).astype({"value": float})
        for name, (value, n) in sizes.items()
    ]
    rows = pd.concat([scores([0.5, 0.6, 0.7]), *said])
    line = summarised(rows).iloc[0]
    assert (line.partial, line.why.startswith(why)) == (bool(why), True)
    columns = {("flip_gb1", "three_vs_rest"): "3-vs-many"}
    compared = against_paper(rows, stated_table("table_3"), columns)
    assert (why in paper_table(compared, fill_command, columns).to_html()) or not why
    marks = against_paper_figure({"Table 3": compared}).axes[0].collections
    marks = [mark for mark in marks if mark.get_label() == "carp_4k pt-ft"]
    assert [(mark.get_facecolor() == 1).all() for mark in marks] == [bool(why)]


def test_unfinished_runs_are_named(tmp_path):
    keep(tmp_path / "short", fit_rows({0: 0.5, 1: 0.6}), "1", methods="pt-ft,na-fr", seeds=3)
    keep(tmp_path / "whole", fit_rows(FULL), "1", methods="pt-ft", seeds=3)
    assert unfinished_runs(tmp_path) == [
        "short did not finish: no rows of na-fr; "
        "2 of 3 seeds of flip_gb1 three_vs_rest carp_4k pt-ft."
    ]


def text_width(html: str, pixels: float = 7) -> float:
    """Least width of some html in pixels: of its longest word, or of what must not be broken."""
    box = [float(em) * 12 for em in re.findall(r"width:([\d.]+)em", html)]
    fixed = re.findall(
        r"<(?:span|small) style='white-space:nowrap[^>]*>(.*?)</(?:span|small)>", html
    )
    fixed = [re.sub("<[^>]+>", "", text) for text in fixed]
    rest = re.sub("<[^>]+>", " ", html)
    # commands may be broken anywhere
    words = [] if "overflow-wrap:anywhere" in html else unescape(rest).split(" ")
    return max([*box, *(pixels * len(text) for text in [*fixed, *words])], default=0)


def table_width(html: str) -> float:
    """Least width of a table in pixels: the sum over columns of the widest cell, with its padding."""
    columns = []
    lines = re.findall(r"<tr>(.*?)</tr>", html, re.S)
    body = [re.findall(r"<(?:td|th)[^>]*>(.*?)</(?:td|th)>", line, re.S) for line in lines]
    most = max(map(len, body))
    for line in body:
        # a line that goes on with the method or model above has fewer cells, at its end
        columns.append([0.0] * (most - len(line)) + [text_width(cell) for cell in line])
    return float(np.max(columns, axis=0).sum() + 12 * most)


def test_tables_fit_on_a_page_of_1200_pixels():
    rows = Results.read(ROOT / "outputs").rows
    compared = compared_tables(rows)
    structure = rows[rows.section == "structure"]
    columns = table_1_columns(structure)
    tables = {"Table 1": paper_table(compared["Table 1"], fill_command, columns, TABLE_1_NOTE)}
    for i in (2, 3, 4):
        where = PAPER_COLUMNS[f"table_{i}"]
        tables[f"Table {i}"] = paper_table(compared[f"Table {i}"], fill_command, where)
    stated = {key for table in PAPER_COLUMNS.values() for key in table}
    tuned = rows[rows.section.isin(["flip", "in_domain"])]
    tables["other"] = other_table(tuned, dict.fromkeys(stated))
    tables["other structure"] = other_table(structure, columns, TABLE_1_METRICS)
    widths = {name: table_width(style.to_html()) for name, style in tables.items()}
    assert max(widths.values()) <= 1200, widths
    assert min(widths.values()) > 500, widths


def test_frozen_heads_of_table_1_state_their_learning_rate():
    rows = Results.read(ROOT / "outputs").rows
    structure = rows[rows.section == "structure"]
    columns = table_1_columns(structure)
    compared = against_paper(structure, stated_table("table_1"), columns, TABLE_1_METRICS)
    html = paper_table(compared, fill_command, columns, TABLE_1_NOTE).to_html()
    assert "learning rate of 0.001" in html and "0.0001" in html


def test_ridge_has_no_seeds_and_is_whole_unless_rows_are_missing():
    """Ridge has one solution, so one fit is all there is; part of the test rows is always partial."""
    ridge = scores([0.5], model="ridge", method="train")
    read = scores([50.0], model="ridge", method="train", metric="test_rows")
    assert summarised(ridge).partial.tolist() == [False]
    assert summarised(pd.concat([ridge, read])).partial.tolist() == [True]


def test_without_outputs_every_cell_is_empty(papermill, tmp_path):
    (tmp_path / "nothing").mkdir()
    done = papermill("report", outputs=tmp_path / "nothing")
    assert done.status == 0, done.shown
    shown = outputs_of(done.notebook)
    assert "0 rows of 0 sections." in shown[0] and not any(
        "image" in s or "CARP-640M" in s for s in shown
    )
    assert [p.name for p in done.out.iterdir() if not p.name.startswith(".")] == ["run.json"]


def test_the_page_is_made_of_rows_and_warns_of_what_is_mixed(papermill, tmp_path):
    common = {
        "seed": 0,
        "n": 100,
        "budget": "laptop",
        "device": "cpu",
        "dtype": "float32",
        "weights_sha": "1",
        "data_sha": "x",
    }
    rows = [
        dict(
            section="flip",
            task=t,
            split=s,
            model="ridge",
            method="train",
            metric="spearman",
            value=v,
            commit="aaaaaaa",
            **common,
        )
        for t, s, v in [
            ("flip_gb1", "low_vs_high", 0.3437),
            ("flip_aav_substitutions", "two_vs_many", 0.6954),
        ]
    ]
    rows += [
        dict(
            section="zero_shot",
            task=t,
            model=m,
            method="wild-type",
            metric="spearman",
            value=v,
            commit="bbbbbbb",
            **common,
        )
        for t, v in [("abeta42", 0.21), ("tdp43", 0.11)]
        for m in ("carp_4k", "blosum62")
    ]
    rows += [
        dict(
            section="structure",
            task=t,
            split="test",
            model="carp_4k",
            method="pt-fr",
            metric=m,
            value=v,
            commit="bbbbbbb",
            **common,
        )
        for t, m, v in [
            ("secondary_structure: netsurfp2_cb513", "q3", 0.6543),
            ("contacts: pdb_chains_25", "precision long L", 0.0876),
        ]
    ]
    rows += [
        dict(
            section="scaling",
            task=f"{length} residues",
            model="carp_4k",
            metric=m,
            value=length,
            commit="bbbbbbb",
            **common,
        )
        for length in (64, 128)
        for m in ("seconds (cpu)", "peak memory (bytes)")
    ]
    losses, scores = [3.0, 2.8, 2.7], [0.1234, 0.2, 0.3]
    for step, (loss, score) in enumerate(zip(losses, scores), 1):
        rows += [
            dict(
                section="checkpoints",
                task="masked language modelling",
                split="held out",
                model=f"carp_4k@{step}",
                metric="loss",
                value=loss,
                commit="bbbbbbb",
                **common,
            ),
            dict(
                section="checkpoints",
                task="tdp43",
                model=f"carp_4k@{step}",
                method="masked",
                metric="spearman",
                value=score,
                commit="bbbbbbb",
                **common,
            ),
        ]
    (folder := tmp_path / "rows" / "any").mkdir(parents=True)
    rows = [r | {"lo": r["value"] - 0.05, "hi": r["value"] + 0.05} for r in rows]
    pd.DataFrame(rows).reindex(columns=COLUMNS).to_parquet(folder / "results.parquet")
    done = papermill("report", outputs=tmp_path / "rows")
    assert done.status == 0, done.shown
    out, text = done.out, "\n".join(outputs_of(done.notebook))
    assert "2 states of the code: aaaaaaa, bbbbbbb" in text
    assert (
        "0.344" in text and "0.654" in text and "papermill nbs/structure.ipynb" in text
    )  # cells of Tables 3 and 1; the others have none
    # a set that the paper does not have, under its own name
    assert "0.088" in text and "contacts: pdb_chains_25" in text
    coverage = pd.read_csv(out / "coverage.csv").set_index("part")
    assert coverage.filled["Tables 2, 3"] == 1 and coverage.filled["Table 4"] == 0
    assert coverage.cells["Tables 1 to 4"] == 144 and coverage.filled["Tables 1 to 4"] == 2
    assert "flip_aav_substitutions" in text and "0.695" in text  # Table 2 has no such split
    figures = pd.read_csv(out / "figures.csv")
    assert {"2, Spearman on Cas9", "2, sets ahead of ESM-1b", "S1, lowest rank correlation"} <= set(
        figures.figure
    ) and "not run: snakemake" in text
    assert pd.read_csv(out / "table_1.csv").here.notna().sum() == 1
    table = pd.read_csv(out / "table_3.csv")
    assert table.here.notna().sum() == 1 and table.paper.notna().sum() == 40
    assert {p.name for p in out.glob("*.svg")} == {
        "figure_1f.svg",
        "figure_2.svg",
        "figure_4_masked.svg",
        "figure_s1_masked.svg",
        "against_paper.svg",
    }
    errata = pd.read_csv(out / "errata.csv")
    assert {
        "Table S1, CARP-24M",
        "Table S2, 86.5M",
        "Table 2, second na-fr line of CARP-640M",
        "Table 4, caption",
    } <= set(errata["where"])
    assert set(errata.against) == {"the paper itself", "the authors' code", "the hardware"}


@pytest.fixture(scope="module")
def along(papermill_in, tmp_path_factory):
    folder = tmp_path_factory.mktemp("along")
    return papermill_in(folder, "checkpoints", datasets="abeta42", method="wild-type")


def test_checkpoints_of_the_kept_run(along):
    assert along.status == 0, along.shown
    out = along.out
    points = pd.read_csv(out / "points.csv")
    scored = points[points.kind == "zero-shot"]
    assert (
        len(scored) == 4 and scored.loss.is_monotonic_decreasing and scored.partial.all()
    )  # 4 checkpoints, 200 mutants: hollow
    baseline = points[points.loss.isna()]
    assert (baseline.method == "na-fr").all() and len(baseline) == 1
    rows = pd.read_parquet(out / "results.parquet")
    assert rows[rows.metric == "loss"].weights_sha.nunique() == 4
    assert {"figure_3.svg", "figure_4.svg", "figure_s1.svg"} <= {p.name for p in out.iterdir()}


def test_a_second_start_computes_nothing_again(along, papermill_in):
    before = {p.name: p.stat().st_mtime_ns for p in (along.out / "parts").iterdir()}
    again = papermill_in(along.out.parent, "checkpoints", datasets="abeta42", method="wild-type")
    assert (
        again.status == 0
        and {p.name: p.stat().st_mtime_ns for p in (along.out / "parts").iterdir()} == before
    )


def test_a_folder_without_checkpoints_is_one_sentence(papermill, tmp_path):
    shutil.copytree(ROOT / "outputs/pretrain/carp_600k_sprot50", tmp_path / "runs" / "mine")
    done = papermill(
        "checkpoints", runs_dir=tmp_path / "runs", model="carp_640m", datasets="abeta42"
    )
    assert (
        done.status and "holds no checkpoints of carp_640m; it has carp_600k_sprot50" in done.shown
    )
