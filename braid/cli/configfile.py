"""``--config file.yaml``: a flat mapping whose keys are option names. Flags and the environment win over it."""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path
from typing import Any

from cyclopts import App, ArgumentCollection
from cyclopts.config import Dict

from braid.core.errors import InvalidParameterError

OPTION = "--config"


def from_config_option(app: App, commands: tuple[str, ...], arguments: ArgumentCollection) -> None:
    """A cyclopts configuration source: reads the file that ``--config`` (or ``BRAID_CONFIG``) names, if any.

    Raises:
        InvalidParameterError: the file cannot be read, is no mapping, or has a key that is no option.
    """
    argument = arguments.get(OPTION, None)
    if argument is None or not argument.tokens:
        return
    path = Path(argument.tokens[-1].value)
    known = {name.removeprefix("--") for item in arguments for name in item.names} - {
        OPTION.removeprefix("--")
    }
    values = _checked(_read(path), known, path)
    Dict(values, source=str(path), use_commands_as_keys=False)(app, commands, arguments)


def _read(path: Path) -> Any:
    import yaml  # only a server with --config pays for it

    try:
        return yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidParameterError(f"cannot read the config file {path}: {error}", param="config") from error
    except yaml.YAMLError as error:
        text = " ".join(str(error).split())
        raise InvalidParameterError(f"{path} is not valid YAML: {text}", param="config") from error


def _checked(values: Any, known: set[str], path: Path) -> dict[str, Any]:
    if not isinstance(values, dict):
        raise InvalidParameterError(
            f"{path} must map option names to values, for example `port: 8001`", param="config"
        )
    options: dict[str, Any] = {}
    for key, value in values.items():
        name = str(key).replace("_", "-")
        if name not in known:
            raise InvalidParameterError(f"{path}: {_unknown(str(key), name, known)}", param="config")
        if isinstance(value, dict):
            raise InvalidParameterError(
                f"{path}: {key} must be a value or a list, got a mapping", param="config"
            )
        if value is not None:
            options[name] = value
    return options


def _unknown(key: str, name: str, known: set[str]) -> str:
    nearest = get_close_matches(name, known, n=1)
    hint = f"did you mean {nearest[0]!r}?" if nearest else f"there are: {', '.join(sorted(known))}"
    return f"unknown option {key!r}; {hint}"
