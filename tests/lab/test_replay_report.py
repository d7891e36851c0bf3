from __future__ import annotations

import json
from collections.abc import Callable
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from braid.cli.app import main
from braid.cli.trace.report import show
from braid.core.metrics import SLO
from braid.lab.measures.measure import Measures, measure
from braid.lab.measures.plots import PLOTS, draw_run
from braid.lab.measures.report import page, write_folder, write_page
from braid.lab.measures.summary import card_pairs, headline, limits_of, sentences
from braid.lab.replay.outcome import Outcome
from braid.lab.replay.record import Run, save_run
from braid.lab.table import TraceError

Make = Callable[..., Run]
LIMITS = SLO(ttft=2.0, tpot=0.05, jct=60.0)


@pytest.fixture(scope="module")
def measures(busy_run: Make) -> Measures:
    head = {"notes": ("Gaps were capped at 60 s.",), "unsendable": {"too_long": 41}, "planned_hit_rate": 0.52}
    return measure(busy_run(300, licence="CC-BY-4.0", citation="Doe 2024", **head), LIMITS)


def failed(request: int, reason: str = "refused by <b>it</b>") -> Outcome:
    return Outcome(
        request=request,
        status="unreachable",
        scheduled_s=1.0,
        sent_s=1.0,
        end_s=1.0,
        attempts=1,
        reason=reason,
    )


def test_the_page_has_everything_in_it(measures: Measures) -> None:
    pictures = draw_run(measures)
    assert [picture.name for picture in pictures] == [plot.name for plot in PLOTS]
    assert all(picture.png.startswith(b"\x89PNG") for picture in pictures)
    text = page(measures, pictures)
    assert text.count("data:image/png;base64,") == len(pictures)
    for outside in ("<script", "http-equiv", 'src="http', "url(", "@import"):
        assert outside not in text
    for word in ("Valid", "Gaps were capped at 60 s.", "41 rows of the trace were not planned: too long.", "CC-BY-4.0",
                 "Doe 2024", "TTFT ≤ 2 s", "52.0%", measures.head.plan_sha256):  # fmt: skip
        assert word in text


def test_an_invalid_run_says_so_everywhere(busy_run: Make) -> None:
    found = measure(busy_run(50, late_s=0.2))
    assert headline(found).startswith("INVALID")
    text = page(found, ())
    assert 'class="banner invalid"><b>INVALID</b>' in text
    assert "over the limit of 20 ms" in text
    assert "INVALID" in shown(found)
    assert found.as_json()["verdict"]["valid"] is False


@pytest.mark.parametrize("outcomes", [[], [failed(0), failed(1)]])
def test_a_run_without_an_answer_has_a_page(make_run: Make, outcomes: list[Outcome]) -> None:
    found = measure(make_run(outcomes), LIMITS)
    text = page(found, draw_run(found))
    assert "<h2>Latency</h2>" in text
    assert "None" not in text
    assert "nan" not in shown(found)
    assert sentences(found)[0].startswith(f"{len(outcomes)} requests were planned in the measured 1.67 min.")


def test_answers_of_one_token_have_figures(make_run: Make) -> None:
    outcomes = [
        Outcome(
            request=n,
            status="ok",
            scheduled_s=n,
            sent_s=n,
            chunk_times_s=(n + 1,),
            chunk_tokens=(1,),
            end_s=n + 1,
        )
        for n in range(3)
    ]
    names = [picture.name for picture in draw_run(measure(make_run(outcomes), LIMITS))]
    assert names == [
        "load",
        "latency",
        "latency_load",
        "distributions",
        "outcomes",
    ]  # no lag at all is not drawn


def test_words_from_outside_are_escaped(make_run: Make) -> None:
    found = measure(make_run([failed(0)], label="<script>alert(1)</script>", source="a&b.csv"))
    text = page(found, ())
    assert "<script>" not in text
    assert "&lt;script&gt;" in text
    assert "refused by &lt;b&gt;it&lt;/b&gt;" in text
    assert "refused by <b>it</b>" in shown(found)
    assert "[red]x" in shown(measure(make_run([failed(0, "[red]x")])))


def test_cards_and_limits(measures: Measures) -> None:
    cards = dict(card_pairs(measures))
    assert cards["planned requests"] == str(measures.counts.measured)
    assert "within the limits" in cards
    assert limits_of(LIMITS) == "TTFT ≤ 2 s and TPOT ≤ 50 ms and JCT ≤ 1 min"
    assert limits_of(SLO()) == ""


def test_the_folder(make_run: Make, tmp_path: Path) -> None:
    found, folder = measure(make_run([failed(0)])), tmp_path / "a" / "run"
    write_folder(found, folder)
    assert sorted(path.name for path in folder.iterdir()) == [
        "load.png",
        "measures.json",
        "outcomes.png",
        "page.html",
    ]
    assert json.loads((folder / "measures.json").read_text()) == json.loads(json.dumps(found.as_json()))


def test_a_place_that_cannot_be_written(make_run: Make, tmp_path: Path) -> None:
    found = measure(make_run([]))
    with pytest.raises(TraceError, match="cannot write"):
        write_page(found, tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(TraceError, match="cannot write into"):
        write_folder(found, tmp_path / "file" / "run")


def shown(found: Measures) -> str:
    console = Console(file=StringIO(), width=200)
    show(found, console)
    return console.file.getvalue()  # type: ignore[attr-defined, no-any-return]


def test_the_terminal_is_short(measures: Measures) -> None:
    text = shown(measures)
    assert len(text.splitlines()) < 50
    assert "Valid: the client was on time" in text
    assert "TPOT ≤ 50 ms" in text
    assert "cite: Doe 2024" in text


def test_the_verb(make_run: Make, busy_run: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, result, html = tmp_path / "run", tmp_path / "m.json", tmp_path / "p.html"
    save_run(make_run([failed(0)]), run)
    words = ["trace", "report", str(run), "--json", str(result), "--html", str(html), "--slo-ttft", "2"]
    assert main(words) == 0
    assert json.loads(result.read_text())["slo"]["ttft"] == 2.0
    assert "<h1>bursty code</h1>" in html.read_text(encoding="utf-8")
    assert "TTFT ≤ 2 s" in capsys.readouterr().out
    save_run(busy_run(60, late_s=0.2), run)
    assert main(["trace", "report", str(run)]) == 3
    assert "INVALID" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [([], "is no run"), (["--step", "0"], "--step 0: must be more than 0 seconds")],
)
def test_what_the_user_can_change_is_one_line(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["trace", "report", str(tmp_path), *words]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
