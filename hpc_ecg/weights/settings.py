"""The section `init` of a run's settings: which weights a run starts from."""

from dataclasses import dataclass, field

from hpc_ecg.config.schema import check_settings, setting
from hpc_ecg.ecg.signal import SignalSpec

RANDOM, ANY = "random", "any"
FREEZE = ("auto", "none", "stem", "backbone")
CHOICES = (
    "base_ssl.pt, a fine-tuned .pt, our model.safetensors or a run's folder; or "
    f"init.checkpoint={RANDOM} for random weights (a file of that name is ./{RANDOM})"
)


@dataclass(frozen=True, kw_only=True)
class InitConfig:
    checkpoint: str | None = setting(None, may_change=True, is_path=True)
    """Must be given: base_ssl.pt, a fine-tuned .pt, our model.safetensors or a run's folder; or
    random = random weights (a file of that name is ./random)."""
    expects: str = setting(ANY, choices=(ANY, "base_ssl", "classifier"), may_change=True)
    """Kind of file that the checkpoint must be, so that swapped files are refused: base_ssl (the
    tensors of pre-training and no head), classifier (a head) or any."""
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

    @property
    def path(self) -> str | None:
        """The file to start from; None = random weights. ValueError: neither is asked for."""
        if self.checkpoint is None:
            raise ValueError(f"init.checkpoint must be given: {CHOICES}")
        return None if self.checkpoint == RANDOM else self.checkpoint

    def __post_init__(self) -> None:
        check_settings(self, "init")


def decide_freeze(freeze: str, weights_loaded: bool) -> str:
    """Resolve `train.freeze` to none, stem or backbone. `auto` freezes the stem of loaded weights,
    as the original does, but not of random ones, where it would stay random."""
    if freeze not in FREEZE:
        raise ValueError(f"train.freeze must be one of {', '.join(FREEZE)}, got {freeze!r}")
    if freeze == "auto":
        return "stem" if weights_loaded else "none"
    return freeze
