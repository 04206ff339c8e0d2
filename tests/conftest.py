"""Shared fixtures: real recordings if available, a tiny cohort, a tiny model, a tiny run."""

import gc
import json
import logging
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from filelock import FileLock
from ranks import run_on_ranks
from synthetic import Population, write_cohort

from hpc_ecg.cli import command
from hpc_ecg.cohort.privacy import Privacy
from hpc_ecg.cohort.splits import SPLITS, SplitPlan
from hpc_ecg.cohort.table import Columns
from hpc_ecg.model.architecture import Architecture
from hpc_ecg.safe_reading import sha256_of
from hpc_ecg.shards.description import DESCRIPTION_SHA256, count_label, digest_of_description
from hpc_ecg.shards.shard_task import Recordings
from hpc_ecg.shards.sharding import shard_ecgs
from hpc_ecg.shards.sharding_plan import ShardingPlan

FIRST_LINE_S = command.FIRST_LINE_S
FIXTURES = Path(__file__).parent / "fixtures"
# The sizes of the tiny reference checkpoints, for models with random weights.
TINY = Architecture(
    encoder_layers=2,
    encoder_embed_dim=48,
    encoder_ffn_embed_dim=96,
    encoder_attention_heads=4,
    conv_feature_layers=((16, 2, 2),) * 4,
    conv_pos=8,
    conv_pos_groups=4,
)
TINY_MODEL = [
    "model.encoder_layers=2",
    "model.encoder_embed_dim=48",
    "model.encoder_ffn_embed_dim=96",
    "model.encoder_attention_heads=4",
    "model.conv_feature_layers=[(16, 2, 2)] * 4",
    "model.conv_pos=8",
    "model.conv_pos_groups=4",
]

REHEARSES = os.environ.get("HPC_ECG_REHEARSE_GPU") == "1"
NO_GPU = "no GPU here; HPC_ECG_REHEARSE_GPU=1 runs the tests marked gpu on the CPU, as a rehearsal"

# A worker of `make test` takes whole files: those that take longest come first, so that the last
# minute is not one worker's.
LONGEST_FIRST = (
    *("test_sweep", "test_parallel", "test_compile", "test_sharding", "test_tuning", "test_trials"),
    *("test_full_size", "test_hostile_files", "test_finetune", "test_features", "test_submit"),
    *("test_faults", "test_stages", "test_coverage", "test_slurm_scripts"),
    *(
        "test_edited_files",
        "test_explain",
        "test_cli_data",
        "test_weights_onnx",
        "test_doctor",
        "test_readers",
        "test_torchrun",
    ),
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    places = {name: place for place, name in enumerate(LONGEST_FIRST)}
    items.sort(key=lambda item: places.get(item.path.stem, len(places)))
    if not (torch.cuda.is_available() or REHEARSES):
        for item in (item for item in items if item.get_closest_marker("gpu")):
            item.add_marker(pytest.mark.skip(reason=NO_GPU))


def pytest_report_header() -> str:
    text = "the tests marked gpu run on the CPU: this shows that they run, and nothing about a GPU"
    return f"REHEARSAL: {text}" if REHEARSES else ""


@pytest.fixture(scope="session")
def gpu() -> torch.device:
    """The GPU that a test marked gpu is for; in a rehearsal the CPU."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when CUDA starts
    return torch.device("cpu") if REHEARSES else torch.device("cuda", 0)


@pytest.fixture
def fp16_everywhere(gpu, monkeypatch):
    """In a rehearsal fp16 runs on the CPU, too."""
    from gpu_runs import allow_fp16_on_a_cpu

    if gpu.type == "cpu":
        allow_fp16_on_a_cpu(monkeypatch)


@pytest.fixture(scope="module", autouse=True)
def _imports_are_frozen() -> None:
    """Accelerate collects garbage three times a run: half a second each over imported modules."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def _cache_is_not_the_developers(tmp_path_factory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HPC_ECG_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True)
def _log_is_as_imported(monkeypatch) -> None:
    """A command that ran in this process has kept the log from pytest, for the tests after it. On a
    busy machine none says that it is at work: tests count the lines of mistakes."""
    monkeypatch.setattr(command, "FIRST_LINE_S", 60.0)
    logger = logging.getLogger("hpc_ecg")
    logger.handlers, logger.propagate = [], True
    logger.setLevel(logging.NOTSET)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder with `ecg/` (real recordings) and `reference/` (arrays from the original program)."""
    folder = os.environ.get("HPC_ECG_TEST_DATA")
    if not folder:
        pytest.skip("HPC_ECG_TEST_DATA is not set: no real recordings here")
    path = Path(folder)
    assert (path / "ecg").is_dir(), f"HPC_ECG_TEST_DATA={folder} has no folder ecg/"
    return path


@pytest.fixture(scope="session")
def full_size(real_data, tmp_path_factory) -> Path:
    """Folder with base_ssl.pt and wcr_afib_5y.pt at full size, in the original's layout, with
    generated weights."""
    folder = tmp_path_factory.mktemp("full_size")
    script = str(real_data / "reference" / "regen_full.py")
    subprocess.run([sys.executable, script, str(folder)], check=True, capture_output=True)
    return folder


@pytest.fixture(scope="session")
def cohort(tmp_path_factory) -> Path:
    """Table of a synthetic cohort on disk: 40 patients, about 90 ECGs, 5 of them broken."""
    folder = tmp_path_factory.mktemp("cohort")
    population = Population(af_prevalence=0.4)
    return write_cohort(folder, num_patients=40, seed=3, population=population, num_broken=5)


@pytest.fixture(scope="session")
def shards(cohort, tmp_path_factory) -> Path:
    """The cohort as a set of several shards."""
    out = tmp_path_factory.mktemp("shards") / "set"
    shard_ecgs(plan_for(cohort, out))
    return out


def plan_for(table: Path, out: Path, **changes) -> ShardingPlan:
    """A plan for the synthetic cohort. `changes` are its fields or those of its parts."""
    parts = {
        "split": (SplitPlan, {"fractions": (0.5, 0.25, 0.25)}),
        "recordings": (Recordings, {"signals": table.parent}),
        "privacy": (Privacy, {}),
    }
    plan = {"columns": Columns(labels=["af"], patient="patient_id"), "records_per_shard": 30}
    for name, (kind, values) in parts.items():
        known = [key for key in changes if key in kind.__dataclass_fields__]
        plan[name] = kind(**values | {key: changes.pop(key) for key in known})
    return ShardingPlan(table=table, out=out, **(plan | changes))


def reseal(folder: Path, index: pd.DataFrame, **changes) -> None:
    """Write this index into a set of shards, and a dataset.json that agrees with it, as if the set
    had been written so. `changes` are other fields of dataset.json."""
    about = json.loads((folder / "dataset.json").read_text()) | changes
    about["records"] = {s: int((index["split"] == s).sum()) for s in SPLITS}
    about["patients"] = {s: index["patient"][index["split"] == s].nunique() for s in SPLITS}
    about["label_counts"] = {name: count_label(index, name) for name in about["labels"]}
    index.attrs[DESCRIPTION_SHA256] = digest_of_description(about)
    index.to_parquet(folder / "index.parquet", index=False)
    about["index_sha256"] = sha256_of(folder / "index.parquet")
    (folder / "dataset.json").write_text(json.dumps(about))


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def words_for(shards: Path, run_dir: Path, *more: str) -> list[str]:
    """Settings of a run that takes seconds: tiny weights, small batches, one thread."""
    return [
        f"data.shards={shards}",
        f"run_dir={run_dir}",
        f"init.checkpoint={FIXTURES / 'tiny_base_ssl.pt'}",
        "data.batch_size=12",
        "optim.lr=0.002",
        "train.max_epochs=2",
        "train.log_every=1",
        "engine.cpu_threads=1",
        *more,
    ]


def long_words(shards: Path, run_dir: Path, *more: str) -> list[str]:
    """Settings of a run of 60 steps, long enough to be interrupted. It saves every 4 steps, before
    each validation."""
    own = ("train.max_epochs=15", "train.patience=null", "optim.lr=0.0002")
    return words_for(shards, run_dir, *own, *more)


@pytest.fixture(scope="session")
def slurm(tmp_path_factory) -> Iterator[Path]:
    """Folder of a real Slurm with three nodes on this machine. SLURM_CONF points to it."""
    missing = [name for name in ("slurmctld", "slurmd", "munged", "srun") if not shutil.which(name)]
    if missing or os.geteuid() != 0:
        what = f"{', '.join(missing)} not installed" if missing else "not root"
        pytest.skip(f"a test cluster cannot be started here: {what} (CONTRIBUTING.md says how)")
    folder = tmp_path_factory.mktemp("slurm")
    script = str(Path(__file__).parent / "slurm" / "slurm-local.sh")
    environment = os.environ | {"SLURM_LOCAL_ROOT": str(folder), "ACCT": "none"}
    lock = FileLock(Path(tempfile.gettempdir()) / "hpc_ecg-slurm.lock")  # test runs share the ports
    with pytest.MonkeyPatch.context() as patch, lock:
        subprocess.run(["bash", script, "start", "3"], check=True, env=environment)
        patch.setenv("SLURM_CONF", str(folder / "slurm.conf"))
        yield folder
        subprocess.run(["bash", script, "stop"], check=True, env=environment)


@pytest.fixture(autouse=True)
def _jobs_start_quickly(request, monkeypatch) -> None:
    if "slurm" in request.fixturenames:
        monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent / "slurm" / "startup"))


@pytest.fixture(scope="session")
def project(tmp_path_factory) -> Path:
    """A folder to submit from: the scripts, without a site file of the developer."""
    folder = tmp_path_factory.mktemp("project")
    for name in ("job.sh", "finetune.sh", "sweep.sh", "predict.sh"):
        (folder / "slurm").mkdir(exist_ok=True)
        shutil.copy(FIXTURES.parents[1] / "slurm" / name, folder / "slurm" / name)
    return folder


@pytest.fixture(scope="session")
def made_sweep(tmp_path_factory) -> Path:
    """What `recorded.make_sweep` makes, once for all workers: copy it before you change it."""
    from recorded import make_sweep

    base = tmp_path_factory.getbasetemp()
    base = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    folder = base / "made_sweep"
    with FileLock(f"{folder}.lock"):
        if not (folder / "COMPLETE").exists():
            folder.mkdir()
            make_sweep(folder)
            (folder / "COMPLETE").touch()
    return folder / "v0_1"


@pytest.fixture(scope="session")
def undisturbed(shards, tmp_path_factory) -> Path:
    """Folder of a finished run on two processes, without Slurm or interruptions."""
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    run_on_ranks(2, ["finetune", *long_words(shards, folder)])
    return folder


@pytest.fixture
def few_events_suffice(monkeypatch):
    """Calibrate on the handful of patients that tiny shards have in validation."""
    monkeypatch.setattr("hpc_ecg.evaluation.events.MIN_EVENTS", 1)
