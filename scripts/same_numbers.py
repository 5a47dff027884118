"""The numbers of one commit against those of another: what a refactoring has to leave as it is.

    python scripts/same_numbers.py BASE                        # the commit BASE against HEAD
    python scripts/same_numbers.py BASE --here                 # BASE against the working tree
    python scripts/same_numbers.py BASE --only zero_shot,map   # some of the probes
    python scripts/same_numbers.py HEAD                        # HEAD twice: is it deterministic?

Both are checked out into a temporary folder and asked by the same probes, each in a process of its
own, on one thread. What they find goes to outputs/same_numbers/COMMIT.json, and what is there for a
commit is not computed again (--fresh does). The exit status is 1 where anything differs.
"""

import argparse
import csv
import hashlib
import itertools
import json
import os
import platform
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from importlib import import_module
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pandas as pd

ROOT = Path(__file__).resolve().parent.parent
KEPT = ROOT / "outputs" / "same_numbers"
VERSION = 1  # raise it when a probe asks something else: what was kept before is then not used

# What a probe takes out of the package, as "module:name". The first that can be imported is
# taken, so that something which moves only needs its new place put before the old one.
DOORS = {
    "app": ["carp_nb.cli:app"],
    "load_model": ["carp_nb.pretrained:load_model"],
    "save_checkpoint": ["carp_nb.layouts:save_checkpoint", "carp_nb.pretrained:save_checkpoint"],
    "load_dataset": ["carp_nb.datasets:load_dataset"],
    "read_fasta": ["carp_nb.datasets:read_fasta"],
    "score_mutants": ["carp_nb.scoring:score_mutants"],
    "mutation_scan": ["carp_nb.scoring:mutation_scan"],
    "PROTEIN": ["carp_nb.alphabet:PROTEIN"],
    "CARP": ["carp_nb.carp:CARP"],
    "TABLE_S1": ["carp_nb.carp:TABLE_S1"],
    "ESM": ["carp_nb.esm:ESM"],
    "TABLE_S2": ["carp_nb.esm:TABLE_S2"],
    "corrupt": ["carp_nb.mlm:corrupt"],
    "mlm_loss": ["carp_nb.mlm:mlm_loss"],
    "evaluate": ["carp_nb.mlm:evaluate"],
    "explore": ["carp_nb.explorer:explore", "carp_nb.widget:explore"],
    "MutationMap": ["carp_nb.widget:MutationMap"],
}

# What a probe reads of the scan that `load_dataset` gives; here too the first that is there.
SCAN = {"wild_type": ["wild_type"], "offset": ["offset"], "table": ["table"]}

SHIPPED_MODEL = "carp_600k_sprot50"

# The runs of the section notebooks: run, notebook, parameters. {runs} is the folder of all runs.
# A section notebook that is not named here runs too, with no parameters of its own. `scaling` has
# few and short lengths, because all of its numbers are measured and nothing but its rows compared.
SECTIONS = [
    ("pretrain", "pretrain", {"model": "carp_4k"}),
    ("pretrain_esm", "pretrain", {"model": "esm_4_9k"}),
    ("pretraining_loss", "pretraining_loss", {"runs_dir": "{runs}"}),
    ("zero_shot", "zero_shot", {}),
    ("flip", "flip", {}),
    ("in_domain", "in_domain", {}),
    ("structure", "structure", {}),
    ("scaling", "scaling", {"lengths": "64,128,256", "repeats": "1"}),
    ("checkpoints", "checkpoints", {}),
    ("finetune", "finetune", {}),
    ("mutate", "mutate", {}),
    ("report", "report", {"outputs": "{runs}"}),
]
COMMON = {"budget": "smoke", "device": "cpu", "dtype": "float32"}

# Rows are known by these columns, and these are their values. The others, commit and device, say
# where a number was computed.
ROW_KEYS = ["section", "task", "split", "model", "method", "seed", "metric"]
ROW_VALUES = ["value", "lo", "hi", "n", "budget", "dtype", "weights_sha", "data_sha"]

# The hash of a file that was written just now says nothing: safetensors writes the header of a file
# in an order that changes from run to run. Its tensors are compared one by one.
NEW_FILES = {"pretrain"}

# Read off the clock, or off the memory that a process holds: of these rows only the names count.
# `n` goes with them, because a length that runs out of memory is not repeated.
MEASURED_METRICS = re.compile(r"seconds|memory|exponent")
# Likewise tables, by section and file: None leaves out all of it, an expression the rows whose
# first cell it fits. The report repeats the exponents of `scaling` (Figure 1f) among other numbers.
MEASURED_TABLES = {
    ("scaling", "cost.csv"): None,
    ("scaling", "exponents.csv"): None,
    ("scaling", "claims.csv"): None,
    ("report", "figures.csv"): re.compile("1f"),
    # Positions of the map that are computed together depend on the clock, and the last digits on
    # them. The probe `map` takes the same numbers under a steady clock.
    ("mutate", f"abeta42-{SHIPPED_MODEL}.csv"): None,
}

SCANS = ["abeta42", "gb1_olson_sample", "tdp43"]
SEQUENCES = [
    "MKTAYIAKQRQISFVKSHFSRQLEERLGLIEVQAPILSRVGDGTQDNLSG",
    "GAVLI",
    "MK#AYIA##R",
    "#",
    "XBUZOMKT",
]


# Small tools


def place_of(role: str) -> tuple[str, str]:
    "Module and name that play a role in the package as it is here. Raises LookupError without."
    for place in DOORS[role]:
        module, name = place.split(":")
        try:
            getattr(import_module(module), name)
        except (ImportError, AttributeError):
            continue
        return module, name
    raise LookupError(f"nothing plays {role}: {', '.join(DOORS[role])}; add its new place to DOORS")


def door(role: str):
    "What plays a role in the package as it is here. Raises LookupError where nothing does."
    module, name = place_of(role)
    return getattr(import_module(module), name)


def part(scan, role: str):
    "A part of a scan, under whichever name it has here."
    for name in SCAN[role]:
        if hasattr(scan, name):
            return getattr(scan, name)
    raise LookupError(f"a scan has none of {', '.join(SCAN[role])}; add the new name to SCAN")


def exact(value) -> str:
    "A value with all its digits; everything that is missing is written alike."
    if pd.isna(value):
        return "nan"
    if isinstance(value, (float, np.floating)):
        return repr(float(value))
    return str(value)


def digest(values: list[str] | np.ndarray) -> dict:
    "Many numbers in few words: how many, their hash, and five of them to look at."
    if isinstance(values, np.ndarray):
        raw = np.ascontiguousarray(values).tobytes() + f"{values.dtype}{values.shape}".encode()
        values = values.ravel()
    else:
        raw = "\n".join(values).encode()
    some = np.unique(np.linspace(0, max(0, len(values) - 1), 5).astype(int)) if len(values) else []
    shown = [exact(values[i]) for i in some]
    return {"n": len(values), "sha256": hashlib.sha256(raw).hexdigest(), "some": shown}


def tensors_digest(file: Path) -> dict:
    "The tensors of a safetensors file; what else it says, such as the commit, is not a number."
    from safetensors.numpy import load_file

    tensors = load_file(file)
    return {name: digest(tensors[name]) for name in sorted(tensors)}


def count(found) -> int:
    "How many numbers an answer stands for."
    if not isinstance(found, dict):
        return len(list(numbers_in([str(found)])))
    if "sha256" in found:  # a digest, perhaps with more beside it
        beside = {name: found[name] for name in found if name not in ("n", "sha256", "some")}
        return found["n"] + count(beside)
    return sum(count(value) for value in found.values())


def called(words: list[str], **options) -> None:
    "Run a command to its end. Raises RuntimeError with the last of what it said."
    done = subprocess.run(words, text=True, capture_output=True, **options)
    if done.returncode:
        raise RuntimeError(f"{' '.join(words)}\n{(done.stdout + done.stderr)[-3000:]}")


def carp_nb(*words: str) -> list[str]:
    "The command line of the package."
    module, name = place_of("app")
    return [sys.executable, "-c", f"from {module} import {name}; {name}()", *words]


def write_fasta(file: Path, set_name: str, most: int, shorter: int) -> Path:
    "The first records of a shipped set that are shorter than that."
    source = f"data/sequences/{set_name}.fasta.gz"
    records = [r for r in door("read_fasta")(source) if len(r[1]) < shorter]
    file.write_text("".join(f">{name}\n{residues}\n" for name, residues in records[:most]))
    return file


# Probes: each takes an empty folder and gives what it found, names down to strings


def zero_shot(folder: Path) -> dict:
    "Every mutant of the shipped scans, by two methods."
    from scipy.stats import spearmanr

    model, found = door("load_model")(SHIPPED_MODEL, "cpu"), {}
    for name in SCANS:
        scan = door("load_dataset")(name)
        table = part(scan, "table")
        wild_type, offset = part(scan, "wild_type"), part(scan, "offset")
        for method in ("masked", "wild-type"):
            mutants = table.mutant.tolist()
            scores = door("score_mutants")(model, wild_type, mutants, offset, method=method)
            scores = np.asarray(scores, np.float64)
            rho = spearmanr(scores, table.score, nan_policy="omit").statistic
            found[f"{name}, {method}"] = {**digest(scores), "spearman": exact(float(rho))}
        singles = door("mutation_scan")(model, wild_type, None, offset)
        found[f"{name}, every substitution"] = digest(singles.to_numpy())
    return found


def ridge(folder: Path) -> dict:
    "Ridge on all rows of every split of GB1: the sample that ships, and the official one if here."
    landscapes = ["gb1_olson_sample"]
    if (Path(os.environ.get("CARP_NB_DATA", "data")) / "flip" / "gb1").exists():
        landscapes.append("flip_gb1")
    found = {}
    for landscape in landscapes:
        given = {**COMMON, "budget": "laptop", "landscape": landscape, "methods": "ridge"}
        found[landscape] = notebook_run("flip", folder / landscape, given)
    return found


def sections(folder: Path) -> dict:
    "The smallest run of every section notebook: rows, tables, weights."
    found = {}
    for run, notebook, parameters in planned_sections():
        given = {name: value.format(runs=folder) for name, value in parameters.items()}
        found[run] = notebook_run(notebook, folder / run, {**common_parameters(notebook), **given})
    return found


def planned_sections() -> list[tuple[str, str, dict]]:
    "SECTIONS, and before the report whatever section notebook it does not know."
    there = [file.stem for file in sorted(Path("nbs").glob("*.ipynb")) if parameters_cell(file)]
    known = {notebook for _, notebook, _ in SECTIONS}
    plan = [entry for entry in SECTIONS if entry[1] in there]
    return [(name, name, {}) for name in there if name not in known] + plan


def parameters_cell(file: Path) -> str:
    "Return the source of the cell that papermill puts parameters behind; empty if there is none."
    cells = json.loads(file.read_text(encoding="utf-8"))["cells"]
    tagged = [cell for cell in cells if "parameters" in cell["metadata"].get("tags", [])]
    return "".join(tagged[0]["source"]) if tagged else ""


def common_parameters(notebook: str) -> dict:
    "Return those of COMMON that a notebook has."
    declared = parameters_cell(Path(f"nbs/{notebook}.ipynb"))
    return {name: value for name, value in COMMON.items() if f"\n{name}:" in f"\n{declared}"}


def notebook_run(notebook: str, folder: Path, parameters: dict) -> dict:
    "Run a section notebook; its rows, the numbers of its tables, the weights that it left."
    folder.mkdir(parents=True)
    executed = folder.with_suffix(".ipynb")
    words = [sys.executable, "-m", "papermill", "--no-progress-bar", f"nbs/{notebook}.ipynb"]
    words.append(str(executed))
    for name, value in {**parameters, "output_dir": str(folder)}.items():
        words += ["-p", name, value]
    called(words)
    rows = folder / "results.parquet"
    tables, weights = sorted(folder.rglob("*.csv")), sorted(folder.rglob("*.safetensors"))
    return {
        "rows": row_values(pd.read_parquet(rows)) if rows.exists() else {},
        "tables": {str(f.relative_to(folder)): table_numbers(notebook, f) for f in tables},
        "weights": {str(f.relative_to(folder)): tensors_digest(f) for f in weights},
    }


def row_values(rows: pd.DataFrame) -> dict:
    "Result rows by what they are of; those that are alike in it are numbered."
    found = {}
    for row in rows.to_dict("records"):
        name = ", ".join(exact(row[key]) for key in ROW_KEYS)
        same = sum(known.partition(" #")[0] == name for known in found)
        values = {key: exact(row[key]) for key in ROW_VALUES}
        if row["section"] in NEW_FILES:
            del values["weights_sha"]
        if MEASURED_METRICS.search(str(row["metric"])):
            values = "measured"
        found[f"{name} #{same}"] = values
    return found


def table_numbers(notebook: str, file: Path) -> dict | str:
    "The cells of a csv that are numbers, row by row; words and headings may be put otherwise."
    measured = MEASURED_TABLES.get((notebook, file.name), False)
    if measured is None:
        return "measured"
    with open(file, newline="", encoding="utf-8") as opened:
        rows = list(csv.reader(opened))[1:]
    if measured:
        rows = [row for row in rows if not measured.match(row[0])]
    return digest([number for row in rows for number in numbers_in(row)])


def numbers_in(cells: list[str]) -> Iterator[str]:
    "The cells that are numbers, in one spelling."
    for cell in cells:
        try:
            yield repr(float(cell))
        except ValueError:
            continue


def resume(folder: Path) -> dict:
    "A short pretraining, killed after a checkpoint and gone on with."
    train = write_fasta(folder / "train.fasta", "sprot_train_sample", 120, 300)
    valid = write_fasta(folder / "valid.fasta", "sprot_heldout_sample", 6, 200)
    run = folder / "run"
    given = {"size": "carp_4k", "train": train, "valid": valid, "tokens": 200_000}
    given |= {"batch-tokens": 1024, "max-length": 128, "lr": 0.01, "cooldown": 0.2, "seed": 3}
    given |= {"name": "small", "dtype": "float32", "device": "cpu"}
    words = carp_nb("pretrain", str(run), *(f"--{k}={v}" for k, v in given.items()))
    kill_after_checkpoint(words, run)
    if (run / "small.safetensors").exists():
        raise RuntimeError("the run was finished before it could be killed")
    called(words)
    held_out = pd.read_parquet(run / "held_out.parquet")
    losses = {exact(row["step"]): exact(row["loss"]) for row in held_out.to_dict("records")}
    return {"weights": tensors_digest(run / "small.safetensors"), "held-out loss": losses}


def kill_after_checkpoint(words: list[str], run: Path) -> None:
    "Begin a run and end it without warning once it has a checkpoint of 16 updates or more."
    with subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as child:
        while child.poll() is None:
            steps = [int(re.sub(r"\D", "", f.stem)) for f in (run / "checkpoints").glob("*.pt")]
            if max(steps, default=0) >= 16:
                return child.send_signal(signal.SIGKILL)
            time.sleep(0.01)
    raise RuntimeError("the run ended before it could be killed")


def parity(folder: Path) -> dict:
    "Logits of our models and of the released code with the same weights, all of them random."
    import torch

    with torch.no_grad():
        found = {name: carp_parity(name, folder) for name in ("carp_4k", "carp_40k")}
        found["esm_41k"] = table_s2_parity("esm_41k")
        for name, norm_before in [("fair-esm, norm before", True), ("fair-esm", False)]:
            found[name] = fair_esm_parity(norm_before, folder)
    return found | {"masked language modelling": learning()}


def perturbed(model):
    """A model whose weights are all drawn anew, in the order of their names, so that the order in
    which the model makes its layers does not matter: gains around one, biases around zero."""
    import torch

    generator, state = torch.Generator().manual_seed(0), model.state_dict()
    with torch.no_grad():
        for name in sorted(state):
            weight = state[name]
            if not weight.is_floating_point():
                continue
            spread = weight[0].numel() ** -0.5 if weight.ndim > 1 else 0.1
            mean = 1.0 if weight.ndim == 1 and name.endswith("weight") else 0.0
            weight.copy_(mean + spread * torch.randn(weight.shape, generator=generator))
    return model.eval()


def beside(ours, theirs) -> dict:
    "Logits of both, and how far apart they are."
    apart = float((ours.double() - theirs.double()).abs().max())
    return {"ours": digest(ours.numpy()), "theirs": digest(theirs.numpy()), "apart": exact(apart)}


def some_tokens(lengths: list[int]):
    "Right-padded rows of random tokens, each with a mask in its middle."
    import torch

    alphabet, generator = door("PROTEIN"), torch.Generator().manual_seed(1)
    rows = [torch.randint(30, (length,), generator=generator) for length in lengths]
    for row in rows:
        row[row == alphabet.pad_idx] = 0
        row[len(row) // 2] = alphabet.mask_idx
    return torch.nn.utils.rnn.pad_sequence(rows, True, alphabet.pad_idx)


def carp_parity(name: str, folder: Path) -> dict:
    "A size of Table S1, through a file that both read."
    from sequence_models.pretrained import load_model_and_alphabet

    model = perturbed(door("CARP")(door("TABLE_S1")[name], name))
    file = door("save_checkpoint")(model, folder / f"{name}.pt")
    reference, _ = load_model_and_alphabet(str(file))
    tokens, found = some_tokens([200, 12, 40]), {}
    theirs = reference(tokens, logits=True)["logits"]
    inside = tokens != door("PROTEIN").pad_idx
    found["float32"] = beside(model(tokens)[inside], theirs[inside])
    found["read again"] = digest(door("load_model")(file, "cpu")(tokens)[inside].numpy())
    theirs = reference.double()(tokens, logits=True)["logits"]
    return found | {"float64": beside(model.double()(tokens)[inside], theirs[inside])}


def table_s2_parity(name: str) -> dict:
    "A size of Table S2 against the Transformer that the authors of CARP published."
    import torch
    from sequence_models.esm import ESM1b

    config, found = door("TABLE_S2")[name], {}
    theirs = ESM1b(config.d_model, config.d_mlp, config.n_layers, config.n_heads)
    state = perturbed(theirs).state_dict()
    ours = door("ESM")(config).eval()
    ours.load_state_dict({k: v for k, v in state.items() if k != "lm_head.weight"})
    tokens, mask = door("PROTEIN").batch(SEQUENCES, allow_mask=True)
    for dtype in (torch.float32, torch.float64):
        logits = ours.to(dtype)(tokens, mask)[mask]
        found[str(dtype)] = beside(logits, theirs.to(dtype)(tokens)[mask])
    return found


def fair_esm_parity(norm_before: bool, folder: Path) -> dict:
    "A small model of fair-esm, through the file that would publish it."
    import esm
    import torch
    from esm.model.esm1 import ProteinBertModel

    shape = {"layers": 3, "embed_dim": 32, "ffn_embed_dim": 48, "attention_heads": 4}
    words = {"arch": "roberta_large", "max_positions": 60, "token_dropout": True}
    alphabet = esm.Alphabet.from_architecture("roberta_large")
    given = argparse.Namespace(**shape, **words, emb_layer_norm_before=norm_before)
    theirs = perturbed(ProteinBertModel(given, alphabet))
    theirs.embed_tokens.weight[alphabet.mask_idx] = 0  # as fair-esm does when it reads a file
    args = {**{f"encoder_{key}": value for key, value in shape.items()}, **words}
    stored = {"args": argparse.Namespace(**args), "model": published_names(theirs.state_dict())}
    file = folder / f"esm1v_{norm_before}.pt"
    torch.save(stored, file)
    named = [("", sequence.replace("#", "<mask>")) for sequence in SEQUENCES]
    tokens = alphabet.get_batch_converter()(named)[2]
    inside = tokens != alphabet.padding_idx
    logits = door("load_model")(file, "cpu")(tokens)[inside]
    return beside(logits, theirs(tokens)["logits"][inside])


def published_names(state: dict) -> dict:
    "The weights of a fair-esm model under the names that its published files have."
    named = {}
    for key, value in state.items():
        if key.startswith("contact_head"):
            continue
        place = "encoder." if key.startswith("lm_head") else "encoder.sentence_encoder."
        named[place + key] = value
    return named


def learning() -> dict:
    "What masked language modelling asks, its loss and gradient, and a held-out loss."
    import torch

    model = perturbed(door("CARP")(door("TABLE_S1")["carp_40k"], "carp_40k"))
    tokens = some_tokens([200, 12, 40])
    mask = tokens != door("PROTEIN").pad_idx
    corrupted, selected = door("corrupt")(tokens, mask, torch.Generator().manual_seed(2))
    with torch.enable_grad():
        loss = door("mlm_loss")(model(corrupted, mask), tokens, selected)
        loss.backward()
    gradients = {name: p.grad for name, p in sorted(model.named_parameters())}
    sequences = [s for s in SEQUENCES if "#" not in s]
    return {
        "corrupted": digest(corrupted.numpy()),
        "loss": exact(loss.item()),
        "gradient": {name: digest(g.numpy()) for name, g in gradients.items() if g is not None},
        "held-out loss": exact(float(door("evaluate")(model, sequences).loss)),
    }


def embed(folder: Path) -> dict:
    "Representations of ten sequences, by the command line."
    source = write_fasta(folder / "ten.fasta", "sprot_heldout_sample", 10, 400)
    found = {}
    for per in ("sequence", "residue"):
        file = folder / f"{per}.safetensors"
        given = [f"--model={SHIPPED_MODEL}", f"--per={per}", "--dtype=float32", "--device=cpu"]
        called(carp_nb("embed", str(source), str(file), *given))
        found[f"per {per}"] = tensors_digest(file)
    return found


# The map: what the browser sends, as nbs/mutate.ipynb's view does when it is clicked on
CLICKS = [
    ("toggle", [3, "W"]),
    ("toggle", [21, "C"]),
    ("toggle", [30, "K"]),
    ("undo", []),
    ("redo", []),
    ("toggle", [30, "K"]),
    ("add", ["G33D"]),
    ("freeze", ["5-8, 21"]),
    ("toggle", [21, "D"]),
    ("allow", ["ACDEFGHIKLMNPQRSTVW"]),
    ("given", ["mutant"]),
]


def mutation_map(folder: Path) -> dict:
    "What a map says after its scan and some clicks, and the files that it hands over."
    steady_clock()
    explorer = door("explore")("abeta42", SHIPPED_MODEL, device="cpu", dtype="float32")
    view = watched(door("MutationMap"))(explorer, device="cpu", dtype="float32")
    clicks = [{"do": word, "with": arguments} for word, arguments in [("hello", []), *CLICKS]]
    settled(view)
    for message in clicks:
        view._handle_custom_msg(message, [])
        settled(view)  # what is computed together would else depend on the moment of the click
    for kind in ("csv", "fasta", "state"):
        view._handle_custom_msg({"do": "export", "with": [kind]}, [])
    return map_messages(view.kept)


def steady_clock() -> None:
    """Let every piece of work take the same time. The map computes as many positions together as
    fit into a quarter of a second, and the last digits depend on how many those are."""
    ticks = itertools.count(0.0, 0.001)
    time.perf_counter = lambda: next(ticks)


def watched(view: type) -> type:
    "The same view, whose messages are kept; the first come before it is ready."

    class Watched(view):
        def send(self, content, buffers=None):
            kept = self.__dict__.setdefault("kept", [])
            kept.append((content, [bytes(b) for b in buffers or []]))

    return Watched


def settled(view) -> None:
    "Wait until the view has said that it computes no more. Raises RuntimeError after two minutes."
    until = time.monotonic() + 120
    while time.monotonic() < until:
        kept = getattr(view, "kept", [])
        states = [content for content, _ in kept if content["kind"] == "now"]
        if states and not states[-1]["busy"]:
            return
        time.sleep(0.05)
    raise RuntimeError("the map was not full after two minutes")


def map_messages(kept: list) -> dict:
    "Out of the messages of a view: its last state, all rows of the map, files, refusals."
    rows, found = {}, {"files": {}, "refused": 0}
    for content, buffers in kept:
        kind = content["kind"]
        if kind == "now":
            found["state"] = plain(content)
            positions = np.frombuffer(buffers[0], np.int32).tolist()
            values = np.frombuffer(buffers[1], np.float32)
            rows.update(zip(positions, np.split(values, len(positions) or 1)))
        elif kind == "protein":
            found["measured"] = digest(np.frombuffer(buffers[0], np.float32))
        elif kind == "file":
            found["files"][content["name"]] = file_content(content["name"], buffers[0].decode())
        elif kind == "error":
            found["refused"] += 1
    found["rows"] = {str(i): digest(rows[i]) for i in sorted(rows)}
    return found


def file_content(name: str, text: str) -> dict | str:
    "The numbers of a csv; any other file as it is."
    if not name.endswith(".csv"):
        return text
    lines = list(csv.reader(text.splitlines()))[1:]
    return digest([number for line in lines for number in numbers_in(line)])


def plain(value):
    "Anything that JSON could hold, with strings for its numbers."
    if isinstance(value, dict):
        return {str(name): plain(inner) for name, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return {str(i): plain(inner) for i, inner in enumerate(value)}
    return "none" if value is None else exact(value)


PROBES = {
    "sections": sections,
    "ridge": ridge,
    "zero_shot": zero_shot,
    "resume": resume,
    "map": mutation_map,
    "embed": embed,
    "parity": parity,
}


def answer(probe: str, into: Path) -> None:
    "Run one probe on the tree that is the working folder, and write what it found."
    import torch

    import carp_nb as package

    if not Path(package.__file__).is_relative_to(Path.cwd()):
        raise RuntimeError(f"carp_nb was imported from {package.__file__}, not from {Path.cwd()}")
    torch.set_num_threads(1)
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        found = PROBES[probe](Path(folder).resolve())
    seconds = round(time.monotonic() - began, 1)
    into.write_text(json.dumps({"seconds": seconds, "numbers": count(found), "found": found}))


# Trees, runs and the comparison


def git(*words: str, cwd: Path = ROOT) -> str:
    "What git answers."
    done = subprocess.run(["git", *words], cwd=cwd, text=True, capture_output=True)
    if done.returncode:
        sys.exit(f"git {' '.join(words)}: {done.stderr.strip()}")
    return done.stdout.strip()


def check_out(commit: str, tree: Path, here: bool) -> None:
    "A worktree of a commit; with `here`, of what the working tree has made of it."
    git("worktree", "add", "--detach", str(tree), commit)
    if not here:
        return
    changed = git("diff", "--name-only", "--no-renames", "-z", "HEAD").split("\0")
    new = git("ls-files", "--others", "--exclude-standard", "-z").split("\0")
    for name in filter(None, [*changed, *new]):
        source, copy = ROOT / name, tree / name
        if source.exists():
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(source.read_bytes())
        else:
            copy.unlink(missing_ok=True)


def ask(tree: Path, probe: str, into: Path) -> dict:
    "One probe on one tree, in a process of its own."
    threads = {f"{name}_NUM_THREADS": "1" for name in ("OMP", "MKL", "OPENBLAS")}
    given = {**os.environ, **threads, "PYTHONPATH": str(tree), "PYTHONHASHSEED": "0"}
    given.pop("IN_TEST", None)  # notebooks take it for nbdev_test, and another output folder
    words = [sys.executable, __file__, "--probe", probe, "--into", str(into)]
    done = subprocess.run(words, cwd=tree, env=given, text=True, stderr=subprocess.PIPE)
    if done.returncode:
        return {"seconds": 0, "numbers": 0, "failed": done.stderr[-4000:]}
    return json.loads(into.read_text())


def circumstances() -> dict:
    "What numbers depend on besides the code: kept ones hold only where it is the same."
    libraries = {name: version(name) for name in ("torch", "numpy", "scipy", "scikit-learn")}
    machine = {"machine": platform.machine(), "processor": processor(), "threads": 1}
    data = "with" if os.environ.get("CARP_NB_DATA") else "without"
    return {"probes": VERSION, "data": f"{data} CARP_NB_DATA", **machine, **libraries}


def processor() -> str:
    "The name of the processor, as far as the system tells."
    try:
        found = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
    except OSError:
        found = None
    return found[1] if found else platform.processor()


def read_kept(file: Path) -> dict:
    "Probes by name, of a file that was written under the same circumstances; else none."
    if not file.exists():
        return {}
    known = json.loads(file.read_text())
    return known["probes"] if known["about"] == circumstances() else {}


def write_kept(file: Path, probes: dict) -> None:
    "Keep what succeeded."
    done = {name: found for name, found in sorted(probes.items()) if "failed" not in found}
    file.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"about": circumstances(), "probes": done}, indent=1, sort_keys=True)
    file.write_text(text + "\n")


def sides(options: argparse.Namespace) -> list[dict]:
    "What is compared: the commit, its file, what is known of it."
    base = git("rev-parse", "--verify", f"{options.base}^{{commit}}")
    head = git("rev-parse", "HEAD")
    # A commit against itself, and the working tree, are computed anew.
    name = "here" if options.here else f"{head[:12]}-again" if head == base else head[:12]
    both = [
        {"name": base[:12], "commit": base, "here": False, "fresh": options.fresh},
        {"name": name, "commit": head, "here": options.here},
    ]
    both[1]["fresh"] = options.fresh or name != head[:12]
    for side in both:
        side["file"] = KEPT / f"{side['name']}.json"
        side["probes"] = {} if side["fresh"] else read_kept(side["file"])
    return both


def compute(both: list[dict], wanted: list[str], jobs: int, place: Path) -> None:
    "Run the probes that are not known, on trees that are made for them."
    waiting = {}
    with ThreadPoolExecutor(jobs) as pool:
        for side in both:
            missing = [probe for probe in wanted if probe not in side["probes"]]
            side["tree"] = place / side["name"] if missing else None
            if missing:
                check_out(side["commit"], side["tree"], side["here"])
            for probe in missing:
                into = place / f"{side['name']}-{probe}.json"
                waiting[pool.submit(ask, side["tree"], probe, into)] = side, probe
        for done in as_completed(waiting):
            side, probe = waiting[done]
            side["probes"][probe] = done.result()
            write_kept(side["file"], side["probes"])
            seconds = side["probes"][probe]["seconds"]
            print(f"  {side['name']} {probe}: {seconds} s", file=sys.stderr, flush=True)


def leaves(found, path: str = "") -> Iterator[tuple[str, str]]:
    "Every string of an answer, with the way to it."
    if isinstance(found, dict):
        for name, inner in found.items():
            yield from leaves(inner, f"{path} / {name}" if path else name)
    elif isinstance(found, list):
        for i, inner in enumerate(found):
            yield from leaves(inner, f"{path}[{i}]")
    else:
        yield path, str(found)


def compare(probe: str, both: list[dict], most: int = 8) -> bool:
    "Print how an answer compares; is it the same?"
    answers = [side["probes"][probe] for side in both]
    for side, given in zip(both, answers, strict=True):
        if "failed" in given:
            print(f"{probe}: failed on {side['name']}\n{given['failed']}")
            return False
    before, after = (dict(leaves(given["found"])) for given in answers)
    paths = list(dict.fromkeys([*before, *after]))
    different = [path for path in paths if before.get(path) != after.get(path)]
    numbers, of = answers[0]["numbers"], len(answers[0]["found"])
    if not different:
        print(f"{probe}: equal ({of} parts, {numbers:,} numbers)")
        return True
    print(f"{probe}: DIFFERENT in {len(different):,} of {len(paths):,} places")
    for path in different[:most]:
        print(f"  {path}\n    {before.get(path, 'absent')}\n    {after.get(path, 'absent')}")
    return False


def read_options() -> argparse.Namespace:
    "The command line."
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("base", nargs="?", default="HEAD", help="commit to compare with")
    parser.add_argument("--here", action="store_true", help="the working tree instead of HEAD")
    parser.add_argument("--only", default=",".join(PROBES), help="probes, separated by commas")
    parser.add_argument("--jobs", type=int, default=1, help="probes at the same time")
    parser.add_argument("--fresh", action="store_true", help="compute what is kept once more")
    parser.add_argument("--probe", choices=PROBES, help=argparse.SUPPRESS)
    parser.add_argument("--into", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.only = [probe.strip() for probe in options.only.split(",")]
    if unknown := [probe for probe in options.only if probe not in PROBES]:
        parser.error(f"there is no probe {unknown[0]!r}; there are {', '.join(PROBES)}")
    return options


def main() -> None:
    "One probe on one tree, or all of them on both and the comparison."
    options = read_options()
    if options.probe:
        return answer(options.probe, options.into)
    both = sides(options)
    with tempfile.TemporaryDirectory() as place:
        try:
            compute(both, options.only, options.jobs, Path(place).resolve())
        finally:
            for side in both:
                if side.get("tree") and side["tree"].exists():
                    git("worktree", "remove", "--force", str(side["tree"]))
    same = [compare(probe, both) for probe in options.only]
    for side in both:
        seconds = sum(side["probes"][probe]["seconds"] for probe in options.only)
        print(f"{side['name']}: {seconds:.0f} s")
    sys.exit(0 if all(same) else 1)


if __name__ == "__main__":
    main()
