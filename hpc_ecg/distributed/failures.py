"""When one process of a run fails, the others end with its reason, not with a lost connection.

The reason travels through the store of the rendezvous. A process that waits in a collective for
the one that failed is not woken before that one has exited, and rank 0 takes the store along, so
each process has a thread that looks for the reason, and rank 0 stays until the others have left.
"""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta

import torch
from torch.distributed import Store

from hpc_ecg.distributed.ranks import Ranks
from hpc_ecg.distributed.watchdog import EXIT_PEER_LOST
from hpc_ecg.log import describe_error, first_line, logger

POLL_S = 1.0
GRACE_S = (30.0, 2.0)
"""Seconds that rank 0 and the others have to find the failure by themselves. Rank 0 has more: it
cleans up, and it is woken when the others exit."""
STORE_GRACE = timedelta(seconds=60)
"""How long rank 0, which holds the store, waits for the others to leave."""


class PeerLost(RuntimeError):  # noqa: N818
    """Other processes or the network are gone; the run can resume from its checkpoint."""

    exit_code = EXIT_PEER_LOST


@contextmanager
def share_failures(ranks: Ranks, store: Store | None) -> Iterator[None]:
    """Report a ValueError or OSError of one process to the others, which would only see it exit.

    Raises that error on the failing process, and on the others ValueError with its text, or ends
    them with exit code 2 and that text where they cannot be woken; PeerLost if a peer is gone
    without a report. All processes must enter it equally often.
    """
    if store is None and torch.distributed.is_initialized():  # under torchrun torch makes the store
        store = torch.distributed.distributed_c10d._get_default_store()
    if store is None or ranks.world_size == 1:
        yield
        return
    exchange = _Exchange(ranks, store)
    exchange.start()
    try:
        yield
    except (ValueError, OSError) as error:
        exchange.report(describe_error(error))
        raise
    except RuntimeError as error:
        if not is_network_error(error):
            raise
        if failure := exchange.read():
            raise ValueError(failure) from None
        raise PeerLost(f"process {ranks.rank} has lost the others ({first_line(error)})") from error
    finally:
        exchange.leave()


def is_network_error(error: RuntimeError) -> bool:
    text = str(error)
    return isinstance(error, torch.distributed.DistError) or "gloo" in text or "NCCL" in text


class _Exchange:
    def __init__(self, ranks: Ranks, store: Store) -> None:
        self._ranks, self._store = ranks, store
        session = store.add(f"sessions/{ranks.rank}", 1)
        self._failure = f"failed/{session}"
        self._left = [f"left/{session}/{rank}" for rank in range(ranks.world_size)]
        self._stopped, self._failed = threading.Event(), False

    def start(self) -> None:
        threading.Thread(target=self._watch, name="failures", daemon=True).start()

    def report(self, failure: str) -> None:
        self._stopped.set()  # the main thread sees to the rest
        with suppress(RuntimeError):  # the process that held the store is gone
            if not self.read():  # the first failure is the cause
                self._store.set(self._failure, f"process {self._ranks.rank}: {failure}")
        self._failed = True

    def read(self) -> str:
        """The failure of a process, or ''."""
        try:
            if not self._store.check([self._failure]):
                return ""
            self._failed = True
            return self._store.get(self._failure).decode()
        except RuntimeError:  # the process that held the store is gone
            return ""

    def leave(self) -> None:
        """This process needs the store no more; after a failure rank 0 stays until none does."""
        self._stopped.set()
        with suppress(RuntimeError):  # rank 0 is gone, or a process was killed
            self._store.set(self._left[self._ranks.rank], "")
            if self._failed and self._ranks.rank == 0:
                self._store.wait(self._left, STORE_GRACE)

    def _watch(self) -> None:
        while not self._stopped.wait(POLL_S):
            failure = self.read()
            if failure and not self._stopped.wait(GRACE_S[min(self._ranks.rank, 1)]):
                logger.error(failure)
                self.leave()
                os._exit(2)
