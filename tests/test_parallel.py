"""Several processes train one model: the step of the whole batch, whoever has which part of it."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from vw2.console import UserError
from vw2.training.parallel import buckets, shared_walks

ROOT = Path(__file__).parents[1]
PROGRAM = """
import json
from pathlib import Path
import torch
from vw2.console import run
from vw2.training.compute import ComputeConfig, generator, start
from vw2.training.parallel import leave_to_first, of_all, rank_key
from vw2.training.run import Group, OptimConfig, Run

def main(folder: Path, until: int) -> None:
    accelerator = start(ComputeConfig(threads=1), 0, shared=True)
    rank, ranks = accelerator.process_index, accelerator.num_processes
    model = torch.nn.Linear(3, 1).double()
    carried = torch.nn.Module()
    carried.register_buffer("sum", torch.zeros(1).double())
    groups = [Group(model), Group(carried, own=True)]
    work = Run(accelerator, groups, OptimConfig(steps=6, batch=4, lr=0.1, save_every=3), folder, "train", log_every=1)
    for step in work:
        if step == until:
            return
        x = torch.randn(4, 3, generator=generator(0, 1, step)).double()[rank * 4 // ranks : (rank + 1) * 4 // ranks]
        carried.sum += x.sum()
        draw = torch.rand(1, generator=generator(0, 2, step, *rank_key(accelerator)))
        work.update((model(x) ** 2).mean(), {"train/draw": draw})
    mine = [model.weight.flatten().tolist(), float(carried.sum), float(draw)]
    told = of_all(accelerator, mine)
    leave_to_first(accelerator)
    print(json.dumps({"ranks": told, "logs": [[each["loss"], each["train/draw"]] for each in work.history]}))

run(main)
"""


def free_port() -> str:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return str(found.getsockname()[1])


def launch(command: list[str], ranks: int, cwd: Path, folders: dict | None = None) -> list[subprocess.CompletedProcess]:
    """Processes as torchrun starts them, some with a folder of their own to work in; what each of them did."""
    shared = {"WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port(), "OMP_NUM_THREADS": "1"}
    shared |= {"PYTHONPATH": str(ROOT), "ACCELERATE_USE_CPU": "true", "DVC_NO_ANALYTICS": "1"}
    started = [
        subprocess.Popen(
            [sys.executable, command[0], (folders or {}).get(rank, command[1]), *command[2:]],
            cwd=cwd,
            env=os.environ | shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)} if ranks > 1 else None,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(ranks)
    ]
    ended = [process.communicate(timeout=300) for process in started]
    return [
        subprocess.CompletedProcess(command, process.returncode, *out)
        for process, out in zip(started, ended, strict=True)
    ]


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    folder = tmp_path_factory.mktemp("parallel")
    (folder / "program.py").write_text(PROGRAM)
    (folder / "vw2").symlink_to(ROOT / "vw2")

    def call(run: str, ranks: int, until: int = 99, elsewhere: bool = False) -> dict | list:
        if elsewhere:  # the second process finds nothing
            return launch(["program.py", run, str(until)], ranks, folder, {1: "empty"})
        done = launch(["program.py", run, str(until)], ranks, folder)
        assert all(each.returncode == 0 for each in done), [each.stderr for each in done]
        assert all(not each.stdout and not each.stderr.strip() for each in done[1:]), "the first alone is heard"
        return json.loads(done[0].stdout) if done[0].stdout else {}

    return call


def test_two_processes_make_the_step_of_one(program):
    one, two = program("one", 1), program("two", 2)
    weights, total, draw = one["ranks"][0]
    assert two["ranks"][0][0] == two["ranks"][1][0], "the same weights in both"
    assert two["ranks"][0][0] == pytest.approx(weights, rel=1e-9), "those of one process with all clips"
    sums = [rank[1] for rank in two["ranks"]]
    assert sum(sums) == pytest.approx(total, rel=1e-9) and sums[0] != sums[1], "states of their own"
    draws = [rank[2] for rank in two["ranks"]]
    assert draws[0] == draw != draws[1], "the first draws as one alone does, and the others something else"
    assert two["logs"][-1][1] == pytest.approx(sum(draws) / 2), "logs are of all of a step's clips"
    assert [loss for loss, _ in two["logs"]] == pytest.approx([loss for loss, _ in one["logs"]])


def test_an_interrupted_run_of_two_goes_on(program):
    straight = program("straight", 2)
    assert program("broken", 2, until=4) == {}
    again = program("broken", 2)
    assert again["ranks"] == straight["ranks"] and again["logs"] == straight["logs"]


def test_processes_that_do_not_share_a_disk_are_told(program):
    program("near", 2, until=4)
    done = program("near", 2, elsewhere=True)
    assert all("expected all processes to go on at one step of train, got [0, 3]" in each.stderr for each in done)


def test_batches_that_cannot_be_shared_are_refused():
    class Three:
        num_processes, process_index = 3, 0

    with pytest.raises(UserError, match="train_dldm.optim.batch must be a multiple of the 3 processes .* got 16"):
        shared_walks(Three, None, [0], 0, 16, "train_dldm.optim.batch")


def test_buckets_hold_what_fits_and_one_dtype():
    sizes = [3, 2, 4, 9, 1]
    tensors = [torch.zeros(size) for size in sizes] + [torch.zeros(1, dtype=torch.float64)]
    found = [[each.numel() for each in bucket] for bucket in buckets(tensors, 5)]
    assert found == [[3, 2], [4], [9], [1], [1]]
    assert not list(buckets([], 5))
