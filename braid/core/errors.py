"""Errors a user can act on. Everything else that escapes is a bug in Braid."""


class BraidError(Exception):
    """Base of all errors that Braid raises on purpose; its text is shown to the user as it is."""


class InvalidParameterError(BraidError, ValueError):
    """A request field has a wrong value.

    Args:
        message: what is wrong and what would be right.
        param: the field's public name (OpenAI's ``error.param``).
        code: a machine-readable code such as ``context_length_exceeded``.
    """

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.param = param
        self.code = code


class ModelNotFoundError(BraidError):
    """The named model is neither a path, an alias nor a downloadable repository."""


class CheckpointError(BraidError, ValueError):
    """A checkpoint is truncated, corrupt, incomplete, or of an unsupported kind."""


class CapacityError(BraidError):
    """The machine has too little memory for what was asked; the text holds the numbers."""


class EngineDeadError(BraidError):
    """The engine process is not running; the request cannot be served now."""


class OverloadedError(BraidError):
    """The queue is full; try again after ``retry_after`` seconds."""

    def __init__(self, message: str, *, retry_after: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after = retry_after
