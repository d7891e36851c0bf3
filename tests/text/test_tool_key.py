from __future__ import annotations

import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from braid.text.tool_key import (
    MAX_COMMAND,
    MAX_KEY,
    ToolCall,
    calls_key,
    fence_key,
    fenced_command,
    joined,
    program_of,
)

COMMANDS = [
    ("pytest -q", "pytest"),
    ("cd x && FOO=1 sudo pytest -q", "pytest"),
    ("cd /repo; git status | head", "git"),
    ("(cd x && make)", "make"),
    ("A=1 B='two words' ./run.sh --fast", "run.sh"),
    ("/usr/bin/python3 -m pytest", "python3"),
    ("sudo -u root -E env -u HOME X=1 timeout -k 5 60s cargo build", "cargo"),
    ("timeout 10 nice -n 19 npm test", "npm"),
    ("export PATH=$PATH:/x\nsource venv/bin/activate\ntox", "tox"),
    ("X=$(date +%s) python a.py", "python"),
    ("X=`date` python a.py", "python"),
    ("# look first\n\n  ls -la", "ls"),
    ("2>/dev/null grep -rn x .", "grep"),
    ("> out.txt 2>&1 cat a", "cat"),
    ("cat <<'EOF' > f.py\nprint(1)\nEOF\npython f.py", "cat"),
    ("if [ -f a ]; then make; fi", "make"),
    ("for f in *.py; do ruff check $f; done", "ruff"),
    ("while true; do curl x; done", "true"),
    ("! grep x y", "grep"),
    ("'my tool' x", None),
    ('"pytest" -q', "pytest"),
    ("cd x", "cd"),
    ("cd x && $PYTHON -m y", "cd"),
    ("$PYTHON -m y", None),
    ("", None),
    ("   ;;; &&", None),
    ("time -p make", "make"),
    ("pip\\\n install x", "pip"),
    ("rm\\ x", None),
    ("ls&&pwd", "ls"),
    ("exec nohup setsid node server.js &", "node"),
]


@pytest.mark.parametrize(("command", "program"), COMMANDS)
def test_the_first_program_that_is_not_cd(command: str, program: str | None) -> None:
    assert program_of(command) == program


@pytest.mark.parametrize(
    ("words", "program"),
    [
        (["bash", "-lc", "cd x && pytest"], "pytest"),
        (["/bin/sh", "-c", "make"], "make"),
        (["git", "status"], "git"),
        (["sudo", "apt-get", "install"], "apt-get"),
        ([], None),
        ([1, None, {}], None),
    ],
)
def test_lists_of_words(words: list[object], program: str | None) -> None:
    assert program_of(words) == program


class TestCalls:
    def test_a_tool_is_named_by_itself(self) -> None:
        assert calls_key([ToolCall("read_file", '{"path": "x"}')]) == "read_file"

    def test_parallel_calls_are_one_key_in_sorted_order(self) -> None:
        calls = [ToolCall("web_search", "{}"), ToolCall("read_file", "{}"), ToolCall("web_search", "{}")]
        assert calls_key(calls) == "read_file+web_search"
        assert calls_key(calls[::-1]) == "read_file+web_search"

    @pytest.mark.parametrize("name", ["bash", "Bash", "shell", "execute_bash"])
    def test_a_shell_is_named_by_what_it_runs(self, name: str) -> None:
        assert calls_key([ToolCall(name, json.dumps({"command": "cd x && pytest -q"}))]) == "pytest"
        assert calls_key([ToolCall(name, json.dumps({"command": ["bash", "-lc", "make"]}))]) == "make"

    @pytest.mark.parametrize(
        "arguments", ["", "{", "[]", "null", '{"command": 1}', '{"path": "x"}', "[" * 4000]
    )
    def test_a_shell_whose_command_is_not_to_be_read(self, arguments: str) -> None:
        assert calls_key([ToolCall("bash", arguments)]) == "bash"

    def test_long_arguments_are_read_from_their_beginning(self) -> None:
        command = 'cd "x" \\\n && FOO="a b" pytest -q\n' + "x" * 3 * MAX_COMMAND
        assert calls_key([ToolCall("bash", json.dumps({"command": command}))]) == "pytest"

    def test_bounds(self) -> None:
        assert calls_key([]) is None
        assert calls_key([ToolCall("x" * (MAX_KEY + 1), "{}")]) is None
        assert calls_key([ToolCall("a\nb", "{}"), ToolCall("ok", "{}")]) == "ok"
        many = calls_key([ToolCall(f"tool{number}", "{}") for number in range(1000)])
        assert many is not None
        assert len(many) < 100


class TestFences:
    def test_exactly_one(self) -> None:
        assert fence_key("I look.\n```bash\ncd x && pytest\n```\n") == "pytest"
        assert fence_key("```mswea_bash_command\nls\n```") == "ls"
        assert fence_key("```bash\n$X\n```") == "bash"

    @pytest.mark.parametrize(
        "text",
        [
            "",
            "no fence",
            "```bash\nls\n```\n```bash\npwd\n```",
            "```bash\nls",
            "```bash\n\n```",
            "```python\nprint()\n```",
            "```sh\nls\n```",
            "```\n```bash\nls\n```",
            "`bash` is a shell",
        ],
    )
    def test_none_or_several(self, text: str) -> None:
        assert fenced_command(text) is None
        assert fence_key(text) is None

    def test_other_fences_are_in_nobodys_way(self) -> None:
        assert fenced_command("```python\nx\n```\n```bash\nls\n```") == "ls"


def test_several_outputs_make_one_key() -> None:
    assert joined(["b+a", None, "c", "a"]) == "a+b+c"
    assert joined([None]) is None


@pytest.mark.parametrize(
    "hostile",
    [
        "$(" * 50_000,
        "'" * 100_001,
        '"' * 99_999,
        "`" * 99_999,
        "\\" * 100_000,
        "(((;" * 30_000,
        "a=" * 60_000,
        "sudo " * 30_000,
        "> " * 50_000,
        "\x00" * 9999,
        "for " * 30_000,
        "```bash\n" * 20_000,
        "``` \n" * 20_000,
    ],
)
def test_hostile_text_takes_no_time(hostile: str) -> None:
    begin = time.process_time()
    program_of(hostile)
    fence_key(hostile)
    calls_key([ToolCall("bash", hostile), ToolCall("bash", json.dumps({"command": hostile}))])
    assert time.process_time() - begin < 2.0


@given(st.text(alphabet="ab$`'\"\\(){};&|<># \n=-/1", max_size=60))
def test_any_text_gives_a_plain_name_or_none(text: str) -> None:
    name = program_of(text)
    assert name is None or (0 < len(name) <= MAX_KEY and name.isprintable() and " " not in name)
