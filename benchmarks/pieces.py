"""A checkpoint of pretraining in pieces that travel, and back: `python -m benchmarks.pieces join FOLDER`.

The weights are kept as bf16, or as int8 with one scale per output channel. Of Adam's state, the
second moment of a matrix is kept as its means over rows and columns, whose product stands for it
(Shazeer and Stern 2018, Adafactor), and the first moment begins again at zero: it forgets within
some ten updates, so that a run goes on with nearly the steps that it would have made.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from carp_nb.carp import CARP, CARPConfig
from carp_nb.errors import CarpError
from carp_nb.files import atomic_path, file_sha256, read_record, scratch_folder, write_text
from carp_nb.layouts import save_checkpoint
from carp_nb.mlm import evaluate
from carp_nb.tensors import load_pt, read_tensors, save_tensors
from carp_nb.training import last_update

LARGEST = 16_000_000  # bytes of a piece
MANIFEST = "pieces.json"
AGAIN = "bring the folder again, or make it again from the run's own checkpoint"


# one tensor


def quantized(
    weight: Tensor,  # fp32, at least two axes, the first of output channels
) -> tuple[Tensor, Tensor]:  # int8, and fp32 scales, one per output channel
    "Round to 255 steps between the largest weight of a channel and its negative."
    rows = weight.flatten(1)
    scale = rows.abs().amax(1).clamp(min=torch.finfo(torch.float32).tiny) / 127
    return (rows / scale[:, None]).round().to(torch.int8).view_as(weight), scale


def dequantized(weight: Tensor, scale: Tensor) -> Tensor:  # fp32
    return (weight.flatten(1).float() * scale[:, None]).view_as(weight)


def factored(moment: Tensor) -> dict[str, Tensor]:  # second moment, not negative
    "Its means over rows and columns; a vector as it is."
    if moment.ndim < 2:
        return {"all": moment}
    return {"rows": moment.flatten(1).mean(1), "columns": moment.flatten(1).mean(0)}


def unfactored(parts: dict[str, Tensor], like: Tensor) -> Tensor:
    if "all" in parts:
        return parts["all"]
    # a matrix without gradients so far has no mean to divide by
    mean = parts["rows"].mean().clamp(min=torch.finfo(torch.float32).tiny)
    return torch.outer(parts["rows"], parts["columns"] / mean).view_as(like)


# a whole checkpoint


def packed(
    state: dict,  # checkpoint of `train`
    precision: str,  # bf16, int8
) -> dict[str, Tensor]:
    tensors = {}
    for name, weight in state["model"].items():
        if precision == "int8" and weight.ndim > 1:
            tensors[f"int8.{name}"], tensors[f"scale.{name}"] = quantized(weight)
        elif precision == "int8":
            # gains and biases are few
            tensors[f"model.{name}"] = weight
        else:
            tensors[f"model.{name}"] = weight.bfloat16()
    for number, moments in state["optimizer"]["state"].items():
        tensors[f"step.{number}"] = moments["step"].reshape(1)
        for part, values in factored(moments["exp_avg_sq"]).items():
            tensors[f"{part}.{number}"] = values
    return tensors


def unpacked_weights(tensors: dict[str, Tensor]) -> dict[str, Tensor]:  # fp32
    weights = {}
    for key, value in tensors.items():
        kind, _, name = key.partition(".")
        if kind == "model":
            weights[name] = value.float()
        elif kind == "int8":
            weights[name] = dequantized(value, tensors[f"scale.{name}"])
    return weights


def unpacked_moments(tensors: dict[str, Tensor], like: Sequence[Tensor]) -> dict[int, dict]:
    "The state of Adam for the parameters of a model, by their number."
    state = {}
    for number, weight in enumerate(like):
        if f"step.{number}" not in tensors:
            continue
        parts = {}
        for part in ("all", "rows", "columns"):
            if f"{part}.{number}" in tensors:
                parts[part] = tensors[f"{part}.{number}"]
        state[number] = {
            "step": tensors[f"step.{number}"].squeeze(0),
            "exp_avg": torch.zeros_like(weight),
            "exp_avg_sq": unfactored(parts, weight),
        }
    return state


def model_of(weights: dict[str, Tensor], config: CARPConfig, name: str) -> CARP:
    model = CARP(config, name)
    model.load_state_dict(weights)
    return model.eval()


# pieces


def pack(
    run: Path,  # folder of a pretraining run that has a checkpoint
    model: CARP,  # any model of the run's shape and name
    folder: Path,  # gets the pieces and pieces.json; older pieces there are deleted
    held_out: Sequence[str],  # to say what the rounding costs
    precision: str = "int8",  # or bf16
) -> dict:  # what pieces.json says
    "Write the newest checkpoint of a run in pieces of at most 16 MB."
    if precision not in ("bf16", "int8"):
        raise CarpError(f"precision is {precision!r}; use bf16 or int8.")
    step = last_update(run)
    if not step:
        raise CarpError(f"{run} has no checkpoint to pack; train first.")
    state = load_pt(run / "checkpoints" / f"{step:09d}.pt")
    tensors = packed(state, precision)
    config, device = model.config, next(model.parameters()).device
    losses = {}
    for kind, weights in {"exact": state["model"], "packed": unpacked_weights(tensors)}.items():
        tried = model_of(weights, config, model.name).to(device)
        losses[kind] = evaluate(tried, held_out, max_length=tried.max_length).loss
    metadata = {
        "model": model.name,
        "config": json.dumps(asdict(config)),
        "at": json.dumps(state["at"], default=float),
        "groups": json.dumps(state["optimizer"]["param_groups"]),
    }
    said = {"model": model.name, "precision": precision, "update": step, "loss": losses}
    said["tokens"] = state["at"]["tokens"]
    folder.mkdir(parents=True, exist_ok=True)
    with scratch_folder(folder) as scratch:
        whole = scratch / "whole.safetensors"
        save_tensors(tensors, whole, metadata)
        said |= split(whole, folder, f"{model.name}-{step:09d}")
    # the pieces first: until then the older ones are the ones that count
    write_text(folder / MANIFEST, json.dumps(said, indent=1))
    named = {piece["file"] for piece in said["pieces"]}
    for path in folder.glob("*.piece"):
        if path.name not in named:
            path.unlink()
    return said


def split(whole: Path, folder: Path, title: str, largest: int = 0) -> dict:
    "Cut a file; return its size and checksum, and those of the pieces."
    largest = largest or LARGEST
    size, pieces = whole.stat().st_size, []
    count = -(-size // largest)
    with open(whole, "rb") as file:
        for number in range(1, count + 1):
            path = folder / f"{title}-{number}of{count}.piece"
            with atomic_path(path) as temporary:
                temporary.write_bytes(file.read(largest))
            pieces.append(
                {"file": path.name, "bytes": path.stat().st_size, "sha256": file_sha256(path)}
            )
    return {"bytes": size, "sha256": file_sha256(whole), "pieces": pieces}


def read_manifest(folder: Path) -> dict:
    return read_record(folder / MANIFEST, AGAIN, "pieces", "sha256", "model", "update")


def join(folder: Path, whole: Path) -> Path:
    "Put the pieces together. Raises CarpError for one that is missing or damaged."
    said = read_manifest(folder)
    with atomic_path(whole) as temporary:
        with open(temporary, "wb") as file:
            for piece in said["pieces"]:
                # a name that is no path: what is written here stays in the folder
                path = folder / Path(piece["file"]).name
                if not path.exists():
                    raise CarpError(f"{path} is missing; {AGAIN}.")
                if file_sha256(path) != piece["sha256"]:
                    raise CarpError(f"{path} is damaged (its SHA-256 is another); {AGAIN}.")
                file.write(path.read_bytes())
        if file_sha256(temporary) != said["sha256"]:
            raise CarpError(f"{folder}: the pieces do not make the file that was cut; {AGAIN}.")
    return whole


def read_joined(whole: Path) -> tuple[CARP, dict]:
    "The model, and a checkpoint of `train` that goes on from it."
    tensors, said = read_tensors(whole)
    config = CARPConfig(**json.loads(said["config"]))
    model = model_of(unpacked_weights(tensors), config, said["model"])
    moments = unpacked_moments(tensors, list(model.parameters()))
    optimizer: dict[str, Any] = {"state": moments, "param_groups": json.loads(said["groups"])}
    for group in optimizer["param_groups"]:
        group["betas"] = tuple(group["betas"])
    at = json.loads(said["at"])
    state = {"model": model.state_dict(), "optimizer": optimizer, "at": at, "memory": {}}
    return model, state


def restore(folder: Path, run: Path) -> int:  # the update that the run is at
    "Make a run's checkpoint out of pieces, unless the run has one that is as new."
    said = read_manifest(folder)
    if last_update(run) >= said["update"]:
        return last_update(run)
    with scratch_folder(folder) as scratch:
        _, state = read_joined(join(folder, scratch / "whole.safetensors"))
    path = run / "checkpoints" / f"{said['update']:09d}.pt"
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary:
        torch.save(state, temporary)
    return cast(int, said["update"])


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.pieces", description=__doc__)
    parser.add_argument("what", choices=["join"], help="join: make a model out of its pieces")
    parser.add_argument("folder", type=Path, help="with pieces.json and the pieces")
    parser.add_argument("--output", type=Path, help="the model, .safetensors or .pt")
    given = parser.parse_args()
    try:
        said = read_manifest(given.folder)
        path = given.output or given.folder / f"{said['model']}.safetensors"
        with scratch_folder(given.folder) as scratch:
            model, _ = read_joined(join(given.folder, scratch / "whole.safetensors"))
        print(save_checkpoint(model, path))
    except (CarpError, FileNotFoundError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
