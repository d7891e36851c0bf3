"""The expert file: what is written is read, and what was cut, altered or of another model is refused by name."""

from __future__ import annotations

import json
import os
import random
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest

from braid.checkpoint import expert_file
from braid.checkpoint.expert_file import EXPERT_FILE, ExpertFile, ExpertWriter, open_experts
from braid.core.errors import CheckpointError
from braid.core.experts import PAGE, ExpertLayout, ExpertShape

SHAPE = ExpertShape(layers=2, per_layer=3, top_k=2)
LAYOUT = ExpertLayout("int8", 64, 32)
JSON_BEGIN = 24


def record(expert: int) -> bytes:
    return random.Random(expert).randbytes(LAYOUT.record_bytes)


@pytest.fixture
def written(tmp_path: Path) -> ExpertFile:
    with ExpertWriter(tmp_path / EXPERT_FILE, SHAPE, LAYOUT, source="a test", identity="x") as writer:
        for expert in (3, 0, 5, 1, 4, 2):
            writer.write(expert, record(expert))
        return writer.commit()


def test_records_come_back_whatever_their_order(written: ExpertFile) -> None:
    file = open_experts(written.path)
    assert file == written
    assert (file.shape, file.layout, file.source, file.identity) == (SHAPE, LAYOUT, "a test", "x")
    assert not file.is_random
    assert file.size_bytes == file.path.stat().st_size
    for expert in range(SHAPE.total):
        buffer = bytearray(LAYOUT.record_bytes)
        file.read_into(expert, buffer)
        assert buffer == record(expert)
        assert file.offset(expert) % PAGE == 0
        assert file.crc(expert) == zlib.crc32(record(expert))
    assert os.listdir(file.path.parent) == [EXPERT_FILE]


@pytest.mark.parametrize("direct", [False, True])
def test_a_descriptor_reads_at_the_offsets(written: ExpertFile, direct: bool) -> None:
    opened = written.open_file(direct)
    try:
        assert direct or not opened.direct
        if not opened.direct:
            assert os.pread(opened.descriptor, LAYOUT.record_bytes, written.offset(4)) == record(4)
    finally:
        os.close(opened.descriptor)


@pytest.mark.parametrize("at", ["open", "read"])
def test_a_file_system_without_direct_reads_says_so(
    written: ExpertFile, monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    real = os.open
    opened: list[int] = []

    def refuse(*args: object) -> int:
        raise OSError(22, "Invalid argument")

    def no_direct(path: Path, flags: int) -> int:
        if flags & os.O_DIRECT and at == "open":
            refuse()
        opened.append(real(path, flags & ~os.O_DIRECT))
        return opened[-1]

    monkeypatch.setattr(os, "open", no_direct)
    if at == "read":
        monkeypatch.setattr(os, "preadv", refuse)
    descriptor, direct = written.open_file(direct=True)
    assert not direct
    os.close(descriptor)
    for earlier in opened:
        with pytest.raises(OSError):
            os.fstat(earlier)


def test_an_interrupted_write_leaves_nothing(tmp_path: Path) -> None:
    def interrupted() -> None:
        with ExpertWriter(tmp_path / EXPERT_FILE, SHAPE, LAYOUT, source="") as writer:
            writer.write(0, record(0))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_writer_left_goes_with_the_next(tmp_path: Path) -> None:
    path = tmp_path / EXPERT_FILE
    (tmp_path / f".{EXPERT_FILE}-dead.tmp").write_bytes(b"some")
    (tmp_path / ".other.braid-dead.tmp").write_bytes(b"some")
    with ExpertWriter(path, SHAPE, LAYOUT, source="") as first:
        first.write(0, record(0))
        with ExpertWriter(path, SHAPE, LAYOUT, source="") as second:
            assert len(list(tmp_path.glob(f".{EXPERT_FILE}-*"))) == 2
            second.write(0, record(0))
    assert [file.name for file in tmp_path.iterdir()] == [".other.braid-dead.tmp"]


def test_an_incomplete_file_cannot_be_committed(tmp_path: Path) -> None:
    with ExpertWriter(tmp_path / EXPERT_FILE, SHAPE, LAYOUT, source="") as writer:
        writer.write(0, record(0))
        with pytest.raises(AssertionError, match="5 records"):
            writer.commit()
    assert list(tmp_path.iterdir()) == []


def test_too_little_disk_is_said_beforehand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = expert_file.shutil.disk_usage(tmp_path)._replace(free=PAGE)
    monkeypatch.setattr(expert_file.shutil, "disk_usage", lambda folder: usage)
    with pytest.raises(CheckpointError, match=r"GB are needed and 0\.00 GB are free"):
        ExpertWriter(tmp_path / EXPERT_FILE, SHAPE, LAYOUT, source="")
    assert list(tmp_path.iterdir()) == []


def test_an_altered_record_is_named(written: ExpertFile) -> None:
    data = bytearray(written.path.read_bytes())
    data[written.offset(4) + 100] ^= 1
    written.path.write_bytes(data)
    file = open_experts(written.path)
    buffer = bytearray(LAYOUT.record_bytes)
    file.read_into(3, buffer)
    with pytest.raises(
        CheckpointError, match=rf"{written.path}: record 4 \(expert 1 of MoE layer 1\).*altered"
    ):
        file.read_into(4, buffer)


def test_a_truncated_file_names_the_record(written: ExpertFile) -> None:
    os.truncate(written.path, written.offset(2) + 10)
    with pytest.raises(CheckpointError, match=r"experts.braid: truncated in record 2 "):
        open_experts(written.path)
    with pytest.raises(CheckpointError, match="its size changed"):
        written.read_into(0, bytearray(LAYOUT.record_bytes))


def _resealed(data: bytes, json_bytes: bytes) -> bytes:
    """Another JSON under a right checksum."""
    old = struct.unpack_from("<I", data, 12)[0]
    table = data[JSON_BEGIN + old : JSON_BEGIN + old + 4 * SHAPE.total]
    head = data[:12] + struct.pack("<III", len(json_bytes), SHAPE.total, 0) + json_bytes + table
    head = head[:20] + struct.pack("<I", zlib.crc32(head)) + head[24:]
    return head.ljust(PAGE, b"\0") + data[PAGE:]


def _with(**change: object) -> Callable[[bytes], bytes]:
    def alter(data: bytes) -> bytes:
        size = struct.unpack_from("<I", data, 12)[0]
        said = json.loads(data[JSON_BEGIN : JSON_BEGIN + size])
        return _resealed(data, json.dumps(said | change).encode())

    return alter


@pytest.mark.parametrize(
    ("alter", "said"),
    [
        (lambda data: b"", "is not an expert file"),
        (lambda data: b"GGUF" + data, "is not an expert file"),
        (lambda data: data[:20], "truncated: its header"),
        (lambda data: data[:60], "truncated: its header"),
        (lambda data: data[:8] + b"\2" + data[9:], "version 2 .* supported: 1"),
        (lambda data: data[:12] + b"\xff" * 4 + data[16:], "header is damaged"),
        (lambda data: data[:16] + b"\xff" * 4 + data[20:], "header is damaged"),
        (lambda data: data[:40] + b"!" + data[41:], "header does not match its checksum"),
        (lambda data: data + b"\0" * PAGE, "4096 bytes after its last record"),
        (lambda data: data[:-1], "truncated in record 5"),
        (lambda data: _resealed(data, b"[1]"), "header is damaged: TypeError"),
        (lambda data: _resealed(data, b"{"), "header is damaged: JSONDecodeError"),
        (lambda data: _resealed(data, b"{}"), "header is damaged: KeyError: 'layers'"),
        (_with(layers=3), "6 records for"),
        (_with(top_k=4), "6 records for"),
        (_with(top_k=0), "0 is not a number"),
        (_with(hidden=2**40), "is not a number from 1"),
        (_with(hidden=48), "cannot be int8"),
        (_with(format="int3"), "'int3' is not known"),
        (_with(record_bytes=1), "its records have 1 bytes"),
    ],
)
def test_damage_is_named(written: ExpertFile, alter: Callable[[bytes], bytes], said: str) -> None:
    written.path.write_bytes(alter(written.path.read_bytes()))
    with pytest.raises(CheckpointError, match=rf"experts\.braid: .*{said}"):
        open_experts(written.path)


def test_a_missing_file_and_another_models(written: ExpertFile, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"gone\.braid: cannot be read: No such file"):
        open_experts(tmp_path / "gone.braid")
    written.check_model(SHAPE, 64, 32)
    with pytest.raises(
        CheckpointError, match=r"of another model: 2 MoE layers of 3 .* the model has 2 MoE layers of 4"
    ):
        written.check_model(SHAPE._replace(per_layer=4), 64, 32)
    with pytest.raises(CheckpointError, match=r"expert size 32; the model has .* expert size 64"):
        written.check_model(SHAPE, 64, 64)
    written.path.unlink()
    with pytest.raises(CheckpointError, match="cannot be read"):
        written.open_file(direct=True)
