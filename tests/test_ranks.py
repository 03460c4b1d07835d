"""Several processes on one run: torchrun with gloo, two processes on the CPU."""

import os
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest
import safetensors.torch
import torch
import torch.distributed as dist
from tiny_runs import TINY, run

import train
from config import parse_args
from dataset import CropStream, batches
from images.packs import pack_folder
from training.ranks import Ranks
from training.runs import RunFolder
from training.validation import Validation

ROOT = Path(__file__).parents[1]
DATA = ("--train-dir", "photos", "--valid-dir", "photos", "--batch-size", "4")

# train.py, but every rank writes the weights that it ends each phase with. The discriminator is one
# of few weights, with batch norm, and no curves are drawn: both would take most of the time.
DRIVER = f"""
import os, sys, time
sys.path.insert(0, {str(ROOT)!r})
import torch, train, training.log
class SmallDiscriminator(torch.nn.Sequential):
    def __init__(self, patch_size):
        super().__init__(torch.nn.Conv2d(3, 4, 8, 8), torch.nn.BatchNorm2d(4),
            torch.nn.Flatten(), torch.nn.Linear(4 * (patch_size // 8) ** 2, 1))
train.VGGDiscriminator = SmallDiscriminator
training.log.draw_curves = lambda rows, path: path.touch()
train_phase = train.train_phase
def writing(learner, loader, monitor, validation, run, stop):
    train_phase(learner, loader, monitor, validation, run, stop)
    name = f"{{run.config.name}}_{{learner.at.phase}}_rank{{run.ranks.rank}}.pt"
    nets = [net for net in (learner.net_g, learner.net_d) if net]
    torch.save([dict(net.named_parameters()) for net in nets], name)
train.train_phase = writing
train.run_as_program()
"""


@pytest.fixture
def launch(tmp_path, photos, monkeypatch):
    """Runs train.py with two processes; returns their common output."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "driver.py").write_text(DRIVER)

    def launching(*args, script="driver.py", status=0):
        torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
        done = subprocess.run(
            [sys.executable, *torchrun, script, *TINY, *DATA, *args],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=300,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        assert (done.returncode == 0) == (status == 0), done.stdout[-4000:]
        return done.stdout

    return launching


def weights(name, phase):
    return safetensors.torch.load_file(f"checkpoints/{name}/{phase}.safetensors")


@pytest.mark.parametrize("ranks, parts", [(1, 1), (2, 1), (1, 3), (2, 3)])
def test_ranks_and_parts_share_the_samples_of_each_batch(ranks, parts, photos):
    stream = CropStream([pack_folder(photos, 4)], 32, 0)
    whole = [crops.high_res for crops in batches(stream, 2, 5, 12, 0, False)]
    pieces = [
        [crops.high_res for crops in batches(stream, 2, 5, 12, 0, False, parts, rank, ranks)]
        for rank in range(ranks)
    ]
    for step, batch in enumerate(whole):
        shares = [
            pieces[rank][step * parts + part] for part in range(parts) for rank in range(ranks)
        ]
        assert torch.equal(torch.cat(shares), batch)


@pytest.mark.parametrize("nccl, backend", [(True, "cpu:gloo,cuda:nccl"), (False, "gloo")])
def test_gpus_of_a_torch_without_nccl_talk_over_gloo(nccl, backend, monkeypatch):
    """As on Windows."""
    chosen = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(dist, "is_nccl_available", lambda: nccl)
    monkeypatch.setattr(dist, "init_process_group", lambda backend, **_: chosen.append(backend))
    Ranks(rank=0, count=2).__enter__()
    assert chosen == [backend]


def test_a_process_alone_needs_no_others():
    with Ranks() as ranks:
        net = torch.nn.Linear(1, 1)
        assert ranks.wrap(net) is net and ranks.first
        assert ranks.largest(3) == 3 and ranks.gather([1]) == [1]
        assert ranks.mean(torch.tensor(2.0)) == 2


def test_processes_wait_for_one_another_as_long_as_they_are_told_to(monkeypatch):
    told = []
    monkeypatch.setattr(dist, "init_process_group", lambda backend, timeout: told.append(timeout))
    monkeypatch.setattr(dist, "destroy_process_group", lambda: None)
    for name, value in (("RANK", "0"), ("WORLD_SIZE", "2"), ("LOCAL_RANK", "0")):
        monkeypatch.setenv(name, value)
    for ranks in (Ranks.of_torchrun(), Ranks.of_torchrun(patience=timedelta(days=7))):
        with ranks:
            assert ranks.count == 2
    assert told == [timedelta(hours=1), timedelta(days=7)]


def test_ranks_share_batch_norms_statistics(monkeypatch):
    monkeypatch.setattr(Ranks, "mean", lambda ranks, values: values + 1)
    norm = torch.nn.BatchNorm1d(2)
    Ranks(rank=1, count=2).average_buffers(norm)
    assert norm.running_mean.tolist() == [1, 1] and norm.running_var.tolist() == [2, 2]
    assert norm.num_batches_tracked == 0  # which is alike in all ranks


def test_what_is_validated_or_saved_has_the_statistics_of_all_ranks(
    workplace, quick_curves, monkeypatch
):
    """They are averaged right before it, and after no other step: that takes messages."""
    events = []

    def note(owner, method, word, net_of):
        noted = getattr(owner, method)

        def noting(self, *args):
            events.append((word, net_of(*args)))
            return noted(self, *args)

        monkeypatch.setattr(owner, method, noting)

    note(train.Learner, "update_generator", "step", lambda parts, lr: None)
    note(Ranks, "average_buffers", "average", lambda *nets: nets[1])
    note(Validation, "__call__", "validate", lambda net, at: net)
    note(RunFolder, "save", "save", lambda learner, seconds: learner.ema)
    run(monkeypatch, "--gan.steps", "0", "--val-every", "2", "--save-every", "3")
    assert " ".join(word for word, _ in events) == (
        "step step average validate step average save "
        "step average validate step average validate save"
    )
    assert len({net for word, net in events if word != "step"}) == 1


def test_a_save_has_what_all_ranks_gathered_in_both_networks(workplace, quick_curves, monkeypatch):
    """Else a resume, which all ranks begin with the first one's, would not be exact."""
    averaged = []
    monkeypatch.setattr(Ranks, "average_buffers", lambda self, *nets: averaged.append(nets))
    saved = []
    save = RunFolder.save
    monkeypatch.setattr(
        RunFolder, "save", lambda run, learner, *a: saved.append(learner) or save(run, learner, *a)
    )
    run(monkeypatch, "--gan.steps", "0")
    assert averaged[-1] == (saved[-1].net_g, saved[-1].ema)


@pytest.mark.slow
def test_two_ranks_train_as_one_and_go_on_as_one(
    launch, workplace, quick_curves, monkeypatch, capsys
):
    def alone(*args):
        run(monkeypatch, *args, data=DATA)
        return capsys.readouterr().out

    psnr_alone = ("--gan.steps", "0")
    alone("--name", "one", "--psnr.steps", "6", *psnr_alone)
    output = launch("--name", "two", "--psnr.steps", "6")
    assert output.count("parameters") == 1  # only rank 0 speaks
    for phase in ("psnr", "gan"):
        first, second = (torch.load(f"two_{phase}_rank{rank}.pt") for rank in (0, 1))
        assert len(first) == {"psnr": 1, "gan": 2}[phase]  # networks
        torch.testing.assert_close(first, second, rtol=0, atol=0)
    torch.testing.assert_close(weights("two", "psnr"), weights("one", "psnr"), rtol=0, atol=2e-6)

    for train_on, steps in ((alone, "2"), (launch, "4"), (alone, "6")):
        output = train_on("--name", "changing", "--psnr.steps", steps, *psnr_alone)
        assert ("Going on" in output) == (steps != "2")
    torch.testing.assert_close(
        weights("changing", "psnr"), weights("one", "psnr"), rtol=0, atol=2e-6
    )


@pytest.mark.slow
def test_a_rank_that_dies_ends_the_others_with_a_message(launch, tmp_path):
    dying = DRIVER.replace(
        "train.run_as_program()",
        """
step = train.Learner.step
def dying(*args):
    if os.environ["RANK"] == "1" and os.path.exists("checkpoints/tiny/last.pt"):
        os.kill(os.getpid(), 9)
    return step(*args)
train.Learner.step = dying
import training.faults as faults
is_lost = faults.is_lost_connection
def slowly(error):
    time.sleep(1)  # torchrun's SIGTERM comes before the message
    return is_lost(error)
faults.is_lost_connection = slowly
train.run_as_program()
""",
    )
    (tmp_path / "dying.py").write_text(dying)
    output = launch(script="dying.py", status=1)
    assert "another process of this run ended or cannot be reached (" in output
    assert "Signal 9 (SIGKILL)" in output  # torchrun's word on the one that died
    launch()  # and the same command goes on
    assert Path("checkpoints/tiny/gan.safetensors").exists()


def test_a_batch_that_cannot_be_shared_is_refused(workplace):
    config = parse_args([*TINY, *DATA, "--batch-size", "3"])
    words = "batch_size is 3: it has to be a multiple of 2 processes times accumulate 1"
    with pytest.raises(train.DeviceError, match=words):
        train.train(RunFolder(config, Ranks(count=2)), set())
    assert not Path("checkpoints").exists()
