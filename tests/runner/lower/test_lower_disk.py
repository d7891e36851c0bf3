"""Slots on disk: what comes back is what was written, or nothing."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import Any

import pytest

from braid.core.errors import InvalidParameterError
from braid.runner.kv_store import KVStore
from braid.runner.lower import disk as disk_module
from braid.runner.lower.disk import PAGE, DiskSlots
from braid.runner.lower.views import HostBlocks, StagedBlocks

from .conftest import content, filled_store, same

NAME = bytes(range(32))
KEYS = [bytes([n]) * 16 for n in range(6)]
SIZE = PAGE * 9


def open_disk(
    kv: KVStore, folder: Path, *, keeps: bool = True, name: bytes = NAME, size: int = SIZE
) -> DiskSlots:
    return DiskSlots(HostBlocks(kv), folder, size, name, keeps=keeps)


def the_file(folder: Path) -> Path:
    (file,) = folder.iterdir()
    return file


@pytest.mark.parametrize("views", [HostBlocks, StagedBlocks])
def test_a_block_comes_back_as_it_was(kv: KVStore, tmp_path: Path, views: Any) -> None:
    disk = DiskSlots(views(kv), tmp_path, SIZE, NAME)
    assert disk.num_slots == 8
    before, other = content(kv, 2), content(kv, 4)
    disk.store(7, KEYS[0], 2)
    assert disk.load(7, KEYS[0], 3)
    assert same(content(kv, 3), before)
    assert same(content(kv, 4), other)
    disk.close()


def test_many_parts_take_several_calls(kv: KVStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk_module, "MAX_PARTS", 2)
    disk = open_disk(kv, tmp_path)
    before = content(kv, 0)
    disk.store(1, KEYS[0], 0)
    assert disk.load(1, KEYS[0], 5)
    assert same(content(kv, 5), before)
    disk.close()


@pytest.mark.parametrize("place", [0, 10, 30, 40, 60, 490])
def test_one_flipped_bit_is_a_miss_and_leaves_zeros(kv: KVStore, tmp_path: Path, place: int) -> None:
    disk = open_disk(kv, tmp_path)
    disk.store(0, KEYS[0], 1)
    with the_file(tmp_path).open("r+b") as file:
        file.seek(PAGE + place)
        byte = file.read(1)[0]
        file.seek(PAGE + place)
        file.write(bytes([byte ^ 4]))
    assert not disk.load(0, KEYS[0], 2)
    assert not any(tensor.any() for tensor in content(kv, 2))
    disk.close()


def test_another_key_or_an_empty_slot_is_a_miss(kv: KVStore, tmp_path: Path) -> None:
    disk = open_disk(kv, tmp_path)
    disk.store(0, KEYS[0], 1)
    assert not disk.load(0, KEYS[1], 2)
    assert not disk.load(1, KEYS[0], 2)
    disk.close()


def test_content_moved_to_another_slot_under_another_key_is_a_miss(kv: KVStore, tmp_path: Path) -> None:
    disk = open_disk(kv, tmp_path)
    disk.store(0, KEYS[0], 1)
    disk.store(1, KEYS[1], 2)
    file = the_file(tmp_path)
    data = bytearray(file.read_bytes())
    size = HostBlocks(kv).num_bytes
    data[PAGE + 48 : PAGE + 48 + size] = data[2 * PAGE + 48 : 2 * PAGE + 48 + size]
    file.write_bytes(data)
    assert not disk.load(0, KEYS[0], 3)
    disk.close()


def test_what_is_kept_is_found_again_and_what_was_written_last_counts(kv: KVStore, tmp_path: Path) -> None:
    disk = open_disk(kv, tmp_path)
    for slot, key, block in ((3, KEYS[0], 0), (0, KEYS[1], 1), (5, KEYS[2], 2), (1, KEYS[0], 3)):
        disk.store(slot, key, block)
    expected = content(kv, 3)
    disk.close()
    other = filled_store(seed=1)
    again = open_disk(other, tmp_path)
    assert again.kept() == [(0, KEYS[1]), (5, KEYS[2]), (1, KEYS[0])]
    assert again.load(1, KEYS[0], 0)
    assert same(content(other, 0), expected)
    again.store(2, KEYS[1], 0)
    assert again.kept()[-1] == (2, KEYS[1]), "counting goes on"
    again.close()


def test_the_file_of_another_model_is_not_read(kv: KVStore, tmp_path: Path) -> None:
    disk = open_disk(kv, tmp_path)
    disk.store(0, KEYS[0], 0)
    disk.close()
    foreign = bytes([NAME[0], *NAME[1:8], *reversed(NAME[8:])])
    assert foreign[:8] == NAME[:8]
    other = open_disk(kv, tmp_path, name=foreign)
    assert other.kept() == []
    other.close()


def test_a_file_may_grow_and_shrink(kv: KVStore, tmp_path: Path) -> None:
    disk = open_disk(kv, tmp_path)
    disk.store(0, KEYS[0], 0)
    disk.store(7, KEYS[1], 1)
    disk.close()
    for size, num_slots, kept in ((2 * SIZE, 17, [0, 7]), (SIZE - PAGE, 7, [0]), (SIZE, 8, [0])):
        disk = open_disk(kv, tmp_path, size=size)
        assert (disk.num_slots, disk.kept()) == (num_slots, [(slot, KEYS[slot // 7]) for slot in kept])
        assert the_file(tmp_path).stat().st_size == PAGE * (num_slots + 1)
        disk.close()


@pytest.mark.parametrize("kind", ["symlink", "link", "pipe", "folder"])
def test_what_is_not_a_file_of_its_own_is_left_alone(kv: KVStore, tmp_path: Path, kind: str) -> None:
    other = tmp_path / "precious"
    other.write_text("x")
    path = tmp_path / "kv" / f"braid-kv-{NAME.hex()[:16]}"
    path.parent.mkdir()
    made = {"symlink": lambda: path.symlink_to(other), "link": lambda: path.hardlink_to(other)}
    made |= {"pipe": lambda: os.mkfifo(path), "folder": path.mkdir}
    made[kind]()
    with pytest.raises(InvalidParameterError, match="kv"):
        open_disk(kv, path.parent)
    assert other.read_text() == "x"


def test_a_file_of_somebody_else_is_not_used(
    kv: KVStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_disk(kv, tmp_path).close()
    monkeypatch.setattr(os, "geteuid", lambda: the_file(tmp_path).stat().st_uid + 1)
    with pytest.raises(InvalidParameterError, match="not a plain file of this user"):
        open_disk(kv, tmp_path)


@pytest.mark.parametrize("keeps", [False, True])
def test_a_disk_in_trouble_is_no_wrong_folder(
    kv: KVStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keeps: bool
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "open", full)
    with pytest.raises(OSError, match="No space left"):
        open_disk(kv, tmp_path, keeps=keeps)


def test_a_file_that_is_not_kept_is_gone_at_once_and_nobody_else_may_read_one(
    kv: KVStore, tmp_path: Path
) -> None:
    disk = open_disk(kv, tmp_path / "new" / "folder", keeps=False)
    disk.store(0, KEYS[0], 0)
    assert list((tmp_path / "new" / "folder").iterdir()) == []
    assert stat.S_IMODE((tmp_path / "new" / "folder").stat().st_mode) == 0o700
    disk.close()
    kept = open_disk(kv, tmp_path / "kept")
    assert stat.S_IMODE(the_file(tmp_path / "kept").stat().st_mode) == 0o600
    kept.close()


def test_two_engines_do_not_share_a_file(kv: KVStore, tmp_path: Path) -> None:
    disk = open_disk(kv, tmp_path)
    with pytest.raises(BlockingIOError):
        open_disk(kv, tmp_path)
    disk.close()
    open_disk(kv, tmp_path).close()


def test_a_size_below_one_block_and_a_folder_that_is_none_are_named(kv: KVStore, tmp_path: Path) -> None:
    with pytest.raises(InvalidParameterError, match="one block takes 4096"):
        open_disk(kv, tmp_path, size=PAGE)
    (tmp_path / "file").write_text("x")
    with pytest.raises(InvalidParameterError, match="cannot be written"):
        open_disk(kv, tmp_path / "file")


def test_a_disk_without_room_says_so_before_anything_is_stored(
    kv: KVStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match="No space left"):
        open_disk(kv, tmp_path)


def test_a_file_system_that_reserves_nothing_is_served_all_the_same(
    kv: KVStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unsupported(*_: Any) -> None:
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr(os, "posix_fallocate", unsupported)
    disk = open_disk(kv, tmp_path)
    before = content(kv, 0)
    disk.store(7, KEYS[0], 0)
    assert disk.load(7, KEYS[0], 1)
    assert same(content(kv, 1), before)
    disk.close()


def test_half_a_write_is_an_error(kv: KVStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = open_disk(kv, tmp_path)
    monkeypatch.setattr(os, "pwritev", lambda file, parts, offset: 10)
    with pytest.raises(OSError, match="part of a block"):
        disk.store(0, KEYS[0], 0)
    disk.close()
