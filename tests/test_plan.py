"""The plan against the paper: every cell of its tables and line of its figures is filled, with the
settings of data/paper/coverage.csv, and so are the commands that are printed for empty cells.
"""

import re
import shlex
from pathlib import Path

import pandas as pd
import pytest

from carp_nb.coverage import fill_command, find_gaps, paper_cells, planned_cells
from carp_nb.experiments import _set_of_split
from carp_nb.paper import stated_table
from carp_nb.pretrained import list_models
from carp_nb.workflow import PlannedRun, read_plan

ROOT = Path(__file__).resolve().parent.parent
TABLES = ["Table 1", "Table 2", "Table 3", "Table 4"]


def stated(title: str) -> pd.DataFrame:
    "A table of the paper as its own file has it."
    return stated_table(title.lower().replace(" ", "_"))


def gaps_of(text: str, folder: Path) -> pd.DataFrame:
    "The cells that a changed plan leaves."
    path = folder / "runs.toml"
    path.write_text(text)
    return find_gaps(paper_cells(), planned_cells(read_plan("paper", path)))


@pytest.mark.parametrize("title", TABLES)
def test_every_cell_of_a_table_is_listed_with_the_seeds_that_it_prints(title):
    """ "Uncertainties for ESM-1b and CNN are standard deviations over 10 random seeds"."""
    cells = paper_cells()
    listed = cells[cells["where"] == title].set_index(["line", "model", "task"])
    table = stated(title).set_index(["method", "model", "task"])
    assert listed.index.is_unique and set(listed.index) == set(table.index)
    for key, cell in table.iterrows():
        assert (listed.status[key] == "dash") == pd.isna(cell.value)
        if cell.seeds > 0:
            assert listed.seeds[key] == cell.seeds


@pytest.mark.parametrize("title", [*TABLES, "1d", "1e", "1f", "2", "3", "4", "S1", "S2"])
def test_every_line_is_computed_or_says_where_it_is_quoted_from(title):
    cells = paper_cells()
    of_title = cells[cells["where"].str.match(rf"(Figure )?{title}")]
    assert len(of_title)
    quoted = of_title[of_title.status == "quoted"]
    assert (quoted.taken_from != "").all()
    assert (of_title[of_title.status != "dash"].stated != "").all()
    # what cannot be computed: the loss of ESM-1b on its own test set, the alignments of the PSSM
    assert set(quoted.model) <= {"ESM-1b", "PSSM"} and len(quoted) <= 1


def test_the_plan_fills_every_cell_of_the_paper(tmp_path):
    gaps = gaps_of((ROOT / "profiles/runs.toml").read_text(), tmp_path)
    assert gaps.empty, gaps.to_string()


# (what is changed, in which run, into what, where a gap shows, what it says)
FAULTS = [
    ("splits", "flip_gb1_carp_640m", '"sampled"', "Table 3", "no run fills flip flip_gb1"),
    ("splits", "flip_aav_esm1b", '"one_vs_many"', "Table 2", "seven_vs_many pt-fr esm1b"),
    ("methods", "in_domain_baselines", '"ridge"', "Table 4", "no run fills in_domain idr_cdc28"),
    ("tasks", "in_domain_carp_640m", '"abeta42"', "Table 4", "tape_stability official pt-ft"),
    ("seeds", "flip_aav_baselines", "3", "Table 2", "seeds 3 instead of 10"),
    ("seeds", "flip_gb1_esm1b", "3", "Table 3", "seeds 3 instead of 10"),
    ("max_length", "pretrain_carp_76m", "1022", "Figure 1d", "crop 1022 instead of 2048"),
    ("max_length", "pretrain_carp_640m", "1022", "Figure S1", "crop 1022 instead of 2048"),
    ("max_length", "pretrain_esm_44m", "2048", "Figure 1d", "crop 2048 instead of 1022"),
    ("data", "structure_esm1b_contacts", '"trrosetta+cameo_hard,pdb"', "Table 1", "casp13_fm test"),
    ("tasks", "checkpoints_carp_600k", '"none"', "Figure S2d", "flip_meltome mixed pt-ft"),
    ("datasets", "zero_shot", '"shipped"', "Figure 2", "no run fills zero_shot all masked"),
    ("memory_limit", "scaling", "80", "Figure 1f", "random sequences 48 GiB"),
    ("budget", "flip_gb1_baselines", '"laptop"', "Table 3", "budget laptop instead of paper"),
    ("train_rows", "flip_gb1_baselines", "100", "Table 3", "budget paper, train_rows 100"),
]


@pytest.mark.parametrize("name, run, value, where, problem", FAULTS)
def test_a_changed_parameter_leaves_a_gap(name, run, value, where, problem, tmp_path):
    text = (ROOT / "profiles/runs.toml").read_text()
    head, rest = text.split(f"[paper.{run}]\n")
    block, separator, tail = rest.partition("\n[paper.")
    line = rf'parameters\.{name} = ("""[^"]*"""|.*)\n'
    block = re.sub(line, "", block) + f"\nparameters.{name} = {value}\n"
    gaps = gaps_of(f"{head}[paper.{run}]\n{block}{separator}{tail}", tmp_path)
    assert len(gaps) and where in set(gaps["where"])
    assert gaps.problem.str.contains(problem, regex=False).any(), gaps.problem.tolist()


@pytest.mark.parametrize(
    "run",
    [run.name for run in read_plan("paper") if run.notebook in ("flip", "in_domain", "structure")],
)
def test_no_run_can_be_left_out(run):
    runs = [one for one in read_plan("paper") if one.name != run]
    assert len(find_gaps(paper_cells(), planned_cells(runs)))


def test_a_run_fetches_what_it_reads_and_nothing_else():
    models = set(list_models().name)
    planned = planned_cells(read_plan("paper"))
    for run in read_plan("paper"):
        if run.notebook not in ("flip", "in_domain", "structure"):
            continue
        cells = planned[planned.run == run.name]
        files = set()
        for name, split in zip(cells["set"], cells["split"], strict=True):
            plain = name.partition(": ")[2] or name
            files |= {_set_of_split(part, split) for part in plain.split("+")}
        assert set(run.fetch) - models == files, run.name
        encoders = set(cells.our_model) & models
        assert set(run.fetch) & models == encoders, run.name


@pytest.mark.parametrize("title", TABLES)
def test_commands_for_empty_cells_fill_them_as_the_plan_does(title):
    """Every line of a table that has nothing yet, with its dashes."""
    cells = paper_cells()
    cells = cells[(cells["where"] == title) & (cells.status == "computed")]
    places = list(dict.fromkeys(zip(cells["set"], cells["split"], strict=True)))
    for (method, model), line in cells.groupby(["line", "model"]):
        filled = []
        for i, command in enumerate(fill_command(places, method, model).split("; ")):
            words = shlex.split(command)
            given = dict(zip(words[4::3], words[5::3], strict=True))
            parameters = {k: int(v) if k == "seeds" else v for k, v in given.items()}
            filled.append(PlannedRun(str(i), Path(words[1]).stem, parameters))
        planned = planned_cells(filled)
        assert find_gaps(line, planned).empty
        # and no other cell: a dash is not computed
        assert len(planned) == len(line), (method, model)
