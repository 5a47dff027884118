"""Make wrong edits one by one in a copy of the project and see that a test fails for each.

A test that cannot fail holds nothing. The table below has one entry for every edit that must not go
unnoticed: where it is made, and the tests that have to catch it. Run it with `make mutants`, or for
some edits with `python scripts/mutants.py NAME ...`; `--list` shows the names.

When the code is refactored and a pattern no longer fits, the script says which. Correct the pattern
and the replacement here; the edit itself has to stay.
"""

import argparse
import json
import multiprocessing
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FACTS = "tests/test_paper_facts.py"
REPORT = "tests/test_report.py"
PARITY = "tests/test_parity.py"
# Every edit has processes of its own, forked from one that has imported the large libraries:
# importing them takes longer than all the tests together. The project itself is not among them.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(
    [
        "accelerate",
        "biotite.structure.io.pdbx",
        "matplotlib.pyplot",
        "nbdev.export",
        "nbformat",
        "pandas",
        "pyarrow.parquet",
        "pytest",
        "scipy.stats",
        "sequence_models.pretrained",
        "sklearn.linear_model",
        "torch",
        "torch.optim",
        "torch._dynamo",
    ]
)
BY_ASSERTION = ("assert ", "AssertionError", "Failed: DID NOT RAISE")


@dataclass(frozen=True)
class WrongEdit:
    """One edit that must not go unnoticed.

    In a pattern a space stands for any white space or none, `"` for either quote, and `…` for
    anything that comes before the next function or class; the rest is a regular expression. It has
    to fit exactly once in the code cells, or for other files in the text, of all the files.
    """

    name: str
    why: str
    files: str  # glob below the project
    pattern: str
    replacement: str
    tests: tuple[str, ...]  # pytest node ids, every one of which must fail


EDITS = [
    WrongEdit(
        "contact separation 24 to 23",
        "the paper judges contacts of residues at least 24 apart",
        "nbs/**/*metrics.ipynb",
        r'("long" : \( )24',
        r"\g<1>23",
        (f"{FACTS}::test_long_range_contacts_are_at_least_24_residues_apart",),
    ),
    WrongEdit(
        "contact-head dilations all 1",
        "without dilation the head sees only near pairs",
        "nbs/**/*heads.ipynb",
        r"PairBlock\( channels , 2 \*\* \( i % 5 \)",
        "PairBlock(channels, 1",
        (f"{FACTS}::test_contact_head_has_24_layers_with_the_dilations_of_trrosetta",),
    ),
    WrongEdit(
        "fine-tuning rate 1e-4 to 1e-3",
        "Tables 2 to 4 are fitted at the default rate",
        "nbs/**/*finetune.ipynb",
        r"(class FinetuneConfig…\blr : float = )1e-4",
        r"\g<1>1e-3",
        (
            f"{FACTS}::test_fine_tuning_warms_up_over_1000_updates_to_a_rate_of_1e_4",
            f"{FACTS}::test_fine_tuning_of_tables_2_to_4_runs_at_a_rate_of_1e_4",
        ),
    ),
    WrongEdit(
        "fine-tuning rate of Table 1",
        "the structure tasks set their own rate",
        "nbs/**/*structure.ipynb",
        r"_FROZEN_RATE if frozen else _PAPER_RATE",
        "_FROZEN_RATE",
        (f"{FACTS}::test_fine_tuning_of_table_1_runs_at_a_rate_of_1e_4",),
    ),
    WrongEdit(
        "fine-tuning rate of the notebook",
        "finetune.ipynb proposes a rate of its own",
        "nbs/finetune.ipynb",
        r"(^lr : float = )1e-4",
        r"\g<1>1e-3",
        (f"{FACTS}::test_fine_tuning_notebook_proposes_the_rate_of_the_paper",),
    ),
    WrongEdit(
        "homologs drawn without their weights",
        "a crowded branch of a family counts once",
        "nbs/**/*adaptation.ipynb",
        r"self\.chance = weights / weights\.sum\( \)",
        "self.chance = np.full(len(weights), 1 / len(weights))",
        ("tests/test_adaptation.py::test_a_crowd_counts_once",),
    ),
    WrongEdit(
        "held-out homologs trained on",
        "the loss that chooses the weights is of sequences that the model has not seen",
        "nbs/**/*adaptation.ipynb",
        r"np\.flatnonzero\( ~ self\.held_out \)",
        "np.flatnonzero(self.held_out | ~self.held_out)",
        ("tests/test_adaptation.py::test_what_is_held_out_is_new_to_the_model",),
    ),
    WrongEdit(
        "homologs held out one by one",
        "a sequence whose twin is trained on is not new",
        "nbs/**/*relatives.ipynb",
        r"return np\.isin\( clusters , chosen \)",
        "return np.isin(np.arange(len(clusters)), chosen)",
        ("tests/test_adaptation.py::test_what_is_held_out_is_new_to_the_model",),
    ),
    WrongEdit(
        "smoothing of Figure 1e 30 to 60",
        "a wider window hides how the loss depends on length",
        "nbs/**/*.ipynb",
        r"(def loss_by_length\(…window : int = )30",
        r"\g<1>60",
        (f"{FACTS}::test_loss_by_length_is_smoothed_over_30",),
    ),
    WrongEdit(
        "smoothing in the legend of Figure 1e",
        "the legend states the window",
        "nbs/**/*.ipynb",
        r"(def loss_by_length_figure\(…window : int = )30",
        r"\g<1>60",
        (f"{FACTS}::test_figure_1e_says_that_it_is_smoothed_over_30_and_what_was_seen",),
    ),
    WrongEdit(
        "Figure 1e smoothed over sequences",
        "the window is one of length, however many sequences it holds",
        "nbs/**/*.ipynb",
        r"(def loss_by_length\(…)sums = sums\.reindex\( lengths , fill_value = 0 \)",
        r"\g<1>sums = sums",
        (f"{FACTS}::test_the_window_of_figure_1e_is_as_wide_where_sequences_are_rare",),
    ),
    WrongEdit(
        "fewer than three seeds not hollow",
        "one seed would look like a finished result",
        "nbs/**/*.ipynb",
        r"\bseeds < 3\b",
        "False",
        (f"{REPORT}::test_fewer_than_three_seeds_are_partial_and_drawn_hollow",),
    ),
    WrongEdit(
        "partial results drawn filled",
        "the mark is all that a reader of the figure sees",
        "nbs/**/*.ipynb",
        r'np\.where\( group\.partial\.astype\( bool \) , "white" , colour \)\.tolist\(\)',
        "[colour] * len(group)",
        (f"{REPORT}::test_fewer_than_three_seeds_are_partial_and_drawn_hollow",),
    ),
    WrongEdit(
        "one rate for the small CNN",
        "the published baseline has three",
        "nbs/**/*baselines.ipynb",
        r"RATES = \( 1e-3 , 5e-5 , 5e-6 ,? \)",
        "RATES = (1e-3, 1e-3, 1e-3)",
        (f"{FACTS}::test_small_cnn_learns_at_three_rates",),
    ),
    WrongEdit(
        "longest sequence of pretraining",
        "the paper trains on 2048 residues",
        "nbs/**/*pretrain.ipynb",
        r"(class PretrainConfig…max_length : int = )2048",
        r"\g<1>1024",
        (f"{FACTS}::test_pretraining_reads_at_most_2048_residues_of_a_sequence",),
    ),
    WrongEdit(
        "published 0.87 to 0.78",
        "our own numbers are compared with it",
        "data/paper/table_3.csv",
        r"(pt-ft,CARP-640M,3-vs-many,)0\.87",
        r"\g<1>0.78",
        (
            f"{FACTS}::test_the_best_published_value_of_every_task_is_the_one_printed_in_bold",
            "tests/test_datasets.py::test_readme_lists_every_file_with_its_sum",
        ),
    ),
    WrongEdit(
        "published loss 2.02 to 2.20",
        "the text states it",
        "data/paper/pretraining_loss.csv",
        r"\b2\.02\b",
        "2.20",
        (
            f"{FACTS}::test_published_numbers_are_those_of_the_text",
            "tests/test_datasets.py::test_readme_lists_every_file_with_its_sum",
        ),
    ),
    WrongEdit(
        "planned batch_tokens",
        "Table S1 gives the tokens of an update",
        "profiles/*.toml",
        r'("carp_640m" parameters\.batch_tokens = )1408000',
        r"\g<1>1048000",
        (f"{FACTS}::test_planned_pretraining_has_the_batches_of_the_paper",),
    ),
    WrongEdit(
        "planned methods",
        "Table 1 has a line for each of the four",
        "profiles/*.toml",
        r'(\[paper\.structure_carp_640m\][^\[]*"pt-fr,pt-ft,na-fr),na-ft',
        r"\g<1>",
        (f"{FACTS}::test_planned_fits_are_those_of_tables_1_to_4",),
    ),
    WrongEdit(
        "planned heads of the checkpoints",
        "the paper fine-tunes them",
        "profiles/*.toml",
        r'(\[paper\.checkpoints_carp_600k\][^\[]*heads = )"pt-ft"',
        r'\g<1>"pt-fr"',
        (f"{FACTS}::test_planned_checkpoints_are_fine_tuned",),
    ),
    WrongEdit(
        "clusters of 50 % to 90 %",
        "near relatives would stand in training and test",
        "nbs/**/*clusters.ipynb",
        r"(def cluster_sequences\(…identity : float = )0\.5",
        r"\g<1>0.9",
        (f"{FACTS}::test_clusters_are_of_50_percent_identity",),
    ),
    WrongEdit(
        "representation before the final norm",
        "the paper's heads read what comes after it",
        "nbs/**/*carp.ipynb",
        r"(def represent\(…norm : bool = )True",
        r"\g<1>False",
        (f"{FACTS}::test_heads_read_the_output_of_the_final_layer_norm",),
    ),
    WrongEdit(
        "embedding before the final norm",
        "embeddings are read piece by piece, by another function",
        "nbs/**/*carp.ipynb",
        r"(def _?tiles\(…norm : bool = )True",
        r"\g<1>False",
        (f"{FACTS}::test_embeddings_are_the_output_of_the_final_layer_norm",),
    ),
    WrongEdit(
        "norm after the first activation",
        "the block normalises before it activates (Figure 5b)",
        "nbs/**/*carp.ipynb",
        r"self\.activation\( self\.norm1\( x \) \)",
        "self.norm1(self.activation(x))",
        (f"{PARITY}::test_their_loader_reads_our_file[carp_40k]",),
    ),
    WrongEdit(
        "norm after the last activation",
        "the block normalises before it activates (Figure 5b)",
        "nbs/**/*carp.ipynb",
        r"self\.activation\( self\.norm3\( y \) \)",
        "self.norm3(self.activation(y))",
        (f"{PARITY}::test_their_loader_reads_our_file[carp_40k]",),
    ),
    WrongEdit(
        "best row first instead of last",
        "a run that is made again has to replace the one before",
        "nbs/**/*.ipynb",
        r'(kept = last\.drop_duplicates\( \[ \*_CELL , "metric" , "seed" ,? \] , keep = )"last"',
        r'\g<1>"first"',
        (f"{REPORT}::test_of_equal_budgets_the_last_run_counts",),
    ),
]


class Trouble(Exception):
    "What keeps an edit from being made or judged."


# making an edit


def expression(pattern: str) -> re.Pattern:
    "A pattern of the table as a regular expression."
    same_definition = r"(?:(?!\n\s*(?:def|class)\s)[\s\S])*?"
    loose = pattern.replace(" ", r"\s*").replace('"', "[\"']").replace("…", same_definition)
    return re.compile(loose, re.MULTILINE)


def sources_of(path: Path) -> list[str]:
    "The texts of a file that an edit may touch: its code cells, or all of it."
    if path.suffix != ".ipynb":
        return [path.read_text(encoding="utf-8")]
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]


def write_source(path: Path, number: int, text: str) -> None:
    "Replace one of the texts that `sources_of` gives."
    if path.suffix == ".ipynb":
        notebook = json.loads(path.read_text(encoding="utf-8"))
        cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
        cells[number]["source"] = text.splitlines(keepends=True)
        text = json.dumps(notebook, indent=1, ensure_ascii=False) + "\n"
    path.write_text(text, encoding="utf-8")


def places(edit: WrongEdit, root: Path) -> list[tuple[Path, int]]:
    "Where the pattern of an edit fits: file and number of the text, once for every fit."
    found = []
    for path in sorted(root.glob(edit.files)):
        for number, source in enumerate(sources_of(path)):
            fits = list(expression(edit.pattern).finditer(source))
            found += [(path, number)] * len(fits)
    return found


def make(edit: WrongEdit, root: Path) -> None:
    "Make an edit in a copy, in the notebook and in the module that it exports."
    found = places(edit, root)
    if len(found) != 1:
        where = ", ".join(path.relative_to(root).as_posix() for path, _ in found) or "nowhere"
        raise Trouble(f"the pattern fits {len(found)} times ({where}), not once; correct it")
    ((path, number),) = found
    before = sources_of(path)[number]
    after = expression(edit.pattern).sub(edit.replacement, before)
    if after == before:
        raise Trouble("the replacement changes nothing; correct it")
    write_source(path, number, after)
    export(path, root)


def export(path: Path, root: Path) -> None:
    "Carry an edited library notebook into the package; other files have nothing to carry."
    is_library = path.suffix == ".ipynb" and "default_exp" in path.read_text(encoding="utf-8")
    if not is_library:
        return
    before = module_texts(root)
    code, output = in_copy(root, export_notebook, str(path))
    if code:
        raise Trouble(f"{path.name} cannot be exported: {output[-300:]}")
    if module_texts(root) == before:
        raise Trouble(f"the edit of {path.name} reaches no module; is its cell exported?")


def module_texts(root: Path) -> list[str]:
    return [path.read_text(encoding="utf-8") for path in sorted(root.glob("carp_nb/*.py"))]


# judging it


def export_notebook(path: str) -> int:
    from nbdev.export import nb_export

    nb_export(path, "carp_nb")
    return 0


def pytest_main(words: list[str]) -> int:
    import pytest

    import carp_nb

    if not Path(carp_nb.__file__).is_relative_to(Path.cwd()):
        raise ImportError(f"carp_nb is imported from {carp_nb.__file__}, not from the copy")
    return int(pytest.main(words))


def enter(root: str, log: str, action: Callable, argument) -> None:
    "What a process does first: from here on all it imports of the project is of the copy."
    sys.path.insert(0, root)
    os.chdir(root)
    os.environ["PYTHONPATH"] = root
    # no .pyc: an edit may leave the size and the second of a file as they were
    sys.dont_write_bytecode = True
    os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
    with open(log, "w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.exit(action(argument))


def in_copy(root: Path, action: Callable, argument) -> tuple[int, str]:
    "Do something in a process of its own, in a copy; its exit status and what it printed."
    log = root / "printed.txt"
    process = PROCESSES.Process(target=enter, args=(str(root), str(log), action, argument))
    process.start()
    process.join()
    return process.exitcode, log.read_text(encoding="utf-8").strip() if log.exists() else ""


def copy_project(to: Path) -> None:
    "What git tracks, as it stands in the working tree, and new files that it does not ignore."
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    for name in filter(None, listed.stdout.split("\0")):
        if name.startswith("outputs/") or not (ROOT / name).is_file():
            continue
        (to / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, to / name)


def run_tests(tests: list[str], root: Path) -> dict[str, str]:
    """Run tests in a copy: name of each with its parameters -> why it failed, empty if it passed.

    Raises Trouble where pytest itself fails, as on a file that cannot be imported.
    """
    report = root / "junit.xml"
    options = ["-q", "-p", "no:cacheprovider", "--tb=short", f"--junitxml={report}"]
    code, output = in_copy(root, pytest_main, [*options, *tests])
    if not report.exists() or code not in (0, 1):
        raise Trouble(f"pytest ended with {code}: {output[-600:]}")
    outcomes = {}
    for case in ElementTree.parse(report).iter("testcase"):
        problem = next((p for p in case if p.tag in ("failure", "error", "skipped")), None)
        name = f"{case.get('classname')}.{case.get('name')}"
        outcomes[name] = "" if problem is None else first_words(problem)
    return outcomes


def first_words(problem: ElementTree.Element) -> str:
    "Why a test failed, or that it was skipped, in one line."
    kind = "" if problem.tag == "failure" else f"{problem.tag}: "
    return kind + " ".join(problem.get("message", "").split())


def outcomes_of(test: str, outcomes: dict[str, str]) -> list[str]:
    "The outcomes of a node id, one for every set of parameters."
    name = test.replace("/", ".").replace(".py::", ".")
    return [why for key, why in outcomes.items() if key == name or key.startswith(f"{name}[")]


def judge(edit: WrongEdit, outcomes: dict[str, str]) -> None:
    "Raises Trouble if an edit was not caught by every one of its tests."
    for test in edit.tests:
        reasons = [reason for reason in outcomes_of(test, outcomes) if reason]
        if not reasons:
            raise Trouble(f"it survives {test}")
        # an error on the way to the assertion is an accident, not a catch
        accidents = [reason for reason in reasons if not reason.startswith(BY_ASSERTION)]
        if accidents:
            raise Trouble(f"{test} does not fail by an assertion: {accidents[0][:200]}")


def try_edit(edit: WrongEdit) -> tuple[float, str]:
    "Seconds that it took, and what kept the edit from being caught (empty: it was)."
    began = time.monotonic()
    problem = ""
    with tempfile.TemporaryDirectory(prefix="mutant-") as folder:
        root = Path(folder).resolve()
        try:
            copy_project(root)
            make(edit, root)
            judge(edit, run_tests(list(edit.tests), root))
        except Trouble as trouble:
            problem = str(trouble)
    return time.monotonic() - began, problem


def check_unedited(edits: list[WrongEdit]) -> None:
    "See that all the tests run and pass where nothing is edited. Raises Trouble if not."
    named = {test: None for edit in edits for test in edit.tests}
    with tempfile.TemporaryDirectory(prefix="mutant-") as folder:
        root = Path(folder).resolve()
        copy_project(root)
        outcomes = run_tests(list(named), root)
    for test in named:
        reasons = outcomes_of(test, outcomes)
        if not reasons:
            raise Trouble(f"{test} is not there")
        if any(reasons):
            raise Trouble(f"{test} does not pass: {max(reasons)[:200]}")


# the command


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="edits; none: all of them")
    parser.add_argument("--jobs", type=int, default=2, help="edits that are tried at once")
    parser.add_argument("--list", action="store_true", help="show the names and do nothing")
    return parser.parse_args()


def chosen(names: list[str]) -> list[WrongEdit]:
    "The edits of these names. Ends the program for a name that there is none of."
    known = {edit.name: edit for edit in EDITS}
    unknown = [name for name in names if name not in known]
    if unknown:
        sys.exit(f"there is no edit {unknown[0]!r}; the edits are {', '.join(known)}")
    return [known[name] for name in names] or EDITS


def try_all(edits: list[WrongEdit], jobs: int) -> int:
    "Try edits and print a line for each; how many were not caught."
    missed = 0
    with ThreadPoolExecutor(jobs) as pool:
        waiting = {pool.submit(try_edit, edit): edit for edit in edits}
        for done in as_completed(waiting):
            edit, (seconds, problem) = waiting[done], done.result()
            missed += bool(problem)
            mark = "NOT CAUGHT" if problem else "caught"
            names = ", ".join(test.partition("::")[2] for test in edit.tests)
            print(f"{mark:10}  {edit.name:38}  {seconds:4.0f} s  {problem or names}", flush=True)
    return missed


def main() -> None:
    options = arguments()
    if options.list:
        for edit in EDITS:
            print(f"{edit.name}: {edit.why}")
        return
    edits = chosen(options.names)
    # several processes share the cores, so each takes one
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    began = time.monotonic()
    try:
        check_unedited(edits)
    except Trouble as trouble:
        sys.exit(f"before any edit: {trouble}")
    print(f"unedited, all tests pass ({time.monotonic() - began:.0f} s)", flush=True)
    missed = try_all(edits, options.jobs)
    minutes = (time.monotonic() - began) / 60
    print(
        f"{len(edits) - missed} of {len(edits)} wrong edits were caught, in {minutes:.1f} minutes"
    )
    sys.exit(1 if missed else 0)


if __name__ == "__main__":
    main()
