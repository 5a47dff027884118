"""The table of benchmarks as a chart. Altair is imported when something is drawn, because a machine
that measures may be without it.
"""

from textwrap import wrap

import pandas as pd


def panel(rows: pd.DataFrame, title: list[str], scale: str):
    "One row per line: number, interval, floor and aim; a line without a number stays as an empty row."
    import altair as alt

    label = alt.Y(
        "label:N",
        sort=list(rows.label),
        title=None,
        axis=alt.Axis(
            labelLimit=0,
            labelExpr="split(datum.label, ' | ')",
            labelFontSize=9,
            minExtent=450,  # fonts differ in width, and a label must not be cut
        ),
    )
    shown, x = (
        alt.Chart(rows).encode(y=label),
        lambda column: alt.X(f"{column}:Q", scale=alt.Scale(type=scale, zero=False), title=title),
    )
    layers = [
        shown.mark_rule(color="#1f6fb4", strokeWidth=2).encode(x=x("lo"), x2="hi:Q"),
        shown.mark_point(filled=True, size=70, color="#1f6fb4").encode(x=x("ratio")),
        shown.mark_point(size=70, color="#1f6fb4").encode(x=x("against its best")),
        shown.mark_tick(color="#9a9a9a", thickness=2).encode(x=x("floor")),
        shown.mark_tick(color="black", thickness=2).encode(x=x("aim")),
    ]
    return alt.layer(*layers).properties(width=420, height=alt.Step(46))


def label(row) -> str:  # lines with " | " between them
    "What was done, against what and on what, in lines that are short enough for the margin."
    parts = [row.work, f"against {row.peer}", row.processor if row.several else ""]
    return " | ".join(line for part in parts for line in wrap(part, 84))


def other_units(rows: pd.DataFrame) -> list[str]:
    "A line for each number that is no ratio of times, and how many could not be measured."
    measured = rows[rows.ratio.notna()]
    said = [f"{r.work}: {r.ratio:.0f} {r.unit}" for r in measured.itertuples()]
    missing = rows.meets[rows.ratio.isna()].value_counts()
    return said + [f"{n} lines {why}" for why, n in missing.items()]


def chart(table: pd.DataFrame):
    """Ratios of times, where more is better; below them the one ratio of our own times, where
    less is, and in words what is no ratio.
    """
    import altair as alt

    rows = table.assign(several=table.duplicated("line", keep=False))
    rows["label"] = [label(row) for row in rows.itertuples()]
    faster, straight = rows[rows.unit == "times faster"], rows[rows.unit == "time ratio"]
    others = rows[~rows.unit.isin(["times faster", "time ratio"])]

    words = alt.Title(
        "In other units",
        fontSize=11,
        anchor="start",
        offset=12,
        orient="bottom",
        subtitle=other_units(others),
    )
    return alt.vconcat(
        panel(
            faster,
            [
                "peer / ours: more is better (log scale)",
                "bar: interval; hollow: against the peer at its best",
                "grey: floor; black: aim",
            ],
            "log",
        ),
        panel(straight, ["time / time: less is better, 4 is a straight line"], "linear"),
        title=words,
    )
