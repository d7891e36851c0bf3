"""Stock clients against a scripted model: SDKs and agent frameworks as published, none of them changed.

``make test-clients`` installs them under ``build/clients`` and runs this; ``make test`` does not.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = [pytest.mark.clients, pytest.mark.timeout(600)]

HERE = Path(__file__).parent
BUILD = HERE.parents[1] / "build" / "clients"
NODE_MODULES = BUILD / "node" / "node_modules"
SUM = "The sum is 42."
PROOF = "written by a tool"


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The scripted model behind the real server, in a process of its own."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = tmp_path_factory.mktemp("scripted") / "prompts.jsonl"
    command = [sys.executable, str(HERE / "scripted_model.py"), str(port), str(log)]
    process = subprocess.Popen(command)
    url = f"http://127.0.0.1:{port}"
    try:
        _wait_until_ready(url, process)
        yield url
    finally:
        process.terminate()
        process.wait(20)


def _wait_until_ready(url: str, process: subprocess.Popen[bytes]) -> None:
    while True:
        assert process.poll() is None, "the scripted server has ended"
        try:
            with urllib.request.urlopen(f"{url}/ready"):
                return
        except urllib.error.URLError:
            time.sleep(0.1)


def run(*command: str | Path, cwd: Path | None = None, **environment: str) -> str:
    """What a client prints; its own complaints are the test's."""
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, f"exit {done.returncode}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    return done.stdout


@pytest.mark.parametrize("script", sorted(path.name for path in (HERE / "python").glob("*.py")))
def test_python_client_completes_a_tool_loop(url: str, script: str) -> None:
    python = BUILD / "python" / script.removesuffix(".py") / "bin" / "python"
    assert run(python, "-I", HERE / "python" / script, url).strip().endswith(SUM)


@pytest.mark.parametrize("script", sorted(path.name for path in (HERE / "node").glob("*.mjs")))
def test_node_client_completes_a_tool_loop(url: str, script: str, tmp_path: Path) -> None:
    # Node looks for packages beside the script.
    (tmp_path / "node_modules").symlink_to(NODE_MODULES)
    shutil.copy(HERE / "node" / script, tmp_path)
    assert run("node", tmp_path / script, url).strip().endswith(SUM)


def test_codex_runs_a_command(url: str, tmp_path: Path) -> None:
    home, work = _folders(tmp_path)
    (home / "config.toml").write_text(
        'model = "scripted"\nmodel_provider = "braid"\n[model_providers.braid]\n'
        f'name = "Braid"\nbase_url = "{url}/v1"\nwire_api = "responses"\n'
    )
    prompt = _script("exec_command", '{"cmd": "echo written by a tool > proof.txt"}')
    command = ("exec", "--skip-git-repo-check", "--dangerously-bypass-approvals-and-sandbox", prompt)
    out = run(NODE_MODULES / ".bin" / "codex", *command, cwd=work, CODEX_HOME=str(home), HOME=str(home))
    assert "All done." in out
    assert (work / "proof.txt").read_text().strip() == PROOF


def test_claude_code_runs_a_command(url: str, tmp_path: Path) -> None:
    home, work = _folders(tmp_path)
    arguments = '{"command": "echo written by a tool > proof.txt", "description": "Write the proof"}'
    command = ("--print", "--model", "scripted", "--allowedTools", "Bash", "--", _script("Bash", arguments))
    environment = {
        "HOME": str(home),
        "ANTHROPIC_BASE_URL": url,
        "ANTHROPIC_API_KEY": "unused",
        "ANTHROPIC_SMALL_FAST_MODEL": "scripted",
        "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
    }
    out = run(NODE_MODULES / ".bin" / "claude", *command, cwd=work, **environment)
    assert "All done." in out
    assert (work / "proof.txt").read_text().strip() == PROOF


def test_opencode_runs_a_command(url: str, tmp_path: Path) -> None:
    home, work = _folders(tmp_path)
    (work / "opencode.json").write_text(
        '{"provider": {"braid": {"npm": "@ai-sdk/openai-compatible", "options": {"baseURL": "'
        + url
        + '/v1"}, "models": {"scripted": {}}}}, "permission": {"bash": "allow"}}'
    )
    arguments = '{"command": "echo written by a tool > proof.txt", "description": "Write the proof"}'
    command = ("run", "--model", "braid/scripted", _script("bash", arguments))
    # It takes the folder from the shell, and asks a catalogue on the network unless told not to.
    environment = {"HOME": str(home), "PWD": str(work), "OPENCODE_DISABLE_MODELS_FETCH": "1"}
    out = run(NODE_MODULES / ".bin" / "opencode", *command, cwd=work, **environment)
    assert "All done." in out
    assert (work / "proof.txt").read_text().strip() == PROOF


def _folders(tmp_path: Path) -> tuple[Path, Path]:
    home, work = tmp_path / "home", tmp_path / "work"
    home.mkdir()
    work.mkdir()
    return home, work


def _script(tool: str, arguments: str) -> str:
    return f"[[call {tool} {arguments}]] [[say All done.]]"
