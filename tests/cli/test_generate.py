from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import pytest

from braid.cli.app import main

ENGINE = ["--threads", "1", "--kv-cache-memory", "4MiB", "--max-tokens", "3"]


def test_json_has_one_object_per_prompt(tiny_llama: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["generate", str(tiny_llama), "--prompt", "abc", "--prompt", "defg", "--json", *ENGINE]
    assert main(words) == 0
    objects = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [item["prompt"] for item in objects] == ["abc", "defg"]
    assert [item["num_prompt_tokens"] for item in objects] == [3, 4]
    assert all(len(item["token_ids"]) <= 3 and isinstance(item["text"], str) for item in objects)


def test_standard_input_is_the_prompt(
    tiny_llama: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("abc"))
    assert main(["generate", str(tiny_llama), "--json", *ENGINE]) == 0
    assert json.loads(capsys.readouterr().out)["prompt"] == "abc"


def test_a_conversation_keeps_what_was_said(
    tiny_llama: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("hello\n\nagain\n/reset\nnew\n/exit\nnever read\n"))
    assert main(["chat", str(tiny_llama), "--system", "s", *ENGINE]) == 0
    captured = capsys.readouterr()
    assert "/reset forgets" in captured.err
    assert captured.out.endswith("\n")


def test_a_conversation_that_outgrows_the_context_goes_on_after_reset(
    tiny_llama: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("x" * 600 + "\nshort\n"))
    assert main(["chat", str(tiny_llama), *ENGINE]) == 0
    assert "/reset forgets the conversation" in capsys.readouterr().err
