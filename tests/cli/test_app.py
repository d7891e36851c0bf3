from __future__ import annotations

import subprocess
import sys

import pytest

import braid
from braid.cli import app as command_line
from braid.cli.app import main
from braid.core.errors import CapacityError

VERBS = ("serve", "generate", "chat", "pull", "convert", "models", "top", "doctor")


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.strip() == braid.__version__


@pytest.mark.parametrize("verb", VERBS)
def test_help(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([verb, "--help"]) == 0
    assert f"braid {verb}" in capsys.readouterr().out


@pytest.mark.parametrize("verb", ["serve", "generate", "chat"])
def test_every_option_shows_its_default(verb: str) -> None:
    code = f"from braid.cli import main; main(['{verb}', '--help'])"
    env = {"COLUMNS": "400", "NO_COLOR": "1"}
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=env, check=True
    ).stdout
    options = [line for line in out.splitlines() if line.startswith("│ --")]
    assert len(options) >= 10
    without = [line for line in options if "[default:" not in line and not line.startswith("│ --prompt")]
    assert without == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["serve", "m", "--port", "x"], "--port"),
        (["serve", "m", "--dtype", "fp8"], "bfloat16"),
        (["serve", "m", "--bogus", "1"], "--bogus"),
        (["serve", "m", "--block-size", "17"], "power of two"),
        (["serve", "m", "--kv-cache-memory", "2Gi"], "2GiB"),
        (["generate", "m", "--prompt", "x", "--temperature", "-1"], "temperature"),
        (["nonsense"], "serve, generate, chat"),
        (["pull"], "--model"),
    ],
)
def test_a_wrong_word_is_one_line(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("braid: error: ")
    assert message in captured.err
    assert captured.err.count("\n") == 1
    assert captured.out == ""


@pytest.mark.parametrize(
    ("error", "status", "text"),
    [
        (CapacityError("needs 9 GiB,\nhas 1 GiB"), 2, "braid: error: needs 9 GiB, has 1 GiB\n"),
        (RuntimeError("oops"), 1, "braid: internal error: RuntimeError: oops (the traceback: --debug)\n"),
        (KeyboardInterrupt(), 130, ""),
        (
            ModuleNotFoundError("x", name="zmq"),
            2,
            "braid: error: this command needs zmq: pip install 'braid[engine]'\n",
        ),
    ],
)
def test_errors_end_in_a_line_and_a_status(
    error: BaseException,
    status: int,
    text: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise error

    monkeypatch.setattr(command_line, "app", fail)
    assert main(["models"]) == status
    assert capsys.readouterr().err == text


def test_debug_lets_the_traceback_through(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(words: list[str], **kwargs: object) -> None:
        assert words == ["models"]
        raise CapacityError("no")

    monkeypatch.setattr(command_line, "app", fail)
    with pytest.raises(CapacityError):
        main(["models", "--debug"])


def test_the_command_line_alone_is_light() -> None:
    code = "import sys, braid.cli; heavy = {'torch', 'starlette', 'polars', 'zmq'} & set(sys.modules); print(*heavy)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
