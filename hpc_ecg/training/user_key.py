"""Signatures of this user: what somebody else left in a shared or foreign folder has none.

The key lies in $HPC_ECG_CACHE (default: hpc_ecg/ in $XDG_CACHE_HOME or ~/.cache).
"""

import hmac
import os
import secrets
from functools import cache
from pathlib import Path

from filelock import FileLock

from hpc_ecg.atomic_io import write_atomically
from hpc_ecg.log import logger
from hpc_ecg.safe_reading import check_regular


def sign(text: str) -> str:
    """A keyed hash of a text, 64 hexadecimal digits."""
    return hmac.digest(_key(), text.encode(), "sha256").hex()


@cache
def _key() -> bytes:
    """The key, made at first use; one of this process alone if it cannot be kept."""
    home = os.environ.get("XDG_CACHE_HOME") or Path("~/.cache")
    path = Path(os.environ.get("HPC_ECG_CACHE") or Path(home) / "hpc_ecg") / "user.key"
    path = Path(os.path.expanduser(path))  # noqa: PTH111 - Path raises if there is no home
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{path}.lock"):
            if not path.exists():
                write_atomically(path, _write_key)
        check_regular(path)
        return path.read_bytes()
    except (OSError, ValueError) as error:
        logger.warning(f"{path}: {error}; cached features are computed again for each run")
        return secrets.token_bytes(32)


def _write_key(path: Path) -> None:
    path.touch(0o600)
    path.write_bytes(secrets.token_bytes(32))
