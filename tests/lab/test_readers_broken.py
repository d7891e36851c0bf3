"""Files that are cut, mixed up or none at all end in a trace with findings or in one error, never in a traceback."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pytest

from braid.lab.readers import FORMATS, read_trace
from braid.lab.table import TraceError

REAL = (Path(__file__).parents[1] / "data" / "burstgpt_1_first30.csv").read_bytes()
WEKA = b"""trace,agent,idx,t_s,in_tok,out_tok,lcp_prev_tok,best_prefix_tok,think_s,api_s,ttft_s,stop,itypes,otypes,model
a,root,0,0.0,100,9,0,0,0.0,1.5,,tool_use,text,text,m
a,root.agent_001,0,0.0,70,9,0,64,,2.5,0.5,,text,text,m
"""
AZURE = b"TIMESTAMP,ContextTokens,GeneratedTokens\r\n2023-11-16 18:15:46.6805900,374,44\r\n2023-11-16 18:15:47.0,3,4"
MOONCAKE = b'{"timestamp": 0, "input_length": 600, "output_length": 5, "hash_ids": [0, 1]}\n' * 3
SESSION = json.dumps(
    {
        "id": "t",
        "hash_id_scope": "local",
        "block_size": 64,
        "requests": [
            {
                "t": 0.0,
                "type": "n",
                "model": "m",
                "in": 130,
                "out": 4,
                "hash_ids": [1, 2],
                "stop": "tool_use",
            },
            {
                "t": 3.5,
                "type": "subagent",
                "agent_id": "agent_001",
                "requests": [
                    {"t": 0.0, "type": "s", "model": "m", "in": 64, "out": 1, "hash_ids": [1], "ttft": 0.2}
                ],
            },
            {"t": 9.0, "type": "n", "model": "m", "in": -5, "out": 4, "hash_ids": [1, 2]},
        ],
    }
).encode()
SAMPLES = {"burstgpt": REAL, "weka": WEKA, "azure": AZURE, "mooncake": MOONCAKE, "weka-raw": SESSION}


def tried(path: Path, data: bytes, format: str = "auto") -> None:
    path.write_bytes(data)
    try:
        trace = read_trace(path, format)
    except TraceError:
        return
    assert trace.num_requests > 0
    assert (trace.frame["in_tok"].drop_nulls() >= 0).all()


@pytest.mark.parametrize("name", SAMPLES)
def test_a_file_cut_anywhere(tmp_path: Path, name: str) -> None:
    data = SAMPLES[name]
    assert read_sample(tmp_path, data)
    for end in np.linspace(0, len(data), 60).astype(int):
        tried(tmp_path / "cut", data[:end])


def read_sample(folder: Path, data: bytes) -> bool:
    (folder / "whole").write_bytes(data)
    return read_trace(folder / "whole").num_requests > 0


@pytest.mark.parametrize("name", SAMPLES)
def test_bytes_that_were_changed(tmp_path: Path, name: str) -> None:
    rng = np.random.default_rng(5)
    for _ in range(60):
        data = bytearray(SAMPLES[name])
        for place in rng.integers(0, len(data), 4):
            data[place] = rng.integers(0, 256)
        tried(tmp_path / "changed", bytes(data))


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("name", SAMPLES)
def test_the_wrong_format_is_an_error(tmp_path: Path, name: str, format: str) -> None:
    path = tmp_path / "x"
    path.write_bytes(SAMPLES[name])
    if format == name:
        assert read_trace(path, format).num_requests
        return
    with pytest.raises(TraceError):
        read_trace(path, format)


@pytest.mark.parametrize(
    "data",
    [
        b"\x00" * 100,
        REAL.decode().encode("utf-16"),
        gzip.compress(REAL)[:-20],
        gzip.compress(b""),
        b"\x1f\x8b garbage",
        b"PAR1",
        b"PAR1" + b"\x00" * 50,
        b"[]",
        b"[[[[[[",
        b"{" * 50_000,
        b'{"a":' * 20_000,
        b"null",
        b'"text"',
        b"," * 5_000,
        b'"unclosed\n' * 10,
        b"{}\n{}\n",
    ],
)
def test_files_that_are_no_traces(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "x"
    path.write_bytes(data)
    with pytest.raises(TraceError, match="x: "):
        read_trace(path)


def test_azure_keeps_hundreds_of_nanoseconds_and_a_last_row_without_end(tmp_path: Path) -> None:
    path = tmp_path / "azure.csv"
    path.write_bytes(AZURE.replace(b"46.6805900", b"46.1234567"))
    frame = read_trace(path).frame
    assert frame["t_ns"].to_list() == [1_700_158_546_123_456_700, 1_700_158_547_000_000_000]
    assert frame["t_s"].to_list() == [0.0, 0.8765433]
    assert frame["in_tok"].to_list() == [374, 3]


def test_azure_of_2024_and_a_time_that_is_none(tmp_path: Path) -> None:
    rows = "2024-05-12 00:00:01.500000+00:00,5,6\n2024-05-12 00:00:00.000000+00:00,1,2\nlater,7,8\n"
    path = tmp_path / "azure.csv"
    path.write_text("GeneratedTokens,TIMESTAMP,ContextTokens\n" + rows.replace(",5,6", ",5,6"))
    with pytest.raises(TraceError, match="GeneratedTokens is '2024-05-12"):
        read_trace(path)
    path.write_text("TIMESTAMP,ContextTokens,GeneratedTokens\n" + rows)
    trace = read_trace(path)
    assert trace.frame["in_tok"].to_list() == [1, 5]
    assert trace.frame["source_row"].to_list() == [2, 1]
    found = {finding.name: finding for finding in trace.findings}
    assert found["bad_rows"].rows == (3,)
    assert found["unordered"].count == 1


def test_sub_agents_are_programs_of_their_own(tmp_path: Path) -> None:
    path = tmp_path / "t.json"
    path.write_bytes(SESSION)
    trace = read_trace(path)
    frame = trace.frame
    assert frame["program_id"].to_list() == ["t/root", "t/root.agent_001"]
    assert frame["parent_id"].to_list() == [None, "t/root"]
    assert frame["starts_at_s"].to_list() == [0.0, 3.5]
    assert frame["block_ids"].to_list() == [[1, 2], [1]]
    assert trace.findings[0].rows == (4,)


def test_a_folder_of_sessions_keeps_their_blocks_apart(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(SESSION)
    (tmp_path / "b.json.gz").write_bytes(gzip.compress(SESSION.replace(b'"id": "t"', b'"id": "u"')))
    frame = read_trace(tmp_path).frame
    ids = frame["block_ids"].to_list()
    assert frame["session"].to_list() == ["t", "t", "u", "u"]
    assert not {*ids[0], *ids[1]} & {*ids[2], *ids[3]}
    assert set(ids[3]) <= set(ids[2])
