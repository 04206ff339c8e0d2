"""One run, told once and in order: settings in, a run folder with the best weights out.

Starting again on the same folder goes on where it stopped; a finished run is left as it is.
Every process runs this same function; what must happen once happens on the first.
"""

import logging
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np
import yaml

from hpc_ecg.config.load import to_yaml
from hpc_ecg.data.dataset import open_shards, open_split
from hpc_ecg.data.sampler import EpochSampler
from hpc_ecg.data.source import ShardSource
from hpc_ecg.distributed.ranks import this_job
from hpc_ecg.distributed.stop_signals import StopSignals
from hpc_ecg.model.transformer import ECGClassifier
from hpc_ecg.preflight.cluster_checks import raise_on_errors
from hpc_ecg.preflight.run_checks import Setup, look_at_node, run_checks
from hpc_ecg.training.best_weights import BestWeights, provenance_of, write_valid
from hpc_ecg.training.checkpoint import Progress, newest_checkpoint
from hpc_ecg.training.engine import Engine
from hpc_ecg.training.features import FeatureCache, choose_stage_inputs
from hpc_ecg.training.loop import Run, train_stage
from hpc_ecg.training.meter import Meter
from hpc_ecg.training.outcome import BestTracker, check_start, open_run, summary_of
from hpc_ecg.training.predict import as_predictions, predict
from hpc_ecg.training.run_folder import RunFolder, flatten
from hpc_ecg.training.settings import FinetuneConfig
from hpc_ecg.training.stages import (
    Stage,
    check_parallel,
    describe_stages,
    enter,
    stages_left,
    stages_of,
    trains_head_only,
)
from hpc_ecg.training.workload import choose_kernels
from hpc_ecg.weights import load_model
from hpc_ecg.weights.initialize import initialize

logger = logging.getLogger("hpc_ecg")


def finetune(config: FinetuneConfig) -> RunFolder:
    """Start, or go on with, one run; returns its folder.

    Raises ValueError, before anything is written, for data, weights or a folder that do not fit.
    """
    folder = RunFolder(config.run_dir)

    # 1. A finished run is left as it is; a folder of another configuration is refused.
    folder.check_same_config(to_yaml(config))
    if folder.is_finished():
        logger.info("%s is finished: nothing to do", folder.path)
        return folder

    # 2. Data and weights: whatever does not fit fails here.
    shards, labels = open_shards(config.data)
    source = ShardSource(shards, config.data)
    train, valid = (open_split(shards, split, labels, source) for split in ("train", "valid"))
    sampler = EpochSampler.of(train, config.data, config.seed)
    metric, decimals = config.train.best_metric, config.train.best_decimals
    best_tracker = BestTracker(valid, config.data.task, metric, config.loss, decimals)
    stages = stages_of(config.train, config.optim, config.init.checkpoint is not None)
    check_parallel(config.train, config.engine.parallel)
    start = initialize(
        *(config.init, config.model, len(labels), labels),
        *(stages[0].train.freeze, config.seed, stages[0].train.freeze_layers),
    )
    check_start(start, shards, config.init.checkpoint)
    describe_stages(start, stages)

    # 3. The processes meet; the first one claims the folder and notes what starts from where.
    engine = Engine(config.engine, folder.path)
    wishes = StopSignals(folder.path, engine.is_rank_zero)
    with ExitStack() as leaving:
        for leave in (wishes.close, engine.close, source.close, folder.release):
            leaving.callback(leave)
        leaving.enter_context(engine.share_failures())
        place = {"processes": engine.world_size, "device": engine.device_name}
        place |= {"precision": engine.precision, "slurm": this_job()}
        notes = place | {"data_index_sha256": shards.index_sha256}
        sampler.check_world(engine.world_size)
        if config.train.doctor:
            setup = Setup(
                seed=config.seed,
                augment=config.augment,
                loss=config.loss,
                train=train,
                valid=valid,
                sampler=sampler,
                stages=stages,
                start=start,
            )
            raise_on_errors(
                run_checks(engine, folder.path, setup, look_at_node(engine.config)),
                engine.is_rank_zero,
            )
        source.stage(sampler.first_use())
        engine.run_on_rank_zero(lambda: open_run(folder, to_yaml(config), notes, start.report))
        engine.start_trackers(flatten(yaml.safe_load(to_yaml(config))))
        cache = FeatureCache(
            engine=engine,
            # an augmented record has other features each time
            setting=None if config.augment.is_on else config.train.feature_cache,
            batch_size=config.data.batch_size,
            run_dir=folder.path,
        )
        provenance = provenance_of(start.report)
        best = BestWeights(folder=folder, valid=valid, provenance=provenance)
        choose_kernels(start.model, train, engine)
        run = Run(
            sampler=sampler,
            augment=config.augment,
            loss=config.loss,
            seed=config.seed,
            folder=folder,
            engine=engine,
            cache=cache,
            model=start.model.to(engine.device),
            train=train,
            best_tracker=best_tracker,
            best=best,
            wishes=wishes,
        )
        summary = _train(run, stages, place)

        # 6. The best weights predict the validation split: calibration and thresholds come from
        #    there, and stay. What is calibrated predicts again: so it is the same after a kill.
        def logits_of_best() -> tuple[ECGClassifier, np.ndarray]:
            engine.wait_for_all()  # the first process may still be writing them
            model = load_model(folder.best, model_config=config.model).to(engine.device)
            view = choose_stage_inputs(
                cache, model, train, valid, trains_head_only(stages), trains=False
            )
            engine.prepare(view.module)
            return model, predict(engine, view.valid, config.data.batch_size)

        model, logits_NK = logits_of_best()
        if engine.run_on_rank_zero(
            lambda: best.calibrate(model, logits_NK, config.train.calibration)
        ):
            logits_NK = logits_of_best()[1]
        predictions = as_predictions(valid, logits_NK, config.data.task)
        engine.run_on_rank_zero(lambda: write_valid(folder, predictions))
        engine.run_on_rank_zero(lambda: folder.finish(summary))
    return folder


def _train(run: Run, stages: Sequence[Stage], place: dict[str, Any]) -> dict[str, Any]:
    # 4. Back to the newest checkpoint, if there is one.
    engine, folder = run.engine, run.folder
    newest = engine.run_on_rank_zero(lambda: newest_checkpoint(folder.checkpoints))
    path, progress = newest or (None, Progress())
    meter = Meter(progress, engine.world_size, engine.device)
    run.note("resumed" if newest else "started", step=progress.step, **place)
    if newest:
        logger.info("%s: going on from step %d", folder.path, progress.step)

    # 5. Stage by stage: what trains changes, so the optimizer and the engine's ties are made anew.
    stop = ""
    for stage in stages_left(stages, progress):
        progress = enter(progress, stage)
        head_only = trains_head_only(stages, stage)
        progress, stop = train_stage(run, stage, head_only, progress, meter, path)
        path = None
    return summary_of(run.best_tracker.metric, meter.at_step(progress.step, progress), meter) | {
        "stopped": stop,
        "epochs": progress.step / run.sampler.steps_per_epoch,
        "processes": engine.world_size,
        "device": engine.device_name,
    }
