"""`from braid import LLM` runs where only torch, safetensors, tokenizers and numpy are installed."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

from .conftest import SMALL

SCRIPT = """
import sys

ABSENT = {{"msgspec", "zmq", "starlette", "uvicorn", "pydantic", "gguf", "minijinja"}}
ABSENT |= {{"huggingface_hub", "psutil", "rich", "cyclopts", "yaml", "prometheus_client", "transformers", "httpx"}}

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ABSENT:
            raise ModuleNotFoundError(f"{{name}} is not installed here", name=name)

sys.meta_path.insert(0, Blocker())
from braid import LLM, SamplingParams

with LLM({model!r}, **{options!r}) as llm:
    print(len(llm.generate("Hello", SamplingParams(temperature=0, max_tokens=5, ignore_eos=True))[0].token_ids))
"""


def test_the_python_api_needs_four_packages_only(tiny_llama: Path) -> None:
    script = textwrap.dedent(SCRIPT).format(model=str(tiny_llama), options=SMALL)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "5"


def test_importing_the_package_loads_nothing_heavy() -> None:
    script = "import sys, braid; braid.SamplingParams(); assert not {'torch', 'numpy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", script], check=True)
