"""Several processes of one command agree, and hear of each other's failures."""

import json
import os

import pytest
import torch
import torch.distributed as dist
from process_support import free_port, side_by_side, together

from circuitcli import group, processes
from circuitcli.cli import failures
from circuitcli.errors import SettingsError, ToolError
from circuitcli.models.loading import choose_device

NAMES = ("RANK", "LOCAL_RANK", "WORLD_SIZE")


@pytest.fixture
def launched(monkeypatch):
    """Puts numbers of processes into the environment."""

    def put(**numbers):
        for name in NAMES:
            monkeypatch.delenv(name, raising=False)
        for name, number in numbers.items():
            monkeypatch.setenv(name, str(number))

    return put


@pytest.mark.parametrize(
    ("numbers", "expected"),
    [
        ({}, (0, 0, 1, True)),
        (dict(WORLD_SIZE=4), (0, 0, 1, True)),
        (dict(RANK=0, LOCAL_RANK=0, WORLD_SIZE=4), (0, 0, 4, True)),
        (dict(RANK=5, LOCAL_RANK=1, WORLD_SIZE=8), (5, 1, 8, False)),
        (dict(RANK=3, WORLD_SIZE=4), (3, 3, 4, False)),
    ],
)
def test_a_process_knows_its_number(launched, numbers, expected):
    launched(**numbers)
    assert (processes.rank(), processes.local_rank(), processes.count(), processes.is_main()) == expected


@pytest.mark.parametrize(
    "numbers",
    [
        dict(RANK=4, WORLD_SIZE=4),
        dict(RANK=-1, WORLD_SIZE=4),
        dict(RANK="x", WORLD_SIZE=4),
        dict(RANK=0, LOCAL_RANK=1, WORLD_SIZE=4),
    ],
)
def test_numbers_that_cannot_be_are_a_settings_error(launched, numbers):
    launched(**numbers)
    with pytest.raises(SettingsError, match=f"RANK={numbers['RANK']}"):
        processes.rank()


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, None),
        ({"LOCAL_WORLD_SIZE": "1"}, None),
        ({"LOCAL_WORLD_SIZE": "none"}, None),
        ({"LOCAL_WORLD_SIZE": "3"}, "4"),
        ({"LOCAL_WORLD_SIZE": "100"}, "1"),
        ({"LOCAL_WORLD_SIZE": "3", "RAYON_NUM_THREADS": "7"}, "7"),
    ],
)
def test_tokenizers_of_several_processes_share_the_cores(monkeypatch, given, expected):
    monkeypatch.setattr(os, "cpu_count", lambda: 12)
    monkeypatch.setattr(os, "environ", dict(given))
    processes.share_cores()
    assert os.environ.get("RAYON_NUM_THREADS") == expected


def test_one_process_exchanges_with_itself_without_torch(launched):
    launched()
    assert (group.share(3), group.gather("a"), group.failure_of_another()) == (3, ["a"], None)
    group.barrier(), group.check(), group.leave()


def test_each_process_of_a_machine_takes_its_own_gpu(launched, monkeypatch):
    launched(RANK=5, LOCAL_RANK=1, WORLD_SIZE=8)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda **_: torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert [str(choose_device(name)) for name in ("auto", "cuda", "cuda:3", "cpu")] == [
        "cuda:1",
        "cuda:1",
        "cuda:3",
        "cpu",
    ]


EXCHANGE = """if True:
    import json, sys, time
    from circuitcli import group, processes
    rank = processes.rank()
    assert "torch" not in sys.modules
    time.sleep(0.3 * rank)
    told = [group.share({"rank": rank}), group.gather(rank * 10)]
    group.barrier()
    print(json.dumps([*told, group.gather([rank])]))
    group.leave()
"""


def test_processes_get_the_same_values(tmp_path):
    expected = [{"rank": 0}, [0, 10, 20], [[0], [1], [2]]]
    for outcome in together(EXCHANGE, n=3, cwd=tmp_path):
        assert outcome.status == 0, outcome.stderr
        assert json.loads(outcome.stdout) == expected


ADD = """if True:
    import torch, torch.distributed as dist
    from circuitcli import group, processes
    group.start(torch.device("cpu"))
    number = torch.tensor([1.0 + processes.rank()])
    dist.all_reduce(number)
    print(number.item())
    group.leave()
    dist.destroy_process_group()
"""


def test_processes_add_up_tensors(tmp_path):
    assert [outcome.stdout for outcome in side_by_side(["-c", ADD], n=2, cwd=tmp_path)] == ["3.0\n"] * 2


FAIL = """if True:
    import sys, time
    from pathlib import Path
    from circuitcli import group, processes
    from circuitcli.errors import CircuitError
    group.barrier()
    if processes.rank() == 1:
        group.tell_failure("the disk is full", hint="make space", status=3)
        group.tell_failure("later", hint="", status=1)
        print(group.failure_of_another())
    else:
        try:
            group.barrier()
        except CircuitError as error:
            print(error.message, error.hint, int(error.exit_status), sep="; ")
    Path(f"done{processes.rank()}").touch()
    # The main process keeps what the processes tell each other.
    while processes.is_main() and len(list(Path().glob("done*"))) < 3:
        time.sleep(0.01)
"""


def test_the_first_failure_ends_the_waiting_of_the_others(tmp_path):
    main, failed, other = side_by_side(["-c", FAIL], n=3, cwd=tmp_path)
    assert (main.status, failed.status, other.status) == (0, 0, 0), failed.stderr
    assert main.stdout == other.stdout == "process 1: the disk is full; make space; 3\n"
    assert failed.stdout == "None\n"


@pytest.mark.parametrize(
    ("device", "backend"),
    [("cpu", "gloo"), ("mps", "gloo"), ("cuda:1", "cpu:gloo,cuda:nccl"), ("xpu:0", "cpu:gloo,xpu:xccl")],
)
def test_tensors_of_the_cpu_can_be_added_up_beside_those_of_a_gpu(launched, monkeypatch, device: str, backend: str):
    launched(RANK=0, LOCAL_RANK=0, WORLD_SIZE=2)
    asked = {}
    monkeypatch.setattr(group, "_store", dist.HashStore)
    monkeypatch.setattr(group, "_await_all", lambda: None)
    monkeypatch.setattr(dist, "init_process_group", lambda name, **others: asked.update(others, name=name))
    group.start(torch.device(device))
    assert asked["name"] == backend
    assert asked["device_id"] == (None if backend == "gloo" else torch.device(device))


@pytest.mark.parametrize(("rank", "missing"), [(0, "1 2"), (2, "0")])
def test_a_process_whose_peers_never_come_gives_up_and_says_who_is_missing(
    launched, monkeypatch, capsys, rank: int, missing: str
):
    launched(RANK=rank, LOCAL_RANK=rank, WORLD_SIZE=3)
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(free_port()))
    monkeypatch.setattr(group, "_wait_s", 300.0)
    group.limit_wait(0.2)
    for cached in (group._store, group._await_all):
        cached.cache_clear()
    try:
        with pytest.raises(ToolError, match=rf"did not appear in 0\.2 s: {missing}$") as caught:
            group.share({"works": True})
        assert "torchrun" in caught.value.hint and "--set wait_s" in caught.value.hint
        # Telling the others of it does not wait once more.
        monkeypatch.setattr(group, "_FAREWELL_S", 0.2)
        assert failures.report(caught.value) == 4
        assert "did not appear" in capsys.readouterr().err
    finally:
        group._store.cache_clear()
