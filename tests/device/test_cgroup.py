from __future__ import annotations

from pathlib import Path

import pytest

from braid.device.cgroup import MemoryLimit, cpu_quota, memory_limit

V2_MOUNT = "31 23 0:28 / /sys/fs/cgroup rw,relatime shared:9 - cgroup2 cgroup2 rw,nsdelegate\n"
V1_MOUNTS = (
    "32 31 0:29 {root} /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n"
    "35 31 0:32 {root} /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory\n"
)


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def v2(tmp_path: Path, own: str, files: dict[str, str]) -> Path:
    proc = {"proc/self/cgroup": f"0::{own}\n", "proc/self/mountinfo": V2_MOUNT}
    return write(tmp_path, proc | {f"sys/fs/cgroup{name}": text for name, text in files.items()})


def v1(tmp_path: Path, own: str, files: dict[str, str], mount_root: str = "/") -> Path:
    groups = f"4:memory:{own}\n2:cpu,cpuacct:{own}\n1:name=systemd:/\n"
    proc = {"proc/self/cgroup": groups, "proc/self/mountinfo": V1_MOUNTS.format(root=mount_root)}
    return write(tmp_path, proc | {f"sys/fs/cgroup{name}": text for name, text in files.items()})


@pytest.mark.parametrize(
    ("own", "files", "expected"),
    [
        ("/", {"/cpu.max": "max 100000"}, None),
        ("/", {"/cpu.max": "150000 100000"}, 1.5),
        ("/", {"/cgroup.procs": ""}, None),
        ("/a/b", {"/a/cpu.max": "200000 100000", "/a/b/cpu.max": "max 100000"}, 2.0),
        ("/a/b", {"/a/cpu.max": "200000 100000", "/a/b/cpu.max": "50000 50000"}, 1.0),
        ("/gone", {"/cpu.max": "300000 100000"}, 3.0),
    ],
)
def test_quota_v2(tmp_path: Path, own: str, files: dict[str, str], expected: float | None) -> None:
    assert cpu_quota(v2(tmp_path, own, files)) == expected


@pytest.mark.parametrize(
    ("quota", "expected"), [("-1", None), ("400000", 4.0), ("50000", 0.5), ("rubbish", None)]
)
def test_quota_v1(tmp_path: Path, quota: str, expected: float | None) -> None:
    folder = "/cpu,cpuacct/docker"
    files = {f"{folder}/cpu.cfs_quota_us": quota, f"{folder}/cpu.cfs_period_us": "100000"}
    assert cpu_quota(v1(tmp_path, "/docker", files)) == expected


@pytest.mark.parametrize(
    ("own", "files", "expected"),
    [
        ("/", {"/memory.max": "max", "/memory.current": "5"}, None),
        ("/", {"/memory.max": "1000", "/memory.current": "300"}, MemoryLimit(1000, 700)),
        (
            "/",
            {"/memory.max": "1000", "/memory.current": "300", "/memory.stat": "anon 1\ninactive_file 100\n"},
            MemoryLimit(1000, 800),
        ),
        ("/", {"/memory.max": "1000", "/memory.current": "1200"}, MemoryLimit(1000, 0)),
        (
            "/pod/box",
            {
                "/pod/memory.max": "1000",
                "/pod/memory.current": "900",
                "/pod/box/memory.max": "500",
                "/pod/box/memory.current": "100",
            },
            MemoryLimit(500, 100),
        ),
    ],
)
def test_memory_v2(tmp_path: Path, own: str, files: dict[str, str], expected: MemoryLimit | None) -> None:
    assert memory_limit(v2(tmp_path, own, files)) == expected


@pytest.mark.parametrize(
    ("limit", "expected"), [("9223372036854771712", None), ("1000", MemoryLimit(1000, 650))]
)
def test_memory_v1(tmp_path: Path, limit: str, expected: MemoryLimit | None) -> None:
    files = {
        "/memory/box/memory.limit_in_bytes": limit,
        "/memory/box/memory.usage_in_bytes": "400",
        "/memory/box/memory.stat": "inactive_file 7\ntotal_inactive_file 50\n",
    }
    assert memory_limit(v1(tmp_path, "/box", files)) == expected


def test_a_container_that_sees_only_its_own_group(tmp_path: Path) -> None:
    files = {"/memory/memory.limit_in_bytes": "1000", "/memory/memory.usage_in_bytes": "1"}
    assert memory_limit(v1(tmp_path, "/docker/abc", files, mount_root="/docker/abc")) == MemoryLimit(
        1000, 999
    )


def test_a_group_outside_the_mount_falls_back_to_the_mount_itself(tmp_path: Path) -> None:
    files = {"/memory/memory.limit_in_bytes": "1000", "/memory/memory.usage_in_bytes": "1"}
    assert memory_limit(v1(tmp_path, "/elsewhere", files, mount_root="/docker")) == MemoryLimit(1000, 999)


def test_no_cgroups_at_all(tmp_path: Path) -> None:
    assert cpu_quota(tmp_path) is None
    assert memory_limit(tmp_path) is None
