"""What divides the machine: refused by name where it does not work, chosen and said by auto."""

from __future__ import annotations

import pytest
import torch

from braid.core.config import PARTITIONS, EngineConfig
from braid.core.errors import InvalidParameterError
from braid.runner.partition import Partition, TeamSeat, open_partition

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)


def opened(name: str, *, threads: int = 4, cores: int = 4, needs_lanes: bool = True) -> Partition:
    return open_partition(name, CPU, threads=threads, cores=cores, needs_lanes=needs_lanes)


def test_auto_takes_lanes_of_cores_where_there_are_two() -> None:
    partition = opened("auto")
    assert (partition.name, partition.num_units, partition.has_lanes) == ("cpu", 4, True)
    assert "4 cores" in partition.lines()[0]


@pytest.mark.parametrize(("threads", "cores"), [(1, 4), (4, 1)])
def test_below_two_cores_auto_is_serial_and_cpu_refuses(threads: int, cores: int) -> None:
    partition = opened("auto", threads=threads, cores=cores)
    assert (partition.name, partition.num_units, partition.has_lanes) == ("serial", threads, False)
    assert "two cores" in partition.lines()[0]
    for name in ("cpu", "cpu-pinned"):
        with pytest.raises(InvalidParameterError, match="two cores"):
            opened(name, threads=threads, cores=cores)


def test_auto_is_serial_where_nobody_wants_lanes() -> None:
    partition = opened("auto", needs_lanes=False)
    assert partition.name == "serial"
    assert "share one lane" in partition.lines()[0]


@pytest.mark.parametrize("name", ["green", "priority"])
def test_gpu_backends_refuse_a_cpu(name: str) -> None:
    with pytest.raises(InvalidParameterError, match=f"{name}.*NVIDIA"):
        opened(name)


def test_lanes_of_cores_refuse_a_gpu() -> None:
    with pytest.raises(InvalidParameterError, match="on the CPU"):
        open_partition("cpu", CUDA, threads=4, cores=4, needs_lanes=True)


def test_auto_on_a_gpu_is_serial_and_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "cuda.core", None)
    partition = open_partition("auto", CUDA, threads=4, cores=4, needs_lanes=True)
    assert (partition.name, partition.num_units) == ("serial", 1)
    assert "green has not been run on a GPU yet" in partition.lines()[0]
    with pytest.raises(InvalidParameterError, match=r"green.*cuda-core"):
        open_partition("green", CUDA, threads=4, cores=4, needs_lanes=True)


def test_the_configuration_knows_the_names() -> None:
    for name in PARTITIONS:
        assert EngineConfig(partition=name).partition == name
    with pytest.raises(InvalidParameterError, match="one of auto, serial"):
        EngineConfig(partition="half")


def test_a_seat_of_cores_gives_what_a_step_says_and_all_for_none() -> None:
    before = torch.get_num_threads()
    try:
        seat = TeamSeat(3)
        for units, threads in ((1, 1), (2, 2), (0, 3)):
            with seat.step(units):
                assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
