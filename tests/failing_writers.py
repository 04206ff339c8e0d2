"""Stand-ins for `write_shard` that fail in worker processes. A file of its own, since each worker
imports it: it must import nothing that takes long."""

import os
import signal
import time
from pathlib import Path

from hpc_ecg.shards.shard_task import ShardTask


def die(task: ShardTask) -> int:
    """Be killed by the system."""
    os.kill(os.getpid(), signal.SIGKILL)
    return task.shard


def note_and_fail(task: ShardTask) -> int:
    """Leave a file with the name in the shard's first row, then find the disk full."""
    Path(task.rows[0].file).touch()
    if task.shard > 0:
        time.sleep(0.05)  # as a shard would take: time for the first one's failure to be seen
    raise OSError("disk full")
