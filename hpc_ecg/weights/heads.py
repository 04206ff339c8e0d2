"""Which rows of a checkpoint's head a run starts from: all, some by name, or none.

A head has a row per label. Our files name them; a foreign `.pt` does not, so its names are given
(`init.labels`) or, with as many labels as the run has, its rows are taken as they stand.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from hpc_ecg.weights.mapping import some
from hpc_ecg.weights.reading import Checkpoint


@dataclass(frozen=True, kw_only=True)
class HeadPlan:
    taken: str
    """keep = every row is from the file; by_label = some are; new = none."""
    rows: list[int | None]
    """Per label of the run: the file's row, or None for a fresh one."""
    reason: str


def plan_head(
    asked: str, checkpoint: Checkpoint | None, labels: Sequence[str], given: Sequence[str] = ()
) -> HeadPlan:
    """ValueError: a head that should be kept and cannot be. `given`: names of the file's labels."""
    new = [None] * len(labels)
    if asked == "new":
        return HeadPlan(taken="new", rows=list(new), reason="asked for")
    if checkpoint is None or checkpoint.num_labels is None:
        what = "random weights have" if checkpoint is None else f"{checkpoint.path} has"
        if asked != "auto":
            raise ValueError(f"init.head={asked}, but {what} no head; use init.head=new or auto")
        return HeadPlan(taken="new", rows=list(new), reason=f"{what} no head")
    names = names_of(checkpoint, given)
    if names is None:
        return _as_they_stand(asked, checkpoint, labels)
    rows = [names.index(label) if label in names else None for label in labels]
    missing = [label for label in labels if label not in names]
    if not missing:
        same = list(names) == list(labels)
        reason = "the same labels" if same else f"rows taken by name, of {len(names)} in the file"
        return HeadPlan(taken="keep", rows=rows, reason=reason)
    if asked == "by_label" and len(missing) < len(labels):
        reason = f"new for {some(missing)}, the others by name"
        return HeadPlan(taken="by_label", rows=rows, reason=reason)
    way = (
        ""
        if len(missing) == len(labels)
        else "init.head=by_label (new rows for what is missing) or "
    )
    raise ValueError(
        f"init.head={asked}: the head of {checkpoint.path} predicts {some(names)}, this run has "
        f"{some(missing)}; use {way}init.head=new"
    )


def names_of(checkpoint: Checkpoint, given: Sequence[str]) -> Sequence[str] | None:
    """The names of the file's labels: those given, else its own; None if nobody says."""
    if not given:
        return checkpoint.labels
    if len(given) != checkpoint.num_labels or len(set(given)) < len(given):
        raise ValueError(
            f"init.labels must name each of the {checkpoint.num_labels} labels of "
            f"{checkpoint.path} once, got {len(given)} ({some(given)})"
        )
    return given


def _as_they_stand(asked: str, checkpoint: Checkpoint, labels: Sequence[str]) -> HeadPlan:
    rows = checkpoint.num_labels or 0
    hint = "name the labels of the file with init.labels=[…], or use init.head=new"
    if asked == "by_label":
        raise ValueError(f"init.head=by_label: {checkpoint.path} does not name its labels; {hint}")
    if rows != len(labels):
        raise ValueError(
            f"init.head={asked}: the head of {checkpoint.path} has {rows} labels, this run has "
            f"{len(labels)} ({some(labels)}); {hint}"
        )
    reason = "as many labels as the file, which does not name them"
    return HeadPlan(taken="keep", rows=list(range(rows)), reason=reason)
