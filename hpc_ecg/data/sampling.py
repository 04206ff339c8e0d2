"""Which records an epoch holds: labels or patients in, positions out, as pure functions.

all              every record once
balanced         as many positive as negative ones; each class is gone through again and again,
                 so that its records are used equally often, give or take one, at any time
one_per_patient  one record of each patient, drawn by (seed, epoch, patient) alone: another
                 cohort around a patient changes nothing for that patient
"""

# N records of the split, M records of the epoch, P patients

import hashlib
from collections.abc import Sequence

import numpy as np

from hpc_ecg.hashing import splitmix64

KINDS = ("all", "balanced", "one_per_patient")
# The streams of random words, apart from each other and from that of order.epoch_order.
NEGATIVE, POSITIVE, BALANCED, PATIENTS, SHARDS, CHUNKS = range(1, 7)


def random_words(num_words: int, seed: int, epoch: int, stream: int) -> np.ndarray:
    """uint64 [n]: raw Philox words, which numpy promises for ever."""
    counter = [0, 0, 0, stream]
    return np.random.Philox(key=[seed, epoch], counter=counter).random_raw(num_words)


def balanced_epoch(label_N: np.ndarray, seed: int, epoch: int) -> np.ndarray:
    """Shuffled positions, int64 [M]; M = how many records have a label. Half of them are positive
    ones, and if M is odd one more. ValueError if a class has no record."""
    members = [np.flatnonzero(label_N == value) for value in (0, 1)]
    if not (len(members[0]) and len(members[1])):
        raise ValueError(
            f"data.sampling=balanced needs both classes in split train, got {len(members[0])} "
            f"negative and {len(members[1])} positive records"
        )
    total = len(members[0]) + len(members[1])
    sizes = (total // 2, total - total // 2)
    drawn = [
        member[_cycle(len(member), size * epoch, size, seed, stream)]
        for member, size, stream in zip(members, sizes, (NEGATIVE, POSITIVE), strict=True)
    ]
    shuffle = np.argsort(random_words(total, seed, epoch, BALANCED), kind="stable")
    return np.concatenate(drawn)[shuffle]


def _cycle(num_items: int, start: int, count: int, seed: int, stream: int) -> np.ndarray:
    """Items start … start + count - 1 of an endless row of permutations of 0..n-1."""
    first, last = start // num_items, (start + count - 1) // num_items
    rounds = [
        np.argsort(random_words(num_items, seed, number, stream), kind="stable")
        for number in range(first, last + 1)
    ]
    return np.concatenate(rounds)[start - first * num_items :][:count]


def patient_words(patients: Sequence[str]) -> np.ndarray:
    """A word of 64 bits for each patient, by name alone."""
    digests = b"".join(hashlib.sha256(name.encode()).digest()[:8] for name in patients)
    return np.frombuffer(digests, "<u8")


def one_per_patient(word_N: np.ndarray, seed: int, epoch: int) -> np.ndarray:
    """The position of one record for each patient, ascending, int64 [P]; `word_N` says whose each
    record is."""
    word_P, of_patient_N, count_P = np.unique(word_N, return_inverse=True, return_counts=True)
    by_patient = np.argsort(of_patient_N, kind="stable")
    first_P = np.cumsum(count_P) - count_P
    key = random_words(1, seed, epoch, PATIENTS)
    hash_P = splitmix64((word_P ^ key).view(np.int64)).view(np.uint64)
    drawn_P = hash_P % count_P.astype(np.uint64)
    return np.sort(by_patient[first_P + drawn_P.astype(np.int64)])
