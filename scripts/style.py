"""How the code reads, in numbers: `make style` prints them, `make check` fails when one gets worse.

Counted on the generated modules (what a reader of the code sees) and on the cells of nbs/library.
The figures of the last accepted state stand in scripts/style.json; they may only improve.
`python scripts/style.py --accept` writes the present ones there. A figure that got worse is refused
unless its name is given as well: `--accept figure`.
"""

import argparse
import ast
import json
import re
import statistics
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ACCEPTED = ROOT / "scripts/style.json"
COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
DOCUMENTED = (ast.Module, ast.ClassDef, *FUNCTIONS)
LONG_FUNCTION = 50
LONG_MODULE = 700


@dataclass(frozen=True)
class Figure:
    "One number of how the code reads."

    name: str
    aim: str
    digits: int = 0
    more_is_better: bool = False

    def is_worse(self, value: float, accepted: float) -> bool:
        if self.more_is_better:
            return value < accepted
        return value > accepted


FIGURES = [
    Figure("line length, 90th percentile", "<= 92"),
    Figure("line length, 99th percentile", "<= 112"),
    Figure("lines over 120", "0"),
    Figure("nested comprehensions per 1,000 lines", "<= 1", 1),
    Figure("ternaries per 1,000 lines", "<= 15", 1),
    Figure("comment lines, %", "3 to 8", 1, more_is_better=True),
    Figure("functions over 50 lines", "0"),
    Figure("modules over 700 lines", "0"),
    Figure("exported cell, median lines", "<= 15", 1),
    Figure("other code cells per exported cell", ">= 1", 2, more_is_better=True),
    Figure("basedpyright errors", "0"),
]


# the generated modules


def lines_of_text(tree: ast.Module) -> set[int]:
    "Lines of docstrings, strings of several lines and `__all__`, which are not code."
    lines: set[int] = set()
    for node in ast.walk(tree):
        text = isinstance(node, ast.Constant) and isinstance(node.value, str)
        if text and node.end_lineno > node.lineno:
            lines |= set(range(node.lineno, node.end_lineno + 1))
        if isinstance(node, DOCUMENTED) and ast.get_docstring(node):
            lines |= set(range(node.body[0].lineno, node.body[0].end_lineno + 1))
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "__all__":
            lines |= set(range(node.lineno, node.end_lineno + 1))
    return lines


def is_nested(node: ast.AST) -> bool:
    "Whether a comprehension has a second `for` or holds another comprehension."
    inner = [n for n in ast.walk(node) if n is not node and isinstance(n, COMPREHENSIONS)]
    return len(node.generators) > 1 or bool(inner)


@dataclass
class Counts:
    "What is counted over all modules."

    lengths: list[int]
    comments: int = 0
    nested: int = 0
    ternaries: int = 0
    long_functions: int = 0
    long_modules: int = 0

    def add(self, text: str) -> None:
        "Count one module."
        tree = ast.parse(text)
        skipped = lines_of_text(tree)
        lines = text.splitlines()
        for number, line in enumerate(lines, 1):
            if not line.strip() or number in skipped:
                continue
            if not line.lstrip().startswith("#"):
                self.lengths.append(len(line))
            elif not line.startswith(("# %%", "# AUTO")):
                self.comments += 1
        self.long_modules += len(lines) > LONG_MODULE
        for node in ast.walk(tree):
            self.ternaries += isinstance(node, ast.IfExp)
            self.nested += isinstance(node, COMPREHENSIONS) and is_nested(node)
            if isinstance(node, FUNCTIONS):
                self.long_functions += node.end_lineno - node.lineno + 1 > LONG_FUNCTION


def modules() -> dict[str, float]:
    "Figures of the generated modules."
    counts = Counts([])
    for path in sorted((ROOT / "carp_nb").glob("*.py")):
        if path.name != "_modidx.py":
            counts.add(path.read_text(encoding="utf-8"))
    total = len(counts.lengths)
    percentiles = statistics.quantiles(counts.lengths, n=100)
    return {
        "line length, 90th percentile": percentiles[89],
        "line length, 99th percentile": percentiles[98],
        "lines over 120": sum(n > 120 for n in counts.lengths),
        "nested comprehensions per 1,000 lines": 1000 * counts.nested / total,
        "ternaries per 1,000 lines": 1000 * counts.ternaries / total,
        "comment lines, %": 100 * counts.comments / (total + counts.comments),
        "functions over 50 lines": counts.long_functions,
        "modules over 700 lines": counts.long_modules,
    }


# the cells


def cells() -> dict[str, float]:
    "Figures of the code cells of the library notebooks."
    exported, others = [], 0
    for path in sorted((ROOT / "nbs/library").glob("*.ipynb")):
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
            source = "".join(cell["source"])
            if cell["cell_type"] != "code" or re.match(r"#\|\s*(default_exp|hide)", source):
                continue
            if re.match(r"#\|\s*export", source):
                exported.append(len(source.splitlines()) - 1)
            else:
                others += 1
    return {
        "exported cell, median lines": statistics.median(exported),
        "other code cells per exported cell": others / len(exported),
    }


# the types


def type_errors() -> dict[str, float]:
    "Errors of basedpyright in its standard mode."
    command = [sys.executable, "-m", "basedpyright", "--outputjson"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if not done.stdout:
        sys.exit(f"basedpyright did not run: {done.stderr.strip()}")
    return {"basedpyright errors": json.loads(done.stdout)["summary"]["errorCount"]}


# the command


def rounded(figure: Figure, value: float) -> float:
    "A value with the digits that are compared."
    return round(value, figure.digits) if figure.digits else round(value)


def show(measured: dict[str, float], accepted: dict[str, float]) -> None:
    "Print a table of the figures, the accepted ones and what is aimed at."
    print(f"{'':40}{'now':>9}{'accepted':>10}   aim")
    for figure in FIGURES:
        now = f"{measured[figure.name]:.{figure.digits}f}"
        before = f"{accepted.get(figure.name, float('nan')):.{figure.digits}f}"
        print(f"{figure.name:40}{now:>9}{before:>10}   {figure.aim}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--check", action="store_true", help="exit 1 if a figure got worse")
    parser.add_argument("--accept", nargs="*", metavar="FIGURE", help="keep the present figures")
    arguments = parser.parse_args()
    measured = modules() | cells() | type_errors()
    measured = {figure.name: rounded(figure, measured[figure.name]) for figure in FIGURES}
    accepted = json.loads(ACCEPTED.read_text()) if ACCEPTED.exists() else {}
    show(measured, accepted)
    worse = [
        figure.name
        for figure in FIGURES
        if figure.name in accepted and figure.is_worse(measured[figure.name], accepted[figure.name])
    ]
    if arguments.accept is not None:
        refused = sorted(set(worse) - set(arguments.accept))
        if refused:
            sys.exit(f"worse than accepted: {', '.join(refused)}.")
        ACCEPTED.write_text(json.dumps(measured, indent=1) + "\n")
    elif arguments.check and worse:
        sys.exit(f"worse than accepted: {', '.join(worse)}; see scripts/style.py.")


if __name__ == "__main__":
    main()
