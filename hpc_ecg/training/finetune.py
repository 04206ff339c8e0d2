"""One run from start to finish: settings in, a run folder with the best weights out.

Calling this again with the same folder resumes the run; a finished run is left as it is. Every
process calls it; anything that must happen once happens on rank 0.
"""

import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from hpc_ecg.config.load import to_yaml
from hpc_ecg.distributed.stop_signals import StopSignals
from hpc_ecg.log import logger
from hpc_ecg.training.engine import Engine
from hpc_ecg.training.loop import train_stage
from hpc_ecg.training.prepare import PreparedRun, describe_weights, prepare_run
from hpc_ecg.training.run_folder import RunFolder
from hpc_ecg.training.run_state import finish_run, restore_progress, start_run
from hpc_ecg.training.settings import FinetuneConfig
from hpc_ecg.training.stages import enter_stage, stages_left
from hpc_ecg.training.try_kernels import try_kernels_of_run

BeforeTraining = Callable[[Engine, PreparedRun], None]


def finetune(
    config: FinetuneConfig,
    before_training: BeforeTraining | None = None,
    sweep_dir: Path | None = None,
) -> RunFolder:
    """Start or resume one run, of a sweep if it is in one, and return its folder.

    `before_training` is called on every process once all have joined, before anything is written;
    with train.doctor=true it must be the doctor. Raises ValueError, before anything is written, if
    data, weights or folder do not fit; Preempted if the run saved and stopped on request; PeerLost
    if another process is gone.
    """
    # 1. Leave a finished run as it is; refuse the folder of another configuration.
    folder = RunFolder(config.run_dir)
    folder.check_same_config(to_yaml(config))
    if folder.is_finished():
        logger.info(f"{folder.path} is finished: nothing to do")
        return folder
    if config.train.doctor and before_training is None:
        raise ValueError("train.doctor=true needs the doctor: start the run with hpc-ecg finetune")

    # 2. Open data and weights. Whatever does not fit together fails here.
    prepared = prepare_run(config)
    logger.info(f"weights: {describe_weights(prepared)}")

    with _joined_engine(folder, prepared) as (engine, signals):
        # 3. All processes have joined: try the kernels, run the doctor, claim the folder.
        for line in try_kernels_of_run(engine, prepared, sweep_dir):
            logger.info(line)
        if before_training:
            before_training(engine, prepared)
        run = start_run(folder, prepared, engine, signals)

        # 4. Return to the newest checkpoint, if there is one.
        progress, checkpoint = restore_progress(run)

        # 5. Train stage by stage; each has its own trainable parameters and optimizer.
        stop = ""
        for stage in stages_left(prepared.stages, progress):
            progress = enter_stage(progress, stage)
            progress, stop = train_stage(run, stage, progress, checkpoint)
            checkpoint = None

        # 6. Calibrate the best weights, predict validation with them, fit thresholds on it.
        finish_run(run, progress, stop)
    return folder


@contextmanager
def _joined_engine(
    folder: RunFolder, prepared: PreparedRun
) -> Iterator[tuple[Engine, StopSignals]]:
    """Join the other processes, and pass on failures among them; close everything on exit."""
    engine = Engine(prepared.config.engine, folder.path)
    signals = StopSignals(folder.path, engine.is_rank_zero)
    with ExitStack() as stack:
        for close in (signals.close, engine.close, prepared.data.source.close, folder.release):
            stack.callback(close)
        stack.enter_context(engine.share_failures())
        prepared.data.sampler.check_world_size(engine.world_size)
        try:
            yield engine, signals
        except Exception as error:
            # Its frames hold the wrapped model. Freed after the process group, that would wait for
            # gloo's threads while they wait for the interpreter's lock.
            traceback.clear_frames(error.__traceback__)
            raise
