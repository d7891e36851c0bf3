"""What a caller may ask of the sampler, validated once and then immutable."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from braid.core.constraint import Constraint
from braid.core.errors import InvalidParameterError

MAX_N = 16
MAX_LOGPROBS = 20
MAX_LOGIT_BIAS = 1024
MAX_STOP = 16
_LONGEST_ECHO = 40


def _require(ok: bool, param: str, value: object, valid: str) -> None:
    if not ok:
        got = repr(value)
        if len(got) > _LONGEST_ECHO:
            got = got[:_LONGEST_ECHO] + "..."
        raise InvalidParameterError(f"{param} must be {valid}, got {got}", param=param)


def _real(value: object) -> bool:
    """Finite; ``math.isfinite`` would raise for integers beyond all floats."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < math.inf


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


@dataclass(frozen=True, kw_only=True, slots=True)
class SamplingParams:
    """How the tokens of one request are chosen and when it ends.

    Spellings and meanings are those of the OpenAI API and, for the extras, of vLLM.

    Args:
        n: how many independent outputs; output ``i`` uses ``seed + i``.
        temperature: 0 is greedy; otherwise logits are divided by it. In [0, 100].
        top_k: keep the k most likely tokens; 0 or -1 keeps all.
        top_p: keep the smallest set of tokens whose probabilities add up to it. In (0, 1].
        min_p: keep tokens at least this fraction of the most likely one. In [0, 1].
        presence_penalty, frequency_penalty: subtracted from logits of generated tokens. In [-2, 2].
        repetition_penalty: divides positive and multiplies negative logits of tokens seen in the prompt or
            the output. In (0, 10].
        logit_bias: added to the logits of these token ids. In [-100, 100].
        seed: the random stream of this request; None draws one at admission.
        stop: strings that end the output and are not part of it.
        stop_token_ids: token ids that end the output, beside the model's own.
        include_stop_str_in_output: keep the stop string in the text.
        ignore_eos: go on after the model's end-of-sequence tokens.
        min_tokens: no end token and no stop string before this many tokens.
        max_tokens: at most this many; None means up to the model's context. 0 only together with ``prompt_logprobs``:
            the prompt is weighed and nothing generated.
        logprobs: log-probability of each chosen token and of this many alternatives; None for none.
        prompt_logprobs: the same for each prompt token but the first.
        skip_special_tokens: leave special tokens out of the text.
        constraint: the grammar that the output follows, over everything else: where it is complete, the output ends
            despite ``min_tokens`` and ``ignore_eos``. Those lengthen what the grammar leaves open.

    Raises:
        InvalidParameterError: naming the field, the value and the valid range.
    """

    n: int = 1
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    include_stop_str_in_output: bool = False
    ignore_eos: bool = False
    min_tokens: int = 0
    max_tokens: int | None = 16
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    skip_special_tokens: bool = True
    constraint: Constraint | None = None

    def __post_init__(self) -> None:
        stop: object = self.stop  # callers may pass one string, as in the OpenAI API
        object.__setattr__(self, "stop", (stop,) if isinstance(stop, str) else tuple(self.stop))
        object.__setattr__(self, "stop_token_ids", tuple(self.stop_token_ids))
        object.__setattr__(self, "top_k", 0 if self.top_k == -1 else self.top_k)
        self._check_numbers()
        self._check_lists()

    def _check_numbers(self) -> None:
        _require(_whole(self.n) and 1 <= self.n <= MAX_N, "n", self.n, f"an integer in [1, {MAX_N}]")
        temperature = self.temperature
        _require(_real(temperature) and 0 <= temperature <= 100, "temperature", temperature, "in [0, 100]")
        _require(_whole(self.top_k) and self.top_k >= 0, "top_k", self.top_k, "an integer >= -1")
        _require(_real(self.top_p) and 0 < self.top_p <= 1, "top_p", self.top_p, "in (0, 1]")
        _require(_real(self.min_p) and 0 <= self.min_p <= 1, "min_p", self.min_p, "in [0, 1]")
        for name in ("presence_penalty", "frequency_penalty"):
            value = getattr(self, name)
            _require(_real(value) and -2 <= value <= 2, name, value, "in [-2, 2]")
        penalty = self.repetition_penalty
        _require(_real(penalty) and 0 < penalty <= 10, "repetition_penalty", penalty, "in (0, 10]")
        seed_ok = self.seed is None or (_whole(self.seed) and -(2**63) <= self.seed < 2**64)
        _require(seed_ok, "seed", self.seed, "a 64-bit integer or null")
        _require(
            _whole(self.min_tokens) and self.min_tokens >= 0, "min_tokens", self.min_tokens, "an integer >= 0"
        )
        least = 1 if self.prompt_logprobs is None else 0
        max_ok = self.max_tokens is None or (_whole(self.max_tokens) and self.max_tokens >= least)
        valid = "an integer >= 1 or null" if least else "an integer >= 0 or null"
        _require(max_ok, "max_tokens", self.max_tokens, valid)
        if self.max_tokens is not None:
            _require(self.min_tokens <= self.max_tokens, "min_tokens", self.min_tokens, "at most max_tokens")
        for name in ("logprobs", "prompt_logprobs"):
            count = getattr(self, name)
            count_ok = count is None or (_whole(count) and 0 <= count <= MAX_LOGPROBS)
            _require(count_ok, name, count, f"an integer in [0, {MAX_LOGPROBS}] or null")

    def _check_lists(self) -> None:
        _require(len(self.stop) <= MAX_STOP, "stop", len(self.stop), f"at most {MAX_STOP} strings")
        for text in self.stop:
            _require(isinstance(text, str) and text != "", "stop", text, "non-empty strings")
        for token in self.stop_token_ids:
            _require(_whole(token) and token >= 0, "stop_token_ids", token, "integers >= 0")
        count = len(self.logit_bias)
        _require(count <= MAX_LOGIT_BIAS, "logit_bias", count, f"at most {MAX_LOGIT_BIAS} entries")
        for token, bias in self.logit_bias.items():
            _require(_whole(token) and token >= 0, "logit_bias", token, "keyed by token ids")
            _require(_real(bias) and -100 <= bias <= 100, "logit_bias", bias, "values in [-100, 100]")

    @property
    def greedy(self) -> bool:
        return self.temperature == 0

    @property
    def has_penalties(self) -> bool:
        return self.presence_penalty != 0 or self.frequency_penalty != 0 or self.repetition_penalty != 1

    def child(self, index: int) -> SamplingParams:
        """The parameters of output ``index`` of an ``n > 1`` request: alone, with its own random stream."""
        seed = None if self.seed is None else self.seed + index
        return replace(self, n=1, seed=seed)
