"""The project's own files agree with each other, and what is built from them is whole."""

import ast
import configparser
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from email import message_from_bytes
from pathlib import Path

import matplotlib
import nbformat
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from carp_nb.defaults import DEFAULT_MODEL, PRETRAINED_MODEL
from carp_nb.pretrained import shipped_weights
from carp_nb.results import notebook_parameters

ROOT = Path(__file__).resolve().parent.parent
config = configparser.ConfigParser(delimiters=["="], interpolation=None)
config.read(ROOT / "settings.ini", encoding="utf-8")
SETTINGS = config["DEFAULT"]
NOTEBOOKS = sorted((ROOT / "nbs").rglob("*.ipynb"))
NOTEBOOKS = [p for p in NOTEBOOKS if ".ipynb_checkpoints" not in p.parts]
LIBRARY = [p for p in NOTEBOOKS if p.parent.name == "library"]


def read(path: Path) -> nbformat.NotebookNode:
    return nbformat.read(path, as_version=4)


SECTIONS = [p for p in NOTEBOOKS if p.name != "index.ipynb" and p not in LIBRARY]


def exported_module(path: Path) -> str | None:
    "The module that a notebook becomes, `__init__` for the package itself; None if it becomes none."
    sources = [cell.source for cell in read(path).cells if cell.cell_type == "code"]
    names = re.findall(r"^#\|\s*default_exp\s+(\S+)", "\n".join(sources), re.M)
    assert len(names) < 2, f"{path.name} says twice what it becomes"
    return names[0] if names else None


def requirements(key: str) -> list[Requirement]:
    return [Requirement(r) for r in SETTINGS[key].split()]


REQUIREMENT_KEYS = [
    key for key in SETTINGS if key == "requirements" or key.endswith("_requirements")
]


def run(*command, cwd: Path, **kwargs) -> str:
    "Output of a command; its words are the failure."
    done = subprocess.run(
        [str(c) for c in command],
        cwd=cwd,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        **kwargs,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


# the project's files


def test_environment_yml_agrees_with_settings():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    plain = [d for d in environment["dependencies"] if isinstance(d, str)]
    (by_pip,) = [d["pip"] for d in environment["dependencies"] if isinstance(d, dict)]
    assert plain == [f"python={SETTINGS['min_python']}", "pip"]
    extra = re.fullmatch(r"-e \.\[(\w+)\]", by_pip[0])[1]
    assert len(by_pip) == 1 and f"{extra}_requirements" in SETTINGS


def test_constraints_pin_every_direct_requirement():
    lines = [
        line
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if line and not line.startswith("#")
    ]
    pins = {}
    for line in lines:
        # a bare name==version: no local version (+cpu), path, address or option, which other machines do not have
        assert re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][A-Za-z0-9.]*", line), line
        name, version = line.split("==")
        pins[canonicalize_name(name)] = Version(version)
    assert len(pins) == len(lines), "a package is pinned twice"
    direct = {canonicalize_name(r.name): r for key in REQUIREMENT_KEYS for r in requirements(key)}
    assert pins.keys() == direct.keys()
    for name, requirement in direct.items():
        assert requirement.specifier.contains(pins[name]), f"{requirement} against {pins[name]}"


def test_package_imports_only_its_requirements():
    "Neither a test dependency nor a notebook's may slip into the package."
    provides = importlib.metadata.packages_distributions()
    allowed = {canonicalize_name(r.name) for r in requirements("requirements")}
    for module in (ROOT / "carp_nb").glob("*.py"):
        for node in ast.walk(ast.parse(module.read_text())):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and not node.level:
                names = [node.module]
            else:
                continue
            for top in (
                {name.split(".")[0] for name in names} - set(sys.stdlib_module_names) - {"carp_nb"}
            ):
                assert {canonicalize_name(d) for d in provides.get(top, [])} & allowed, (
                    f"{module.name} imports {top}"
                )


MODULES = {p.stem: p for p in (ROOT / "carp_nb").glob("*.py") if p.stem != "_modidx"}
OF_ANY_MODULE = {
    "__version__",
    "__file__",
    "__path__",
    "__name__",
}  # Python sets them before a line has run


def imported_modules(path: Path) -> set[str]:
    """Modules of the package that one of them imports, also inside functions, relative or not.

    A name taken from the package that is no module of it is taken from `__init__`.
    """
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            package = "carp_nb." if node.level else ""
            parent = (package + (node.module or "")).rstrip(".")
            names |= {parent} | {f"{parent}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Attribute) and getattr(node.value, "id", "") == "carp_nb":
            names.add(f"carp_nb.{node.attr}")
    parts = [name.split(".")[1] for name in names if name.startswith("carp_nb.")]
    return {part if part in MODULES else "__init__" for part in parts if part not in OF_ANY_MODULE}


def test_imports_run_down_the_house():
    "A module imports only modules whose notebooks are read before its own: no circle, no arrow up."
    order = {exported_module(path): place for place, path in enumerate(LIBRARY)}
    assert order.keys() == MODULES.keys()
    arrows = [(name, other) for name, path in MODULES.items() for other in imported_modules(path)]
    assert len(arrows) > len(MODULES), "hardly an import was found: is the test still right?"
    up = [f"{name} imports {other}" for name, other in arrows if order[other] >= order[name]]
    assert not up


def test_package_names_are_imported_when_first_used():
    "`import carp_nb` loads nothing of what takes long, and each name is that of its module."
    namespace = {}
    exec(MODULES["__init__"].read_text(), namespace)
    public, modules = namespace["__all__"], namespace["_MODULES"]
    tree = ast.parse(MODULES["__init__"].read_text())
    block = next(node for node in tree.body if isinstance(node, ast.If))
    assert ast.unparse(block.test) == "TYPE_CHECKING"
    typed = [
        (node.module.removeprefix("carp_nb."), alias.name)
        for node in block.body
        for alias in node.names
    ]
    assert {name: module for module, name in typed} == modules, "what type checkers read differs"
    assert set(public) == modules.keys() and len(public) == len(modules) == len(typed)
    assert not modules.keys() & MODULES.keys(), "a module hides the name"
    code = (
        "import sys, carp_nb, importlib\n"
        "heavy = {'torch', 'pandas', 'numpy', 'scipy', 'matplotlib', 'carp_nb.carp'}\n"
        "assert not heavy & sys.modules.keys(), heavy & sys.modules.keys()\n"
        f"assert carp_nb.__doc__ and set({public}) <= set(dir(carp_nb))\n"
        "assert not heavy & sys.modules.keys(), 'dir() imports'\n"
        "carp_nb.CARP\n"
        "assert 'carp_nb.scoring' not in sys.modules, 'more than was asked for'\n"
        f"for name, module in {modules}.items():\n"
        "    there = importlib.import_module('carp_nb.' + module)\n"
        "    assert getattr(carp_nb, name) is getattr(there, name), name\n"
        "assert not hasattr(carp_nb, 'no_such_name')\n"
    )
    run(sys.executable, "-c", code, cwd=ROOT)


def test_version_is_one():
    namespace = {"__name__": "carp_nb"}
    exec((ROOT / "carp_nb/__init__.py").read_text(), namespace)
    assert namespace["__version__"] == SETTINGS["version"]
    # the export writes the module's line anew; that of the notebook should not say something else
    (front,) = [p for p in LIBRARY if exported_module(p) == "__init__"]
    sources = "\n".join(cell.source for cell in read(front).cells if cell.cell_type == "code")
    (said,) = re.findall(r"^__version__\s*=.*$", sources, re.M)
    assert said == f'__version__ = "{SETTINGS["version"]}"'
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == SETTINGS["version"]


def test_citation_names_software_and_paper():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {
        "cff-version",
        "message",
        "title",
        "authors",
    } <= citation.keys()  # what the format demands
    assert (
        citation["title"] == SETTINGS["lib_path"]
        and citation["license"].lower() == SETTINGS["license"]
    )
    paper = citation["preferred-citation"]
    assert [a["family-names"] for a in paper["authors"]] == ["Yang", "Fusi", "Lu"]
    assert paper["title"] in SETTINGS["description"]


# the notebooks


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.name)
def test_notebook_holds_no_error_and_opens_with_python3(path):
    notebook = read(path)
    assert notebook.metadata.kernelspec.name == "python3"
    errors = [
        i
        for i, cell in enumerate(notebook.cells)
        for o in cell.get("outputs", [])
        if o.output_type == "error"
    ]
    assert not errors, f"cells {errors} were saved with an error"


def links(text: str) -> list[str]:
    "Targets of a text's relative links, without the anchor."
    found = [
        target.partition("#")[0]
        for target in re.findall(
            r"\]\(([^)\s]+)\)", re.sub(r"```.*?```|`[^`\n]*`", "", text, flags=re.S)
        )
    ]
    return [
        target for target in found if target and not re.match(r"[a-z][a-z0-9+.-]*:", target, re.I)
    ]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.name)
def test_notebook_has_a_title_and_links_that_exist_and_leads_on(path):
    cells = [cell.source for cell in read(path).cells if cell.cell_type == "markdown"]
    title, _purpose = re.match(r"# (\S.*)\n\n> (\S.*)", cells[0] + "\n").groups()
    assert not re.search(r"^# ", "\n".join(cells[1:]), re.M), "a second title"
    if path in LIBRARY:
        module = exported_module(path)
        assert re.fullmatch(rf"\d\d_{module.strip('_')}", path.stem)
        assert title == (SETTINGS["lib_path"] if module == "__init__" else module)
    missing = [
        target
        for cell in cells
        for target in links(cell)
        if not (path.parent / target).exists() and not target.startswith("../_docs/")
    ]
    assert not missing, f"nothing is at {missing}"
    last = read(path).cells[-1]
    assert last.cell_type == "markdown" and "Next: [" in last.source, (
        "the last cell names no next notebook"
    )
    after, *_ = links(last.source.rpartition("Next: ")[2])
    leads_to = (path.parent / after).resolve()
    if path in LIBRARY[:-1]:
        assert leads_to == LIBRARY[LIBRARY.index(path) + 1]
    else:
        assert leads_to in NOTEBOOKS and leads_to != path


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.name)
def test_library_notebooks_and_no_others_are_exported(path):
    assert bool(exported_module(path)) == (path in LIBRARY)


@pytest.mark.parametrize("path", SECTIONS, ids=lambda p: p.name)
def test_section_notebook_has_one_parameters_cell(path):
    assert sum("parameters" in cell.metadata.get("tags", []) for cell in read(path).cells) == 1


@pytest.mark.parametrize("path", SECTIONS, ids=lambda p: p.stem)
def test_section_notebook_uses_each_of_its_parameters(path):
    "By its name in a later cell, or, as the budget's settings, by `run.budget`; `Run` uses output_dir."
    code = [cell for cell in read(path).cells if cell.cell_type == "code"]
    used = {"output_dir"}
    for cell in code:
        for node in ast.walk(ast.parse(cell.source)):
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
                used.add(node.id)
            elif isinstance(node, ast.Attribute) and ast.unparse(node) == "run.budget":
                used.add("budget")
    unused = [name for name in notebook_parameters(path.stem) if name not in used]
    assert not unused, f"{path.name} has parameters that it never reads: {', '.join(unused)}"


def test_default_model_is_one_everywhere():
    "A notebook that takes an included model takes the one that the command line takes."
    # Figures 3 and 4 follow the run whose checkpoints are kept
    sections = {path.stem: notebook_parameters(path.stem) for path in SECTIONS}
    del sections["checkpoints"]
    named = {name: given["model"].default for name, given in sections.items() if "model" in given}
    used = {name: model for name, model in named.items() if model in shipped_weights()}
    # as trained in the paper, by masked language modelling alone
    as_published = {"finetune", "flip", "in_domain", "pretraining_loss", "structure"}
    for name, model in used.items():
        assert model == (PRETRAINED_MODEL if name in as_published else DEFAULT_MODEL), name
    assert used.keys() - as_published == {"adapt", "mutate", "zero_shot"}
    assert f'load_model("{DEFAULT_MODEL}")' in (ROOT / "README.md").read_text()


def test_notebooks_are_clean_and_agree_with_the_package(tmp_path):
    "Export and clean a copy, modules made from nothing: whatever then differs was edited by hand or not exported."
    for name in ("settings.ini", "setup.py", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    shutil.copytree(
        ROOT / "nbs", tmp_path / "nbs", ignore=shutil.ignore_patterns(".ipynb_checkpoints")
    )
    before = {
        p.relative_to(ROOT).as_posix(): p.read_bytes()
        for p in [ROOT / "pyproject.toml", *NOTEBOOKS, *(ROOT / "carp_nb").rglob("*.py")]
    }
    for command in ("nbdev_export", "nbdev_clean"):
        run(Path(sys.executable).with_name(command), cwd=tmp_path)
    after = {
        p.relative_to(tmp_path).as_posix(): p.read_bytes()
        for p in [
            tmp_path / "pyproject.toml",
            *(tmp_path / "nbs").rglob("*.ipynb"),
            *(tmp_path / "carp_nb").rglob("*.py"),
        ]
    }
    different = sorted(
        name for name in before.keys() | after.keys() if before.get(name) != after.get(name)
    )
    assert not different, (
        f"{', '.join(different)}: not clean, or not what the notebooks give; run `make sync`"
    )


def test_readme_is_made_from_index():
    run(sys.executable, "scripts/readme.py", "--check", cwd=ROOT)


def make_targets() -> set[str]:
    return set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.M))


def test_workflow_calls_the_makefile():
    "Continuous integration runs the same commands as a person, on every Python that is promised."
    workflow = yaml.safe_load((ROOT / ".github/workflows/test.yml").read_text())
    commands = [
        step["run"] for job in workflow["jobs"].values() for step in job["steps"] if "run" in step
    ]
    assert "make test" in commands
    for command in commands:
        assert re.fullmatch(r"make [a-z]+", command), command
        assert command.split()[1] in make_targets(), command
    pythons = workflow["jobs"]["test"]["strategy"]["matrix"]["python"]
    assert pythons[0] == SETTINGS["min_python"] and len(pythons) > 2
    assert all(isinstance(python, str) for python in pythons), "3.10 would be read as 3.1"


CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
# inline code, and the commands of its blocks without their comments
SAID = re.findall(r"`([^`\n]+)`", CONTRIBUTING) + [
    line.partition(" #")[0].strip()
    for block in re.findall(r"^```\n(.*?)^```", CONTRIBUTING, re.M | re.S)
    for line in block.splitlines()
]
WRITTEN_LATER = {"nbs/NAME.ipynb"}


def test_contributing_links_lead_somewhere():
    assert links(CONTRIBUTING)
    missing = [target for target in links(CONTRIBUTING) if not (ROOT / target).exists()]
    assert not missing, f"nothing is at {missing}"


def test_contributing_names_commands_that_exist():
    targets = [words.split()[1] for words in SAID if re.match(r"make \w", words)]
    assert {"check", "style", "mutants", "sync", "test"} <= set(targets) <= make_targets()
    programs = [words.split() for words in SAID if words.startswith(".venv/bin/")]
    assert programs
    for program, *given in programs:
        assert Path(sys.executable).with_name(Path(program).name).exists(), program
        for script in (word for word in given if word.startswith("scripts/")):
            options = {word for word in given if word.startswith("--")}
            assert all(f'"{option}"' in (ROOT / script).read_text() for option in options), given


def test_contributing_names_files_and_names_that_exist():
    words = {word for said in SAID for word in said.split()} - WRITTEN_LATER
    files = {
        word
        for word in words
        if re.fullmatch(r"[\w.-]+(/[\w.-]*)+|[\w.-]+\.(py|md|ini|toml|txt|yaml)", word)
        and not word.startswith(".venv/")
    }
    missing = sorted(word for word in files if not (ROOT / word).exists())
    assert len(files) > 20 and not missing, f"nothing is at {missing}"
    names = {word for word in words if word.startswith("carp_nb.")}
    assert len(names) > 5
    for name in names:
        _, module, attribute = name.split(".")
        tree = ast.parse(MODULES[module].read_text())
        defined = {node.name for node in tree.body if hasattr(node, "name")}
        assigned = {
            target.id
            for node in tree.body
            if isinstance(node, ast.Assign)
            for target in node.targets
            if isinstance(target, ast.Name)
        }
        assert attribute in defined | assigned, name


def test_changelog_has_this_version():
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    first, *released = re.findall(r"^## (.+)$", text, re.M)
    assert first == "Unreleased"
    assert released[0].startswith(f"{SETTINGS['version']} - ")
    assert all(re.fullmatch(r"\d+\.\d+\.\d+ - \d{4}-\d\d-\d\d", line) for line in released)


def test_kept_results_stay_small():
    "Rows and figures of a run are kept; weights that a command makes again are not."
    if not (ROOT / ".git").exists():
        pytest.skip("not a clone")
    names = subprocess.check_output(["git", "ls-files", "-z", "outputs"], cwd=ROOT, text=True)
    kept = [ROOT / name for name in names.split("\0") if (ROOT / name).is_file()]
    assert sum(path.stat().st_size for path in kept) < 25e6, "outputs/ in git is under 25 MB"


# the wheel


def build(kind: str, source: Path, out: Path) -> Path:
    "A wheel or an sdist by the hook that pip calls, without fetching anything."
    out.mkdir(exist_ok=True)
    run(
        sys.executable,
        "-c",
        f"from setuptools import build_meta; build_meta.build_{kind}({str(out)!r})",
        cwd=source,
    )
    (built,) = out.iterdir()
    return built


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    "Built from an unpacked sdist, so that both are known to hold all they need."
    place = tmp_path_factory.mktemp("wheel")
    skip = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "build", "dist", "outputs")
    shutil.copytree(ROOT, place / "source", ignore=skip)
    with tarfile.open(build("sdist", place / "source", place / "sdist")) as packed:
        assert not [name for name in packed.getnames() if "/tests/" in name], "they need a clone"
        packed.extractall(place)
    return build("wheel", place / f"{SETTINGS['lib_path']}-{SETTINGS['version']}", place / "wheel")


def test_wheel_holds_modules_and_weights(wheel):
    expected = {
        p.relative_to(ROOT).as_posix()
        for p in (ROOT / "carp_nb").rglob("*")
        if p.is_file() and p.suffix != ".pyc"
    }
    with zipfile.ZipFile(wheel) as packed:
        names = {n for n in packed.namelist() if n.startswith("carp_nb/")}
        assert {n for n in names if not n.startswith("carp_nb/project/")} == expected
        assert "carp_nb/py.typed" in expected, "type checkers would not read the annotations"
        metadata = packed.read(
            next(n for n in packed.namelist() if n.endswith(".dist-info/METADATA"))
        ).decode()
    promised = {
        line.split(": ", 1)[1]
        for line in metadata.splitlines()
        if line.startswith("Requires-Dist: ")
    }
    assert {Requirement(r).name for r in promised if "extra ==" not in r} == {
        r.name for r in requirements("requirements")
    }
    extras = {
        line.split(": ")[1] for line in metadata.splitlines() if line.startswith("Provides-Extra: ")
    }
    assert extras == {key.removesuffix("_requirements") for key in REQUIREMENT_KEYS} - {
        "requirements"
    }


def test_wheel_carries_what_the_package_reads_of_the_project(wheel):
    "Each file once in git, copied into the wheel as it is: small data, notebooks, plan, licences."
    folders = [
        ROOT / "data" / name for name in ("chains", "homologs", "paper", "scans", "sequences")
    ]
    files = [path for folder in folders for path in folder.iterdir()]
    files += [*SECTIONS, ROOT / "profiles" / "runs.toml"]
    expected = {p.relative_to(ROOT).as_posix(): p.read_bytes() for p in files if p.is_file()}
    with zipfile.ZipFile(wheel) as packed:
        under = "carp_nb/project/"
        inside = [name for name in packed.namelist() if name.startswith(under)]
        assert {name.removeprefix(under): packed.read(name) for name in inside} == expected
        assert sum(packed.getinfo(name).compress_size for name in inside) < 4e6
        (metadata,) = [n for n in packed.namelist() if n.endswith(".dist-info/METADATA")]
        words = message_from_bytes(packed.read(metadata))
        licences = {
            name.rsplit("/licenses/")[-1] for name in packed.namelist() if "/licenses/" in name
        }
    named = set(re.findall(r"[\w.-]*\d[\w.-]*|MIT", words["License-Expression"]))
    assert named == {"MIT", "CC-BY-4.0", "CC0-1.0", "Apache-2.0", "BSD-3-Clause"}
    assert {"LICENSE", "data/README.md", "carp_nb/static/3Dmol-LICENSE.txt"} <= licences
    page = words.get_payload()
    assert "# carp_nb" in page and not re.search(r"\]\((?!https?:|#)", page), "a link to no page"
    for name in ("Author", "Keywords", "Classifier", "Project-URL"):
        assert words[name], f"{name} is missing"


def test_wheel_works_outside_the_project(wheel, tmp_path):
    """Every module is imported and every shipped model loaded by name, from an empty folder;
    the wheel unpacked stands in for an installation.
    """
    installed, empty = tmp_path / "installed", tmp_path / "empty"
    empty.mkdir()
    with zipfile.ZipFile(wheel) as packed:
        packed.extractall(installed)
    modules = [
        f"carp_nb.{p.stem}" for p in installed.glob("carp_nb/*.py") if not p.stem.startswith("_")
    ]
    models = [p.stem for p in installed.glob("carp_nb/weights/*.safetensors")]
    assert modules
    code = (
        f"import sys, importlib; sys.path.insert(0, {str(installed)!r})\n"
        f"for m in {modules!r}: print(importlib.import_module(m).__file__)\n"
        f"for m in {models!r}: sys.modules['carp_nb.pretrained'].load_model(m, device='cpu')"
    )
    environment = {k: v for k, v in os.environ.items() if not k.startswith("CARP_NB_")} | {
        "HOME": str(empty),
        "XDG_CACHE_HOME": str(empty),
        "MPLCONFIGDIR": matplotlib.get_cachedir(),
    }  # its list of fonts takes long to make again
    files = run(sys.executable, "-c", code, cwd=empty, env=environment).split()
    assert files and all(f.startswith(str(installed)) for f in files)


def readme_snippets() -> list[str]:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    return re.findall(r"^```python\n(.*?)^```", text, re.M | re.S)


def test_wheel_serves_the_readme_in_an_empty_folder(wheel, tmp_path):
    """What a new user tries first, without a clone: the snippets, the map, a scan by its name and a
    notebook's `Run`, whose folder is made where the user works. One process, which imports torch once.
    """
    installed, empty = tmp_path / "installed", tmp_path / "empty"
    empty.mkdir()
    with zipfile.ZipFile(wheel) as packed:
        packed.extractall(installed)
    code = "\n".join(
        [
            *readme_snippets(),
            "from carp_nb import list_datasets",
            "from carp_nb.widget import explore",
            "from carp_nb.results import Run, copy_notebooks, notebook_parameters",
            "from carp_nb.workflow import read_plan",
            "sets = list_datasets()",
            "assert sets.loc[['abeta42', 'tdp43', 'sprot_train_sample', 'pdb_chains_sample']].here.all()",
            "copies = copy_notebooks(Path('.'))",
            "for section in [copy.stem for copy in copies]:",
            "    given = {k: p.default for k, p in notebook_parameters(section).items()}",
            "    run = Run.start(section, given)",
            "    assert run.folder.resolve().is_relative_to(Path('outputs').resolve()), run.folder",
            "    assert run.record['commit'] == 'no git'",
            "assert read_plan('smoke')",
            "explore('MKTAYIAKQR')",
            "from carp_nb.cli import app",
            "app(['score', 'abeta42', '--mutants', 'D1A', '-o', 'scores.csv'])",
        ]
    )
    environment = {k: v for k, v in os.environ.items() if not k.startswith("CARP_NB_")} | {
        "HOME": str(empty),
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
        "MPLCONFIGDIR": matplotlib.get_cachedir(),
        "MPLBACKEND": "agg",
        "PYTHONPATH": str(installed),
    }
    environment.pop("IN_TEST", None)
    run(sys.executable, "-c", "from pathlib import Path\n" + code, cwd=empty, env=environment)
    assert {p.name for p in empty.iterdir()} == {"nbs", "outputs", "scores.csv"}
    assert "D1A" in (empty / "scores.csv").read_text()
