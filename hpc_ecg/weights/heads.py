"""Which rows of a checkpoint's head a run starts from: all, some by name, or none.

A head has a row per label. Our files name the labels. A foreign `.pt` does not: `init.labels` names
them, or if it has as many labels as the run, its rows are taken in order.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from hpc_ecg.weights.mapping import abbreviate
from hpc_ecg.weights.reading import Checkpoint


@dataclass(frozen=True, kw_only=True)
class HeadPlan:
    taken: str
    """keep = every row is from the file; by_label = some are; new = none."""
    rows: list[int | None]
    """Per label of the run: the file's row, or None for a fresh one."""
    reason: str


def plan_head(
    head: str, checkpoint: Checkpoint | None, labels: Sequence[str], given: Sequence[str] = ()
) -> HeadPlan:
    """Decide on the rows for the run's `labels`. `head`: the setting `init.head`; `given`: names of
    the file's labels (`init.labels`). ValueError: the head cannot be kept as asked."""
    if head == "new":
        return HeadPlan(taken="new", rows=[None] * len(labels), reason="asked for")
    if checkpoint is None or checkpoint.num_labels is None:
        subject = "random weights have" if checkpoint is None else f"{checkpoint.path} has"
        if head != "auto":
            raise ValueError(f"init.head={head}, but {subject} no head; use init.head=new or auto")
        return HeadPlan(taken="new", rows=[None] * len(labels), reason=f"{subject} no head")
    names = _names_in_file(checkpoint, given)
    if names is None:
        return _plan_in_order(head, checkpoint, labels)
    rows = [names.index(label) if label in names else None for label in labels]
    missing = [label for label in labels if label not in names]
    if not missing:
        is_same = list(names) == list(labels)
        by_name = f"rows taken by name, of {len(names)} in the file"
        return HeadPlan(taken="keep", rows=rows, reason="the same labels" if is_same else by_name)
    advice = "use init.head=new"
    if len(missing) < len(labels):
        if head == "by_label":
            reason = f"new for {abbreviate(missing)}, the others by name"
            return HeadPlan(taken="by_label", rows=rows, reason=reason)
        advice = "use init.head=by_label (new rows for what is missing) or init.head=new"
    raise ValueError(
        f"init.head={head}: the head of {checkpoint.path} predicts {abbreviate(names)}, "
        f"this run has {abbreviate(missing)}; {advice}"
    )


def _names_in_file(checkpoint: Checkpoint, given: Sequence[str]) -> Sequence[str] | None:
    """The given names of the file's labels, else those that it states; None if it states none."""
    if not given:
        return checkpoint.labels
    if len(given) != checkpoint.num_labels or len(set(given)) < len(given):
        raise ValueError(
            f"init.labels must name each of the {checkpoint.num_labels} labels of "
            f"{checkpoint.path} once, got {len(given)} ({abbreviate(given)})"
        )
    return given


def _plan_in_order(head: str, checkpoint: Checkpoint, labels: Sequence[str]) -> HeadPlan:
    rows = checkpoint.num_labels or 0
    advice = "name the labels of the file with init.labels=[…], or use init.head=new"
    if head == "by_label":
        raise ValueError(
            f"init.head=by_label: {checkpoint.path} does not name its labels; {advice}"
        )
    if rows != len(labels):
        raise ValueError(
            f"init.head={head}: the head of {checkpoint.path} has {rows} labels, this run has "
            f"{len(labels)} ({abbreviate(labels)}); {advice}"
        )
    reason = "as many labels as the file, which does not name them"
    return HeadPlan(taken="keep", rows=list(range(rows)), reason=reason)
