"""The examples run as a user would run them, with the default model, and the client against a real server."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
EXAMPLES = sorted(path.name for path in (ROOT / "examples").glob("*.py"))
ENVIRONMENT = os.environ | {"OMP_WAIT_POLICY": "PASSIVE", "PYTHONPATH": str(ROOT)}


def run(name: str, *words: str) -> str:
    command = [sys.executable, str(ROOT / "examples" / name), *words]
    done = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, check=False, timeout=200)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """The address of ``braid serve`` with its default model."""
    code = "import sys; from braid.cli import main; sys.exit(main())"
    command = [sys.executable, "-c", code, "serve", "--port", "0", "--max-model-len", "1024"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT) as process:
        assert process.stderr is not None
        lines = []
        for line in process.stderr:
            lines.append(line)
            if found := re.search(r"^Serving .*(http://\S+)$", line):
                yield found[1]
                break
        else:
            pytest.fail("".join(lines))
        process.terminate()
        process.stderr.read()


def test_every_example_is_short_and_run_here() -> None:
    here = Path(__file__).read_text()
    assert EXAMPLES
    for name in EXAMPLES:
        assert f'run("{name}"' in here
        assert len((ROOT / "examples" / name).read_text().splitlines()) < 60


def test_python_api() -> None:
    assert " Paris" in run("python_api.py")


def test_streaming() -> None:
    lines = run("streaming.py").splitlines()
    assert {line[0] for line in lines} == {"a", "b"}


def test_openai_client(url: str) -> None:
    assert run("openai_client.py", url) == "The capital of France is Paris.\n"


def test_anthropic_client(url: str) -> None:
    answer, usage = run("anthropic_client.py", url.removesuffix("/v1")).splitlines()
    assert answer == "The capital of France is Paris."
    assert usage.endswith(" 8 came back")


def test_tools(url: str) -> None:
    out = run("tools.py", url)
    assert out.startswith("get_weather(")
    assert "-> It is 18 degrees and sunny in Paris." in out


def test_structured(url: str) -> None:
    person, verdict = run("structured.py", url).splitlines()
    assert list(ast.literal_eval(person)) == ["name", "born", "field"]
    assert verdict in ("positive", "negative")
