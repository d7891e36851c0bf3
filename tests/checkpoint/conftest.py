"""Tiny checkpoints written by the tests themselves, and a stand-in for a hub."""

from __future__ import annotations

import hashlib
import json
import re
import threading
import urllib.parse
from collections.abc import Callable, Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple

import gguf
import numpy as np
import pytest
from gguf.quants import quantize
from safetensors.numpy import save_file

from braid.checkpoint.hub import Hub
from braid.checkpoint.open import Checkpoint, open_checkpoint
from braid.checkpoint.source import local_source

HIDDEN, HEADS, KV_HEADS, HEAD, INNER, VOCAB, LAYERS, EXPERTS = 32, 4, 2, 8, 64, 96, 2, 4
RANK, ROPE, NOPE, VALUE = 32, 4, 32, 8

Weights = dict[str, np.ndarray]


@pytest.fixture(autouse=True)
def private_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("BRAID_CACHE", str(tmp_path / "braid-cache"))
    return tmp_path / "braid-cache"


@pytest.fixture
def open_path() -> Callable[[Path], Checkpoint]:
    return lambda path: open_checkpoint(local_source(str(path), path))


# Hugging Face side: names and shapes of every family's tensors.


def _attention(prefix: str, family: str) -> dict[str, tuple[int, ...]]:
    at = prefix + "self_attn."
    shapes: dict[str, tuple[int, ...]] = {
        at + "q_proj.weight": (HEADS * HEAD, HIDDEN),
        at + "k_proj.weight": (KV_HEADS * HEAD, HIDDEN),
        at + "v_proj.weight": (KV_HEADS * HEAD, HIDDEN),
        at + "o_proj.weight": (HIDDEN, HEADS * HEAD),
    }
    if family.startswith("qwen2"):
        shapes |= {at + f"{p}_proj.bias": (shapes[at + f"{p}_proj.weight"][0],) for p in "qkv"}
    if family in ("qwen3", "qwen3moe", "gemma3"):
        shapes |= {at + "q_norm.weight": (HEAD,), at + "k_norm.weight": (HEAD,)}
    if family == "olmoe":
        shapes |= {at + "q_norm.weight": (HEADS * HEAD,), at + "k_norm.weight": (KV_HEADS * HEAD,)}
    return shapes


def _mla(prefix: str) -> dict[str, tuple[int, ...]]:
    at = prefix + "self_attn."
    return {
        at + "q_a_proj.weight": (RANK, HIDDEN),
        at + "q_a_layernorm.weight": (RANK,),
        at + "q_b_proj.weight": (HEADS * (NOPE + ROPE), RANK),
        at + "kv_a_proj_with_mqa.weight": (RANK + ROPE, HIDDEN),
        at + "kv_a_layernorm.weight": (RANK,),
        at + "kv_b_proj.weight": (HEADS * (NOPE + VALUE), RANK),
        at + "o_proj.weight": (HIDDEN, HEADS * VALUE),
    }


def _mlp(prefix: str, names: tuple[str, str, str] = ("gate_proj", "up_proj", "down_proj")) -> dict[str, Any]:
    gate, up, down = (f"{prefix}.{name}.weight" for name in names)
    return {gate: (INNER, HIDDEN), up: (INNER, HIDDEN), down: (HIDDEN, INNER)}


def _feed_forward(prefix: str, family: str, layer: int) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    if family == "mixtral":
        moe = prefix + "block_sparse_moe."
        shapes[moe + "gate.weight"] = (EXPERTS, HIDDEN)
        for expert in range(EXPERTS):
            shapes |= _mlp(f"{moe}experts.{expert}", ("w1", "w3", "w2"))
        return shapes
    if family not in ("qwen2moe", "qwen3moe", "olmoe", "deepseek2") or (family == "deepseek2" and layer == 0):
        return _mlp(prefix + "mlp")
    shapes[prefix + "mlp.gate.weight"] = (EXPERTS, HIDDEN)
    for expert in range(EXPERTS):
        shapes |= _mlp(f"{prefix}mlp.experts.{expert}")
    if family == "qwen2moe":
        shapes |= _mlp(prefix + "mlp.shared_expert") | {prefix + "mlp.shared_expert_gate.weight": (1, HIDDEN)}
    if family == "deepseek2":
        shapes |= _mlp(prefix + "mlp.shared_experts")
        shapes |= {prefix + "mlp.gate.e_score_correction_bias": (EXPERTS,)}
    return shapes


def shapes_of(family: str, tied: bool = False) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (VOCAB, HIDDEN),
        "model.norm.weight": (HIDDEN,),
    }
    if not tied:
        shapes["lm_head.weight"] = (VOCAB, HIDDEN)
    for layer in range(LAYERS):
        prefix = f"model.layers.{layer}."
        norms = ["input_layernorm", "post_attention_layernorm"]
        if family == "gemma3":
            norms += ["pre_feedforward_layernorm", "post_feedforward_layernorm"]
        shapes |= {f"{prefix}{norm}.weight": (HIDDEN,) for norm in norms}
        shapes |= _mla(prefix) if family == "deepseek2" else _attention(prefix, family)
        shapes |= _feed_forward(prefix, family, layer)
    return shapes


@pytest.fixture
def hf_weights() -> Callable[..., Weights]:
    def make(family: str = "llama", *, tied: bool = False, seed: int = 0) -> Weights:
        random = np.random.default_rng(seed)
        return {
            name: random.standard_normal(shape, dtype=np.float32)
            for name, shape in shapes_of(family, tied).items()
        }

    return make


@pytest.fixture
def hf_folder(hf_weights: Callable[..., Weights]) -> Callable[..., Path]:
    """A Hugging Face folder of the Llama family, in as many shards as asked."""

    def write(path: Path, *, shards: int = 1, dtype: str = "float32", seed: int = 0) -> Path:
        path.mkdir(parents=True, exist_ok=True)
        weights = {name: value.astype(dtype) for name, value in hf_weights(seed=seed).items()}
        config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": HIDDEN}
        (path / "config.json").write_text(json.dumps(config))
        (path / "generation_config.json").write_text(json.dumps({"eos_token_id": [1, 2]}))
        if shards == 1:
            save_file(weights, path / "model.safetensors")
            return path
        names, weight_map = list(weights), {}
        for shard in range(shards):
            file = f"model-{shard + 1:05d}-of-{shards:05d}.safetensors"
            part = names[shard::shards]
            save_file({name: weights[name] for name in part}, path / file)
            weight_map |= dict.fromkeys(part, file)
        (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
        return path

    return write


# GGUF side: what llama.cpp's converter does to a Hugging Face checkpoint.


def _permute(rows: np.ndarray, heads: int) -> np.ndarray:
    split = rows.reshape(heads, 2, rows.shape[0] // heads // 2, *rows.shape[1:])
    return split.swapaxes(1, 2).reshape(rows.shape)


def gguf_weights(family: str, weights: Mapping[str, np.ndarray], *, split_kv_b: bool) -> Weights:
    arch = "llama" if family == "mixtral" else family
    kind = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == arch)
    names = gguf.get_tensor_name_map(kind, LAYERS)
    result: Weights = {}
    experts: dict[str, list[np.ndarray]] = {}
    for name, value in weights.items():
        merged = re.sub(r"experts\.\d+\.", "experts.", name)
        target = names.get_name(merged.replace("_bias", ".bias"), try_suffixes=(".weight", ".bias"))
        assert target is not None, name
        if family in ("llama", "mixtral") and "q_proj" in name:
            value = _permute(value, HEADS)
        if family in ("llama", "mixtral") and "k_proj" in name:
            value = _permute(value, KV_HEADS)
        if family == "gemma3" and name.endswith("norm.weight"):
            value = value + 1
        if merged != name:
            experts.setdefault(target, []).append(value)
        elif "kv_b_proj" in name and split_kv_b:
            heads = value.reshape(HEADS, NOPE + VALUE, RANK)
            result[target.replace("kv_b", "k_b")] = np.ascontiguousarray(heads[:, :NOPE].swapaxes(1, 2))
            result[target.replace("kv_b", "v_b")] = np.ascontiguousarray(heads[:, NOPE:])
        else:
            result[target] = value.reshape(-1) if "shared_expert_gate" in name else value
    return result | {name: np.stack(values) for name, values in experts.items()}


def metadata_of(family: str) -> dict[str, Any]:
    """Metadata of the sizes above, without the architecture's prefix."""
    common: dict[str, Any] = {
        "block_count": LAYERS,
        "context_length": 256,
        "embedding_length": HIDDEN,
        "feed_forward_length": INNER,
        "attention.head_count": HEADS,
        "attention.head_count_kv": KV_HEADS,
        "attention.key_length": HEAD,
        "attention.layer_norm_rms_epsilon": 1e-5,
        "rope.freq_base": 10000.0,
    }
    if family in ("mixtral", "qwen2moe", "qwen3moe", "olmoe", "deepseek2"):
        common |= {"expert_count": EXPERTS, "expert_used_count": 2, "expert_feed_forward_length": INNER}
    if family == "gemma3":
        common |= {"attention.sliding_window": 16}
    if family == "deepseek2":
        common |= {
            "attention.head_count_kv": HEADS,
            "attention.key_length": NOPE + ROPE,
            "attention.value_length": VALUE,
            "attention.q_lora_rank": RANK,
            "attention.kv_lora_rank": RANK,
            "rope.dimension_count": ROPE,
            "leading_dense_block_count": 1,
            "expert_shared_count": 1,
            "expert_weights_scale": 2.5,
            "expert_weights_norm": True,
            "expert_gating_func": 2,
        }
    return common


class Written(NamedTuple):
    path: Path
    weights: Weights
    """What was written, under Hugging Face names, as float32 before quantisation."""


@pytest.fixture
def write_gguf(tmp_path: Path, hf_weights: Callable[..., Weights]) -> Callable[..., Written]:
    """Write a tiny GGUF file of a family; matrices as ``dtype`` (the router and the vectors stay F32)."""

    def write(
        family: str = "llama",
        *,
        name: str = "tiny.gguf",
        dtype: str = "F32",
        tied: bool = False,
        split_kv_b: bool = False,
        metadata: Mapping[str, Any] | None = None,
        extra: Mapping[str, np.ndarray] | None = None,
        seed: int = 0,
    ) -> Written:
        weights = hf_weights(family, tied=tied, seed=seed)
        arch = "llama" if family == "mixtral" else family
        writer = gguf.GGUFWriter(tmp_path / name, arch)
        for key, value in {**metadata_of(family), **(metadata or {})}.items():
            _add(writer, f"{arch}.{key}", value)
        _add(writer, "tokenizer.ggml.eos_token_id", 2)
        writer.add_array("tokenizer.ggml.tokens", [f"t{i}" for i in range(VOCAB)])
        for tensor_name, value in (
            gguf_weights(family, weights, split_kv_b=split_kv_b) | dict(extra or {})
        ).items():
            kind = gguf.GGMLQuantizationType[
                dtype if value.ndim > 1 and "gate_inp" not in tensor_name else "F32"
            ]
            writer.add_tensor(tensor_name, quantize(value, kind), raw_dtype=kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return Written(tmp_path / name, weights)

    return write


def _add(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    else:
        writer.add_string(key, value)


# A stand-in for a hub's HTTP API.

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class StandInHub:
    """Serves ``repos[id][file]`` as a hub does: repository listing, HEAD and GET of files, ranges.

    Faults to order: ``cut`` drops the connection once after so many bytes of a file; ``status`` answers all requests.
    """

    def __init__(self) -> None:
        self.repos: dict[str, dict[str, bytes]] = {}
        self.revisions: dict[str, str] = {"main": COMMIT}
        self.requests: list[tuple[str, str, str | None]] = []
        self.cut: dict[str, int] = {}
        self.status: int | None = None
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                hub.answer(self)

            do_HEAD = do_GET

            def log_message(self, *args: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.endpoint = f"http://127.0.0.1:{self.server.server_port}"

    def fetched(self) -> list[str]:
        """The files that were read (not just asked about)."""
        return [
            path.split("/", 5)[5]
            for method, path, _ in self.requests
            if method == "GET" and "/resolve/" in path
        ]

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        path = urllib.parse.unquote(urllib.parse.urlsplit(request.path).path)
        self.requests.append((request.command, path, request.headers.get("Range")))
        api = re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/(.+))?", path)
        file = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
        match = api or file
        repo = self.repos.get(match[1]) if match else None
        commit = self.revisions.get((match[2] or "main") if match else "")
        if self.status:
            self.send(request, self.status, b"{}")
        elif match is None or repo is None:
            self.send(request, 404, b'{"error": "Repository not found"}', {"X-Error-Code": "RepoNotFound"})
        elif commit is None:
            self.send(request, 404, b'{"error": "Invalid rev"}', {"X-Error-Code": "RevisionNotFound"})
        elif api:
            siblings = [{"rfilename": name, "size": len(data)} for name, data in repo.items()]
            self.send(
                request, 200, json.dumps({"id": match[1], "sha": commit, "siblings": siblings}).encode()
            )
        elif match[3] not in repo:
            self.send(request, 404, b"{}", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit})
        else:
            self.send_file(request, match[3], repo[match[3]], commit)

    def send_file(self, request: BaseHTTPRequestHandler, name: str, data: bytes, commit: str) -> None:
        headers = {
            "ETag": f'"{hashlib.sha256(data).hexdigest()}"',
            "X-Repo-Commit": commit,
            "Accept-Ranges": "bytes",
        }
        begin = re.fullmatch(r"bytes=(\d+)-", request.headers.get("Range") or "")
        start = int(begin[1]) if begin else 0
        if begin:
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        cut = self.cut.pop(name, None) if request.command == "GET" else None
        self.send(request, 206 if begin else 200, data[start:], headers, cut)

    def send(
        self,
        request: BaseHTTPRequestHandler,
        status: int,
        body: bytes,
        headers: Mapping[str, str] | None = None,
        cut: int | None = None,
    ) -> None:
        request.send_response(status)
        for key, value in (headers or {}).items():
            request.send_header(key, value)
        request.send_header("Content-Type", "application/json")
        request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        if request.command == "GET":
            request.wfile.write(body[:cut])
        if cut is not None:
            request.close_connection = True


@pytest.fixture
def stand_in() -> Iterator[StandInHub]:
    hub = StandInHub()
    thread = threading.Thread(target=hub.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    yield hub
    hub.server.shutdown()
    hub.server.server_close()
    thread.join()


@pytest.fixture
def hub(stand_in: StandInHub, tmp_path: Path) -> Hub:
    return Hub(endpoint=stand_in.endpoint, cache_dir=tmp_path / "hub-cache")
