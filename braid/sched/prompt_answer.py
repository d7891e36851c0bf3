"""What a request wants of its prompt itself, collected over chunks: log-probabilities of its tokens, or one vector."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from braid.core.request import Request, TokenLogprobs
from braid.core.step import ScoreSpec, StepResult, Work


@dataclass(slots=True, eq=False)
class PromptAnswer:
    """The part of an answer that steps have brought so far.

    Every token of the prompt is computed for it, in order and from the first: the prefix cache knows KV, no hidden
    states. After a preemption it begins again.
    """

    request: Request
    scores: list[TokenLogprobs] = field(default_factory=list)
    vector: list[float] = field(default_factory=list)

    def score(self, start: int, end: int) -> ScoreSpec | None:
        """What to weigh after tokens ``[start, end)``: the prompt tokens ``[start + 1, end + 1)``."""
        num_top = self.request.params.prompt_logprobs
        token_ids = self.request.prompt_token_ids[start + 1 : end + 1]
        return None if num_top is None or not token_ids else ScoreSpec(token_ids, num_top)

    def pooling(self, end: int) -> str | None:
        """What to make of the hidden states of a chunk that ends before token ``end``."""
        pooling = self.request.pooling
        return None if pooling == "last" and end < self.request.num_prompt_tokens else pooling

    def take(self, work: Work, result: StepResult) -> None:
        """Add what came of a chunk."""
        if work.score is not None:
            assert len(self.scores) >= work.start, "prompt tokens were passed over"
            self.scores[work.start :] = result.scores[work.request_id]
        if work.pooling is not None:
            pooled = result.pooled[work.request_id]
            fresh = work.start == 0 or not self.vector
            self.vector = list(pooled) if fresh else [a + b for a, b in zip(self.vector, pooled, strict=True)]

    def logprobs(self) -> tuple[TokenLogprobs | None, ...] | None:
        """One entry per prompt token, None for the first; None if they were not asked for."""
        if self.request.params.prompt_logprobs is None:
            return None
        assert len(self.scores) == self.request.num_prompt_tokens - 1, "a prompt token was not weighed"
        return (None, *self.scores)

    def embedding(self) -> tuple[float, ...] | None:
        """The vector at length 1 (so a sum is as good as a mean); None if it was not asked for."""
        if self.request.pooling is None:
            return None
        norm = math.hypot(*self.vector) or 1.0
        return tuple([value / norm for value in self.vector])


def answer_for(request: Request) -> PromptAnswer | None:
    """Where to collect what ``request`` wants of its prompt; None if that is nothing."""
    wanted = request.pooling is not None or request.params.prompt_logprobs is not None
    return PromptAnswer(request) if wanted else None
