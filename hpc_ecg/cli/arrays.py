"""Options of `hpc-ecg data shard` on arrays and manifests, and where the recordings are."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hpc_ecg.ecg.array_files import ArrayLayout


def add_array_options(shard: argparse.ArgumentParser) -> None:
    group = add_layout_options(shard, "HZ|COLUMN")
    group.add_argument("--array", metavar="FILE", help="one array (below DIR) of all recordings")
    group.add_argument("--array-row", metavar="COLUMN", help="row there (default: of the table)")
    group.add_argument("--array-id", metavar="NAME", help="identifiers beside it: join by these")


def add_layout_options(parser: argparse.ArgumentParser, rate: str = "HZ") -> Any:
    group = parser.add_argument_group("recordings, where the files do not say")
    group.add_argument("--rate", metavar=rate, help="must agree with the files; arrays need it")
    group.add_argument("--axes", help="arrays: leads,samples (default) or samples,leads")
    group.add_argument("--leads", help="arrays: names in the file's order, with commas between")
    group.add_argument("--unit", help="arrays: mV (default), uV, V, or the size of a count: 4.88uV")
    return group


def layout_of(options: argparse.Namespace, rate_hz: float | None) -> "ArrayLayout":
    """The layout of arrays that the options describe; ValueError for one that cannot be."""
    from hpc_ecg.ecg.array_files import AXES, ArrayLayout
    from hpc_ecg.ecg.signal import LEADS

    return ArrayLayout(
        axes=AXES[0] if options.axes is None else options.axes,
        leads=LEADS if options.leads is None else tuple(options.leads.split(",")),
        unit="mV" if options.unit is None else options.unit,
        sample_rate_hz=rate_hz,
    )


def fill_in(options: argparse.Namespace) -> None:
    """Take options that are not given from a manifest or --array; ValueError if one is missing."""
    from hpc_ecg.cohort.manifest import is_manifest, read_manifest
    from hpc_ecg.cohort.table_files import read_table

    if options.table.is_file() and is_manifest(options.table):
        manifest = read_manifest(options.table, read_table)
        defaults = {"signals": manifest.root, "axes": manifest.axes, "unit": manifest.unit}
        if not options.one_patient_per_record and "patient_id" in manifest.table:
            defaults["patient"] = "patient_id"
        for name, value in defaults.items():
            if getattr(options, name) is None:
                setattr(options, name, value)
    if options.signals is None and options.array:
        path, mark, inner = options.array.partition("::")
        options.signals, options.array = Path(path).parent, Path(path).name + mark + inner
    if options.signals is None:
        raise ValueError("--signals must be given: the folder of the recordings")
    if options.patient is None and not options.one_patient_per_record:
        raise ValueError("one of --patient COLUMN and --one-patient-per-record must be given")


def as_number(text: str | None) -> float | None:
    """The number that an option states; None for other text, or none."""
    try:
        return float(text) if text else None
    except ValueError:
        return None
