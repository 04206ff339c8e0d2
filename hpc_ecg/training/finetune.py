"""One run, told once and in order: settings in, a run folder with the best weights out.

The same call on the same folder goes on where the run stopped; a finished run is left as it is.
Every process calls this function; what must happen once happens on rank 0.
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import yaml

from hpc_ecg.config.dotted_keys import flatten
from hpc_ecg.config.load import to_yaml
from hpc_ecg.distributed.ranks import slurm_job_facts
from hpc_ecg.distributed.stop_signals import StopSignals
from hpc_ecg.training.best_weights import BestWeights, provenance_of
from hpc_ecg.training.checkpoint import Progress, newest_checkpoint
from hpc_ecg.training.engine import Engine
from hpc_ecg.training.features import FeatureCache
from hpc_ecg.training.finish import finish_run
from hpc_ecg.training.loop import train_stage
from hpc_ecg.training.meter import Meter
from hpc_ecg.training.prepare import PreparedRun, log_weights, prepare_run
from hpc_ecg.training.run_folder import RunFolder
from hpc_ecg.training.run_state import Run
from hpc_ecg.training.settings import FinetuneConfig
from hpc_ecg.training.stages import enter_stage, stages_left
from hpc_ecg.training.workload import choose_kernels

logger = logging.getLogger("hpc_ecg")

BeforeTraining = Callable[[Engine, PreparedRun], None]


def finetune(config: FinetuneConfig, before_training: BeforeTraining | None = None) -> RunFolder:
    """Start one run, or go on with it; returns its folder.

    `before_training` is called on every process once they have joined, before anything is written;
    with train.doctor=true it must be the doctor. Raises ValueError, before anything is written, for
    data, weights or a folder that do not fit; Preempted if the run was asked to stop and has saved;
    PeerLost if another process is gone.
    """
    # 1. Leave a finished run as it is; refuse a folder of another configuration.
    folder = RunFolder(config.run_dir)
    folder.check_same_config(to_yaml(config))
    if folder.is_finished():
        logger.info(f"{folder.path} is finished: nothing to do")
        return folder
    if config.train.doctor and before_training is None:
        raise ValueError("train.doctor=true needs the doctor: start the run with hpc-ecg finetune")

    # 2. Open data and weights, once; whatever does not fit fails here.
    prepared = prepare_run(config)
    log_weights(prepared.start, config.init.checkpoint)

    with joined_engine(config, folder, prepared) as (engine, signals):
        # 3. All processes have joined: check, claim the folder, record what starts from where.
        if before_training:
            before_training(engine, prepared)
        run = _claim_folder(config, folder, prepared, engine, signals)

        # 4. Return to the newest checkpoint, if there is one.
        newest = engine.run_on_rank_zero(lambda: newest_checkpoint(folder.checkpoints))
        checkpoint, progress = newest or (None, Progress())
        run.meter.start_from(progress)
        event = "resumed" if newest else "started"
        run.record(event, step=progress.step, **_hardware_facts(engine))
        if newest:
            logger.info(f"{folder.path}: going on from step {progress.step}")

        # 5. Train stage by stage: each has its own trainable parameters, and so its own optimizer.
        stop = ""
        for stage in stages_left(prepared.stages, progress):
            progress = enter_stage(progress, stage)
            progress, stop = train_stage(run, stage, progress, checkpoint)
            checkpoint = None

        # 6. Calibrate the best weights, predict validation with them, fit thresholds there.
        finish_run(run, config.model, config.train.calibration, progress, stop)
    return folder


@contextmanager
def joined_engine(
    config: FinetuneConfig, folder: RunFolder, prepared: PreparedRun
) -> Iterator[tuple[Engine, StopSignals]]:
    """The engine of this process, once all have joined; everything is closed at the end."""
    engine = Engine(config.engine, folder.path)
    signals = StopSignals(folder.path, engine.is_rank_zero)
    with ExitStack() as stack:
        for close in (signals.close, engine.close, prepared.data.source.close, folder.release):
            stack.callback(close)
        stack.enter_context(engine.share_failures())
        prepared.data.sampler.check_world_size(engine.world_size)
        yield engine, signals


def _claim_folder(
    config: FinetuneConfig,
    folder: RunFolder,
    prepared: PreparedRun,
    engine: Engine,
    signals: StopSignals,
) -> Run:
    """Claim the folder on rank 0, choose kernels, and put the parts of the run together."""
    data, start, config_yaml = prepared.data, prepared.start, to_yaml(config)
    data.source.stage(data.sampler.shards_by_first_use())
    facts = _hardware_facts(engine) | {"data_index_sha256": data.shards.index_sha256}
    engine.run_on_rank_zero(lambda: folder.open(config_yaml, facts, start.report))
    engine.start_trackers(flatten(yaml.safe_load(config_yaml)))
    choose_kernels(start.model, data.train, engine)
    start.model.to(engine.device)
    features = FeatureCache(
        engine=engine,
        # an augmented record has other features each time
        setting=None if config.augment.is_on else config.train.feature_cache,
        batch_size=config.data.batch_size,
        run_dir=folder.path,
    )
    provenance = provenance_of(start.report)
    return Run(
        prepared=prepared,
        folder=folder,
        engine=engine,
        features=features,
        best=BestWeights(folder=folder, valid=data.valid, provenance=provenance),
        signals=signals,
        meter=Meter(engine.world_size, engine.device),
    )


def _hardware_facts(engine: Engine) -> dict[str, object]:
    """What environment.json and metrics.jsonl say of this start."""
    return {
        "processes": engine.world_size,
        "device": engine.device_name,
        "precision": engine.precision,
        "slurm": slurm_job_facts(),
    }
