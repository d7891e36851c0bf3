"""Formats of JSON lines. All rows are synthetic."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from braid.core.hashing import Hasher
from braid.core.program import ProgramRef
from braid.lab.readers import read_trace
from braid.lab.table import Trace, TraceError
from braid.server.lifecycle import RequestRecord
from braid.server.observe.instruments import Counter
from braid.server.observe.report import CallReport
from braid.server.observe.request_log import RequestLog


def written(folder: Path, lines: list[Any], end: str = "\n") -> Path:
    path = folder / "trace.jsonl"
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines) + end)
    return path


def found(trace: Trace) -> dict[str, Any]:
    return {finding.name: finding for finding in trace.findings}


def mooncake(t: Any = 0, tokens: Any = 600, blocks: tuple[Any, ...] = (0, 1)) -> dict[str, Any]:
    return {"timestamp": t, "input_length": tokens, "output_length": 5, "hash_ids": list(blocks)}


class TestMooncake:
    def test_rows(self, tmp_path: Path) -> None:
        trace = read_trace(written(tmp_path, [mooncake(), mooncake(3000, 512, (7,))]))
        assert trace.frame["t_s"].to_list() == [0.0, 3.0]
        assert trace.frame["block_ids"].to_list() == [[0, 1], [7]]

    @pytest.mark.parametrize(
        ("line", "reason"),
        [
            (mooncake(t=-1), "$.timestamp"),
            (mooncake(tokens="9"), "$.input_length"),
            (mooncake(tokens=1.5), "$.input_length"),
            (mooncake(blocks=(-1,)), "$.hash_ids"),
            (mooncake(tokens=10**30), "$.input_length"),
            ('{"timestamp": NaN}', "not JSON"),
            ({"timestamp": 1}, "input_length"),
            ("[1, 2]", "object"),
            ("\x00\xff", "not JSON"),
        ],
    )
    def test_bad_lines_are_left_out(self, tmp_path: Path, line: Any, reason: str) -> None:
        trace = read_trace(written(tmp_path, [mooncake(), line, "", mooncake(3000)]))
        assert trace.frame["source_row"].to_list() == [1, 3]
        assert reason in found(trace)["bad_rows"].text
        assert found(trace)["bad_rows"].rows == (2,)

    def test_a_half_line(self, tmp_path: Path) -> None:
        trace = read_trace(written(tmp_path, [mooncake(), '{"timestamp": 3000, "inp'], end=""))
        assert trace.num_requests == 1
        assert found(trace)["half_line"].rows == (2,)

    def test_a_wrong_number_of_blocks_is_said(self, tmp_path: Path) -> None:
        trace = read_trace(written(tmp_path, [mooncake(blocks=(1,))]))
        assert found(trace)["block_mismatch"].count == 1

    def test_unknown_keys_are_said(self, tmp_path: Path) -> None:
        trace = read_trace(written(tmp_path, [{**mooncake(), "tier": 1}]))
        assert (found(trace)["other_keys"].count, found(trace)["other_keys"].level) == (1, "info")
        assert "tier" in found(trace)["other_keys"].text

    def test_nothing_usable(self, tmp_path: Path) -> None:
        with pytest.raises(TraceError, match="no usable line; rows left out: row 1"):
            read_trace(written(tmp_path, [mooncake(t=-1)]))


def ragpulse(t: str = "82", session: str = "s") -> dict[str, Any]:
    ids = {"sys_prompt": [3], "passages_ids": [3, 4], "history": [], "web_search": [], "user_input": [9]}
    return {"timestamp": t, "input_length": 100, "output_length": 7, "hash_ids": ids, "session_id": session}


class TestRagPulse:
    def test_rows_with_blank_lines_and_an_inversion(self, tmp_path: Path) -> None:
        lines = [ragpulse(), "", ragpulse("95", "z"), ragpulse("90")]
        trace = read_trace(written(tmp_path, lines))
        frame = trace.frame
        assert frame["t_s"].to_list() == [82.0, 90.0, 95.0]
        assert frame["turn"].to_list() == [0, 1, 0]
        assert frame["gap_before_s"].null_count() == 3
        assert len(set(frame["block_ids"][0])) == 4
        assert trace.info.block_size is None
        assert found(trace)["unordered"].rows == (3,)
        assert "unknown" in trace.info.notes[0]

    def test_lengths_of_parts_lie_in_side_files(self, tmp_path: Path) -> None:
        sides = {"sys_prompt_id": [(3, 11)], "passage_id": [(3, 22), (4, 33)], "user_input_id": [(9, 44)]}
        for key, pairs in sides.items():
            text = "\n".join(json.dumps({key: i, "token_length": n}) for i, n in pairs)
            (tmp_path / f"{key}.jsonl").write_text(text + "\n")
        trace = read_trace(written(tmp_path, [ragpulse()]))
        assert trace.frame["block_tokens"].to_list() == [[11, 22, 33, 44]]

    def test_a_time_that_is_none(self, tmp_path: Path) -> None:
        trace = read_trace(written(tmp_path, [ragpulse(), ragpulse("noon"), ragpulse("nan"), ragpulse("-1")]))
        assert trace.num_requests == 1
        assert found(trace)["bad_rows"].rows == (2, 3, 4)


def test_lmcache(tmp_path: Path) -> None:
    line = {"input_len": 0, "model_id": "m", "output_tokens": 9, "pre_gap_s": 0.5, "session_id": "a"}
    trace = read_trace(written(tmp_path, [line, {**line, "session_id": "b"}, {**line, "input_len": 5}]))
    frame = trace.frame
    assert frame["turn"].to_list() == [0, 0, 1]
    assert frame["in_tok"].to_list() == [None, None, 5]
    assert (trace.span_s, trace.num_programs) == (0.0, 2)
    assert frame["kind"].to_list() == ["agent"] * 3
    assert frame["finish"].to_list() == ["tool", None, None]


class TestBraidLog:
    @pytest.fixture
    def path(self, tmp_path: Path) -> Path:
        path = tmp_path / "requests.jsonl"
        log = RequestLog(path, 1 << 20, Hasher(), Counter())
        for place, (status, reason) in enumerate(
            [(200, "stop"), (499, "abort"), (500, "error"), (200, "length")]
        ):
            program = ProgramRef(owner="o", program="p") if place in (0, 3) else None
            call = CallReport("id", "tiny", (tuple(range(40)),), 1, "", 0.0, program)
            call.finish_reasons[0], call.num_tokens[0], call.num_cached_tokens[0] = reason, 4, 16
            log.note(RequestRecord(request_id="r", status=status, call=call), "/v1/completions")
        log.close()
        return path

    def test_what_the_server_writes(self, path: Path) -> None:
        trace = read_trace(path)
        frame = trace.frame
        assert trace.info.format == "braid-log"
        assert frame["status"].to_list() == ["ok", "cancelled", "failed", "ok"]
        assert frame["finish"].to_list() == ["text", "abort", None, "length"]
        assert frame["tool"].null_count() == 4
        assert frame["in_tok"].to_list() == [40] * 4
        assert frame["found_tok"].to_list() == [16] * 4
        assert frame["cached_tok"].null_count() == 4
        assert frame["turn"].to_list() == [0, None, None, 1]
        assert frame["kind"].to_list() == ["agent", "api", "api", "agent"]
        assert trace.info.block_size == 16
        assert frame["block_ids"][0].to_list() == frame["block_ids"][3].to_list()
        assert frame["block_ids"].list.len().to_list() == [3] * 4

    def test_tools_that_were_called(self, path: Path) -> None:
        line = json.loads(path.read_text().splitlines()[0])
        path.write_text(json.dumps({**line, "tools": ["write", "read", "read"]}) + "\n")
        frame = read_trace(path).frame
        assert (frame["finish"][0], frame["tool"][0]) == ("tool", "read+write")

    def test_two_runs_share_neither_programs_nor_blocks(self, path: Path) -> None:
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        later = [{**line, "scope": "f" * 16, "arrival": line["arrival"] + 100} for line in lines]
        path.write_text("".join(json.dumps(line) + "\n" for line in lines + later))
        trace = read_trace(path)
        assert trace.num_programs == 2
        assert found(trace)["scopes"].count == 2
        ids = trace.frame["block_ids"].to_list()
        assert not set(ids[0]) & set(ids[4])

    def test_another_version_is_refused(self, path: Path) -> None:
        path.write_text(path.read_text().replace('"v":1', '"v":2'))
        with pytest.raises(TraceError, match=r"\$\.v"):
            read_trace(path)
