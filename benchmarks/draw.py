"""The table of benchmarks as a chart. Altair is imported when something is drawn, because a machine
that measures may be without it.
"""

import pandas as pd


def panel(rows: pd.DataFrame, title: list[str], scale: str):
    "One row per line: number, interval, floor and aim; a line without a number stays as an empty row."
    import altair as alt

    label = alt.Y(
        "label:N",
        sort=list(rows.label),
        title=None,
        axis=alt.Axis(labelLimit=0, labelExpr="split(datum.label, ' | ')", labelFontSize=9),
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
    return alt.layer(*layers).properties(width=420, height=alt.Step(38))


def chart(table: pd.DataFrame):
    """Ratios of times, where more is better; below them the one ratio of our own times, where
    less is, and in words what is no ratio.
    """
    import altair as alt

    rows = table.assign(label=lambda t: t.work + " | against " + t.peer)
    several = rows.duplicated("line", keep=False)
    rows.loc[several, "label"] += " | " + rows.processor[several]
    faster, straight = rows[rows.unit == "times faster"], rows[rows.unit == "time ratio"]
    others = rows[~rows.unit.isin(["times faster", "time ratio"])]

    def value(r):
        return f"{r.ratio:.0f} {r.unit}" if pd.notna(r.ratio) else f"{r.meets}; {r.command}"

    words = alt.Title(
        "In other units",
        fontSize=11,
        anchor="start",
        offset=12,
        orient="bottom",
        subtitle=[f"{r.work}, {r.unit}: {value(r)}" for r in others.itertuples()],
    )
    return alt.vconcat(
        panel(
            faster,
            [
                "peer / ours: more is better (log scale); bar: interval; grey: floor, black: aim",
                "hollow: against the peer at its best",
            ],
            "log",
        ),
        panel(straight, ["time / time: less is better, 4 is a straight line"], "linear"),
        title=words,
    )
