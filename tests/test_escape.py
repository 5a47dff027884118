"""Texts of users at the places where another language begins: shell, formulas of figures, pages,
spreadsheets, FASTA and terminals.
"""

import re
import warnings
from pathlib import Path
from urllib.parse import quote

import matplotlib.pyplot as plt
import pandas as pd
import pytest
from typer.testing import CliRunner

from carp_nb.charts import finish_figure, save_figure
from carp_nb.cli import app
from carp_nb.errors import CarpError
from carp_nb.explorer import explore
from carp_nb.files import guard_formulas
from carp_nb.readers import write_fasta
from carp_nb.results import styled
from carp_nb.runs import _data_facts, _markdown
from carp_nb.workflow import NAME, read_plan

ROOT = Path(__file__).resolve().parent.parent
IMAGE = "<img src=x onerror=alert(1)>"
FORMULA = "=cmd|' /C calc'!A0"


def plan_of(folder: Path, text: str) -> list:
    path = folder / "runs.toml"
    path.write_text(text)
    return read_plan("smoke", path)


@pytest.mark.parametrize(
    "text, said",
    [
        ('[smoke."evil run"]\nnotebook = "flip"', "the run 'evil run' has to be made of"),
        ('[smoke."../../x"]\nnotebook = "flip"', "the run '../../x'"),
        ('[smoke.a]\nnotebook = "flip; touch x"', "the notebook 'flip; touch x'"),
        ('[smoke.a]\nnotebook = "flip"\nfetch = ["$(touch x)"]', "the set to fetch"),
        ('[smoke.a]\nnotebook = "flip"\nparameters = {"a b" = 1}', "the parameter 'a b'"),
        ('[smoke.a]\nnotebook = "flip"\ncpus = "1; touch x"', "cpus = '1; touch x'; give a number"),
    ],
)
def test_a_plan_has_plain_names_and_numbers(text, said, tmp_path):
    with pytest.raises(CarpError, match=re.escape(said)):
        plan_of(tmp_path, text)


def test_a_value_of_a_plan_may_be_any_text(tmp_path):
    [run] = plan_of(tmp_path, '[smoke.flip]\nparameters.model = "a; touch x"')
    assert run.parameters == {"model": "a; touch x"}


def test_whatever_the_snakefile_puts_into_a_shell_is_quoted():
    text = (ROOT / "Snakefile").read_text()
    shells = re.findall(r'shell:\s*(""".*?"""|".*?"\n)', text, re.S)
    places = [place for shell in shells for place in re.findall(r"\{([^}]*)\}", shell)]
    assert len(shells) == 4 and len(places) > 12
    # quoted word by word where it is made
    assert {place for place in places if not place.endswith(":q")} == {"params.given"}
    assert "wildcard_constraints: name=NAME" in text


@pytest.mark.parametrize("target", ["x; touch y", "-h", "a b", "$(x)", "a\nb", "../a"])
def test_a_target_is_no_command(target):
    assert not re.fullmatch(NAME, target)


def test_a_name_is_no_formula_of_a_figure(tmp_path):
    name = r"x$\unknown$ \x01"
    figure, axes = plt.subplots()
    axes.plot([1, 10], [1, 2], label=name)
    axes.set(title=name, xlabel=name, ylabel=name, xscale="log")
    axes.set_yticks([1, 2], [name, "b"])
    axes.annotate(name, (1, 1))
    figure.suptitle(name)
    finish_figure(figure, [axes], title=name)
    save_figure(figure, tmp_path / "a.svg")
    text = (tmp_path / "a.svg").read_text()
    assert text.count("$\\unknown$") >= 6
    # numbers on an axis are still powers of ten
    assert "mathdefault" in text


def test_a_figure_of_a_state_has_any_label():
    map_of = explore("MKTAYIAK", "carp_600k_sprot50", device="cpu")
    map_of.label = r"x$\unknown$"
    content = map_of.export("svg")[1]
    assert b"<svg" in content


def test_a_label_makes_no_record_of_fasta():
    state = explore("MKTAYIAK", "carp_600k_sprot50", device="cpu").state
    evil = re.sub(r"label=[^&]*", "label=" + quote("a\n>evil\nMKT\x1b[2J"), state)
    assert "%0A" in evil
    text = explore(state=evil, model="carp_600k_sprot50", device="cpu").fasta()
    assert [line for line in text.splitlines() if line.startswith(">")] == [r">a >evil MKT\x1b[2J"]


@pytest.mark.parametrize("record", [("a\n>b", "MKT"), ("a\rb", "MKT"), ("a", "MKT\n>b\nMKT")])
def test_no_id_or_sequence_makes_another_record(record, tmp_path):
    with pytest.raises(CarpError, match="cannot hold a line break"):
        write_fasta([record], tmp_path / "a.fasta")
    assert not list(tmp_path.iterdir())


def test_names_are_no_markup_in_a_table():
    table = pd.DataFrame({IMAGE: [IMAGE, 1.5]}, index=[IMAGE, "b"])
    html = styled(table).to_html()
    assert "<img" not in html and html.count("&lt;img") == 3
    assert "<img" in styled(table, markup=True).format_index(escape=None).to_html()


def test_names_are_no_markup_in_a_model_card():
    record = {"train": {"name": f"a|b\n# {IMAGE} [x](javascript:1)", "sha256": "0"}}
    train = _data_facts(record, [])["train"]  # type: ignore[arg-type]
    assert "\n" not in train and "<" not in train
    assert r"a\|b # &lt;img" in train and r"\[x\]" in train
    card = _markdown(pd.DataFrame({IMAGE: [1]}, index=["all"]))
    assert "<img" not in card


def test_a_text_is_no_formula_of_a_spreadsheet(tmp_path):
    (tmp_path / "a.fasta").write_text(f">{FORMULA.replace(' ', '')}\nMKTAYIAK\n")
    output = tmp_path / "a.csv"
    words = ["score", str(tmp_path / "a.fasta"), "--model", "carp_600k_sprot50", "--mutants", "K2A"]
    done = CliRunner().invoke(app, [*words, "-o", str(output)])
    assert done.exit_code == 0, done.output
    assert pd.read_csv(output).protein.tolist() == ["'=cmd|'/Ccalc'!A0"]
    on_screen = CliRunner().invoke(app, words).stdout
    assert "'=cmd" in on_screen and "\n=cmd" not in on_screen


def test_the_table_of_a_user_comes_back_as_it_was(tmp_path):
    table = pd.DataFrame({"mutant": ["K2A", "T3G"], "note": [FORMULA, "-0.5"], "id": ["-", "+x"]})
    table.to_csv(tmp_path / "mine.csv", index=False)
    output = tmp_path / "a.csv"
    words = [
        "score",
        "MKTAYIAK",
        "--model",
        "carp_600k_sprot50",
        "--mutants",
        str(tmp_path / "mine.csv"),
    ]
    done = CliRunner().invoke(app, [*words, "-o", str(output)])
    assert done.exit_code == 0, done.output
    back = pd.read_csv(output, dtype=str)
    assert back[["mutant", "note", "id"]].equals(table)
    with pytest.warns(UserWarning, match="2 cells of your own table begin with"):
        guard_formulas(table, given=list(table))


def test_numbers_stay_numbers():
    table = pd.DataFrame({"text": ["-0.5", "+1e3", "-", "-inf"], "number": [-0.5, 1, 2, 3]})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert guard_formulas(table).equals(table)


def test_a_file_name_moves_no_cursor():
    done = CliRunner().invoke(app, ["embed", "a\x1b[2J\u202e.fasta", "b.safetensors"])
    assert done.exit_code == 1
    assert "\x1b" not in done.output and "\u202e" not in done.output
    assert r"a\x1b[2J\u202e.fasta" in done.output
