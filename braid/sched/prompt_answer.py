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

    def ask(self, work: Work) -> Work:
        """``work`` with what it is to bring for the answer, and without a sample where no token is wanted."""
        request = self.request
        end = work.start + len(work.token_ids)
        num_top = request.params.prompt_logprobs
        following = request.prompt_token_ids[work.start + 1 : end + 1]
        score = None if num_top is None or not following else ScoreSpec(following, num_top)
        partial = request.pooling == "last" and end < request.num_prompt_tokens
        return work._replace(
            sample=work.sample if request.wants_tokens else None,
            score=score,
            pooling=None if partial else request.pooling,
        )

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
