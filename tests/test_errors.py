"""Errors of the system: one plain line that names the path and says what to do."""

import errno
import os
from pathlib import Path

import pytest
from safetensors import SafetensorError

from hpc_ecg.atomic_io import naming, write_atomically, write_json
from hpc_ecg.cli import main
from hpc_ecg.log import describe_error

FULL = "x.json: No space left on device; free some space, then start again"


@pytest.mark.parametrize(
    ("number", "expected"),
    [
        (errno.ENOSPC, "a/b: No space left on device; free some space, then start again"),
        (errno.EDQUOT, "a/b: Disk quota exceeded; free some space, then start again"),
        (errno.EACCES, "a/b: Permission denied; give another path"),
        (errno.EROFS, "a/b: Read-only file system; give another path"),
        (errno.ENOTDIR, "a/b: Not a directory; give another path"),
        (errno.EEXIST, "a/b: File exists; give another name"),
        (errno.EISDIR, "a/b: Is a directory; give another name"),
        (errno.ENAMETOOLONG, "a/b: File name too long; give another name"),
        (
            errno.EMFILE,
            "a/b: Too many open files; raise the limit (ulimit -n) or use fewer workers",
        ),
        (errno.ENOENT, "a/b: No such file or directory"),
    ],
)
def test_an_error_of_the_system_names_its_path_and_what_to_do(number, expected):
    assert describe_error(OSError(number, os.strerror(number), "a/b")).startswith(expected)


def test_an_error_without_a_number_is_its_text_and_never_empty():
    assert describe_error(OSError("disk\x1b[2J\nfull")) == "disk?[2J full"
    assert describe_error(ValueError("")) == "ValueError"


def of_torch():
    try:
        raise OSError(errno.ENOSPC, "No space left on device")
    except OSError:
        raise RuntimeError("[enforce fail at inline_container.cc] unexpected pos 1") from None


def raising(error):
    def write(path):
        path.write_text("a")
        raise error

    return write


@pytest.mark.parametrize(
    "write",
    [
        raising(OSError(errno.ENOSPC, "Error writing bytes. Detail: [errno 28] No space left")),
        raising(SafetensorError("I/O error: No space left on device (os error 28)")),
        raising(OSError("200000 requested and 1024 written")),
        lambda path: of_torch(),
        lambda path: Path("/dev/full").write_text("x" * 10**6),
    ],
    ids=["arrow", "safetensors", "numpy", "torch", "python"],
)
def test_a_full_disk_is_named_with_the_file_that_was_written(tmp_path, write):
    with pytest.raises(OSError) as failed:
        write_atomically(tmp_path / "x.json", write)
    assert describe_error(failed.value) == f"{tmp_path}/{FULL}"
    assert failed.value.errno == errno.ENOSPC and list(tmp_path.iterdir()) == []


def test_a_file_within_a_folder_that_is_written_is_named_as_it_will_be(tmp_path):
    def write(partial):
        partial.mkdir()
        (partial / "x").mkdir()
        (partial / "x").write_text("a")

    with pytest.raises(IsADirectoryError) as failed:
        write_atomically(tmp_path / "step-1", write)
    assert describe_error(failed.value).startswith(f"{tmp_path}/step-1/x: Is a directory")


def test_another_error_stays_what_it_is():
    with pytest.raises(RuntimeError, match="mistake"), naming(Path("x")):
        raise RuntimeError("mistake")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["evaluate", "RUN", "--out", "FILE"], "--out FILE: FILE is a file; give a folder"),
        (["evaluate", "RUN", "--out", "FILE/x/y"], "--out FILE/x/y: FILE is a file; give a folder"),
        (["config", "x" * 300], "no verb, section or setting has this name"),
        (["data", "inspect", "x" * 300], "File name too long; give another name"),
        (["data", "inspect", "FILE/x"], "FILE/x"),
        (["report", "x" * 300], "File name too long; give another name"),
        (["weights", "inspect", "x" * 300], "x" * 300),
        (["cohort", "FILE", "FILE", "--out", "y" * 300 + ".csv"], "File name too long"),
    ],
)
def test_a_path_that_cannot_be_used_is_one_plain_line(words, expected, tmp_path, capsys):
    file = tmp_path / "file"
    file.write_text("x")
    words = [word.replace("FILE", str(file)) for word in words]
    if words[0] == "cohort":
        words += ["--within", "1y", "--assume-complete-follow-up", "--any-event"]
    try:
        code = main(words)
    except SystemExit as stop:
        code = stop.code
    (line,) = capsys.readouterr().err.splitlines()
    assert code == 2 and expected.replace("FILE", str(file)) in line
    assert "Errno" not in line and "Traceback" not in line


@pytest.mark.parametrize("minutes", ["-1", "nan"])
def test_a_time_for_baselines_below_0_is_refused(tmp_path, capsys, minutes):
    assert main(["report", str(tmp_path), f"--baseline-minutes={minutes}"]) == 2
    line = capsys.readouterr().err
    assert f"--baseline-minutes must be 0 or more, got {minutes}" in line


def test_a_report_of_few_replicates_is_refused_and_replaces_none_of_more(tmp_path, capsys):
    assert main(["report", str(tmp_path), "--replicates", "5"]) == 2
    assert "--replicates must be at least 200, got 5" in capsys.readouterr().err
    write_json(tmp_path / "report" / "comparison.json", {"replicates": 2000})
    assert main(["report", str(tmp_path), "--replicates", "500"]) == 2
    line = capsys.readouterr().err
    assert f"must be at least 2000, got 500: {tmp_path}/report was made with so many" in line
    assert main(["report", str(tmp_path), "--replicates", "2000"]) == 2
    assert "replicates" not in capsys.readouterr().err  # refused for want of runs
