"""The documentation as a site: the notebooks, the how-to pages of docs/, and a reference read out of the package.

python scripts/docs.py             # into _docs/; open _docs/index.html
python scripts/docs.py FOLDER
"""

import argparse
import ast
import io
import json
import posixpath
import re
import shutil
import subprocess
import sys
import tempfile
import tokenize
import tomllib
from pathlib import Path

import nbformat

ROOT = Path(__file__).resolve().parent.parent
HOW_TO = "score homologs adapt embed finetune pretrain cluster cite".split()
PAPER = "pretraining_loss scaling structure zero_shot flip in_domain checkpoints report".split()
OWN = "mutate adapt finetune pretrain".split()
# of the names to start from
EXAMPLES = tomllib.loads((ROOT / "docs/examples.toml").read_text(encoding="utf-8"))
NOTE = (
    "*This page shows the notebook without its output. `mkdir -p "
    "outputs/{0}/mine && papermill nbs/{0}.ipynb "
    "outputs/{0}/mine/notebook.ipynb -p output_dir outputs/{0}/mine` makes "
    "it, and the next build of these pages shows it.*"
)


# the reference: signatures and their comments, out of the modules' text


def markdown(text: str) -> str:
    "Text as markdown shows it letter by letter, except what stands in backticks."
    return "".join(
        part if i % 2 else re.sub(r"([\\*_<>|\[\]$#])", r"\\\1", part)
        for i, part in enumerate(re.split(r"(`[^`\n]+`)", " ".join(text.split())))
    )


def settings(name: str) -> str:
    "What settings.ini says."
    return re.search(rf"^{name} = (.*)$", (ROOT / "settings.ini").read_text(), re.M)[1]


def code(text: str) -> str:
    return f"`{text}`".replace("|", "\\|") if text else ""


def call(name: str, parts: list[str], returns: str = "") -> str:
    "A block of code that shows how to call a name; one parameter a line where it would be long."
    line = f"{name}({', '.join(parts)}){returns}"
    if len(line) > 90:
        line = f"{name}(\n" + "".join(f"    {part},\n" for part in parts) + f"){returns}"
    return f"```python\n{line}\n```"


def signature(name: str, node: ast.FunctionDef, method: bool = False) -> str:
    "How a function, a method or a property is called."
    decorators = {ast.unparse(decorator) for decorator in node.decorator_list}
    returns = f" -> {ast.unparse(node.returns)}" if node.returns else ""
    if "property" in decorators:
        return f"```python\n{name}{returns}\n```"
    parts = split_arguments(node.args)
    # self and cls are not given by who calls
    return call(name, parts[method and "staticmethod" not in decorators :], returns)


def split_arguments(arguments: ast.arguments) -> list[str]:
    "The parameters of a signature one by one, as they are written."
    parts = []
    plain = arguments.posonlyargs + arguments.args
    defaults = [None] * (len(plain) - len(arguments.defaults)) + arguments.defaults
    pairs = list(zip(plain, defaults))
    if arguments.vararg:
        parts.append("*" + ast.unparse(arguments.vararg))
    elif arguments.kwonlyargs:
        parts.append("*")
    named = list(zip(arguments.kwonlyargs, arguments.kw_defaults))
    texts = [
        ast.unparse(arg) + (f" = {ast.unparse(default)}" if default else "")
        for arg, default in pairs + named
    ]
    parts = texts[: len(pairs)] + parts + texts[len(pairs) :]
    if arguments.kwarg:
        parts.append("**" + ast.unparse(arguments.kwarg))
    return parts


class Module:
    "The public names of one module, as a page of markdown."

    def __init__(self, path: Path):
        text = path.read_text()
        self.path = path.relative_to(ROOT).as_posix()
        # where the cell of each name begins, to find what the notebook shows behind it
        self.cells = [
            (number, line.rpartition("#")[2])
            for number, line in enumerate(text.splitlines(), 1)
            if line.startswith("# %% ../nbs/") and "#" in line[4:]
        ]
        self.name, self.tree = path.stem, ast.parse(text)
        self.comments = {
            t.start[0]: t.string.lstrip("# ")
            for t in tokenize.generate_tokens(io.StringIO(text).readline)
            if t.type == tokenize.COMMENT and not t.string.startswith(("# %%", "#|"))
        }
        rows = enumerate(text.splitlines(), 1)
        self.alone = {n for n, row in rows if n in self.comments and row.strip()[:1] == "#"}
        self.notebook = re.search(r"File to edit: \.\./nbs/(\S+)\.ipynb", text)[1]
        self.shown = nbformat.read(ROOT / f"nbs/{self.notebook}.ipynb", as_version=4).cells
        self.named = {
            t.id: n
            for n in self.tree.body
            if isinstance(n, ast.Assign)
            for t in n.targets
            if isinstance(t, ast.Name)
        }
        typed = [n for n in self.tree.body if isinstance(n, ast.AnnAssign) and n.value]
        self.named |= {n.target.id: n for n in typed if isinstance(n.target, ast.Name)}
        self.named |= {
            n.name: n for n in self.tree.body if isinstance(n, (ast.FunctionDef, ast.ClassDef))
        }
        self.public = (
            ast.literal_eval(self.named["__all__"].value) if "__all__" in self.named else []
        )

    def above(self, line: int) -> str:
        "What comments on lines of their own, just above a line, say."
        said = []
        while (line := line - 1) in self.alone:
            said.insert(0, self.comments[line])
        return " ".join(said)

    def row(self, name: str, annotation, default, line: int, arg_line: int = 0) -> list[str]:
        "A parameter: name, type, default, what it is. `Annotated` of the command line gives its help."
        what = self.comments.get(line) or self.above(arg_line)
        known = self.named.get(annotation.id) if isinstance(annotation, ast.Name) else None
        if isinstance(known, ast.Assign):
            annotation = known.value
        if isinstance(annotation, ast.Subscript) and ast.unparse(annotation.value) == "Annotated":
            annotation, option = annotation.slice.elts[:2]
            what = next(
                (k.value.value for k in getattr(option, "keywords", ()) if k.arg == "help"), what
            )
        return [
            code(name),
            code(ast.unparse(annotation)) if annotation else "",
            code(ast.unparse(default)) if default else "",
            markdown(what),
        ]

    def function(self, node: ast.FunctionDef, level: int, owner: str = "") -> list[str]:
        a = node.args
        plain = a.posonlyargs + a.args
        pairs = list(zip(plain, [None] * (len(plain) - len(a.defaults)) + a.defaults)) + list(
            zip(a.kwonlyargs, a.kw_defaults)
        )
        pairs = [(arg, default) for arg, default in pairs if arg.arg not in ("self", "cls")]
        rows = [
            self.row(arg.arg, arg.annotation, default, (default or arg).end_lineno, arg.lineno)
            for arg, default in pairs
        ]
        rows += [
            self.row(star + arg.arg, arg.annotation, None, arg.end_lineno)
            for star, arg in (("*", a.vararg), ("**", a.kwarg))
            if arg
        ]
        if node.returns and ast.unparse(node.returns) != "None":
            line = node.returns.end_lineno
            rows.append(
                [
                    "returns",
                    code(ast.unparse(node.returns)),
                    "",
                    markdown(
                        self.comments.get(line, "")
                        if line not in {arg.end_lineno for arg, _ in pairs}
                        else ""
                    ),
                ]
            )
        return [
            f"{'#' * level} {markdown(owner + node.name)}",
            signature(owner + node.name, node, method=bool(owner)),
            self.doc(node),
            self.table(rows),
        ]

    def example(self, name: str, line: int) -> str:
        """A cell of the notebook that uses a name, behind the one where it is defined: the shortest
        that shows more than errors, or else the shortest.
        """
        if name in EXAMPLES:
            return f"Example:\n\n```python\n{EXAMPLES[name].strip()}\n```"
        cell = max((place for place in self.cells if place[0] <= line), default=(0, ""))[1]
        ids = [shown.id for shown in self.shown]
        if cell not in ids:
            return ""
        uses = [
            shown.source
            for shown in self.shown[ids.index(cell) + 1 :]
            if shown.cell_type == "code"
            and not shown.source.startswith("#|")
            and shown.source.count("\n") < 20
            and re.search(rf"\b{name}\b[(\[.]", shown.source)
        ]
        fine = [text for text in uses if not text.startswith("test_fail")]
        return "".join(
            f"Example:\n\n```python\n{text}\n```" for text in sorted(fine or uses, key=len)[:1]
        )

    def source(self, node: ast.FunctionDef | ast.ClassDef) -> str:
        "Links to where a name is defined: the line of the module, and the notebook."
        address = f"{settings('git_url')}/blob/{settings('branch')}/{self.path}#L{node.lineno}"
        return f"[source]({address}), [notebook](../nbs/{self.notebook}.ipynb)"

    def cls(self, node: ast.ClassDef) -> list[str]:
        fields = [
            n for n in node.body if isinstance(n, ast.AnnAssign) and not n.target.id.startswith("_")
        ]
        rows = [
            self.row(n.target.id, n.annotation, n.value, n.end_lineno, n.lineno) for n in fields
        ]
        parts = [f"## {markdown(node.name)}", self.doc(node), self.table(rows)]
        if fields:
            parts.insert(1, call(node.name, [ast.unparse(n) for n in fields]))
        for n in node.body:
            if isinstance(n, ast.FunctionDef) and n.name == "__init__":
                parts.insert(1, signature(node.name, n, method=True))
                parts.append(self.function(n, 3)[3])
            elif isinstance(n, ast.FunctionDef) and not n.name.startswith("_"):
                parts += self.function(n, 3, f"{node.name}.")
        return parts

    def doc(self, node) -> str:
        return "\n\n".join(markdown(part) for part in (ast.get_docstring(node) or "").split("\n\n"))

    def table(self, rows: list[list[str]]) -> str:
        if not rows:
            return ""
        return "\n".join(
            [
                "| name | type | default | what it is |",
                "|---|---|---|---|",
                *(f"| {' | '.join(row)} |" for row in rows),
            ]
        )

    def page(self) -> str:
        parts = [
            f"# carp\\_nb.{markdown(self.name)}",
            self.doc(self.tree),
            f"Told step by step, with its tests, in [{markdown(self.notebook)}](../nbs/{self.notebook}.ipynb).",
        ]
        for name in self.public:
            node = self.named.get(name)
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                if isinstance(node, ast.FunctionDef):
                    parts += self.function(node, 2)
                else:
                    parts += self.cls(node)
                parts += [self.example(name, node.lineno), self.source(node)]
            elif node:
                value = ast.unparse(node.value)
                parts += [
                    f"## {markdown(name)}",
                    markdown(self.comments.get(node.end_lineno, "")),
                    f"```python\n{name} = {value if len(value) < 300 else value[:300] + ' ...'}\n```",
                ]
        return "\n\n".join(part for part in parts if part) + "\n"


# the notebooks


def executed(section: str) -> list[Path]:
    "Kept runs of a section notebook that hold its output, newest first."
    found = [
        p
        for p in (ROOT / "outputs" / section).glob("*/notebook.ipynb")
        if (p.parent / "run.json").is_file()
    ]
    return sorted(
        found, key=lambda p: json.loads((p.parent / "run.json").read_text())["when"], reverse=True
    )


def anchor(run: str) -> str:
    "What the heading of a run is called in links."
    return re.sub(r"[^\w -]", "", f"run {run}".lower()).replace(" ", "-")


def without_charts(cell: nbformat.NotebookNode) -> None:
    "Say where an interactive chart can be seen: the site loads nothing that would draw it."
    for output in cell.get("outputs", []):
        if any("vegalite" in kind for kind in output.get("data", {})):
            words = "An interactive chart of the figure above, which JupyterLab and VS Code draw."
            output["data"] = {"text/plain": words}


def with_runs(file: Path) -> nbformat.NotebookNode:
    "A notebook followed by its kept runs, each under a heading with its name; as it stands if there is none."
    nb = nbformat.read(file, as_version=4)
    if runs := executed(file.stem):
        nb.cells = nb.cells[:1]
    for n, run in enumerate(runs):
        cells = nbformat.read(run, as_version=4).cells[1:]
        for i, cell in enumerate(cells):
            cell.id = f"run{n}-{i}"
            without_charts(cell)
            if cell.cell_type == "markdown":
                cell.source = re.sub(r"^(#+ )", r"#\1", cell.source, flags=re.M)
        nb.cells += [
            nbformat.v4.new_markdown_cell(f"## Run `{run.parent.name}`", id=f"run{n}"),
            *cells,
        ]
    return nb


def stage(folder: Path) -> None:
    "Lay out pages under the paths that they have in the project, so that their links hold."
    moved = {
        f"outputs/{s}/{p.parent.name}/notebook.ipynb": f"nbs/{s}.ipynb#{anchor(p.parent.name)}"
        for s in PAPER + OWN
        for p in executed(s)
    }

    def place(text: str, page: str, at: str = "") -> str:
        """Links of a page, which moves to `at`: to a run that a page shows, to that page; to
        another file of the project, to a copy.
        """

        def link(match):
            target, _, section = match[2].partition("#")
            if not target or re.match(r"[a-z]+:", target):
                return match[0]
            file = posixpath.normpath(posixpath.join(posixpath.dirname(page), target))
            file, _, run = moved.get(file, file).partition("#")
            source = ROOT / file
            # a folder has no page
            if source.is_dir():
                return f"{match[1]}{settings('git_url')}/tree/{settings('branch')}/{file}"
            if source.is_file() and not (folder / file).exists() and file != page:
                (folder / file).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(source, folder / file)
            return (
                match[1]
                + posixpath.relpath(file, posixpath.dirname(at or page) or ".")
                + (f"#{section or run}" if section or run else "")
            )

        return re.sub(r"(\]\()([^)\s]+)", link, text)

    pages = {f"docs/{name}.md": (ROOT / f"docs/{name}.md").read_text() for name in HOW_TO}
    pages["index.md"] = place((ROOT / "docs/index.md").read_text(), "docs/index.md", "index.md")
    modules = sorted(
        (Module(p) for p in (ROOT / "carp_nb").glob("*.py") if not p.stem.startswith("_")),
        key=lambda m: m.notebook,
    )
    pages |= {f"api/{m.name}.md": m.page() for m in modules}
    notebooks = sorted((ROOT / "nbs").glob("*.ipynb"))
    library = sorted((ROOT / "nbs/library").glob("*.ipynb"))
    sections = [s for s in PAPER if (ROOT / f"nbs/{s}.ipynb").exists()]
    own = [p.stem for p in notebooks if p.stem not in [*sections, "index"]]
    for file in [*notebooks, *library]:
        page = file.relative_to(ROOT).as_posix()
        nb = with_runs(file)
        nb.cells = [c for c in nb.cells if not re.match(r"#\|\s*(default_exp|hide)\b", c.source)]
        shows = any(c.get("outputs") for c in nb.cells)
        if file in notebooks and not shows:
            nb.cells.insert(1, nbformat.v4.new_markdown_cell(NOTE.format(file.stem), id="note"))
        for cell in nb.cells:
            if cell.cell_type == "markdown":
                cell.source = place(cell.source, page)
        pages[page] = nbformat.writes(nb)

    tree = {
        "First": ["nbs/index"],
        "How to": [f"docs/{n}" for n in HOW_TO],
        "The paper": [f"nbs/{n}" for n in sections],
        "Your own": [f"nbs/{n}" for n in own],
        "Reference": [f"api/{m.name}" for m in modules],
        "The library, read as notebooks": [f"nbs/library/{p.stem}" for p in library],
    }
    for title, names in tree.items():
        pages["index.md"] += (
            f"\n```{{toctree}}\n:hidden:\n:caption: {title}\n:maxdepth: 1\n\n"
            + "\n".join(names)
            + "\n```\n"
        )
    for page, text in pages.items():
        (folder / page).parent.mkdir(parents=True, exist_ok=True)
        (folder / page).write_text(text if page.endswith(".ipynb") else place(text, page))
    shutil.copy(ROOT / "docs/conf.py", folder)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("output", nargs="?", type=Path, default=ROOT / "_docs")
    output = parser.parse_args().output.resolve()
    print(f"building the pages in {output} with Sphinx; some minutes without a word", flush=True)
    with tempfile.TemporaryDirectory() as source:
        stage(Path(source))
        done = subprocess.run(
            [
                sys.executable,
                "-m",
                "sphinx",
                "-b",
                "html",
                "-q",
                "-W",
                "--keep-going",
                "-d",
                f"{source}/.doctrees",
                source,
                str(output),
            ]
        )
    if done.returncode:
        sys.exit(done.returncode)
    print(f"wrote {output / 'index.html'}")


if __name__ == "__main__":
    main()
