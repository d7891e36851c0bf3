from __future__ import annotations

import logging
from pathlib import Path

import pytest

from braid.core.errors import InvalidParameterError
from braid.server.config import ServerConfig
from braid.server.guard.keys import ANONYMOUS, ApiKey, KeyRing, named_keys, read_key_file


def bearer(key: str) -> list[tuple[bytes, bytes]]:
    return [(b"authorization", f"Bearer {key}".encode())]


def test_an_open_server_asks_nobody() -> None:
    ring = KeyRing(())
    assert ring.is_open
    assert ring.find([]) is ANONYMOUS
    assert ring.find(bearer("anything")) is ANONYMOUS


def test_each_key_has_its_holder() -> None:
    ring = KeyRing(named_keys(("one", "two", "three")))
    found = [ring.find(headers) for headers in (bearer("one"), [(b"x-api-key", b"two")], bearer("three"))]
    assert [one and one.name for one in found] == ["key-1", "key-2", "key-3"]
    assert len({one and one.salt for one in found}) == 3
    assert ring.find(bearer("one")) == found[0]


def test_salts_cannot_be_reckoned_from_keys() -> None:
    first, second = (KeyRing(named_keys(("one",))).find(bearer("one")) for _ in range(2))
    assert first is not None
    assert second is not None
    assert first.salt != second.salt


def test_prefixes_can_be_shared() -> None:
    ring = KeyRing(named_keys(("one", "two")), share_prefixes=True)
    assert {one and one.salt for one in map(ring.find, (bearer("one"), bearer("two")))} == {""}


@pytest.mark.parametrize(
    "headers",
    [
        [],
        bearer(""),
        bearer("wrong"),
        bearer("one two"),
        [(b"authorization", b"Basic one")],
        [(b"authorization", b"one")],
        [(b"x-api-key", b"")],
        [(b"x-api-key", b"Bearer one")],
        [(b"api-key", b"one")],
        [(b"authorization", b"Bearer \xff\xfe")],
    ],
)
def test_wrong_keys(headers: list[tuple[bytes, bytes]]) -> None:
    assert KeyRing(named_keys(("one", "two"))).find(headers) is None


def test_one_right_key_of_two_headers_is_enough() -> None:
    ring = KeyRing(named_keys(("one", "two")))
    assert ring.find([*bearer("dummy"), (b"x-api-key", b"two")]) is not None
    assert ring.find([*bearer("one"), (b"x-api-key", b"dummy")]) is not None


def test_every_key_is_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    import hmac

    compared = []
    real = hmac.compare_digest

    def compare(a: bytes, b: bytes) -> bool:
        compared.append(b)
        return real(a, b)

    monkeypatch.setattr("braid.server.guard.keys.hmac.compare_digest", compare)
    ring = KeyRing(named_keys(tuple(f"k{number}" for number in range(9))))
    for key in ("k0", "k8", "wrong"):
        compared.clear()
        ring.find(bearer(key))
        assert len(compared) == 9, key


def test_keys_are_kept_as_hashes() -> None:
    config = ServerConfig(api_key="sk-very-secret")
    assert "very-secret" not in repr(config)
    assert "very-secret" not in repr(vars(KeyRing(config.api_keys)))


class TestFile:
    def write(self, folder: Path, text: str, mode: int = 0o600) -> Path:
        path = folder / "keys"
        path.write_text(text)
        path.chmod(mode)
        return path

    def test_names_and_comments(self, tmp_path: Path) -> None:
        path = self.write(tmp_path, "# who\n\nann: sk:with:colons\n  plain-key \n")
        keys = read_key_file(path)
        assert [key.name for key in keys] == ["ann", "file-2"]
        ring = KeyRing(keys)
        holder = ring.find(bearer("sk:with:colons"))
        assert holder is not None
        assert holder.name == "ann"
        assert ring.find(bearer("plain-key")) is not None

    @pytest.mark.parametrize("text", ["", "# nobody\n", "ann:\n", "a name with spaces:key\n", ":key\n"])
    def test_wrong_files(self, tmp_path: Path, text: str) -> None:
        with pytest.raises(InvalidParameterError):
            read_key_file(self.write(tmp_path, text))

    def test_no_file(self, tmp_path: Path) -> None:
        with pytest.raises(InvalidParameterError, match="cannot read the API keys"):
            read_key_file(tmp_path / "none")

    @pytest.mark.parametrize(
        ("mode", "warned"), [(0o600, False), (0o640, False), (0o644, True), (0o602, True)]
    )
    def test_a_file_open_to_all_is_warned_of(
        self, tmp_path: Path, mode: int, warned: bool, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.WARNING)
        read_key_file(self.write(tmp_path, "secret-key\n", mode))
        assert ("chmod 600" in caplog.text) == warned
        assert "secret-key" not in caplog.text


@pytest.mark.parametrize("keys", [("one", "one"), ("", "two"), (" ",)])
def test_keys_that_cannot_be(keys: tuple[str, ...]) -> None:
    with pytest.raises(InvalidParameterError):
        ServerConfig(api_keys=named_keys(keys))


def test_names_must_differ() -> None:
    with pytest.raises(InvalidParameterError, match="differ"):
        ServerConfig(api_keys=(ApiKey.of("a", "x"), ApiKey.of("b", "x")))
