"""Which backend engine.parallel stands for; what it needs is imported only then."""

from hpc_ecg.distributed.ddp_backend import DDPBackend
from hpc_ecg.distributed.settings import EngineConfig


def backend_of(config: EngineConfig) -> type[DDPBackend]:
    if config.parallel == "ddp":
        return DDPBackend
    if config.parallel == "fsdp2":
        from hpc_ecg.distributed.fsdp2_backend import FSDP2Backend  # takes a third of a second

        return FSDP2Backend
    from hpc_ecg.distributed.deepspeed_backend import DeepSpeedBackend

    return DeepSpeedBackend
