"""The configurations and strategies that ship with the package: the files of `configs/`."""

from collections.abc import Iterator
from pathlib import Path

FOLDER = Path(__file__).parent / "built_in_files"
STRATEGIES = FOLDER / "strategies"


def find_config(name: str) -> Path | None:
    """The built-in file for a name such as `configs/finetune.yaml` or `finetune.yaml`, or None."""
    relative = Path(name)
    if relative.is_absolute() or ".." in relative.parts:
        return None
    parts = relative.parts[1:] if relative.parts[:1] == ("configs",) else relative.parts
    path = FOLDER.joinpath(*parts)
    return path if path.is_file() else None


def list_strategies(folder: Path = STRATEGIES) -> Iterator[tuple[str, str]]:
    """Yield (name, description) of a folder's strategies, then of its options as `+name`."""
    for path in sorted(folder.glob("*.yaml")):
        yield path.stem, _first_comment(path)
    for path in sorted((folder / "with").glob("*.yaml")):
        yield f"+{path.stem}", _first_comment(path)


def _first_comment(path: Path) -> str:
    """The comment at the top of a file, joined into one line."""
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        lines.append(line.lstrip("# "))
    return " ".join(lines)
