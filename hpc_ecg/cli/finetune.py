"""`hpc-ecg finetune`: start or resume one run."""

import argparse
import gc
import signal
from pathlib import Path
from typing import TYPE_CHECKING

from hpc_ecg.cli.parser import SETTINGS_HELP, Verbs

if TYPE_CHECKING:
    from hpc_ecg.training.run_folder import RunFolder
    from hpc_ecg.training.settings import FinetuneConfig


def add_finetune(verbs: Verbs) -> None:
    finetune = verbs.add_parser("finetune", help="start or resume one run")
    finetune.add_argument("settings", nargs="*", help=SETTINGS_HELP)
    finetune.set_defaults(verb=_finetune)


def _finetune(options: argparse.Namespace) -> int:
    """Report mistakes that need no torch before importing it."""
    from hpc_ecg.config.load import load_config, split_arguments, to_yaml
    from hpc_ecg.log import logger
    from hpc_ecg.training.open_run import with_start
    from hpc_ecg.training.run_folder import RunFolder
    from hpc_ecg.training.settings import FinetuneConfig

    files_and_overrides = split_arguments(options.settings)
    config = with_start(load_config(FinetuneConfig, *files_and_overrides))
    folder = RunFolder(config.run_dir)
    folder.check_same_config(to_yaml(config))
    if folder.is_finished():
        logger.info(f"{folder.path} is finished: nothing to do")
        _say_result(folder)
        return 0
    _check_paths(config)
    logger.info(f"reading {config.data.shards} and {config.init.path or 'random weights'}")
    return _run(config)


def _check_paths(config: "FinetuneConfig") -> None:
    """ValueError for shards or weights that do not exist; their content is checked later."""
    from hpc_ecg.shards.format import read_description
    from hpc_ecg.weights.reading import resolve_file

    shards = config.data.shards
    if "://" not in shards and not shards.startswith("pipe:"):
        read_description(Path(shards))
    if path := config.init.path:
        resolve_file(Path(path))


def _run(config: "FinetuneConfig") -> int:
    """Run and return the exit code: 0, EXIT_REQUEUE or that of PeerLost."""
    from hpc_ecg.distributed.failures import PeerLost
    from hpc_ecg.distributed.stop_signals import Preempted
    from hpc_ecg.log import logger
    from hpc_ecg.preflight.doctor import doctor_before_training
    from hpc_ecg.training.finetune import finetune

    gc.freeze()  # Accelerate collects garbage often: half a second each over imported modules
    try:
        folder = finetune(config, before_training=doctor_before_training(config))
        if folder.is_finished():
            _say_result(folder)
    except Preempted as preempted:
        # Slurm signals the processes that have not exited when the first one has
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        logger.info(str(preempted))
        return preempted.code
    except PeerLost as lost:
        logger.error(str(lost))
        return lost.exit_code
    return 0


def _say_result(run: "RunFolder") -> None:
    """Log the best score, where the weights are, and what comes next."""
    from hpc_ecg.log import logger
    from hpc_ecg.sweep.status import describe_validation

    verb = "report" if run.evaluation.exists() else "evaluate"
    score = describe_validation(run)
    score = f"best {score}" if score else "nothing was trained"
    logger.info(f"{score}; weights: {run.path}/best; next: hpc-ecg {verb} {run.path}")
