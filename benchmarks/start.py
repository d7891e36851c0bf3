"""How long ``braid serve`` takes to be ready, what it weighs, and how long it is away when its engine is killed.

Run: python benchmarks/start.py [--rounds 3]. The first start converts and is not counted.
"""

from __future__ import annotations

import argparse
import http.client
import os
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
from common import describe, machine, save, show

from braid.server.config import ServerConfig
from braid.server.serve import bind

CODE = "import sys; from braid.cli import main; sys.exit(main())"
MIB = 1 << 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    with bind("127.0.0.1", 0, config=ServerConfig()) as free:
        port = free.getsockname()[1]
    measure(port)
    rounds = [measure(port) for _ in range(args.rounds)]
    rows = [
        {"figure": name, "median": statistics.median(values), "rounds": values}
        for name, values in ((name, [row[name] for row in rounds]) for name in rounds[0])
    ]
    result: dict[str, Any] = {"machine": machine(), "start": rows}
    print(describe(result["machine"]))
    show(f"braid serve, default model, {args.rounds} rounds", rows)
    save(args.json, result)


def measure(port: int) -> dict[str, float]:
    """One life of the server: start, weigh, kill the engine, come back, end."""
    begin = time.perf_counter()
    command = [sys.executable, "-c", CODE, "serve", "--port", str(port), "--log-level", "error"]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as server:
        ready = wait_ready(port, begin)
        engine = psutil.Process(server.pid).children()[0]
        row = {
            "start to /ready, s": ready,
            "HTTP process, MiB": psutil.Process(server.pid).memory_info().rss / MIB,
            "engine before the first request, MiB": engine.memory_info().rss / MIB,
        }
        os.kill(engine.pid, signal.SIGKILL)
        killed = time.perf_counter()
        while is_ready(port):
            time.sleep(0.005)
        row["kill to /ready 503, s"] = time.perf_counter() - killed
        row["kill to serving again, s"] = wait_ready(port, killed)
        server.terminate()
    return row


def wait_ready(port: int, begin: float) -> float:
    while not is_ready(port):
        time.sleep(0.02)
    return time.perf_counter() - begin


def is_ready(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", "/ready")
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()


if __name__ == "__main__":
    main()
