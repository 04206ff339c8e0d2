"""How the processes of a run find each other: ranks and addresses from the environment.

Under Slurm, rank 0 binds a free port and publishes its address in a file in a folder that all nodes
share, so two jobs on one node cannot collide. The file is named after job, step and restart, so no
process reads the file of an earlier start. torchrun provides the address itself.
"""

import json
import socket
import time
from collections.abc import Mapping, MutableMapping
from contextlib import suppress
from dataclasses import astuple
from datetime import timedelta
from pathlib import Path

from torch.distributed import TCPStore

from hpc_ecg.atomic_io import wait_until_seen, write_json
from hpc_ecg.distributed.ranks import MASTER_VARIABLES, RANK_VARIABLES, Ranks, read_ranks
from hpc_ecg.log import logger

JOINED = "joined"
POLL_S, NOTE_EVERY_S = 0.05, 30.0
CONNECT_TIMEOUT_S = 30.0


def join_rendezvous(
    env: MutableMapping[str, str], rendezvous_dir: Path | None, timeout: timedelta
) -> tuple[Ranks, TCPStore | None]:
    """The ranks, exported to `env` as torchrun names them, and the store for `init_process_group`.

    The store is None for a single process, or if MASTER_ADDR and MASTER_PORT are set.
    `rendezvous_dir` is a folder that all nodes share. ValueError if not all processes join within
    `timeout`.
    """
    ranks = read_ranks(env)
    if ranks.world_size == 1:
        return ranks, None
    env.update(zip(RANK_VARIABLES, map(str, astuple(ranks)), strict=True))
    missing = [name for name in MASTER_VARIABLES if name not in env]
    if not missing:
        return ranks, None
    if "SLURM_JOB_ID" not in env:
        raise ValueError(
            f"WORLD_SIZE={ranks.world_size} but {' and '.join(missing)} not set; "
            "start several processes with torchrun or srun"
        )
    assert rendezvous_dir is not None, "processes under Slurm find each other in a folder"
    # named like a partial file, so that `tidy` removes it after a killed start
    start = f"{env.get('SLURM_STEP_ID', '0')}.{env.get('SLURM_RESTART_COUNT', '0')}"
    file = rendezvous_dir / f".rendezvous.{env['SLURM_JOB_ID']}.{start}.partial"
    if ranks.rank == 0:
        host, store = publish_address(env, file, ranks.world_size, timeout)
    else:
        host, store = connect(file, ranks.rank, timeout)
    # Accelerate and DeepSpeed need these, but do not bind the port again.
    env.update(MASTER_ADDR=host, MASTER_PORT=str(store.port))
    return ranks, store


def publish_address(
    env: Mapping[str, str], file: Path, world_size: int, timeout: timedelta
) -> tuple[str, TCPStore]:
    """Rank 0: open the store, write host names and port to `file`, and wait for all others.

    Returns the host name and the store. ValueError if others do not join in time.
    """
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=timeout)
    # Names, not addresses: on many nodes /etc/hosts maps the node's name to a loopback address,
    # which other nodes cannot use. Slurm's name comes first, since Slurm itself must resolve it.
    names = [env.get("SLURMD_NODENAME", ""), socket.gethostname()]
    hosts = [env["MASTER_ADDR"]] if "MASTER_ADDR" in env else [name for name in names if name]
    try:
        write_json(file, {"hosts": list(dict.fromkeys(hosts)), "port": store.port}, indent=None)
        _wait_for_all(store, world_size, timeout)
    finally:
        file.unlink(missing_ok=True)
    return hosts[0], store


def _wait_for_all(store: TCPStore, world_size: int, timeout: timedelta) -> None:
    """Poll the store, so that signals are handled; its blocking wait would delay them."""
    began = noted = time.monotonic()
    while store.add(JOINED, 0) < world_size - 1:
        now = time.monotonic()
        is_late = now - began > timeout.total_seconds()
        if is_late or now - noted > NOTE_EVERY_S:
            noted = now
            late = [r for r in range(1, world_size) if not store.check([f"{JOINED}/{r}"])]
            names = f"(ranks {', '.join(map(str, late[:8]))})"
            if is_late:
                raise ValueError(
                    f"{len(late)} of {world_size} processes did not join within {timeout} {names}: "
                    "look at their logs, or raise engine.timeout_min"
                )
            logger.warning("waiting for %d of %d processes %s", len(late), world_size, names)
        time.sleep(POLL_S)


def connect(file: Path, rank: int, timeout: timedelta) -> tuple[str, TCPStore]:
    """Other ranks: read the address and connect to the store of rank 0.

    Returns the host name and the store. ValueError if rank 0 cannot be reached in time.
    """
    node, began = socket.gethostname(), time.monotonic()
    while (left_s := began + timeout.total_seconds() - time.monotonic()) > 0:
        with suppress(ValueError):
            wait_until_seen(file, min(left_s, NOTE_EVERY_S))
            break
        logger.warning("%s (rank %d) waits for process 0, which may have ended", node, rank)
    else:
        raise ValueError(
            f"{node} does not see {file} of process 0 within {timeout}; the folder must lie on a "
            "disk that all nodes share, and process 0 must have started: look at its log, and "
            "start with srun --kill-on-bad-exit=1, which ends all processes with the first"
        )
    address = json.loads(file.read_text())
    port = address["port"]
    host = _first_reachable(address["hosts"], port, node)
    store = TCPStore(host, port, is_master=False, wait_for_workers=False, timeout=timeout)
    store.set(f"{JOINED}/{rank}", node)
    store.add(JOINED, 1)
    return host, store


def _first_reachable(hosts: list[str], port: int, node: str) -> str:
    """The first host that answers; torch itself would try one name for the whole timeout."""
    failures = []
    for host in hosts:
        try:
            with socket.create_connection((host, port), timeout=CONNECT_TIMEOUT_S):
                return host
        except OSError as error:
            failures.append(f"{host} ({error.strerror or error})")
    raise ValueError(
        f"{node} does not reach process 0 at port {port} of {' or '.join(failures)}; set "
        "MASTER_ADDR to a name or address of its node that all nodes reach"
    )
