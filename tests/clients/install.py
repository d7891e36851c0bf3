"""Install the clients under ``build/clients``: one environment for each, as their own users have them."""

from __future__ import annotations

import shutil
import subprocess
import sys
import venv
from pathlib import Path

HERE = Path(__file__).parent
BUILD = HERE.parents[1] / "build" / "clients"
PYTHON_CLIENTS = {
    "anthropic_sdk": ("anthropic>=1",),
    "instructor_model": ("instructor>=1.10",),
    "langchain": ("langchain-openai>=1",),
    "openai_agents": ("openai-agents>=0.4",),
    "openai_sdk": ("openai>=2",),
    "pydantic_ai_agent": ("pydantic-ai-slim[openai]>=1",),
}
"""Script to packages."""


def python_of(client: str) -> Path:
    """The interpreter that has this client."""
    return BUILD / "python" / client / "bin" / "python"


def main() -> None:
    for client, packages in PYTHON_CLIENTS.items():
        print(f"installing {', '.join(packages)}", flush=True)
        venv.create(BUILD / "python" / client, with_pip=True)
        pip = (str(python_of(client)), "-m", "pip", "--quiet", "--no-input", "install")
        # Resolvers of old pips try every release of every dependency here.
        subprocess.run([*pip, "--upgrade", "pip"], check=True)
        subprocess.run([*pip, *packages], check=True)
    node = BUILD / "node"
    node.mkdir(parents=True, exist_ok=True)
    shutil.copy(HERE / "node" / "package.json", node)
    npm = shutil.which("npm")
    if npm is None:
        sys.exit("npm is not installed; the clients written for Node.js need it")
    subprocess.run([npm, "install", "--prefix", str(node), "--no-audit", "--no-fund"], check=True)


if __name__ == "__main__":
    main()
