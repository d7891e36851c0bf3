from __future__ import annotations

import json

import pytest

from braid.policy.calibration import (
    DecodeSample,
    MixedSample,
    PrefillSample,
    cost_from_data,
    cost_to_data,
    fit_cost,
)
from braid.policy.cost import StepCost

SEQS, CONTEXTS = (1, 4, 16), (16, 1024, 8192)
CHUNKS, BEHIND = (64, 256, 512), (0, 1024)
HOST, EAGER = 0.001, 0.004


def dense(tokens: float) -> float:
    return HOST + 0.0005 * tokens


def decode_attention(seqs: int, context: int) -> float:
    return 1e-7 * seqs * (context - CONTEXTS[0])


def prefill_attention(chunk: int, context: int) -> float:
    return 2e-8 * chunk * context


def head(rows: int) -> float:
    return 0.002 + 0.0001 * rows


def samples() -> tuple[list[DecodeSample], list[PrefillSample]]:
    decodes = [
        DecodeSample(n, c, dense(n) + head(n) + decode_attention(n, c), head(n))
        for n in SEQS
        for c in CONTEXTS
    ]
    prefills = [
        PrefillSample(n, c, dense(n) + EAGER + prefill_attention(n, c)) for n in CHUNKS for c in BEHIND
    ]
    return decodes, prefills


def fitted(mixing: float = 1.0) -> StepCost:
    decodes, prefills = samples()
    attention = prefill_attention(256, 1024) + decode_attention(4, 1024)
    seconds = EAGER + dense(260) + head(4) + mixing * attention
    return fit_cost("made up", decodes, prefills, [MixedSample(4, 1024, 256, 1024, seconds)])


def test_parts_are_told_apart() -> None:
    cost = fitted()
    # Sixty-four tokens lie beyond the decodes, where the line goes on as it went.
    assert cost.eager == pytest.approx(EAGER)
    assert cost.dense.at(8).seconds == pytest.approx(dense(8))
    assert cost.dense.at(300).seconds == pytest.approx(dense(300))
    assert cost.head.at(2).seconds == pytest.approx(head(2))
    assert cost.decode.at(4, 2000).seconds == pytest.approx(decode_attention(4, 2000))
    assert cost.prefill.at(128, 512).seconds == pytest.approx(prefill_attention(128, 512))


@pytest.mark.parametrize(("true", "found"), [(1.4, 1.4), (0.1, 0.5), (9.0, 3.0)])
def test_mixing_is_measured_and_bounded(true: float, found: float) -> None:
    assert fitted(true).mixing == pytest.approx(found)


def test_contexts_that_no_store_holds_follow_the_longest_that_it_does() -> None:
    decodes, prefills = samples()
    fewer = [sample for sample in decodes if sample.num_seqs * sample.context < 16 * 8192]
    seconds = fit_cost("made up", fewer, prefills).decode.at(16, 8192).seconds
    assert seconds == pytest.approx(decode_attention(16, 8192), rel=0.02)


def test_medians_are_taken() -> None:
    decodes, prefills = samples()
    noisy = [*decodes, *decodes, *(sample._replace(seconds=9.0) for sample in decodes)]
    assert fit_cost("made up", noisy, prefills) == fit_cost("made up", decodes, prefills)


def test_tables_survive_json() -> None:
    cost = fitted(1.3)
    assert cost_from_data(json.loads(json.dumps(cost_to_data(cost)))) == cost


@pytest.mark.parametrize("data", [{}, {"profile": "x"}, {**cost_to_data(fitted()), "dense": 3}])
def test_what_is_no_table_is_refused(data: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="no table of step times"):
        cost_from_data(data)


def test_too_little_is_refused() -> None:
    decodes, prefills = samples()
    with pytest.raises(ValueError, match="at least two sizes"):
        fit_cost("made up", decodes[:1], prefills)
    with pytest.raises(ValueError, match="lack size 512 at context 1024"):
        fit_cost("made up", decodes, prefills[:-1])


def test_noise_makes_no_larger_step_cheaper() -> None:
    decodes, prefills = samples()
    slow = [sample._replace(seconds=sample.seconds + 0.1 * (sample.chunk == 64)) for sample in prefills]
    assert fit_cost("made up", decodes, slow).dense.at(256).seconds >= dense(16)
