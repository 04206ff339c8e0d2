"""`hpc-ecg plan`: memory, time and price of a run or a sweep, before it starts."""

import argparse

from hpc_ecg.cli.parser import SETTINGS_HELP, Verbs

OPTIONS = {
    "gpu": "h100, a100 …, or cpu for this machine's CPU (default)",
    "gpus": "numbers of GPUs, as 1,2,8 (default 1)",
    "records": "ECGs to train and validate on, as 469197,68545, where there are no shards yet",
    "measured": "folder of a finished run, or what doctor --json or gpu-check wrote",
    "price": "of an hour of one GPU",
    "kwh_price": "of a kWh",
    "currency": "of the prices (default EUR)",
    "network_gbit": "Gbit/s of a node's network (default 100)",
    "gpus_per_node": "(default 8)",
}


def add_plan(verbs: Verbs) -> None:
    plan = verbs.add_parser("plan", help="what a run or sweep would need and cost, beforehand")
    plan.add_argument("settings", nargs="*", help=SETTINGS_HELP)
    for name, text in OPTIONS.items():
        plan.add_argument(f"--{name.replace('_', '-')}", metavar="X", help=text)
    plan.set_defaults(verb=_plan)


def _plan(options: argparse.Namespace) -> int:
    from hpc_ecg.config.load import load_config, read_yaml, split_arguments
    from hpc_ecg.log import say
    from hpc_ecg.preflight.plan import PlanConfig, describe_run, open_planned
    from hpc_ecg.training.settings import FinetuneConfig

    if not options.settings:
        raise ValueError("plan needs a configuration, such as configs/finetune.yaml")
    files, words = split_arguments(options.settings)
    given = {name: value for name in OPTIONS if (value := getattr(options, name)) is not None}
    given |= {name: f"[{given[name]}]" for name in ("gpus", "records") if name in given}
    asked = load_config(PlanConfig, [], [f"{name}={value}" for name, value in given.items()])
    keys = {key for file in files for key in read_yaml(file).values}
    keys |= {word.partition("=")[0].partition(".")[0] for word in words}
    is_sweep = "strategies" in keys
    folder, shards = ("sweep_dir", "run.data.shards") if is_sweep else ("run_dir", "data.shards")
    words += [f"{folder}=-"] * (folder not in keys) + [f"{shards}=-"] * bool(asked.records)
    try:
        if is_sweep:
            from hpc_ecg.sweep.dry_run import describe_cost
            from hpc_ecg.sweep.grid import load_sweep

            say(*describe_cost(load_sweep(files, words), asked))
        else:
            say(*describe_run(open_planned(load_config(FinetuneConfig, files, words), asked)))
    except ValueError as error:
        if not str(error).startswith(f"{shards} must be given"):
            raise
        raise ValueError(f"{error}, or --records TRAIN,VALID (numbers of ECGs)") from None
    return 0
