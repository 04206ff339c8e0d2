"""A sweep's protocol: written before the test is predicted, versions, and what a report says."""

import json
import os
import re
import shutil
from pathlib import Path

import pytest
from test_sweep import words_of_sweep

from hpc_ecg.atomic_io import write_json, write_text
from hpc_ecg.cli import main
from hpc_ecg.config.load import to_yaml
from hpc_ecg.hashing import SHA256, sha256_of_value, write_record
from hpc_ecg.safe_reading import read_json
from hpc_ecg.sweep import launch as launcher
from hpc_ecg.sweep.grid import load_sweep
from hpc_ecg.sweep.protocol import protocol_note, read_protocol
from hpc_ecg.sweep.status import read_status
from hpc_ecg.training.run_folder import RunFolder

STRATEGIES = "strategies=[ssl_new_head,ssl_linear_probe]"


class Starts:
    """Starts of a sweep whose runs write files and train nothing; `ends` names those that do not
    end well: `lost` leaves nothing, `fails` and `killed` leave error.txt."""

    def __init__(self, shards, folder, monkeypatch) -> None:
        self.words = [*words_of_sweep(shards, folder, STRATEGIES, "seeds=[0]")]
        self.folder, self.ran, self.ends = folder, [], {}
        monkeypatch.setattr(launcher, "run_tasks_locally", self._run_all)
        monkeypatch.setattr(launcher, "_check_runs", lambda runs: None)
        monkeypatch.setattr(launcher, "soup_tasks", lambda *_: [])

    def start(self, *words, **options):
        self.ran.clear()
        return launcher.launch(load_sweep([], [*self.words, *words]), **options)

    def _run_all(self, tasks, *_):
        failures = []
        for task in [task for task in tasks if not task.is_done()]:
            config, predicts_test, *_ = task.arguments
            self.ran.append(f"{task.name}{' test' if predicts_test else ''}")
            end = self.ends.get(self.ran[-1], "")
            if end in ("fails", "killed"):
                task.fail("ValueError: x", "a.err", from_outside=end == "killed")
                failures.append(task.failure())
            elif end != "lost":
                task.error.unlink(missing_ok=True)
                self._finish(RunFolder(task.folder), config, predicts_test)
        return failures

    @staticmethod
    def _finish(run, config, predicts_test):
        if not run.config.exists():
            write_text(run.config, to_yaml(config))
            run.finish({"best_score": 0.7, "metric": "auroc"})
        if predicts_test:
            path = run.predictions / "test.parquet"
            write_text(path, f"predictions of {run.path.parent.name}")
            write_record(run.evaluation, {"labels": {}}, [path])

    def note(self, margin=0.02):
        runs = [str(p.parent.relative_to(self.folder)) for p in self.folder.glob("*/*/config.yaml")]
        return protocol_note(self.folder, margin, "auroc", sorted(runs))

    def check(self, capfd):
        capfd.readouterr()
        code = main(["protocol", "check", str(self.folder)])
        return code, capfd.readouterr().out


@pytest.fixture
def starts(shards, tmp_path, monkeypatch):
    return Starts(shards, tmp_path / "sweep", monkeypatch)


@pytest.fixture(scope="module")
def tested(shards, tmp_path_factory):
    """The folder of a sweep that was started once and whose test was opened."""
    with pytest.MonkeyPatch.context() as patch:
        starts = Starts(shards, tmp_path_factory.mktemp("tested") / "sweep", patch)
        starts.start()
    return starts.folder


@pytest.fixture
def opened(starts, tested):
    """Starts in a copy of that folder."""
    shutil.copytree(tested, starts.folder)
    return starts


CELLS = ["ssl_new_head/seed-0", "ssl_linear_probe/seed-0"]


def test_the_protocol_is_written_first_and_the_test_predicted_last_and_once(starts, capfd):
    written = []
    finish = starts._finish
    starts._finish = lambda *words: (written.append(read_protocol(starts.folder)), finish(*words))
    assert starts.start() == []
    assert starts.ran == [*CELLS, *(f"{cell} test" for cell in CELLS)]
    assert [bool(protocol["opened"]) for protocol in written] == [False] * 2 + [True] * 2
    (version,) = written[0]["versions"]
    content = version["content"]
    assert content["strategies"].keys() == {"ssl_new_head", "ssl_linear_probe"}
    probe = content["strategies"]["ssl_linear_probe"]
    assert probe["settings"]["train.freeze"] == "backbone"
    assert probe["sha256"] == sha256_of_value(probe["settings"])
    assert len(probe["data_index_sha256"]) == 64 and "seed" not in probe["settings"]
    assert (content["seeds"], content["metric"], content["margin"]) == ([0], "auroc", 0.02)
    before = (starts.folder / "protocol.json").read_bytes()
    assert starts.start() == [] and starts.ran == []
    assert (starts.folder / "protocol.json").read_bytes() == before, "nothing changed"
    assert read_protocol(starts.folder)["predictions"].keys() == set(CELLS)
    assert not starts.note()["is_warning"] and version[SHA256] in starts.note()["text"]
    code, printed = starts.check(capfd)
    assert code == 0 and printed.count(": ok\n") == 4 and version[SHA256] in printed


@pytest.mark.parametrize("end", ["lost", "killed"])
def test_the_test_stays_closed_while_another_start_would_continue_a_run(starts, end, capfd):
    starts.ends = {CELLS[0]: end}
    starts.start()
    assert starts.ran == CELLS and read_protocol(starts.folder)["opened"] is None
    assert {state.kind for state in read_status(starts.folder)[1:]} == {"done"}
    assert main(["sweep", "status", str(starts.folder)]) == 0
    assert "the test is closed: start the sweep again when" in capfd.readouterr().out
    assert main(["report", str(starts.folder)]) == 2
    assert "not tested: start the sweep again" in capfd.readouterr().err
    assert starts.check(capfd)[0] == 0
    starts.ends = {}
    starts.start()
    assert starts.ran == [CELLS[0], *(f"{cell} test" for cell in CELLS)]


def test_a_run_that_failed_by_itself_is_given_up(starts):
    starts.ends = {CELLS[0]: "fails"}
    assert len(starts.start()) == 1
    assert starts.ran == [*CELLS, *(f"{cell} test" for cell in CELLS[1:])]
    assert not starts.note()["is_warning"]
    starts.ends = {}
    starts.start()
    assert starts.ran == [CELLS[0], f"{CELLS[0]} test"]
    assert f"Planned, but trained after the test was opened: {CELLS[0]}" in starts.note()["text"]
    assert starts.note()["is_warning"] and "xploratory" not in starts.note()["text"]


def test_open_test_opens_it_although_runs_are_missing(starts):
    starts.ends = {CELLS[0]: "killed"}
    starts.start(open_now=True)
    assert starts.ran == [*CELLS, *(f"{cell} test" for cell in CELLS[1:])]
    assert read_protocol(starts.folder)["opened"]["runs"] == CELLS[1:]


def test_a_start_that_was_killed_while_the_test_was_predicted_goes_on(starts, capfd):
    starts.ends = {f"{CELLS[1]} test": "lost"}
    starts.start()
    opened = read_protocol(starts.folder)["opened"]
    starts.ends = {}
    starts.start()
    assert starts.ran == [f"{CELLS[1]} test"]
    assert read_protocol(starts.folder)["opened"] == opened
    assert starts.check(capfd)[0] == 0


MORE = {
    "seeds=[0,1]": r"seeds: \[0, 1\] \(locked: \[0\]\)",
    "strategies=[ssl_new_head,ssl_linear_probe,afib_keep_head]": "strategy afib_keep_head added",
    "strategies=[ssl_new_head]": "strategy ssl_linear_probe left out",
    "margin=0.05": r"margin: 0\.05 \(locked: 0\.02\)",
    "soup=true": r"soup: True \(locked: False\)",
    "grid.optim.lr=[0.1]": "strategy ssl_new_head left out",
}


def test_a_change_before_the_opening_makes_a_new_version_and_is_no_exploration(starts, capfd):
    starts.ends = {CELLS[0]: "killed"}
    starts.start()
    first = read_protocol(starts.folder)["versions"][0]
    starts.start("margin=0.05")
    protocol = read_protocol(starts.folder)
    assert protocol["versions"][0] == first and len(protocol["versions"]) == 2
    assert protocol["versions"][1]["before"] == first[SHA256]
    starts.start("margin=0.05", open_now=True)
    assert read_protocol(starts.folder)["opened"]["version"] == 2
    assert not starts.note(0.05)["is_warning"]
    code, printed = starts.check(capfd)
    assert code == 0 and first[SHA256] in printed
    starts.start("grid.optim.lr=[0.1]", "margin=0.05")
    assert "left out" in starts.note(0.05)["text"]
    starts.start("margin=0.05")
    assert "ssl_new_head,lr=0.1/seed-0 is not in it" in starts.note(0.05)["text"]


@pytest.mark.parametrize(("word", "text"), MORE.items())
def test_the_report_and_the_check_say_what_changed_after_the_opening(
    opened, word, text, capfd, monkeypatch
):
    date = read_protocol(opened.folder)["opened"]["time"]
    opened.start(word)
    note = opened.note()
    if "margin" not in word:  # a report takes the locked one
        assert note["is_warning"] and re.search(text, note["text"])
        assert note["text"].startswith(
            f"Exploratory: changed after the test was opened on {date}: "
        )
    code, printed = opened.check(capfd)
    assert code == 1 and re.search(
        f"unchanged since the test was opened: FAILED: .*{text}", printed
    )


def test_another_margin_than_the_locked_one_makes_a_report_exploratory(starts):
    starts.start("margin=0.03")
    assert not starts.note(0.03)["is_warning"]
    assert "margin: 0.02 (locked: 0.03)" in starts.note(0.02)["text"]


def test_predictions_from_before_the_opening_are_said(starts, capfd):
    starts.ends = {CELLS[0]: "killed"}
    starts.start()
    path = starts.folder / CELLS[1] / "predictions/test.parquet"
    write_text(path, "peeked")
    write_record(path.parents[1] / "evaluation.json", {}, [path])
    for open_now in (False, True):
        text = f"Exploratory: test predictions existed before the test was opened: {CELLS[1]}."
        assert starts.note()["text"] == text
        code, printed = starts.check(capfd)
        assert code == 1 and f"{CELLS[1]} was predicted before the test was opened" in printed
        starts.start(open_now=not open_now)


def test_a_sweep_of_an_older_version_says_that_there_was_no_protocol(opened, capfd):
    (opened.folder / "protocol.json").unlink()
    assert opened.note()["text"].startswith("There was no protocol") and opened.note()["is_warning"]
    assert main(["protocol", "check", str(opened.folder)]) == 2
    assert "has no protocol.json" in capfd.readouterr().err
    opened.start()
    assert (
        "Exploratory: test predictions existed before the test was opened" in opened.note()["text"]
    )


def _forge(folder: Path, change) -> None:
    """Change the file and its outer digest, as one who does not know of the inner ones."""
    protocol = read_json(folder / "protocol.json")
    del protocol[SHA256]
    change(protocol)
    write_json(folder / "protocol.json", protocol | {SHA256: sha256_of_value(protocol)})


def _make_old(folder):
    os.utime(folder / CELLS[0] / "predictions/test.parquet", (1, 1))


def _replace(folder):
    path = folder / CELLS[0] / "predictions/test.parquet"
    path.write_text("better ones")
    write_record(folder / CELLS[0] / "evaluation.json", {}, [path])


def _change_settings(folder):
    path = folder / CELLS[0] / "config.yaml"
    path.write_text(path.read_text().replace("max_epochs: 1\n", "max_epochs: 9\n", 1))


ATTACKS = {
    "digests: FAILED: version 1 is not what": lambda folder: _forge(
        folder, lambda p: p["versions"][0]["content"].update(margin=0.1)
    ),
    "digests: FAILED: version 1 is not": lambda folder: _forge(
        folder, lambda p: p["versions"][0].update(time="2020-01-01T00:00:00+00:00")
    ),
    "order: FAILED: the versions and the opening": lambda folder: _forge(
        folder, lambda p: p["opened"].update(time="2020-01-01T00:00:00+00:00")
    ),
    f"{CELLS[0]} was predicted before the test was opened": _make_old,
    f"digests: FAILED: test predictions of {CELLS[0]} were replaced": _replace,
    f"digests: FAILED: test predictions of {CELLS[0]} were removed": lambda folder: (
        folder / CELLS[0] / "predictions/test.parquet"
    ).unlink(),
    "evaluation.json has changed since": lambda folder: _forge_evaluation(folder),
    f"{CELLS[0]} has other settings than the protocol": _change_settings,
}


def _forge_evaluation(folder):
    path = folder / CELLS[0] / "evaluation.json"
    path.write_text(path.read_text().replace('"labels": {}', '"labels": {"a": 1}'))


@pytest.mark.parametrize(("text", "attack"), ATTACKS.items())
def test_the_check_finds_what_was_changed_by_hand(opened, text, attack, capfd):
    attack(opened.folder)
    code, printed = opened.check(capfd)
    assert code == 1 and text in printed and printed.count("FAILED") == 1
    if "replaced" in text or "removed" in text:
        assert re.search("opened on .*: test predictions of .* were", opened.note()["text"])


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda p: p.update(versions=[]), "it lacks a version"),
        (lambda p: p["opened"].update(version=7), "it lacks a version"),
        (lambda p: p["opened"].update(time=3), "time cannot be '3'"),
        (lambda p: p["opened"].update(time="soon"), "Invalid isoformat"),
        (lambda p: p["versions"][0].update(content={}), "strategies cannot be"),
        (lambda p: p.update(predictions=[]), "predictions cannot be"),
    ],
)
def test_a_damaged_protocol_is_refused_in_one_line(opened, change, text, capfd):
    _forge(opened.folder, change)
    capfd.readouterr()
    assert main(["protocol", "check", str(opened.folder)]) == 2
    printed = capfd.readouterr().err
    assert "protocol.json is damaged" in printed and text in printed and printed.count("\n") == 1


def test_a_protocol_changed_without_its_digest_is_refused(opened):
    path = opened.folder / "protocol.json"
    path.write_text(path.read_text().replace('"margin": 0.02', '"margin": 0.03'))
    with pytest.raises(ValueError, match=r"protocol.json has changed since it was written"):
        opened.note()
    json.loads(path.read_text())
