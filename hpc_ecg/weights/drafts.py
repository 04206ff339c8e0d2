"""A file of weights in the making: read, written in another format, and what is lost on the way.

OUT's ending decides: `.pt` the original's layout, `.safetensors` ours, `.onnx` ONNX. Tensors keep
their bits and their type (ONNX: float32). A `.pt` made of a `.pt` goes on with its cfg, which is
the file's truth; any other gets the neutral one of `original_layout.json`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor

import hpc_ecg
from hpc_ecg.weights import original
from hpc_ecg.weights.archive import read_archive
from hpc_ecg.weights.export import (
    Facts,
    check_tensors,
    save_original,
    write_original,
    write_safetensors,
)
from hpc_ecg.weights.mapping import KEPT, all_names
from hpc_ecg.weights.onnx_export import check_installed, write_onnx
from hpc_ecg.weights.reading import Checkpoint, file_of, read_checkpoint
from hpc_ecg.writing import sha256_of

ENDINGS = (".pt", ".safetensors", ".onnx")


@dataclass(frozen=True, kw_only=True)
class Draft:
    tensors: dict[str, Tensor]
    """Under our names."""
    facts: Facts
    source: Checkpoint | None = None
    """The one file that it is made of, if it is one."""
    content: dict[str, Any] = field(default_factory=dict)
    """All that this file holds, if it is a `.pt`."""

    @property
    def layout(self) -> str:
        return "classifier" if "head.weight" in self.tensors else "base_ssl"

    @property
    def keeps_cfg(self) -> bool:
        return self.source is not None and self.source.kind == self.layout


def check_target(target: Path, sources: Sequence[str | Path], force: bool) -> None:
    """ValueError before any work: an ending that says no format, or a file that must stay."""
    if target.suffix not in ENDINGS:
        raise ValueError(f"{target}: its ending must be one of {', '.join(ENDINGS)}")
    if target.suffix == ".onnx":
        check_installed()
    if target.is_dir():
        raise ValueError(f"{target} is a folder; give the name of a file")
    if not target.exists():
        return
    if any(target.samefile(file_of(Path(source))) for source in sources):
        raise ValueError(f"{target} is what is read; give another name for what is written")
    if not force:
        raise ValueError(f"{target} exists; give --force to replace it")


def read_draft(source: str | Path, action: str, **details: Any) -> Draft:
    """The file as it is, with a note of what will be done to it."""
    if str(source).endswith(".onnx"):
        raise ValueError(
            f"{source}: an ONNX file can be written, not read: in it weights are merged"
        )
    checkpoint = read_checkpoint(source)
    path = Path(checkpoint.path)
    tensors = {}
    for name, key in all_names(checkpoint.names).items():
        tensors[name] = checkpoint.tensors[key].to_torch()
        checkpoint.tensors[key].block.file.drop()  # in memory once
    note = {"action": action, **name_source(source, checkpoint), **details}
    facts = Facts(
        architecture=checkpoint.architecture,
        labels=checkpoint.labels,
        signal=checkpoint.signal,
        provenance=[*checkpoint.provenance, note | {"version": hpc_ecg.__version__}],
    )
    content = {} if checkpoint.kind == "hpc_ecg" else read_archive(path)
    return Draft(tensors=tensors, facts=facts, source=checkpoint, content=content)


def name_source(source: str | Path, checkpoint: Checkpoint) -> dict[str, str]:
    """For the provenance; folders of this machine stay out of it."""
    name = Path(source).name if Path(source).is_absolute() else str(source)
    return {"source": name, "sha256": sha256_of(checkpoint.path)}


def write_draft(draft: Draft, target: Path, *, strip: bool = False) -> list[str]:
    """Write the file; returns what to tell the user. `strip` leaves tensors, sizes, labels and
    signal."""
    check_tensors(draft.tensors, draft.facts, str(target))
    facts = replace(draft.facts, provenance=[]) if strip else draft.facts
    told = []
    if target.suffix == ".safetensors":
        write_safetensors(target, draft.tensors, facts)
    elif target.suffix == ".onnx":
        told.append(write_onnx(target, draft.tensors, facts))
    elif draft.source and draft.keeps_cfg:
        names = {key: name for name, key in all_names(draft.source.names).items()}
        model = {key: draft.tensors[names[key]] for key in map(str, draft.content["model"])}
        cfg = original.own_cfg(draft.content, neutral=strip)
        if draft.layout == "classifier":
            cfg["model"]["num_labels"] = len(draft.tensors["head.weight"])
        content = {"args": None, "cfg": cfg, "model": model, **original.fresh_state(draft.layout)}
        save_original(target, content, facts)
    else:
        write_original(target, draft.tensors, facts)
    size = f"{target.stat().st_size:,} bytes"
    lost = [f"left out: {what}" for what in _left_out(draft, target.suffix, strip)]
    return [*told, *lost, f"written: {target} ({size})"]


def _left_out(draft: Draft, ending: str, strip: bool) -> Iterator[str]:
    content, carried = draft.content, ending == ".pt" and draft.keeps_cfg
    if original.OPTIMIZER in content:
        count = original.num_tensors(content[original.OPTIMIZER])
        yield f"the optimizer's state ({count} tensors)"
    if people := original.scores_of_people(content):
        yield f"{sum(people.values())} scores and labels of people (in {next(iter(people))} …)"
    state = content.get("extra_state")
    if isinstance(state, dict) and state.get("metrics"):
        yield "meters, counters and history of the training (extra_state, optimizer_history)"
    known = {"args", "cfg", "model", original.OPTIMIZER, *original.fresh_state(draft.layout)}
    if others := sorted(str(key)[:40] for key in content.keys() - known):
        yield f"other parts of the file ({', '.join(others)[:120]})"
    if content and not carried:
        yield "the settings of the training (cfg); the sizes are kept"
    elif carried and strip and (paths := original.machine_paths(content["cfg"])):
        yield f"{len(paths)} paths of the training's machine ({', '.join(paths)[:120]})"
    kept = [name for name in draft.tensors if name.startswith(KEPT)]
    if draft.source and draft.source.names.ignored and (ending == ".onnx" or not kept):
        yield f"{len(draft.source.names.ignored)} tensors that only pre-training uses"
    dtypes = {str(tensor.dtype).removeprefix("torch.") for tensor in draft.tensors.values()}
    if ending == ".onnx" and dtypes != {"float32"}:
        yield f"the type of the tensors ({', '.join(sorted(dtypes))}); ONNX has float32"
    if strip and draft.source and draft.source.provenance:
        yield "the provenance"
    folder = Path(draft.source.path).parent if draft.source else None
    if folder and (folder / "operating_point.json").exists():
        yield f"thresholds and calibration; take {folder / 'operating_point.json'} along"
