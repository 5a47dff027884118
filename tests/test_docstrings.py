"""`help` and Shift-Tab explain every parameter that the code explains."""

import ast
import importlib
import inspect
import io
import subprocess
import sys
import tokenize
import tomllib
from pathlib import Path

import pytest
from typer.testing import CliRunner

import carp_nb
from carp_nb.cli import app

PACKAGE = Path(__file__).resolve().parent.parent / "carp_nb"
MODULES = sorted(path.stem for path in PACKAGE.glob("[a-z]*.py") if path.stem != "docstrings")


def commented(path: Path) -> list[tuple[str, str, str]]:  # function, parameter, comment
    "The comments behind parameters, by Python's own parser; methods as Class.method."
    text = path.read_text()
    comments = {
        token.start[0]: token.string.lstrip("# ")
        for token in tokenize.generate_tokens(io.StringIO(text).readline)
        if token.type == tokenize.COMMENT
    }
    tree = ast.parse(text)
    owners = [("", tree)] + [(n.name + ".", n) for n in tree.body if isinstance(n, ast.ClassDef)]
    found = []
    for owner, holder in owners:
        for node in holder.body:
            if isinstance(node, ast.FunctionDef):
                given = node.args.posonlyargs + node.args.args + node.args.kwonlyargs
                defaults = node.args.defaults + [d for d in node.args.kw_defaults if d]
                last = {arg.end_lineno for arg in given} | {d.end_lineno for d in defaults}
                lines = [(arg.arg, arg.end_lineno) for arg in given]
                # on one line with the rest of a signature, the comment is of what comes back
                alone = [(n, line) for n, line in lines if line != node.lineno]
                found += [
                    (owner + node.name, name, comments[line])
                    for name, line in alone
                    if line in comments and line in last
                ]
            elif owner and isinstance(node, ast.AnnAssign) and node.end_lineno in comments:
                found.append((owner[:-1], node.target.id, comments[node.end_lineno]))
    return found


@pytest.mark.parametrize("name", MODULES)
def test_every_comment_of_a_parameter_is_in_its_docstring(name):
    module = importlib.import_module(f"carp_nb.{name}")
    public = getattr(module, "__all__", [])
    missing = []
    for function, parameter, comment in commented(PACKAGE / f"{name}.py"):
        owner, _, method = function.rpartition(".")
        if (owner or function) not in public or parameter.startswith("_"):
            continue
        if method.startswith("_") and method != "__init__":
            continue
        subject = inspect.getattr_static(getattr(module, owner), method) if owner else None
        subject = getattr(module, function) if subject is None else subject
        if isinstance(subject, property):
            continue
        said = inspect.getdoc(getattr(subject, "__func__", subject)) or ""
        if not (f"    {parameter} " in said and comment in said):
            missing.append((function, parameter))
    assert not missing


def test_the_package_alone_stays_quick_to_import():
    "The comments are read when a module is loaded, and with the package no module is."
    ask = "import sys, carp_nb; print([m for m in sys.modules if m.startswith('carp_nb.')])"
    assert subprocess.check_output([sys.executable, "-c", ask], text=True) == "[]\n"


def test_commands_show_no_comments_of_the_code():
    shown = CliRunner().invoke(app, ["score", "--help"]).output
    assert "Score" in shown and "Parameters:" not in shown


EXAMPLES = tomllib.loads((PACKAGE.parent / "docs/examples.toml").read_text(encoding="utf-8"))


def test_every_name_to_start_from_has_an_example():
    assert set(carp_nb.__all__) <= set(EXAMPLES)


@pytest.mark.parametrize("name", EXAMPLES)
def test_examples_of_the_reference_run(name, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert name in EXAMPLES[name]
    exec(EXAMPLES[name], {})
