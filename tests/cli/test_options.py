from __future__ import annotations

from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

import pytest

from braid.cli.app import main
from braid.cli.options import EngineOptions, SamplingOptions, ServerOptions
from braid.cli.serve import _server_config
from braid.core.config import DEFAULT_PHASES, SERVED_PHASES, EngineConfig
from braid.core.errors import InvalidParameterError
from braid.core.sampling import SamplingParams
from braid.server.config import ServerConfig


def test_engine_options_are_the_config_with_the_same_defaults() -> None:
    config = {field.name: field.default for field in fields(EngineConfig) if field.name != "model"}
    options = {field.name: field.default for field in fields(EngineOptions)}
    assert options.pop("phases") is None, "it depends on who waits for the tokens"
    assert options | {"phases": DEFAULT_PHASES} == config
    assert MISSING not in config.values()


def test_what_is_served_shares_the_machine_between_phases_unless_told_otherwise() -> None:
    assert EngineOptions().config("m").phases == "mixed"
    assert EngineOptions().config("m", phases=SERVED_PHASES).phases == "auto"
    assert EngineOptions(phases="split").config("m", phases=SERVED_PHASES).phases == "split"
    with pytest.raises(InvalidParameterError, match="name of a mode"):
        EngineOptions(phases="").config("m", phases=SERVED_PHASES)


def test_engine_options_become_a_config() -> None:
    options = EngineOptions(dtype="float32", max_num_seqs=3, kv_cache_memory=1 << 30)
    expected = EngineConfig(model="m", dtype="float32", max_num_seqs=3, kv_cache_memory=1 << 30)
    assert options.config("m") == expected


def test_wrong_values_are_refused_by_the_config() -> None:
    with pytest.raises(InvalidParameterError, match="block_size"):
        EngineOptions(block_size=17).config("m")


def test_agent_policies_are_known_by_name() -> None:
    for name in ("lru", "continuum", "braid", "braid-without-gate"):
        assert EngineOptions(agent_policy=name).config("m").agent_policy == name
    with pytest.raises(InvalidParameterError, match="'fifo'; choose one of lru, program-fcfs"):
        EngineOptions(agent_policy="fifo").config("m")


def test_expert_caches_are_known_by_name() -> None:
    for name in ("lru", "mrs", "static"):
        assert EngineOptions(expert_cache=name).config("m").expert_cache == name
    with pytest.raises(InvalidParameterError, match="'belady'; choose one of lru, lfu") as caught:
        EngineOptions(expert_cache="belady").config("m")
    assert caught.value.param == "expert_cache"


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("expert_memory", "half", "'half'"),
        ("expert_memory", "0%", "more than nothing"),
        ("expert_format", "int3", "auto, float32, bfloat16, int8, int4"),
        ("expert_scope", "model", "global, layer"),
        ("expert_prefetch", "always", "off, on, auto"),
        ("expert_host_memory", "half", "'half'"),
        ("expert_dispatch", "split", "auto, fetch"),
        ("expert_cache", " ", "name of a policy"),
    ],
)
def test_wrong_options_of_experts_are_named(option: str, value: str, words: str) -> None:
    with pytest.raises(InvalidParameterError, match=words) as caught:
        EngineConfig(**{option: value})
    assert caught.value.param == option


@pytest.mark.parametrize("source", ["flag", "environment", "file"])
def test_memory_for_experts_from_everywhere(
    source: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A share is no number, and a number in a file is no text."""
    seen: list[EngineConfig] = []
    monkeypatch.setattr("braid.cli.serve.serve", lambda config, *rest: seen.append(config) or 0)
    for value in ("25%", "6GiB", "auto", "4096"):
        words = ["serve", "m"]
        if source == "flag":
            words += ["--expert-memory", value]
        elif source == "environment":
            monkeypatch.setenv("BRAID_EXPERT_MEMORY", value)
        else:
            (tmp_path / "braid.yaml").write_text(f"expert-memory: {value}\n")
            words += ["--config", str(tmp_path / "braid.yaml")]
        assert main(words) == 0
        assert seen.pop().expert_memory == value


def test_sampling_options_become_sampling_params() -> None:
    assert SamplingOptions(max_tokens=3, top_k=5).params() == SamplingParams(
        max_tokens=3, top_k=5, temperature=0.0
    )


class TestGuards:
    """What flags make of the server's configuration."""

    def made(self, **options: Any) -> ServerConfig:
        return _server_config(ServerOptions(**options))

    def test_keys(self, tmp_path: Path) -> None:
        path = tmp_path / "keys"
        path.write_text("ann:secret\n")
        path.chmod(0o600)
        config = self.made(api_key=("one", "two"), api_key_file=path)
        assert [key.name for key in config.api_keys] == ["key-1", "key-2", "ann"]

    def test_the_rest(self) -> None:
        config = self.made(
            allowed_hosts=("a.example",),
            share_prefix_cache=True,
            max_queued=9,
            max_ttl=60.0,
            shutdown_timeout=1.0,
        )
        assert config.allowed_hosts == ("a.example",)
        assert config.share_prefix_cache
        assert (config.max_queued, config.max_ttl, config.drain_timeout) == (9, 60.0, 1.0)

    def test_nothing_is_open_by_default(self) -> None:
        config = self.made()
        assert (config.api_keys, config.allowed_hosts, config.share_prefix_cache) == ((), (), False)
        assert not ServerOptions().allow_open
