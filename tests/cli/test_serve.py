"""The serve verb as a user meets it: a process, a socket, a signal."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import httpx
import psutil
import pytest

from braid.cli.app import main
from braid.cli.serve import chat_template
from braid.core.errors import InvalidParameterError

COMMAND = [sys.executable, "-c", "import sys; from braid.cli import main; sys.exit(main())", "serve"]
SMALL = ["--port", "0", "--threads", "1", "--kv-cache-memory", "4MiB", "--offline"]
PATIENCE = 120.0


class Server(NamedTuple):
    process: subprocess.Popen[str]
    url: str
    lines: list[str]


@pytest.fixture(scope="module")
def server(tiny_llama: Path) -> Iterator[Server]:
    with serving(tiny_llama) as running:
        yield running


@contextmanager
def serving(model: Path, *options: str) -> Iterator[Server]:
    words = [*COMMAND, str(model), *SMALL, "--served-model-name", "tiny", *options]
    env = os.environ | {"OMP_WAIT_POLICY": "PASSIVE"}
    with subprocess.Popen(words, stderr=subprocess.PIPE, text=True, env=env) as process:
        lines: list[str] = []
        found = threading.Event()
        reader = threading.Thread(target=_read, args=(process, lines, found))
        reader.start()
        assert found.wait(PATIENCE), lines
        url = next(iter(re.findall(r"http://\S+/v1$", "\n".join(lines), re.MULTILINE)))
        yield Server(process, url.removesuffix("/v1"), lines)
        process.kill()
        reader.join()


def _read(process: subprocess.Popen[str], lines: list[str], found: threading.Event) -> None:
    assert process.stderr is not None
    for line in process.stderr:
        lines.append(line.rstrip())
        if line.startswith("Serving "):
            found.set()
    found.set()


def complete(server: Server) -> httpx.Response:
    body = {"model": "tiny", "prompt": "abc", "max_tokens": 4, "temperature": 0, "ignore_eos": True}
    return httpx.post(f"{server.url}/v1/completions", json=body, timeout=PATIENCE)


def test_it_serves_and_says_how_memory_was_reckoned(server: Server) -> None:
    answer = complete(server)
    assert answer.status_code == 200
    assert answer.json()["usage"]["completion_tokens"] == 4
    assert any(line.startswith("weights") for line in server.lines)
    assert any("Serving tiny at http://127.0.0.1:" in line for line in server.lines)


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs /proc")
def test_the_http_process_has_no_torch(server: Server) -> None:
    assert "torch" not in Path(f"/proc/{server.process.pid}/maps").read_text()


def test_a_killed_engine_comes_back_behind_the_same_socket(server: Server) -> None:
    before = complete(server).json()["choices"][0]["text"]
    engine = psutil.Process(server.process.pid).children()[0]
    engine.kill()
    deadline = time.monotonic() + PATIENCE
    while (status := httpx.get(f"{server.url}/ready").status_code) == 200:  # until its death is noticed
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert status == 503
    while httpx.get(f"{server.url}/ready").status_code != 200:
        assert time.monotonic() < deadline, server.lines
        time.sleep(0.2)
    assert complete(server).json()["choices"][0]["text"] == before


def test_sigterm_ends_it_in_order(server: Server) -> None:
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(PATIENCE) == 0
    assert not any("Traceback" in line for line in server.lines)


def test_a_converted_model_is_served_with_a_part_of_its_experts(
    tiny_moe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "converted"
    assert main(["convert", str(tiny_moe), "--experts", "int8", "--out", str(folder)]) == 0
    with serving(folder, "--expert-memory", "25%") as server:
        answer = complete(server)
        assert answer.status_code == 200
        assert answer.json()["usage"]["completion_tokens"] == 4
        assert any("experts: 16 of 0.0287 MB (int8), 4 slots" in line for line in server.lines)
        metrics = httpx.get(f"{server.url}/metrics").text
        assert re.search(r"^braid_expert_slots\{.*\} 4\.0$", metrics, re.MULTILINE)
        assert re.search(
            r'^braid_expert_read_bytes_total\{.*cause="prefill".*\} [1-9]', metrics, re.MULTILINE
        )
        info = re.search(r"^braid_expert_policy_info\{(.*)\}", metrics, re.MULTILINE)
        assert info is not None
        assert 'policy="mrs"' in info[1]
        capsys.readouterr()
        assert main(["top", server.url, "--once", "--interval", "0.1"]) == 0
        assert "of 16 = 25%" in capsys.readouterr().out


def test_a_port_in_use_is_said_before_the_model_is_looked_for(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        assert main(["serve", "no-such-model", "--port", str(port)]) == 2
    assert f"port {port}: the port is in use" in capsys.readouterr().err


def test_an_unknown_model(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "no-such-model", *SMALL]) == 2
    error = capsys.readouterr().err
    assert "no-such-model" in error
    assert "smollm2" in error


def test_too_little_memory_is_one_line_with_the_numbers(tiny_llama: Path) -> None:
    words = [
        *COMMAND,
        str(tiny_llama),
        "--port",
        "0",
        "--kv-cache-memory",
        "900TiB",
        "--log-level",
        "warning",
    ]
    done = subprocess.run(words, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert done.returncode == 2
    last = done.stderr.splitlines()[-1]
    assert last.startswith("braid: error: ")
    assert "does not fit" in last
    assert "Traceback" not in done.stderr


class Source:
    """As much of a tokenizer as a template needs."""

    chat_template: str | None = "{{ messages[0].content }}!"
    bos_token = "<s>"
    eos_token = "</s>"


class Bare(Source):
    chat_template = None


def test_the_template_is_the_file_or_the_models_own(tmp_path: Path) -> None:
    path = tmp_path / "template.jinja"
    path.write_text("{{ bos_token }}{{ messages[0].content }}")
    messages = [{"role": "user", "content": "hi"}]
    own, given = chat_template(Source(), None), chat_template(Bare(), path)  # type: ignore[arg-type]
    assert own is not None
    assert given is not None
    assert own.render(messages) == "hi!"
    assert given.render(messages) == "<s>hi"
    assert chat_template(Bare(), None) is None  # type: ignore[arg-type]


def test_a_template_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InvalidParameterError, match="cannot read the chat template"):
        chat_template(Source(), tmp_path / "none")  # type: ignore[arg-type]
