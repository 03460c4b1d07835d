"""Means that leave out what is not finite, the GAN's balance in words, the monitor, the log."""

import dataclasses
import io
import json
import math
import os
import time

import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from PIL import Image
from tiny_runs import read_events

from config import Config
from training.log import RunLog, draw_curves
from training.monitor import Balance, Clock, IntervalMeans, Monitor
from training.ranks import Ranks
from training.runs import RunFolder, TrainingError
from training.settings import At


def alone(tensor):
    return tensor


def add(means, *steps):
    for pixel, gradient in steps:
        means.add({"pixel": torch.tensor(pixel), "gradient": torch.tensor(gradient)})


def test_means_leave_out_what_is_not_finite_and_count_it():
    means = IntervalMeans()
    add(means, (1.0, 2.0), (math.nan, math.inf), (3.0, math.nan), (5.0, 4.0))
    values, faults = means.read(alone)
    assert values == {"pixel": 3.0, "gradient": 3.0}
    assert (faults.steps, faults.faulty, faults.in_a_row, faults.longest) == (4, 2, 0, 2)
    assert faults.missing == {"pixel": 1, "gradient": 2}
    assert str(faults) == "2 of 4 steps skipped, not finite: pixel (1), gradient (2)"
    add(means, (7.0, 1.0))
    values, faults = means.read(alone)
    assert values == {"pixel": 7.0, "gradient": 1.0} and faults.faulty == faults.longest == 0


def test_a_row_of_faults_is_counted_over_readings():
    means = IntervalMeans()
    add(means, (1.0, 1.0), (math.nan, 1.0), (math.nan, 1.0))
    assert means.read(alone)[1].in_a_row == 2
    add(means, (math.nan, 1.0))
    values, faults = means.read(alone)
    assert faults.in_a_row == faults.longest == 3 and math.isnan(values["pixel"])


def test_the_balance_speaks_once_it_stays_unhealthy():
    balance = Balance()
    said = [balance.judge(1.0, 0.01, "gan") for _ in range(15)]
    assert [i for i, sentence in enumerate(said) if sentence] == [balance.PATIENCE - 1]
    assert said[balance.PATIENCE - 1].startswith("the discriminator has won: it ranks 100%")
    assert "Lower gan.lr" in said[balance.PATIENCE - 1]
    assert not any(balance.judge(0.8, 0.6, "gan") for _ in range(15))  # healthy
    said = [balance.judge(0.51, 2 * math.log(2), "psnr") for _ in range(15)]
    assert "the discriminator learns nothing" in said[balance.PATIENCE - 1]
    assert "Raise psnr.lr" in said[balance.PATIENCE - 1]
    assert sum(map(bool, said)) == 1


# ------------------------------------------------------------------------------------ the monitor


@pytest.fixture
def clock(monkeypatch):
    """A list of one number, the seconds that it is; the test winds it."""
    now = [100.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    return now


@pytest.fixture
def monitor(tmp_path, monkeypatch, clock):
    """Of a GAN phase of batches of 4 in 2 parts; its points of curves go to `monitor.points`."""
    monkeypatch.chdir(tmp_path)
    run = RunFolder(Config(batch_size=4, accumulate=2, max_skipped=3), Ranks())
    monitor, monitor.points = Monitor(At("gan", 0), 0.0, torch.device("cpu"), run), []
    monkeypatch.setattr(RunFolder, "scalars", lambda run, *point: monitor.points.append(point))
    yield monitor
    monitor.bar.close()


def test_time_without_data_is_that_in_the_loader(monitor, clock):
    def slow():
        for part in range(4):
            clock[0] += 1.5
            yield part

    batches = []
    for parts in monitor.watch(slow()):
        batches.append(parts)
        clock[0] += 2  # of the step
        monitor.add({"pixel": torch.tensor(0.5)})
    assert batches == [[0, 1], [2, 3]]
    monitor.read(At("gan", 2), lr=1e-4)
    row = monitor.row({"psnr": 30.0})
    assert row["data wait"] == 6 / 10 and row["images/s"] == 2 * 4 / 10
    assert (row["seconds"], row["psnr"], row["losses"], row["lr"]) == (10, 30, {"pixel": 0.5}, 1e-4)
    ((group, values, at),) = monitor.points
    assert (group, values["pixel"], values["skipped"], at.step) == ("gan", 0.5, 0, 2)


def test_a_gan_out_of_balance_is_told_with_its_step(monitor, clock, capsys):
    for step in range(1, 16):
        clock[0] += 1
        monitor.add({"discriminator": torch.tensor(0.01), "pairs right": torch.tensor(1.0)})
        monitor.read(At("gan", step), lr=1e-4)
    (said,) = capsys.readouterr().out.splitlines()
    assert said.startswith("gan 10: the discriminator has won: it ranks 100% of pairs right")


def test_a_row_of_skipped_steps_stops_a_run_though_its_last_step_was_fine(monitor, clock):
    clock[0] += 1
    for pixel in (math.nan, math.nan, math.nan, 1.0):
        monitor.add({"pixel": torch.tensor(pixel)})
    with pytest.raises(TrainingError, match=r"gan step 4: 3 steps in a row were skipped \(3 of 4"):
        monitor.read(At("gan", 4), lr=1e-4)


@pytest.mark.parametrize(
    "row, stopped, saves", [(5, True, True), (6, True, False), (6, False, True)]
)
def test_a_stop_in_a_long_row_of_skipped_steps_keeps_the_older_file(
    row, stopped, saves, monitor, clock
):
    """Weights that are finite and fail on every batch would replace those that worked."""
    clock[0] += 1
    monitor.config = dataclasses.replace(monitor.config, max_skipped=50)
    for pixel in [1.0] + [math.nan] * row:
        monitor.add({"pixel": torch.tensor(pixel)})
    at = At("gan", row + 1)
    if saves:
        monitor.read(at, 1e-4, stopped)
    else:
        with pytest.raises(TrainingError, match=r"6 steps in a row were skipped .* no check"):
            monitor.read(at, 1e-4, stopped)


def test_what_is_shown_is_the_mean_of_all_ranks(monitor, clock, monkeypatch):
    """The other rank's two losses add up to 7; of its steps none was faulty."""
    clock[0] += 1
    other = torch.tensor([7.0, 2.0, 0.0, 0.0, 0.0])
    monkeypatch.setattr(Ranks, "mean", lambda ranks, values: (values + other) / 2)
    for pixel in (1.0, 5.0):
        monitor.add({"pixel": torch.tensor(pixel)})
    monitor.read(At("gan", 2), lr=1e-4)
    assert monitor.row({})["losses"] == {"pixel": (1 + 5 + 7) / 4}


# ----------------------------------------------------------------------------------------- the log


def test_the_curves_are_drawn(tmp_path):
    with RunLog(tmp_path, 0) as log:
        for step in range(1, 6):
            phase, term = ("psnr", "pixel") if step < 4 else ("gan", "adversarial")
            scores = {"psnr": 20.0 + step, "bicubic_psnr": 22.0}
            row = {"phase": phase, "run_step": step, "losses": {term: 1 / step}}
            log.metric(row | scores)
        log.draw_curves()
    with Image.open(tmp_path / "curves.png") as picture:
        colours = {colour for _, colour in picture.convert("RGB").getcolors(10**6)}
        # matplotlib's first three: both phases' curves, and the second phase's loss
        assert {(31, 119, 180), (255, 127, 14), (128, 128, 128)} <= colours


def test_a_term_that_came_later_has_its_curve(tmp_path, monkeypatch):
    drawn = {}

    def plot(axes, steps, values, *_, label):
        drawn[label] = steps, values
        return plotted(axes, steps, values, label=label)

    plotted = Axes.plot
    monkeypatch.setattr(Axes, "plot", plot)
    rows = [
        {"phase": "gan", "run_step": 1, "losses": {"pixel": 0.5}},
        {"phase": "gan", "run_step": 2, "losses": {"pixel": 0.4, "feature matching": 0.3}},
    ]
    draw_curves(rows, tmp_path / "curves.png")
    steps, values = drawn["gan: feature matching"]
    assert steps == [1, 2] and math.isnan(values[0]) and values[1] == 0.3


def test_bicubics_curve_is_of_the_images_of_each_step(tmp_path, monkeypatch):
    drawn = {}
    monkeypatch.setattr(
        Axes, "plot", lambda axes, steps, values, *_, label, **__: drawn.update({label: values})
    )
    monkeypatch.setattr(Axes, "legend", lambda axes: None)
    rows = [
        {"phase": "psnr", "run_step": i, "psnr": b + 1, "bicubic_psnr": b, "losses": {}}
        for i, b in enumerate((29, 29, 22))
    ]
    draw_curves(rows, tmp_path / "curves.png")
    assert drawn["bicubic"] == [29, 29, 22] and drawn["psnr phase"] == [30, 30, 23]


def test_speed_is_of_the_steps_and_not_of_a_validation_between_them(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    clock = Clock(batch_size=2, device=torch.device("cpu"), seconds=0)
    now[0] += 30  # of a validation
    clock.restart()
    now[0] += 4
    assert clock.read(3)["images/s"] == 2 * 3 / 4
    assert clock.seconds() == 34


def test_long_waits_for_crops_are_told_once(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("training.monitor.time.perf_counter", lambda: now[0])
    clock = Clock(batch_size=2, device=torch.device("cpu"), seconds=0)
    told = []
    for waited in (1, 30, 0, 40, 50):
        now[0] += 100
        clock.waited = waited
        clock.read(steps=10)
        told.append(clock.complaint())
    # 71 of 400 seconds are less than a fifth, 121 of 500 more.
    assert told == [""] * 4 + ["24% of the time goes to waiting for crops; more --workers may help"]
    now[0] += 100
    clock.waited = 90
    clock.read(steps=10)
    assert clock.complaint() == ""


def test_short_waits_for_crops_are_no_matter():
    clock = Clock(batch_size=2, device=torch.device("cpu"), seconds=0)
    clock.waited = 59
    clock.read(steps=10)
    assert clock.complaint() == ""


def test_a_run_without_validation_has_curves_too(tmp_path):
    with RunLog(tmp_path, 0) as log:
        log.metric({"phase": "psnr", "run_step": 1, "losses": {"pixel": math.nan}})
        assert log.scored() == log.comparable({}) == []
        log.draw_curves()
    assert (tmp_path / "curves.png").stat().st_size > 1000
    assert json.loads((tmp_path / "metrics.jsonl").read_text())["losses"] == {"pixel": None}


def test_a_resumed_log_forgets_the_steps_that_are_done_again(tmp_path):
    with RunLog(tmp_path, 0) as log:
        for step in (1, 2, 3):
            log.metric({"phase": "psnr", "step": step, "run_step": step, "psnr": float(step)})
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"phase": "psnr", "run_st')  # as a power cut leaves it
    with RunLog(tmp_path, 2) as log:
        log.metric({"phase": "psnr", "step": 4, "run_step": 4, "psnr": math.inf})
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row["run_step"] for row in rows] == [1, 2, 4]
    assert rows[-1]["psnr"] is None  # infinity is no JSON


def test_a_line_that_a_power_cut_spoiled_is_left_out(tmp_path):
    whole = {"phase": "psnr", "step": 1, "run_step": 1, "losses": {"pixel": 0.5}}
    lines = [
        json.dumps(whole),
        json.dumps(whole)[:-1],
        "\0" * 50,
        "[1]",
        '{"another": "program\'s"}',
    ]  # the second ends in a brace, too
    content = "\n".join(lines).encode() + b"\n\xff\xfe\n"
    (tmp_path / "metrics.jsonl").write_bytes(content)
    with RunLog(tmp_path, 1) as log:
        assert log.rows == [whole]


def test_tensorboard_reads_curves_and_pictures_and_forgets_steps_done_again(tmp_path, random_image):
    picture = random_image(3, 5)
    with RunLog(tmp_path, 0) as log:
        for step in (1, 2, 3):
            log.scalars("psnr", {"pixel": step / 4}, step)
        log.picture("b\udce9\udc3d.png \N{CYRILLIC SMALL LETTER ZHE}", picture, 1)
    with RunLog(tmp_path, 2) as log:
        log.scalars("psnr", {"pixel": 9.5}, 4)
    events = read_events(tmp_path)
    read = [(point.step, point.value) for point in events.Scalars("psnr/pixel")]
    assert read == [(1, 0.25), (2, 0.5), (4, 9.5)]
    [tag] = events.Tags()["images"]  # a file's name need not be UTF-8; a tag has to be
    assert tag == "b\\udce9\\udc3d.png \N{CYRILLIC SMALL LETTER ZHE}"
    encoded = events.Images(tag)[0].encoded_image_string
    assert np.array_equal(Image.open(io.BytesIO(encoded)), picture)


@pytest.mark.skipif(os.name == "nt", reason="file size limits are POSIX")
def test_a_full_disk_ends_tensorboards_curves_with_one_line_and_names_other_files(tmp_path, capsys):
    import resource

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    log = RunLog(tmp_path, 0)
    log.metric({"phase": "psnr", "run_step": 1, "losses": {"pixel": 1.0}})
    resource.setrlimit(resource.RLIMIT_FSIZE, (600, limits[1]))
    try:
        for step in range(100):
            log.scalars("psnr", {"pixel": 1.0}, step)
        with pytest.raises(OSError, match=r"metrics\.jsonl cannot be written \(File too large\)"):
            log.metric({"phase": "psnr", "run_step": 2, "note": "x" * 600})
        with pytest.raises(OSError, match=r"curves\.png cannot be written \(File too large\)"):
            log.draw_curves()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    log.__exit__(None, None, None)
    [said] = capsys.readouterr().out.splitlines()
    assert said.startswith("TensorBoard's curves end here: ") and "File too large" in said
    assert len(read_events(tmp_path).Scalars("psnr/pixel")) > 1  # those before are whole
    assert not (tmp_path / "curves.png").exists()
