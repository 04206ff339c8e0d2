"""Write requirements.lock: exact versions with the hashes of their files.

    pip freeze --exclude-editable | python tools/lock.py     the versions of an environment
    python tools/lock.py < requirements.lock                 new hashes for the same versions

The hashes come from the JSON API of the index that pip is set to. They cover wheels for Linux
(x86_64, aarch64) and Python 3.11 to 3.13, and the source where there is no wheel. torch is left to
requirements-torch.lock, since the CPU and CUDA builds of one version are different files; so is
what only a CUDA build brings.
"""

import json
import re
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from packaging.specifiers import SpecifierSet
from packaging.tags import Tag
from packaging.utils import canonicalize_name, parse_wheel_filename

LOCK = Path(__file__).parents[1] / "requirements.lock"
PYTHONS = (11, 12, 13)
MACHINES = ("x86_64", "aarch64")
OF_TORCH = re.compile(r"(torch|triton|nvidia-.*|cuda-.*)")
LINE = re.compile(r"([A-Za-z0-9][\w.-]*)==([^\s;\\]+)")
HEAD = """\
# Exact versions for `make install`, CI and the demo. torch stands in requirements-torch.lock and is
# installed first: the CPU and CUDA builds of one version are different files.
# Made by: pip freeze --exclude-editable | python tools/lock.py
"""


def main() -> int:
    pins = dict(sorted(read_pins(sys.stdin.read()), key=lambda pin: canonicalize_name(pin[0])))
    if not pins:
        print("no name==version on standard input; see the head of tools/lock.py", file=sys.stderr)
        return 2
    index = index_url()
    with ThreadPoolExecutor(4) as pool:
        hashes = pool.map(lambda pin: hashes_of(index, *pin), pins.items())
        blocks = [
            " \\\n    ".join([f"{name}=={version}", *(f"--hash=sha256:{h}" for h in found)])
            for (name, version), found in zip(pins.items(), hashes, strict=True)
        ]
    LOCK.write_text(HEAD + "\n".join(blocks) + "\n")
    return 0


def read_pins(text: str) -> Iterator[tuple[str, str]]:
    """Name and version of each line but torch's; a local label (+cpu) is not part of the index."""
    for line in text.splitlines():
        match = LINE.match(line)
        if match and not OF_TORCH.fullmatch(canonicalize_name(match[1])):
            yield match[1], match[2].partition("+")[0]


def index_url() -> str:
    """The index that pip is set to, or the one that it takes by itself."""
    command = [sys.executable, "-m", "pip", "config", "get", "global.index-url"]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    if answer.returncode == 0:
        return answer.stdout.strip().rstrip("/")
    from pip._internal.models.index import PyPI

    return str(PyPI.simple_url)


def hashes_of(index: str, name: str, version: str) -> list[str]:
    """SHA-256 of the wheels that fit, or of the source where none does; ValueError if neither."""
    files = list(files_of(index, name, version))
    wheels = [file for file in files if file["filename"].endswith(".whl")]
    chosen = [file for file in wheels if fits(file["filename"])]
    chosen = chosen or [file for file in files if file["filename"].endswith(".tar.gz")]
    if not chosen:
        raise ValueError(f"{name}=={version}: the index has no file for Linux")
    for needed in filter(None, (file.get("requires-python") for file in chosen)):
        if not runs_on_oldest(needed):
            raise ValueError(f"{name}=={version} needs Python {needed}; install an older {name}")
    return sorted(file["hashes"]["sha256"] for file in chosen)


def runs_on_oldest(requires_python: str) -> bool:
    """Whether the first release of our oldest Python will do: Debian 12 has 3.11.2."""
    return f"3.{min(PYTHONS)}.0" in SpecifierSet(requires_python)


def files_of(index: str, name: str, version: str) -> Iterator[dict[str, Any]]:
    url = f"{index}/{canonicalize_name(name)}/"
    accept = {"Accept": "application/vnd.pypi.simple.v1+json"}
    with urllib.request.urlopen(urllib.request.Request(url, headers=accept), timeout=60) as answer:  # noqa: S310  # pip's own index
        for file in json.load(answer)["files"]:
            parts = file["filename"].removesuffix(".tar.gz").split("-")
            stated = parts[1] if file["filename"].endswith(".whl") else parts[-1]
            if file["filename"].endswith((".whl", ".tar.gz")) and stated == version:
                yield file


def fits(wheel: str) -> bool:
    return any(map(tag_fits, parse_wheel_filename(wheel)[3]))


def tag_fits(tag: Tag) -> bool:
    is_ours = tag.platform == "any" or (
        tag.platform.startswith(("manylinux", "linux")) and tag.platform.endswith(MACHINES)
    )
    if not is_ours or tag.interpreter[:2] not in ("cp", "py"):
        return False
    minor = int(tag.interpreter[3:] or 0)
    if tag.interpreter.startswith("py3") or tag.abi == "abi3":
        return minor <= max(PYTHONS)
    return tag.interpreter in {f"cp3{minor}" for minor in PYTHONS} and tag.abi == tag.interpreter


if __name__ == "__main__":
    sys.exit(main())
