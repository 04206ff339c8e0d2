"""Run the real command as N processes that meet over gloo, as srun would start them."""

import os
import socket
import subprocess
import sys


def run_on_ranks(num_ranks: int, arguments: list[str], timeout: float = 300) -> list[str]:
    """`python -m hpc_ecg ARGUMENTS` on every rank; returns each rank's output. Asserts exit 0."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "hpc_ecg", *arguments],
            env=os.environ | _variables(rank, num_ranks, port),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(num_ranks)
    ]
    try:
        outputs = [process.communicate(timeout=timeout)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    codes = [process.returncode for process in processes]
    assert codes == [0] * num_ranks, "\n".join(outputs)
    return outputs


def _variables(rank: int, num_ranks: int, port: int) -> dict[str, str]:
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(num_ranks),
        "LOCAL_WORLD_SIZE": str(num_ranks),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": "1",
    }
