from __future__ import annotations

import http.server
import io
import json
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from rich.console import Console

from braid.cli import main
from braid.cli.top import Watcher, _base
from braid.cli.top_data import Buckets, History, parse
from braid.cli.top_parts import clock, short
from braid.cli.top_view import frame
from braid.core.errors import BraidError, InvalidParameterError

INF = float("inf")
METRICS = """# TYPE braid_engine_up gauge
braid_engine_up{{engine="0",model_name="tiny \\"x\\""}} {up}
braid_requests_by_phase{{engine="0",model_name="tiny",phase="waiting"}} 2.0
braid_requests_by_phase{{engine="0",model_name="tiny",phase="decode"}} 3.0
braid_kv_blocks{{engine="0"}} 100.0
braid_kv_blocks_free{{engine="0"}} 60.0
braid_kv_blocks_cached{{engine="0"}} 20.0
braid_kv_blocks_leased{{engine="0"}} 10.0
braid_admission_rejections_total{{reason="overloaded"}} 4.0
braid_admission_rejections_total{{reason="rate_limit"}} 5.0
braid_prompt_tokens_total{{engine="0"}} {prompt}
braid_generation_tokens_total{{engine="0"}} 10.0
braid_prefix_cache_queries_total{{engine="0"}} {prompt}
braid_prefix_cache_hits_total{{engine="0"}} {hits}
braid_time_to_first_token_seconds_bucket{{le="0.1"}} {few}
braid_time_to_first_token_seconds_bucket{{le="1.0"}} {most}
braid_time_to_first_token_seconds_bucket{{le="+Inf"}} {most}
vllm:prompt_tokens_total{{engine="0"}} 1.0
"""
SESSION = {
    "id": "agent\x1b[31m-1",
    "turns": 7,
    "active_turns": 0,
    "prompt_tokens": 12345,
    "output_tokens": 99,
    "cached_share": 0.875,
    "idle_seconds": 61.0,
    "lease_seconds": 30.0,
    "state": "tool",
    "finish": "tool",
    "tool": "grep\x1b[1m",
    "expected_return_seconds": 12.5,
    "kv": {"blocks": 20, "device_blocks": 10, "lower_blocks": 5},
}
KEPT = """
braid_prompt_tokens_by_origin_total{source="device_hit"} 700.0
braid_prompt_tokens_by_origin_total{source="host_reload"} 30.0
braid_prompt_tokens_by_origin_total{source="disk_reload"} 20.0
braid_prompt_tokens_by_origin_total{source="recompute"} 50.0
braid_prompt_tokens_by_origin_total{source="compulsory"} 200.0
braid_programs_kept_total{outcome="handed over"} 6.0
braid_programs_kept_total{outcome="lost"} 1.0
braid_programs_kept_total{outcome="pressure"} 1.0
braid_programs_kept_total{outcome="final"} 9.0
braid_oldest_newcomer_wait_seconds{} 75.0
braid_first_turn_ttft_seconds_bucket{le="1.0"} 10.0
braid_first_turn_ttft_seconds_bucket{le="+Inf"} 10.0
"""


def text(prompt: float = 100, *, hits: float = 0, few: float = 0, most: float = 0, up: int = 1) -> str:
    return METRICS.format(prompt=prompt, hits=hits, few=few, most=most, up=up)


def history() -> History:
    known = History()
    known.add(parse(text(100, hits=10), 0.0))
    known.add(parse(text(300, hits=110, few=5, most=10), 2.0))
    known.sessions = [SESSION]
    return known


def shown(known: History, width: int = 80, height: int = 24, problem: str | None = None) -> str:
    console = Console(width=width, height=height, force_terminal=False)
    with console.capture() as capture:
        console.print(frame(known, "http://x", console, problem))
    return capture.get()


def test_lanes_show_their_cores_and_how_busy_they_are() -> None:
    lanes = """
braid_lane_units{{lane="prefill"}} 1.0
braid_lane_units{{lane="decode"}} 0.0
braid_division_units{{lane="decode"}} 3.0
braid_lane_busy_seconds_total{{lane="mixed"}} 4.0
braid_lane_busy_seconds_total{{lane="prefill"}} {prefill}
braid_lane_busy_seconds_total{{lane="decode"}} {decode}
"""
    known = History()
    known.add(parse(text(100) + lanes.format(prefill=1.0, decode=5.0), 0.0))
    known.add(parse(text(300) + lanes.format(prefill=3.0, decode=6.0), 2.0))
    console = Console(width=80, height=24, record=True, file=io.StringIO())
    console.print(frame(known, "http://x", console))
    shown = console.export_text()
    assert "prefill ×1 100%  decode ×3 50%" in shown
    assert "mixed ×" not in shown


def test_the_latest_decision_about_phases_is_shown() -> None:
    state = """
braid_policy_state{{quantity="phases_predicted_tbt_seconds"}} 0.058
braid_policy_state{{quantity="phases_target_tbt_seconds"}} {target}
braid_policy_state{{quantity="phases_chunk_tokens"}} 64.0
braid_policy_state{{quantity="phases_prompt_tokens"}} 4000.0
"""
    seen = []
    for target in (0.0, 0.09):
        known = History()
        known.add(parse(text(100) + state.format(target=target), 0.0))
        known.add(parse(text(300) + state.format(target=target), 2.0))
        seen.append("58 ms of 90, chunks 64 of 4.0k" in shown(known))
    assert seen == [False, True]


EXPERTS = """
braid_experts{{}} 6144.0
braid_expert_slots{{}} 1536.0
braid_experts_resident{{layer="0"}} 30.0
braid_experts_resident{{layer="1"}} 2.0
braid_expert_uses_total{{layer="0",outcome="hit"}} {hits}
braid_expert_uses_total{{layer="1",outcome="hit"}} 10.0
braid_expert_uses_total{{layer="0",outcome="miss"}} {misses}
braid_expert_read_bytes_total{{cause="demand"}} {bytes}
braid_expert_prefetches_total{{fate="useful"}} 4.0
braid_expert_prefetches_total{{fate="late"}} 1.0
braid_expert_stall_seconds_total{{}} {stall}
braid_expert_link_busy_seconds_total{{}} {link}
braid_lane_busy_seconds_total{{lane="mixed"}} {busy}
"""


def with_experts() -> History:
    known = History()
    first = EXPERTS.format(hits=5.0, misses=1.0, bytes=1e9, stall=1.0, link=1.0, busy=10.0)
    known.add(parse(text(100) + first, 0.0))
    second = EXPERTS.format(hits=80.0, misses=26.0, bytes=4e9, stall=1.5, link=2.5, busy=12.0)
    known.add(parse(text(300) + second, 2.0))
    return known


@pytest.mark.parametrize("size", [(80, 24), (120, 40)])
def test_experts_show_what_is_in_memory_and_what_waits(size: tuple[int, int]) -> None:
    lines = shown(with_experts(), *size).splitlines()
    assert len(lines) <= size[1]
    whole = "\n".join(lines)
    for words in (
        "experts 32 in 1,536 slots of 6,144 = 25%",
        "hits 75%",
        "stalled 25%",
        "link 75%",
        "1.50 GB/s",
    ):
        assert words in whole, words
    assert ("demand 3,000" in whole) == (size[1] == 40)
    assert "useful/late/wasted 4/1/0" in whole
    assert "experts" not in shown(history(), *size)


def test_parse() -> None:
    scrape = parse(text(), 1.0)
    assert scrape.value("admission_rejections_total") == 9
    assert scrape.by("admission_rejections_total", "reason") == {"overloaded": 4, "rate_limit": 5}
    assert scrape.value("missing") == 0
    assert all(name.startswith("braid_") for name in scrape.samples)


def test_rates() -> None:
    known = history()
    assert known.span == 2.0
    assert known.rate("prompt_tokens_total") == 100
    assert known.added("prefix_cache_hits_total") == 100
    assert list(known.rates_in) == [100]


def test_a_counter_that_began_anew() -> None:
    known = history()
    known.add(parse(text(50), 4.0))
    assert known.rates_in[-1] == 25


def test_old_scrapes_go() -> None:
    known = History(seconds=5.0)
    for second in range(20):
        known.add(parse(text(10 * second), float(second)))
    assert known.span == 5.0
    assert known.rate("prompt_tokens_total") == 10


@pytest.mark.parametrize(
    ("counts", "q", "value"),
    [
        ((0, 0, 0), 0.5, None),
        ((10, 0, 0), 0.5, 0.5),
        ((5, 5, 0), 0.5, 1.0),
        ((5, 5, 0), 0.9, 2.6),
        ((0, 0, 4), 0.5, 3.0),
        ((1, 0, 0), 1.0, 1.0),
    ],
)
def test_quantiles(counts: tuple[float, ...], q: float, value: float | None) -> None:
    found = Buckets((1.0, 3.0, INF), counts).quantile(q)
    assert found == (value if value is None else pytest.approx(value))


def test_buckets_of_a_window() -> None:
    now, before = Buckets((1.0, INF), (5, 3)), Buckets((1.0, INF), (2, 3))
    assert now.since(before).counts == (3, 0)
    assert before.since(now) == before, "the counts began anew"


@pytest.mark.parametrize("size", [(80, 24), (160, 50)])
def test_a_frame_fits_and_tells(size: tuple[int, int]) -> None:
    known = history()
    known.sessions = [{**SESSION, "id": f"agent-{number}"} for number in range(200)]
    lines = shown(known, *size).splitlines()
    assert len(lines) <= size[1]
    assert max(map(len, lines)) <= size[0]
    whole = "\n".join(lines)
    for words in ("● ready", "rejected 9", "prefix hits 50%", "100 tok/s"):
        assert words in whole, words
    for words in ("used 40", "leased 10", "cached 10", "free 40"):
        assert words in whole, words
    for words in ("12.4k", "tool", "1:01", "12s", "grep", "more"):
        assert words in whole, words
    assert ("88%" in whole) == (size[0] == 160)
    assert "█" * 5 + "▓▓" in whole, "half of its blocks are on the device"


def kept() -> History:
    known = history()
    known.add(parse(text(300, hits=110) + KEPT, 4.0))
    return known


def test_what_became_of_programs_stands_below_them() -> None:
    lines = shown(kept()).splitlines()
    assert len(lines) <= 24
    assert "newcomers wait 1:15" in lines[-1]
    assert "KV there on return 75%" in lines[-1]
    assert "recompute ÷ compulsory 0.25" in lines[-1]


def test_a_tall_terminal_shows_where_tokens_came_from() -> None:
    lines = shown(kept(), 120, 40).splitlines()
    assert len(lines) <= 40
    whole = "\n".join(lines)
    for words in ("device hit 700", "reload 50", "recompute 50", "handed over 6", "final 9"):
        assert words in whole, words
    assert "of first turns 500" in whole
    assert "of later –" in whole


def test_a_server_that_counts_none_of_it() -> None:
    whole = shown(history(), 120, 40)
    assert "newcomers" not in whole
    assert "device hit" not in whole


@pytest.mark.parametrize(
    ("session", "words"),
    [
        ({"id": "x", "active_turns": 1, "idle_seconds": 0}, ("running", "–")),
        ({"id": "x", "state": "waiting", "active_turns": 1}, ("waiting",)),
        ({"id": "x", "idle_seconds": 9.0}, ("idle", "9s")),
        ({"id": "x", "idle_seconds": 9.0, "expected_return_seconds": 0.0}, ("now",)),
        ({"id": "x", "state": ["odd"], "kv": "odd", "finish": 3, "turns": "many"}, ("idle", "0")),
        ({"id": "x", "finish": "length", "tool": "old"}, ("length",)),
        ({"id": "x", "kv": {"blocks": 4}}, ("░░░░",)),
    ],
)
def test_a_program_s_line(session: dict[str, Any], words: tuple[str, ...]) -> None:
    known = history()
    known.sessions = [session]
    line = shown(known).splitlines()[-2]
    for word in words:
        assert word in line, line


def test_those_under_way_come_first() -> None:
    known = history()
    known.sessions = [SESSION, {**SESSION, "id": "busy", "active_turns": 1, "idle_seconds": 70.0}]
    whole = shown(known)
    assert whole.index("busy") < whole.index("agent")


@pytest.mark.parametrize(
    ("count", "words"), [(0, "0"), (950, "950"), (12_345, "12.3k"), (4.5e6, "4.5M"), (2e9, "2.0G")]
)
def test_short_numbers(count: float, words: str) -> None:
    assert short(count) == words


def test_ids_cannot_write_to_the_terminal() -> None:
    assert "\x1b" not in shown(history())


def test_before_the_first_answer_and_after_the_last() -> None:
    assert "cannot reach" in shown(History(), problem="cannot reach it")
    whole = shown(history(), problem="cannot reach it")
    assert "unreachable" in whole
    assert "cannot reach it" in whole
    assert "12.4k" in whole
    assert len(whole.splitlines()) <= 24


def test_servers_without_programs_or_engine() -> None:
    known = history()
    known.sessions = None
    assert "lists none" in shown(known)
    known.sessions = []
    known.add(parse(text(up=0), 4.0))
    assert "none yet" in shown(known)
    assert "engine down" in shown(known)


@pytest.mark.parametrize(
    ("seconds", "words"), [(7, "7s"), (187, "3:07"), (7387, "2:03:07"), (442_800, "5d 3h")]
)
def test_clock(seconds: float, words: str) -> None:
    assert clock(seconds) == words


@pytest.mark.parametrize("url", ["http://h:1", "h:1", "http://h:1/", "http://h:1/v1", "http://h:1/v1/"])
def test_addresses(url: str) -> None:
    assert _base(url) == "http://h:1"


@pytest.mark.parametrize("url", ["ftp://h", "http://", "file:///etc/passwd"])
def test_wrong_addresses(url: str) -> None:
    with pytest.raises(InvalidParameterError, match="url must look like"):
        _base(url)


def test_a_wrong_interval() -> None:
    with pytest.raises(InvalidParameterError, match="got 0"):
        Watcher("h:1", None, 0)


class Handler(http.server.BaseHTTPRequestHandler):
    key: str | None = None
    metrics = text()

    def do_GET(self) -> None:
        if self.key is not None and self.headers["authorization"] != f"Bearer {self.key}":
            self._answer(401, "{}")
        elif self.path == "/metrics":
            self._answer(200, self.metrics)
        else:
            self._answer(200, json.dumps({"data": [SESSION]}))

    def _answer(self, status: int, body: str) -> None:
        self.send_response(status)
        self.send_header("content-length", str(len(body.encode())))
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture
def server(request: pytest.FixtureRequest) -> Iterator[str]:
    handler = type("Scripted", (Handler,), getattr(request, "param", {}))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("server", [{"key": "secret"}], indirect=True)
def test_once(server: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["top", server, "--once", "--interval", "0.1", "--api-key", "secret"]) == 0
    out = capsys.readouterr().out
    assert "ready" in out
    assert "12.4k" in out


@pytest.mark.parametrize("server", [{"key": "secret"}], indirect=True)
def test_a_wrong_key(server: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["top", server, "--once", "--interval", "0.1"]) == 2
    assert "--api-key" in capsys.readouterr().err


@pytest.mark.parametrize("server", [{"metrics": "hello"}], indirect=True)
def test_another_server(server: str) -> None:
    with pytest.raises(BraidError, match="is not Braid's"):
        Watcher(server, None, 1.0).look()


def test_nobody_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["top", "http://127.0.0.1:9", "--once", "--interval", "0.1"]) == 2
    err = capsys.readouterr().err
    assert "cannot reach http://127.0.0.1:9: Connection refused" in err
    assert err.count("\n") == 1
