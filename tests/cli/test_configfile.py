from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from cyclopts import App
from cyclopts.config import Env

from braid.cli.configfile import from_config_option
from braid.cli.options import EngineOptions, ServerOptions
from braid.core.errors import InvalidParameterError


class Parsed(dict[str, Any]):
    """What a command received."""


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Any:
    app = App(config=[Env("BRAID_", command=False), from_config_option], result_action="return_value")

    @app.command
    def serve(
        model: str = "default",
        *,
        server: ServerOptions = ServerOptions(),  # noqa: B008
        engine: EngineOptions = EngineOptions(),  # noqa: B008
    ) -> Parsed:
        return Parsed(model=model, server=server, engine=engine)

    monkeypatch.delenv("BRAID_PORT", raising=False)
    return lambda *words: app(["serve", *words], exit_on_error=False, print_error=False)


def write(tmp_path: Path, text: str) -> str:
    path = tmp_path / "braid.yaml"
    path.write_text(text)
    return str(path)


def test_keys_are_option_names_with_dashes_or_underscores(run: Any, tmp_path: Path) -> None:
    path = write(
        tmp_path,
        "model: m\nport: 9\nmax_model_len: 128\nkv-cache-memory: 1MiB\nserved-model-name: [a, b]\noffline: true\n"
        "api_key: null\n",
    )
    parsed = run("--config", path)
    assert parsed["model"] == "m"
    assert parsed["server"].port == 9
    assert parsed["server"].served_model_name == ("a", "b")
    assert parsed["server"].api_key == ()
    assert parsed["engine"].max_model_len == 128
    assert parsed["engine"].kv_cache_memory == 1 << 20
    assert parsed["engine"].offline is True


def test_a_flag_wins_over_the_environment_over_the_file(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path, "port: 1\nseed: 1\nhost: file\n")
    monkeypatch.setenv("BRAID_PORT", "2")
    monkeypatch.setenv("BRAID_SEED", "2")
    monkeypatch.setenv("BRAID_CONFIG", path)
    parsed = run("--port", "3")
    assert (parsed["server"].port, parsed["engine"].seed, parsed["server"].host) == (3, 2, "file")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("prot: 1", "unknown option 'prot'; did you mean 'port'"),
        ("max_model_lenn: 1", "did you mean 'max-model-len'"),
        ("config: other.yaml", "unknown option 'config'"),
        ("zzzzzz: 1", "there are: "),
        ("- port", "must map option names"),
        ("", "must map option names"),
        ("port: {a: 1}", "got a mapping"),
        ("port: [", "not valid YAML"),
    ],
)
def test_what_is_wrong_is_named(run: Any, tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InvalidParameterError, match=message):
        run("--config", write(tmp_path, text))


def test_a_missing_file(run: Any, tmp_path: Path) -> None:
    with pytest.raises(InvalidParameterError, match="cannot read the config file"):
        run("--config", str(tmp_path / "none.yaml"))


def test_api_keys_from_flags_and_the_environment(
    run: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert run("m", "--api-key", "one", "--api-key", "two")["server"].api_key == ("one", "two")
    monkeypatch.setenv("BRAID_API_KEY", "three")
    monkeypatch.setenv("BRAID_API_KEY_FILE", str(tmp_path / "keys"))
    monkeypatch.setenv("BRAID_ALLOW_OPEN", "true")
    options = run("m")["server"]
    assert options.api_key == ("three",)
    assert options.api_key_file == tmp_path / "keys"
    assert options.allow_open
    assert run("m", "--api-key", "one")["server"].api_key == ("one",)
