"""The meter: what is asked of the driver in each step."""

import pytest
import torch

from hpc_ecg.training import meter
from hpc_ecg.training.checkpoint import Progress
from hpc_ecg.training.meter import Meter


def test_the_counter_of_energy_is_read_once_a_second_not_once_a_step(monkeypatch):
    now, read = [100.0], []

    def kwh(_device):
        read.append(now[0])
        return 5.0 + (now[0] - 100) / 1000

    monkeypatch.setattr(meter, "gpu_kwh", kwh)
    monkeypatch.setattr(meter.time, "monotonic", lambda: now[0])
    of_two = Meter(2, torch.device("cuda"))
    of_two.start_from(Progress(energy_kwh=1.0))
    read.clear()
    for step in range(1, 101):
        now[0] = 100 + step / 32
        progress = of_two.at_step(step, Progress())
    assert read == [101.0, 102.0, 103.0]
    assert progress.energy_kwh == pytest.approx(1.006) and progress.seconds == 100 / 32


def test_without_a_counter_none_is_asked_for_again(monkeypatch):
    asked = []
    monkeypatch.setattr(meter, "gpu_kwh", asked.append)
    alone = Meter(1, torch.device("cuda"))
    asked.clear()
    monkeypatch.setattr(meter, "ENERGY_EVERY_S", 0.0)
    assert [alone.at_step(step, Progress()).energy_kwh for step in range(3)] == [None] * 3
    assert not asked
