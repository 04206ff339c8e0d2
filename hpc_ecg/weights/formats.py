"""Weights written as a file of another format, and what is lost on the way.

OUT's ending decides: `.pt` the original's layout, `.safetensors` ours, `.onnx` ONNX. Tensors keep
their bits and their type (ONNX: float32). A `.pt` made of a `.pt` goes on with its cfg, which is
the file's truth; any other gets the neutral one of `original_layout.json`.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from hpc_ecg.weights import original
from hpc_ecg.weights.export import check_tensors, save_original, write_original, write_safetensors
from hpc_ecg.weights.facts import Facts
from hpc_ecg.weights.mapping import KEPT
from hpc_ecg.weights.onnx_export import check_installed, write_onnx
from hpc_ecg.weights.reading import Checkpoint, file_of

ENDINGS = (".pt", ".safetensors", ".onnx")


def check_target(target: Path, sources: Sequence[str | Path], force: bool) -> None:
    """ValueError before any work: an ending that says no format, or a file that must stay."""
    if target.suffix not in ENDINGS:
        raise ValueError(f"{target}: its ending must be one of {', '.join(ENDINGS)}")
    if target.suffix == ".onnx":
        check_installed()
    for source in sources:
        if str(source).endswith(".onnx"):
            raise ValueError(
                f"{source}: an ONNX file can be written, not read: in it weights are merged"
            )
        if target.exists() and target.samefile(file_of(Path(source))):
            raise ValueError(f"{target} is what is read; give another name for what is written")
    if target.is_dir():
        raise ValueError(f"{target} is a folder; give the name of a file")
    if target.exists() and not force:
        raise ValueError(f"{target} exists; give --force to replace it")


def write_as(
    target: Path,
    tensors: Mapping[str, Tensor],
    facts: Facts,
    source: Checkpoint | None = None,
    *,
    strip: bool = False,
    new_head: bool = False,
) -> list[str]:
    """Write `tensors` (our names); returns what to tell the user. `source`: the one file that they
    are from, if it is one. `strip` leaves tensors, sizes, labels and signal; a `new_head` has
    no use for the thresholds of the old one."""
    check_tensors(tensors, facts, str(target))
    facts = replace(facts, provenance=[]) if strip else facts
    layout = original.layout_of(tensors)
    told = []
    if target.suffix == ".safetensors":
        write_safetensors(target, tensors, facts)
    elif target.suffix == ".onnx":
        told.append(write_onnx(target, tensors, facts))
    elif source and source.kind == layout:
        names = {key: name for name, key in source.names.all.items()}
        model = {key: tensors[names[key]] for key in source.tensors}
        cfg = original.own_cfg(source.content, neutral=strip)
        if layout == "classifier":
            cfg["model"]["num_labels"] = len(tensors["head.weight"])
        content = {"args": None, "cfg": cfg, "model": model, **original.fresh_state(layout)}
        save_original(target, content, facts)
    else:
        write_original(target, tensors, facts)
    lost = _left_out(source, tensors, target.suffix, strip, new_head) if source else ()
    size = f"{target.stat().st_size:,} bytes"
    return [*told, *(f"left out: {what}" for what in lost), f"written: {target} ({size})"]


def _left_out(
    source: Checkpoint, tensors: Mapping[str, Tensor], ending: str, strip: bool, new_head: bool
) -> Iterator[str]:
    is_original = source.kind != "hpc_ecg"
    content = source.content if is_original else {}
    if original.OPTIMIZER in content:
        count = original.num_tensors(content[original.OPTIMIZER])
        yield f"the optimizer's state ({count} tensors)"
    if people := original.scores_of_people(content):
        yield f"{sum(people.values())} scores and labels of people (in {next(iter(people))} …)"
    state = content.get("extra_state")
    if isinstance(state, dict) and state.get("metrics"):
        yield "meters, counters and history of the training (extra_state, optimizer_history)"
    known = {"args", "cfg", "model", original.OPTIMIZER, *original.fresh_state("classifier")}
    if others := sorted(str(key)[:40] for key in content.keys() - known):
        yield f"other parts of the file ({', '.join(others)[:120]})"
    keeps_cfg = ending == ".pt" and source.kind == original.layout_of(tensors)
    if is_original and not keeps_cfg:
        yield "the settings of the training (cfg); the sizes are kept"
    elif is_original and strip and (paths := original.machine_paths(content["cfg"])):
        yield f"{len(paths)} paths of the training's machine ({', '.join(paths)[:120]})"
    kept = ending != ".onnx" and any(name.startswith(KEPT) for name in tensors)
    if source.names.kept and not kept:
        yield f"{len(source.names.kept)} tensors that only pre-training uses"
    if ending == ".onnx" and any(tensor.dtype != torch.float32 for tensor in tensors.values()):
        yield "the type of the tensors; ONNX has float32"
    if strip and source.provenance:
        yield "the provenance"
    points = Path(source.path).with_name("operating_point.json")
    if points.exists() and not new_head:
        yield f"thresholds and calibration; take {points} along"
