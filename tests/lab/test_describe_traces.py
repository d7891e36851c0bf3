"""Whole descriptions: the measured statistics of the real traces, figures, the page, the command."""

from __future__ import annotations

import json
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from braid.cli import main
from braid.cli.trace.describe import spark
from braid.core.errors import BraidError
from braid.lab.arrays import QUANTILES
from braid.lab.describe.description import Description, describe
from braid.lab.figures import Picture, draw_all, draw_plots, duration
from braid.lab.figures.process import DrawingProcess
from braid.lab.figures.style import grid_of, seconds_axis, titles
from braid.lab.figures.trace import PLOTS
from braid.lab.page import page
from braid.lab.readers import read_trace
from braid.lab.table import Trace, TraceInfo, conform, save

AZURE = "traces/azure/AzureLLMInferenceTrace_{}_2023.csv"
MOONCAKE = "traces/mooncake/conversation_trace.jsonl"


def made(rows: int = 6000, days: float = 15.0, seed: int = 3) -> Trace:
    """A synthetic trace with everything in it."""
    rng = np.random.default_rng(seed)
    model, kind = rng.choice(["small", "large"], rows), rng.choice(["conv", "api"], rows)
    failed = rng.random(rows) < 0.05
    program = rng.integers(0, rows // 4, rows)
    frame = pl.DataFrame(
        {
            "t_s": np.sort(rng.uniform(0, days * 86400, rows)),
            "model": model,
            "kind": kind,
            "program_id": [
                f"p{number}" if which == "conv" else None for number, which in zip(program, kind, strict=True)
            ],
            "in_tok": rng.lognormal(6, 1, rows).astype(int) + 1,
            "out_tok": np.where(failed, 0, rng.lognormal(5, 0.7, rows).astype(int) + 1),
            "status": np.where(failed, "failed", "ok"),
            "gap_before_s": rng.lognormal(3, 1.5, rows),
            "block_ids": [[int(number % 50), int(number)] for number in program],
        }
    )
    return Trace(
        conform(frame), TraceInfo(source="<made>.csv", format="made", block_size=512, licence="none & free")
    )


@pytest.fixture(scope="module")
def described() -> Description:
    return describe(made())


@pytest.fixture(scope="module")
def pictures(described: Description) -> tuple[Picture, ...]:
    return draw_all(described)


def statistics(found: Description) -> dict[str, object]:
    assert found.burstiness is not None
    assert found.whole.input is not None
    assert found.whole.output is not None
    p50, p99 = QUANTILES.index(0.5), QUANTILES.index(0.99)
    burst = found.burstiness
    return {
        "hours": round(found.span_s / 3600, 2),
        "rate": round(burst.rate, 2),
        "cv": float(f"{burst.gap_cv:.3g}"),
        "cv_window": float(f"{burst.gap_cv_window:.3g}"),
        "idc": [float(f"{point.idc:.3g}") for point in burst.dispersion if point.window_s in (1, 60)],
        "in": [round(found.whole.input.quantiles[at] or 0) for at in (p50, p99)],
        "out": [int(found.whole.output.quantiles[at] or 0) for at in (p50, p99)],
    }


@pytest.mark.parametrize(
    ("file", "expected"),
    [
        (
            AZURE.format("conv"),
            {
                "hours": 0.97, "rate": 5.53, "cv": 1.09, "cv_window": 1.06, "idc": [1.39, 16.1],
                "in": [1020, 4142], "out": [129, 601],
            },
        ),
        (
            AZURE.format("code"),
            {
                "hours": 0.95, "rate": 2.57, "cv": 13.2, "cv_window": 12.2, "idc": [13.2, 164],
                "in": [1469, 7436], "out": [13, 251],
            },
        ),
        (
            MOONCAKE,
            {
                "hours": 0.98, "rate": 3.4, "cv": 3.03, "cv_window": 3.09, "idc": [7.9, 2.89],
                "in": [6909, 85400], "out": [350, 1118],
            },
        ),
    ],
)  # fmt: skip
def test_the_real_traces_statistics(shared_data: Path, file: str, expected: dict[str, object]) -> None:
    assert statistics(describe(read_trace(shared_data / file))) == expected


def test_azure_conversation_outputs_by_quarter_of_the_inputs(shared_data: Path) -> None:
    found = describe(read_trace(shared_data / AZURE.format("conv"))).whole.relation
    assert found is not None
    assert [band[2] for band in found.quartile_band] == [98, 108, 406, 89]
    assert found.spearman == pytest.approx(0.07, abs=0.005)


def test_mooncakes_infinite_cache_hit_rate(shared_data: Path) -> None:
    found = describe(read_trace(shared_data / MOONCAKE)).sharing
    assert found is not None
    assert found.reuse[0].block_size == 512
    assert round(100 * found.reuse[0].block_hit_rate, 1) == 36.6


def test_agents_gaps_and_reuse(shared_data: Path) -> None:
    weka = describe(read_trace(shared_data / "agents/weka_requests.csv.gz"))
    assert weka.sharing is not None
    assert weka.growth is not None
    assert weka.sharing.cached_share == pytest.approx(0.963, abs=0.005)
    assert weka.growth.verdict == "grows"
    lmcache = describe(read_trace(shared_data / "agents/lmcache_agentic_calls.jsonl"))
    assert lmcache.gaps is not None
    assert lmcache.turns is not None
    assert lmcache.turns.num_programs == 209
    p50, p90, p99 = (lmcache.gaps.quantiles_s[QUANTILES.index(q)] for q in (0.5, 0.9, 0.99))
    assert (p50, p90, p99) == pytest.approx((0.71, 3.6, 23.4), rel=0.01)
    assert lmcache.whole.input is None


def test_everything_is_described_and_drawn(described: Description, pictures: tuple[Picture, ...]) -> None:
    assert described.skipped == {}
    assert len(described.panels) == 4
    assert [picture.name for picture in pictures] == [
        "load", "weekly", "hourly", "tokens_hourly", "bursts", "dispersion", "inputs", "outputs", "mixtures",
        "relation", "turns", "growth", "sharing", "failures",
    ]  # fmt: skip
    assert all(picture.png.startswith(b"\x89PNG") for picture in pictures)
    json.dumps(described.as_json(), allow_nan=False)


def test_a_second_process_draws_the_same(described: Description, pictures: tuple[Picture, ...]) -> None:
    with DrawingProcess() as beside:
        beside.show(described)
        drawn = {name: beside.draw(name) for name in ("growth", "failures")}
    own = {picture.name: picture.png for picture in pictures}
    assert drawn == {name: own[name] for name in drawn}


def test_two_draw_every_figure_once(described: Description) -> None:
    plots, asked = [plot for plot in PLOTS if plot.name in ("turns", "growth", "failures")], []

    def beside(name: str) -> bytes:
        asked.append(name)
        return b"" if name == "failures" else b"drawn elsewhere"

    pictures = draw_plots(plots, described, beside=beside)
    assert asked[0] == "failures"
    assert [picture.name for picture in pictures] == ["turns", "growth"]
    elsewhere = {picture.name for picture in pictures if picture.png == b"drawn elsewhere"}
    assert elsewhere == set(asked) - {"failures"}


def test_a_process_that_ends_early_says_so(described: Description) -> None:
    with DrawingProcess() as beside:
        beside.show(described)
        with pytest.raises(BraidError, match="ended early"):
            beside.draw("no such plot")


class _Links(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.sources: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.sources += [value or "" for name, value in attrs if name in ("src", "href")]


def test_the_page_holds_everything_and_loads_nothing(
    described: Description, pictures: tuple[Picture, ...]
) -> None:
    text = page(described, pictures)
    links = _Links()
    links.feed(text)
    assert len(links.sources) == len(pictures)
    assert all(source.startswith("data:image/png;base64,") for source in links.sources)
    assert "&lt;made&gt;.csv" in text
    assert "none &amp; free" in text


@pytest.mark.parametrize("rows", [0, 1, 2, 12])
def test_tiny_traces_are_described_as_far_as_they_go(rows: int) -> None:
    found = describe(Trace(made().frame.head(rows), TraceInfo(block_size=512)))
    assert found.rows == rows
    json.dumps(found.as_json(), allow_nan=False)
    page(found, draw_all(found))


def test_a_trace_that_says_nothing_but_times() -> None:
    found = describe(Trace(conform(pl.DataFrame({"t_s": np.arange(100.0)})), TraceInfo()))
    assert found.burstiness is not None
    assert found.burstiness.gap_cv == 0.0
    assert set(found.skipped) >= {"turns", "gaps", "prefixes", "input lengths", "failures"}


def test_the_seed_is_the_only_chance() -> None:
    assert describe(made(500), seed=1) == describe(made(500), seed=1)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(made(2000), tmp_path / "trace.parquet")
    told = [str(tmp_path / name) for name in ("trace.parquet", "out", "told.json")]
    assert main(["trace", "describe", told[0], "--out", told[1], "--json", told[2]]) == 0
    assert "requests 2,000" in " ".join(capsys.readouterr().out.split())
    written = json.loads(Path(told[2]).read_text())
    assert written == json.loads((tmp_path / "out" / "description.json").read_text())
    assert written["rows"] == 2000
    assert (tmp_path / "out" / "page.html").stat().st_size > 100_000


def test_help_needs_neither_polars_nor_scipy_nor_matplotlib() -> None:
    code = "import braid.cli.trace.describe, sys; print({'polars', 'scipy', 'matplotlib'} & set(sys.modules))"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "set()"
    )


def test_sparks() -> None:
    assert spark([0, 1, None, 8]) == " ▂ █"
    assert spark([]) == ""
    assert len(spark(list(range(1000)))) == 60


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0 s"), (90, "1.5 min"), (1200, "20 min"), (0.25, "250 ms"), (86400, "1 d")]
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_titles_fit_over_half_of_a_figure() -> None:
    figure, axes = grid_of(["a", "b"], 3.0)
    titles(axes, ["a model with quite a long name · conversation: output", "short"])
    drawn = [axis.title for axis in axes]
    assert "…" in drawn[0].get_text()
    assert drawn[0].get_fontsize() == drawn[1].get_fontsize() < 10
    right = drawn[0].get_window_extent(figure.canvas.get_renderer()).x1  # type: ignore[attr-defined]
    assert right < axes[1].get_window_extent().x0


@pytest.mark.parametrize(("low", "high", "most"), [(1e-5, 2e5, 8), (0.05, 100.0, 6), (2.99, 3.01, 2)])
def test_axes_of_durations_have_ticks_apart(low: float, high: float, most: int) -> None:
    _, (axis, *_) = grid_of(["a"], 3.0)
    axis.set(xscale="log", xlim=(low, high))
    seconds_axis(axis.xaxis)
    ticks = np.log10(axis.xaxis.get_major_locator()())
    assert 1 <= ticks.size <= most
    assert (np.diff(ticks) >= 0.12 * np.log10(high / low)).all()
