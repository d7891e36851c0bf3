"""What is published of BurstGPT's files, beside what a description of the same file finds.

A file is recognised by its hash, or by its rows, its failures and its span together: nothing is said of parts, twins or
other traces. Differences are shown, not judged.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from braid.lab.arrays import QUANTILES

if TYPE_CHECKING:
    from braid.lab.describe.description import Description, PanelDescription

FILE, COUNTS = "dataset", "counts of the dataset"
AUDIT, PAPER = "audits by third parties", "paper, all files"
SPAN_SLACK_S = 3600.0
"""Without the failed rows a file may begin later or end earlier."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Compared:
    """One statistic. ``relation`` is what is published: ``=``, or ``>``, ``<``, ``~`` the value; shares have unit
    ``share``; ``ours`` is None where the description lacks it."""

    name: str
    published: float
    relation: str
    ours: float | None
    unit: str
    source: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Published:
    """The file that a trace was recognised as, and what is published of it."""

    file: str
    rows: tuple[Compared, ...]


@dataclass(frozen=True, slots=True)
class Fact:
    """A published number, and where a description has it. ``of_all``: of failed rows, too, so it says nothing of an
    edition without them."""

    name: str
    value: float
    found: Callable[[Description], float | None]
    source: str = AUDIT
    unit: str = ""
    relation: str = "="
    of_all: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class KnownFile:
    """A public file: ``ok`` rows that did not fail, ``failed`` ones (None: not published exactly), its span."""

    name: str
    format: str
    ok: int
    failed: int | None
    span_s: float
    sha256: str = ""
    facts: tuple[Fact, ...] = ()

    def is_that_of(self, description: Description) -> bool:
        """With its failed rows, or in the edition without them."""
        if description.info.format != self.format:
            return False
        if self.sha256 and description.info.sha256 == self.sha256:
            return True
        failed = description.failures.statuses.get("failed", 0)
        slack = SPAN_SLACK_S if failed == 0 else 1.0
        same_failed = failed in (0, self.failed) or self.failed is None
        return (
            description.rows - failed == self.ok
            and same_failed
            and abs(description.span_s - self.span_s) <= slack
        )


def published(description: Description, files: Sequence[KnownFile] | None = None) -> Published | None:
    """The comparison with the first of ``files`` (BurstGPT's) that the description is of; None where it is of none."""
    for known in BURSTGPT if files is None else files:
        if known.is_that_of(description):
            failed = bool(description.failures.statuses.get("failed"))
            rows = tuple(_compared(fact, description) for fact in known.facts if failed or not fact.of_all)
            return Published(file=known.name, rows=rows)
    return None


def _compared(fact: Fact, description: Description) -> Compared:
    return Compared(
        name=fact.name,
        published=fact.value,
        relation=fact.relation,
        ours=fact.found(description),
        unit=fact.unit,
        source=fact.source,
    )


# Where a description has them


def _at(quantiles: Sequence[float | None] | None, q: float) -> float | None:
    return quantiles[QUANTILES.index(q)] if quantiles else None


def _answered(parts: Sequence[PanelDescription]) -> int:
    return sum(part.output.num for part in parts if part.output)


def _model(name: str) -> Callable[[Description], float | None]:
    return lambda d: _answered([part for part in d.panels if part.panel.model == name]) if d.panels else None


def _conversations(d: Description) -> float | None:
    chats = _answered([part for part in d.panels if part.panel.kind == "conv"])
    return chats / d.whole.output.num if d.panels and d.whole.output else None


def _failed_of(kind: str) -> Callable[[Description], float | None]:
    def share(d: Description) -> float | None:
        pairs = [
            (part.panel.num_requests, failed)
            for part, failed in zip(d.panels, d.failures.panel_share, strict=False)
            if part.panel.kind == kind and failed is not None
        ]
        total = sum(num for num, _ in pairs)
        return sum(num * failed for num, failed in pairs) / total if total else None

    return share


def _turns_up_to(most: int) -> Callable[[Description], float | None]:
    return lambda d: sum(d.turns.counts[:most]) / d.turns.num_programs if d.turns else None


def _chatgpt_modes(d: Description) -> float | None:
    for part in d.panels:
        if part.panel.model == "ChatGPT" and part.panel.kind == "conv" and part.output:
            return part.output.double.modes
    return None


def _days(pick: Callable[[Sequence[int]], int]) -> Callable[[Description], float | None]:
    return lambda d: pick(d.whole.calendar.per_day) if d.whole.calendar else None


def _failed_share(d: Description) -> float | None:
    return d.failures.statuses.get("failed", 0) / d.rows


def _rate(d: Description) -> float | None:
    return d.burstiness.rate if d.burstiness else None


def _gap_mean(d: Description) -> float | None:
    return d.burstiness.gap_mean_s if d.burstiness else None


def _gap(q: float) -> Callable[[Description], float | None]:
    return lambda d: _at(d.burstiness.gap_quantiles_s, q) if d.burstiness else None


def _largest(value: int, answer: int) -> tuple[Fact, ...]:
    return (
        Fact("longest request", value, lambda d: d.whole.input.max if d.whole.input else None, unit="tokens"),
        Fact(
            "longest response",
            answer,
            lambda d: d.whole.output.max if d.whole.output else None,
            unit="tokens",
        ),
    )


def _mix(chatgpt: int, gpt4: int, conversations: float) -> tuple[Fact, ...]:
    return (
        Fact("answered by ChatGPT", chatgpt, _model("ChatGPT")),
        Fact("answered by GPT-4", gpt4, _model("GPT-4")),
        Fact("conversations, of the answered", conversations, _conversations, COUNTS, "share"),
    )


def _size(days: float, failed: float, rate: float) -> tuple[Fact, ...]:
    return (
        Fact("span", days, lambda d: d.span_s / 86400, FILE, "days"),
        Fact("failed", failed, _failed_share, FILE, "share", of_all=True),
        Fact("mean rate", rate, _rate, COUNTS, "requests / s", of_all=True),
    )


_PAPER = (Fact("peaks of ChatGPT's responses in conversations", 2, _chatgpt_modes, PAPER),)
_SESSIONS = (
    Fact("sessions", 55_920, lambda d: d.programs or None),
    Fact("turns per session, median", 2, lambda d: _at(d.turns.quantiles, 0.5) if d.turns else None),
    Fact("turns per session, mean", 4.18, lambda d: d.turns.mean if d.turns else None),
    Fact("sessions of one turn", 0.35, _turns_up_to(1), PAPER, "share", ">"),
    Fact("sessions of at most four turns", 0.75, _turns_up_to(4), PAPER, "share"),
    Fact("gap between turns, p50", 131, lambda d: _at(d.gaps.quantiles_s, 0.5) if d.gaps else None, unit="s"),
    Fact(
        "gap between turns, p90", 2340, lambda d: _at(d.gaps.quantiles_s, 0.9) if d.gaps else None, unit="s"
    ),
)

BURSTGPT = (
    KnownFile(
        name="BurstGPT_1",
        format="burstgpt",
        ok=1_404_294,
        failed=25_443,
        span_s=5_269_968.0,
        facts=(
            *_size(61.0, 0.0178, 0.271),
            *_mix(1_189_167, 215_127, 0.104),
            Fact(
                "gap, mean",
                3.686,
                lambda d: d.burstiness.gap_mean_s if d.burstiness else None,
                unit="s",
                of_all=True,
            ),
            Fact("gap, CV", 13.3, lambda d: d.burstiness.gap_cv if d.burstiness else None, of_all=True),
            Fact("gap, median", 1, _gap(0.5), unit="s", of_all=True),
            Fact("gap, p95", 12, _gap(0.95), unit="s", of_all=True),
            Fact("gap, p99", 52, _gap(0.99), unit="s", of_all=True),
            Fact(
                "busiest 60 s",
                20.8,
                lambda d: d.burstiness.peak_rate_60s if d.burstiness else None,
                unit="requests / s",
                of_all=True,
            ),
            Fact("quietest day", 1_576, _days(min), COUNTS, "requests", of_all=True),
            Fact("busiest day", 149_520, _days(max), COUNTS, "requests", of_all=True),
            *_largest(29_665, 7_315),
            *_PAPER,
        ),
    ),
    KnownFile(
        name="BurstGPT_2",
        format="burstgpt",
        ok=3_784_213,
        failed=None,
        span_s=5_183_981.0,
        facts=(
            *_size(60.0, 0.019, 0.74),
            *_mix(3_696_864, 87_349, 0.021),
            *_largest(31_407, 12_472),
            *_PAPER,
        ),
    ),
    KnownFile(
        name="BurstGPT_3",
        format="burstgpt",
        ok=4_956_058,
        failed=387_963,
        span_s=9_503_873.0,
        sha256="2299986a07388aa303ec2c41d1131e756db650a39ed6ef9dfe7cc3d7f9a43b8f",
        facts=(
            *_size(110.0, 0.0726, 0.56),
            *_mix(4_201_522, 754_536, 0.047),
            Fact("failed, of API requests", 0.076, _failed_of("api"), COUNTS, "share", of_all=True),
            Fact("failed, of conversations", 0.008, _failed_of("conv"), COUNTS, "share", of_all=True),
            Fact(
                "request, median",
                327,
                lambda d: _at(d.whole.input.quantiles, 0.5) if d.whole.input else None,
                unit="tokens",
            ),
            Fact(
                "request, mean", 478, lambda d: d.whole.input.mean if d.whole.input else None, unit="tokens"
            ),
            *_largest(125_591, 5_383),
            *_SESSIONS,
            *_PAPER,
        ),
    ),
)
"""Wang et al., arXiv 2401.17644, and the dataset's README (CC-BY-4.0); audits are full passes that others published.
The failures of BurstGPT_2 are published as about 74,200 only."""
