"""How busy the machine is: what is read, how it is averaged, and where it is written down."""

import matplotlib

matplotlib.use("Agg")

import subprocess
import time

import pytest
import torch

from diffusion_book.training import monitor
from diffusion_book.training.experiment import Experiment, log_line
from diffusion_book.training.monitor import Monitor, in_words, monitoring, parse_gpu
from diffusion_book.viz.experiment import draw_use

CPU = torch.device("cpu")
EPOCH = {
    "event": "epoch",
    "epoch": 1,
    "step": 5,
    "train_loss": 1.0,
    "eval_loss": 1.0,
    "lr": 1e-3,
    "images_per_second": 10.0,
    "epoch_seconds": 2.0,
}


def work(seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        sum(range(1000))


def test_a_busy_thread_shows_and_a_sleeping_one_does_not():
    watched = Monitor(CPU)
    watched.take()
    used = time.process_time()
    began = time.monotonic()
    work(0.5)
    busy = watched.take()
    expected = 100 * (time.process_time() - used) / (time.monotonic() - began)  # other programs may take the core
    assert busy["cpu_percent"] == pytest.approx(expected, abs=25)
    time.sleep(0.5)
    assert watched.take()["cpu_percent"] < busy["cpu_percent"] / 2
    assert 0.05 < busy["cpu_memory_gb"] < 100
    assert "gpu_percent" not in busy


def test_what_is_taken_is_the_mean_since_the_last_time(monkeypatch):
    watched = Monitor(CPU)
    readings = iter([10.0, 20.0, 60.0, 7.0])
    monkeypatch.setattr(watched.process, "cpu_percent", lambda: next(readings), raising=False)
    watched.read()
    watched.read()
    assert watched.take()["cpu_percent"] == 30.0
    assert watched.take()["cpu_percent"] == 7.0


def test_a_thread_reads_while_inside_and_no_longer():
    with monitoring(CPU, seconds=0.02) as watched:
        deadline = time.monotonic() + 20
        while len(watched.readings) < 3 and time.monotonic() < deadline:
            time.sleep(0.02)
        assert len(watched.readings) >= 3
    count = len(watched.readings)
    time.sleep(0.1)
    assert len(watched.readings) == count


def test_what_the_gpu_s_program_says():
    assert parse_gpu("91, 3240, 310.25\n") == {
        "gpu_percent": 91.0,
        "gpu_memory_gb": pytest.approx(3240 * 2**20 / 1e9),
        "gpu_watts": 310.25,
    }
    assert parse_gpu("12, 1000, [N/A]") == {"gpu_percent": 12.0, "gpu_memory_gb": pytest.approx(1.048576)}
    assert parse_gpu("") == {}
    assert parse_gpu("No devices were found") == {}


def test_a_gpu_s_program_that_hangs_or_is_missing_costs_nothing(monkeypatch):
    class Properties:
        uuid = "0000"

    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: Properties, raising=False)
    monkeypatch.setattr(monitor.shutil, "which", lambda name: None)
    assert monitor.read_gpu(torch.device("cuda")) == {}

    def hang(*arguments, **options):
        raise subprocess.TimeoutExpired("nvidia-smi", 10)

    monkeypatch.setattr(monitor.shutil, "which", lambda name: name)
    monkeypatch.setattr(monitor.subprocess, "run", hang)
    assert monitor.read_gpu(torch.device("cuda")) == {}


def test_the_log_tells_it_in_words():
    use = {"cpu_percent": 198.4, "cpu_memory_gb": 1.234, "gpu_percent": 91.0, "gpu_memory_gb": 3.4, "gpu_watts": 310.2}
    assert in_words(use) == "cpu 198 %, 1.23 GB; gpu 91 %, 3.4 GB, 310 W"
    assert in_words({}) == ""
    assert log_line(EPOCH | use).endswith("2.0 s, cpu 198 %, 1.23 GB; gpu 91 %, 3.4 GB, 310 W")
    assert log_line(EPOCH).endswith("2.0 s")


def test_it_is_drawn_where_it_was_read(tmp_path):
    draw_use(Experiment(tmp_path / "old", [EPOCH]))
    assert not (tmp_path / "old").exists()
    records = [{**EPOCH, "epoch": number, "cpu_percent": 90.0 + number, "cpu_memory_gb": 1.0} for number in (1, 2, 3)]
    (tmp_path / "new").mkdir()
    draw_use(Experiment(tmp_path / "new", [EPOCH, *records]))
    assert (tmp_path / "new" / "device_use.png").read_bytes().startswith(b"\x89PNG")
