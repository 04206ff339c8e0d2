"""The processes of a run meet: in, the environment; out, who I am and the store to meet through.

Under Slurm rank 0 binds a port that is free and holds it, and publishes it in a file in a folder
that all nodes see; so two jobs on one node cannot clash. The file has the name of this very start
(job, step, restart), so what an earlier start left is never read. torchrun brings its own address.
"""

import json
import socket
import time
from collections.abc import Mapping, MutableMapping
from datetime import timedelta
from pathlib import Path

from torch.distributed import TCPStore

from hpc_ecg.atomic_io import wait_until_seen, write_json
from hpc_ecg.distributed.ranks import MASTER_VARIABLES, RANK_VARIABLES, Ranks, read_ranks

JOINED = "joined"
POLL_SECONDS = 0.05
REACH_SECONDS = 30.0


def join_world(
    env: MutableMapping[str, str], rendezvous_dir: Path | None, timeout: timedelta
) -> tuple[Ranks, TCPStore | None]:
    """The ranks, exported in torchrun's words, and the store for `init_process_group`; None where
    there is one process, or where MASTER_ADDR and MASTER_PORT say where to meet.

    `meeting`: a folder that all nodes share. ValueError if not all processes come in time.
    """
    ranks = read_ranks(env)
    if ranks.world_size == 1:
        return ranks, None
    values = (ranks.rank, ranks.local_rank, ranks.world_size, ranks.local_world_size)
    env.update({name: str(value) for name, value in zip(RANK_VARIABLES, values, strict=True)})
    missing = [name for name in MASTER_VARIABLES if name not in env]
    if not missing:
        return ranks, None
    if "SLURM_JOB_ID" not in env:
        raise ValueError(
            f"WORLD_SIZE={ranks.world_size} but {' and '.join(missing)} not set; "
            "start several processes with torchrun or srun"
        )
    assert rendezvous_dir is not None, "processes of Slurm meet in a folder"
    file = rendezvous_dir / _name_of_start(env)
    if ranks.rank == 0:
        host, store = _invite(env, file, ranks.world_size, timeout)
    else:
        host, store = _come(file, ranks.rank, timeout)
    # Accelerate and DeepSpeed want these set, and do not bind the port again
    env.update(dict(zip(MASTER_VARIABLES, (host, str(store.port)), strict=True)))
    return ranks, store


def _name_of_start(env: Mapping[str, str]) -> str:
    """As partial files are named: what a start that was killed leaves is tidied away with them."""
    restart = env.get("SLURM_RESTART_COUNT", "0")
    return f".meeting.{env['SLURM_JOB_ID']}.{env.get('SLURM_STEP_ID', '0')}.{restart}.partial"


def _invite(
    env: Mapping[str, str], file: Path, world_size: int, timeout: timedelta
) -> tuple[str, TCPStore]:
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=timeout)
    # Names, not addresses: on many nodes /etc/hosts gives the node's own name a loopback address,
    # and only here. Slurm's name first, which its own daemons must resolve.
    names = [env.get("SLURMD_NODENAME", ""), socket.gethostname()]
    hosts = [env["MASTER_ADDR"]] if "MASTER_ADDR" in env else [name for name in names if name]
    try:
        write_json(file, {"hosts": list(dict.fromkeys(hosts)), "port": store.port}, indent=None)
        _wait_for_all(store, world_size, timeout)
    finally:
        file.unlink(missing_ok=True)
    return hosts[0], store


def _wait_for_all(store: TCPStore, world_size: int, timeout: timedelta) -> None:
    """By polling: a signal is heeded between two looks, and in no wait of the store's own."""
    deadline = time.monotonic() + timeout.total_seconds()
    while store.add(JOINED, 0) < world_size - 1:
        if time.monotonic() > deadline:
            late = [r for r in range(1, world_size) if not store.check([f"{JOINED}/{r}"])]
            raise ValueError(
                f"{len(late)} of {world_size} processes did not come within {timeout} (ranks "
                f"{', '.join(map(str, late[:8]))}): see what they say, or raise engine.timeout_min"
            )
        time.sleep(POLL_SECONDS)


def _come(file: Path, rank: int, timeout: timedelta) -> tuple[str, TCPStore]:
    here = socket.gethostname()
    try:
        wait_until_seen(file, timeout.total_seconds())
    except ValueError:
        raise ValueError(
            f"{file} of process 0 is not seen from {here} within {timeout}; its folder must lie on "
            "a disk that all nodes share, and process 0 must have come so far"
        ) from None
    place = json.loads(file.read_text())
    host = _reachable(place["hosts"], place["port"], here)
    store = TCPStore(host, place["port"], is_master=False, wait_for_workers=False, timeout=timeout)
    store.set(f"{JOINED}/{rank}", here)
    store.add(JOINED, 1)
    return host, store


def _reachable(hosts: list[str], port: int, here: str) -> str:
    """The first name that answers; torch alone would try one name for the whole time limit."""
    failures = []
    for host in hosts:
        try:
            with socket.create_connection((host, port), timeout=REACH_SECONDS):
                return host
        except OSError as error:
            failures.append(f"{host} ({error.strerror or error})")
    raise ValueError(
        f"{here} does not reach process 0 at port {port} of {' or '.join(failures)}; set "
        "MASTER_ADDR to a name or address of its node that all nodes reach"
    )
