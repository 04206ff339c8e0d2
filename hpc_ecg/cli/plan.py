"""`hpc-ecg plan`: memory, time and price of a run or a sweep, before it starts."""

import argparse

from hpc_ecg.cli.parser import SETTINGS_HELP, Verbs

OPTIONS = {
    "gpu": "h100, a100 …, or cpu for the one here (default)",
    "gpus": "numbers of GPUs, as 1,2,8 (default 1)",
    "records": "to train and validate on, as 469197,68545, where there are no shards yet",
    "measured": "folder of a finished run, or what doctor --json printed",
    "price": "of an hour of one GPU",
    "kwh-price": "of a kWh",
    "currency": "of the prices (default EUR)",
    "network-gbit": "Gbit/s of a node's network (default 100)",
    "gpus-per-node": "(default 8)",
}


def add_plan(verbs: Verbs) -> None:
    plan = verbs.add_parser("plan", help="what a run or sweep would need and cost, beforehand")
    plan.add_argument("settings", nargs="*", help=SETTINGS_HELP)
    for name, text in OPTIONS.items():
        plan.add_argument(f"--{name}", metavar="X", help=text)
    plan.set_defaults(verb=_plan)


def _plan(options: argparse.Namespace) -> int:
    from hpc_ecg.config.load import load_config, read_yaml, split_arguments
    from hpc_ecg.log import say
    from hpc_ecg.preflight.plan import PlanConfig, basis_of, describe_run, open_planned
    from hpc_ecg.sweep.grid import load_sweep
    from hpc_ecg.training.settings import FinetuneConfig

    files, words = split_arguments(options.settings)
    if not options.settings:
        raise ValueError("plan needs a configuration, such as configs/finetune.yaml")
    given = {name: vars(options)[name] for name in (n.replace("-", "_") for n in OPTIONS)}
    for name in {"gpus", "records"} & {name for name, value in given.items() if value is not None}:
        given[name] = f"[{given[name]}]"
    texts = [f"{name}={value}" for name, value in given.items() if value is not None]
    asked = load_config(PlanConfig, [], texts)
    keys = {key for file in files for key in read_yaml(file).values}
    keys |= {word.partition("=")[0].partition(".")[0] for word in words}
    is_sweep = "strategies" in keys
    folder, shards = ("sweep_dir", "run.data.shards") if is_sweep else ("run_dir", "data.shards")
    words += [f"{folder}=-"] * (folder not in keys) + [f"{shards}=-"] * bool(asked.records)
    if is_sweep:
        from hpc_ecg.sweep.dry_run import describe_cost

        sweep = load_sweep(files, words)
        say(*describe_cost(sweep, basis_of(asked, sweep.cells[0].run.engine.precision)))
    else:
        config = load_config(FinetuneConfig, files, words)
        basis = basis_of(asked, config.engine.precision)
        say(*describe_run(open_planned(config, asked.records), basis))
    return 0
