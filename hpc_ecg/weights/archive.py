"""Open a `.pt` file without running anything in it.

Three fences: the zip directory is checked before a byte is unpacked (torch stores, never deflates,
so a compressed or overlapping archive is hostile or was repacked); `torch.load(weights_only=True)`
builds tensors and plain containers only; numpy's names, found in files whose criterion reported
AUROC, are answered by inert stand-ins. Whatever goes wrong becomes one line with the path.
"""

import pickle
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

NUMPY_NAMES = (
    *(
        f"numpy.{core}.multiarray.{name}"
        for core in ("core", "_core")
        for name in ("_reconstruct", "scalar")
    ),
    "numpy.ndarray",
    "numpy.dtype",
    *(f"numpy.dtypes.{name}DType" for name in ("Float16", "Float32", "Float64", "Int64", "Bool")),
)


class Inert:
    """Stands in for every numpy object of a file: takes any arguments and keeps nothing."""

    def __init__(self, *_: object) -> None:
        pass

    def __setstate__(self, _: object) -> None:
        pass


def read_archive(path: Path) -> dict[str, Any]:
    """The top-level dict of a `.pt` file, tensors memory-mapped. ValueError: not such a file, or
    its pickle asks for anything but tensors, plain containers and numpy arrays."""
    check_zip(path)
    try:
        with _only_inert_numpy():
            content = torch.load(str(path), map_location="cpu", mmap=True, weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path}: refused, nothing of it was run: its pickle holds more than tensors and plain "
            f"containers ({_cause(error)}); take the file from its publisher"
        ) from None
    except Exception as error:  # any damage inside surfaces as another type of error
        raise ValueError(f"{path}: damaged torch file ({_cause(error)}); copy it again") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected a dict at the top, got {type(content).__name__}")
    return content


def check_zip(path: Path) -> None:
    """ValueError unless the file is a zip of stored (not compressed), separate members."""
    with path.open("rb") as file:
        head = file.read(64)
    if not head:
        raise ValueError(f"{path}: the file is empty; copy it again")
    if head[:4] != b"PK\x03\x04":
        raise ValueError(f"{path}: {_kind_of(head)}")
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        raise ValueError(
            f"{path}: the archive is cut short or damaged ({path.stat().st_size} bytes); "
            "copy it again"
        ) from None
    for member in members:
        if member.compress_type != zipfile.ZIP_STORED:
            raise ValueError(
                f"{path}: {member.filename} is compressed ({member.compress_size} -> "
                f"{member.file_size} bytes), which torch never does; refused"
            )
    total = sum(member.file_size for member in members)
    if total > path.stat().st_size:
        raise ValueError(
            f"{path}: its members claim {total} bytes, the file has {path.stat().st_size}; refused"
        )


def check_tensor(tensor: object, name: str) -> Tensor:
    """ValueError unless it is a dense, finite float tensor no larger than the memory behind it."""
    if not isinstance(tensor, Tensor):
        raise ValueError(f"{name} must be a tensor, got {type(tensor).__name__}")
    if tensor.layout != torch.strided or tensor.is_quantized or not tensor.is_floating_point():
        raise ValueError(f"{name} must be a dense float tensor, got {tensor.dtype} {tensor.layout}")
    if tensor.device.type != "cpu":
        raise ValueError(f"{name} holds no values (device {tensor.device})")
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        raise ValueError(
            f"{name} claims shape {tuple(tensor.shape)}, the file holds only "
            f"{tensor.untyped_storage().nbytes()} bytes of it; refused"
        )
    # A finite sum has only finite terms, and is much faster than looking at each.
    if not tensor.float().sum().isfinite() and not tensor.isfinite().all():
        raise ValueError(f"{name} holds NaN or infinite values; the run that wrote it diverged")
    return tensor.detach()


@contextmanager
def _only_inert_numpy() -> Iterator[None]:
    """Other libraries register the real numpy globals for the whole process: set those aside."""
    registered = torch.serialization.get_safe_globals()
    torch.serialization.clear_safe_globals()
    try:
        with torch.serialization.safe_globals([(Inert, name) for name in NUMPY_NAMES]):
            yield
    finally:
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(registered)


def _cause(error: Exception) -> str:
    """The line of torch's long message that says what was found."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    telling = [line for line in lines if "WeightsUnpickler error" in line or "GLOBAL" in line]
    line = (telling or lines or [type(error).__name__])[0]
    return line.removeprefix("WeightsUnpickler error: ").split(" was not an allowed global")[0][
        :160
    ]


def _kind_of(head: bytes) -> str:
    if head.startswith(b"version https://git-lfs"):
        return "a git-lfs pointer, not the file itself; run `git lfs pull`"
    if head[:1] == b"\x80":
        return (
            "an old torch file (before 1.6) or a bare pickle, which cannot be read safely; "
            "save it again with a current torch"
        )
    return f"not a torch file (no zip archive; it starts with {head[:16]!r}); copy it again"
