"""The section `init` of a run's settings: which weights a run starts from."""

from dataclasses import dataclass, field

from hpc_ecg.config.schema import check_settings, setting
from hpc_ecg.ecg.signal import SignalSpec


@dataclass(frozen=True, kw_only=True)
class InitConfig:
    checkpoint: str | None = setting(None, may_change=True, is_path=True)
    """base_ssl.pt, a fine-tuned .pt, our model.safetensors or a run's best/; null = random
    weights."""
    head: str = setting("auto", choices=("auto", "keep", "new", "by_label"))
    """auto = keep the file's head if it has one, else a new one; keep = the file must have a head
    for every label of the run (matched by name where names are known); by_label = labels that the
    file has keep their row, the others start new; new = a new head (a reset)."""
    labels: list[str] = field(default_factory=list)
    """Labels of the file's head, in its order, where the file does not state them or states other
    names; [] = as the file states."""
    signal: SignalSpec = field(default_factory=SignalSpec)
    """The signal that the weights of a foreign .pt were trained on; such a file does not state it,
    so it is recorded as assumed."""

    def __post_init__(self) -> None:
        check_settings(self, "init")
