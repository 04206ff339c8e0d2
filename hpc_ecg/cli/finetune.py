"""`hpc-ecg finetune`: train one run, or go on with it."""

import argparse
import gc
import os
import signal
from pathlib import Path
from typing import Any

from hpc_ecg.cli.parser import SETTINGS_HELP, Verbs


def add_finetune(verbs: Verbs) -> None:
    finetune = verbs.add_parser("finetune", help="train one run, or go on with it")
    finetune.add_argument("settings", nargs="*", help=SETTINGS_HELP)
    finetune.set_defaults(verb=_finetune)


def _finetune(options: argparse.Namespace) -> int:
    """Mistakes that can be seen without torch are reported before it is imported."""
    from hpc_ecg.config.load import load_config, split_arguments, to_yaml
    from hpc_ecg.distributed.ranks import read_ranks
    from hpc_ecg.log import logger, start_logging
    from hpc_ecg.training.run_folder import RunFolder
    from hpc_ecg.training.settings import FinetuneConfig

    files_and_overrides = split_arguments(options.settings)
    start_logging(read_ranks(os.environ).rank)
    config = load_config(FinetuneConfig, *files_and_overrides)
    folder = RunFolder(config.run_dir)
    folder.check_same_config(to_yaml(config))
    if folder.is_finished():
        logger.info(f"{folder.path} is finished: nothing to do")
        return 0
    _check_paths(config)
    logger.info(f"reading {config.data.shards} and {config.init.checkpoint or 'random weights'}")
    return _run(config)


def _check_paths(config: Any) -> None:
    """ValueError for a path that does not exist; what is in it is checked later."""
    from hpc_ecg.shards.format import read_description
    from hpc_ecg.weights.reading import resolve_file

    shards = config.data.shards
    if "://" not in shards and not shards.startswith("pipe:"):
        read_description(Path(shards))
    if config.init.checkpoint:
        resolve_file(Path(config.init.checkpoint))


def _run(config: Any) -> int:
    """The exit code: 0, EXIT_REQUEUE or EXIT_PEER_LOST."""
    from hpc_ecg.distributed.process_group import PeerLost
    from hpc_ecg.distributed.stop_signals import Preempted
    from hpc_ecg.distributed.watchdog import EXIT_PEER_LOST
    from hpc_ecg.log import logger
    from hpc_ecg.preflight.doctor import doctor_before_training
    from hpc_ecg.training.finetune import finetune

    gc.freeze()  # Accelerate collects garbage often: half a second each over imported modules
    try:
        finetune(config, before_training=doctor_before_training(config))
    except Preempted as preempted:
        # Slurm ends the processes that are still leaving when the first one has left
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        logger.info(str(preempted))
        return preempted.code
    except PeerLost as lost:
        logger.error(str(lost))
        return EXIT_PEER_LOST
    return 0
