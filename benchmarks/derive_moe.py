"""A mixture of experts with real hidden states and routing, derived from a dense model: no package ships one.

    python benchmarks/derive_moe.py --out FOLDER

The neurons of each feed-forward layer are parted (MoEfication, arXiv:2110.01786): those that matter for most tokens
become the shared expert, the others are clustered by when they are active into routed experts of equal size. A router
is fitted by ridge regression to what each expert contributes, and then the down projections are fitted again, by ridge
regression towards the old ones, layer after layer: so each makes up, as well as a linear map can, for what is routed
away. Nothing is trained by gradients. The result is a folder of the family Qwen2-MoE; its config says that it is
derived, and from what.

Text: the topics of Python's own help (``pydoc_data``) and this repository's documentation. Every fifth document is kept
out of all fitting; perplexities are of those. On 2,048 such tokens, fitted to 5,120, the default model has 29.65; with
16 experts, 8 of them chosen, beside 1,024 shared neurons of 1,536 it has 35.35 (1.19 times as much), and beside 768
shared ones 38.55 (1.30 times).
"""

from __future__ import annotations

import argparse
import json
import math
import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import silu

ROOT = Path(__file__).parent.parent
PIECE = 512
"""Tokens of each piece of text."""
ROUTER_RIDGE, DOWN_RIDGE = 0.05, 1.0
"""Of a feature's own energy. Some thousand tokens say little about 1,536 neurons: the down projections stay near."""
CLUSTER_TOKENS = 1024


class Shape(NamedTuple):
    """How a layer of neurons is parted; ``spread``: the deviation of the router's logits over the experts.

    A small one keeps the chosen experts' weights near 1 / top_k, as is right for parts of one layer, which all count
    in full; the order of the scores, which is what choosing goes by, is the same for any.
    """

    num_experts: int
    top_k: int
    shared: int
    spread: float = 0.05


class Dense(NamedTuple):
    gate_FD: Tensor
    up_FD: Tensor
    down_DF: Tensor

    def neurons(self, x_TD: Tensor) -> Tensor:
        return silu(x_TD @ self.gate_FD.T) * (x_TD @ self.up_FD.T)


class Sparse(NamedTuple):
    """A derived layer: neurons in the order shared, expert 0, expert 1, ...; ``down_DF`` as experts store it."""

    shape: Shape
    dense: Dense
    router_XD: Tensor

    def features(self, x_TD: Tensor) -> Tensor:
        """The neurons, each expert's times its weight: zero where it was not chosen."""
        neurons_TF = self.dense.neurons(x_TD)
        weights_TX = route(x_TD, self.router_XD, self.shape.top_k)
        shared = self.shape.shared
        size = (neurons_TF.shape[1] - shared) // self.shape.num_experts
        neurons_TF[:, shared:] *= weights_TX.repeat_interleave(size, 1)
        return neurons_TF

    def __call__(self, x_TD: Tensor) -> Tensor:
        return self.features(x_TD) @ self.dense.down_DF.T


def route(x_TD: Tensor, router_XD: Tensor, top_k: int) -> Tensor:
    """Softmax over the chosen experts, zero for the others: what Qwen2-MoE calls normalised top-k weights."""
    best, ids = (x_TD @ router_XD.T).topk(top_k, dim=-1)
    return torch.zeros(len(x_TD), len(router_XD)).scatter_(1, ids, best.softmax(-1))


# -- parting neurons -------------------------------------------------------------------------------------------------


def importance(neurons_TF: Tensor, down_DF: Tensor) -> Tensor:
    """How much each neuron adds, token by token: activation times the norm of what it writes, [T, F]."""
    return neurons_TF.abs() * down_DF.norm(dim=0)


def balanced_clusters(points_RP: Tensor, num: int, seed: int, rounds: int = 8) -> list[list[int]]:
    """Clusters of equal size by cosine (balanced k-means): of all pairs, the most alike are joined first."""
    points_RP = torch.nn.functional.normalize(points_RP, dim=1)
    room = len(points_RP) // num
    first = random.Random(seed).sample(range(len(points_RP)), num)
    centres_XP = points_RP[first]
    clusters: list[list[int]] = []
    for _ in range(rounds):
        alike_RX = points_RP @ centres_XP.T
        clusters = [[] for _ in range(num)]
        placed = [False] * len(points_RP)
        for pair in alike_RX.flatten().argsort(descending=True, stable=True).tolist():
            point, cluster = divmod(pair, num)
            if not placed[point] and len(clusters[cluster]) < room:
                clusters[cluster].append(point)
                placed[point] = True
        centres_XP = torch.stack([points_RP[members].mean(0) for members in clusters])
    return [sorted(members) for members in clusters]


def neuron_order(strength_TF: Tensor, shape: Shape, seed: int) -> list[int]:
    """The shared expert's neurons, then each expert's."""
    strongest = strength_TF.mean(0).argsort(descending=True, stable=True).tolist()
    shared, others = sorted(strongest[: shape.shared]), sorted(strongest[shape.shared :])
    step = max(1, len(strength_TF) // CLUSTER_TOKENS)
    clusters = balanced_clusters(strength_TF[::step, others].T, shape.num_experts, seed)
    return shared + [others[index] for members in clusters for index in members]


# -- fitting ---------------------------------------------------------------------------------------------------------


def ridge(features_TF: Tensor, target_TN: Tensor, penalty: float, before_FN: Tensor | None = None) -> Tensor:
    """The map [F, N] that comes near the target and stays near ``before``, which is zero where not given."""
    gram_FF = features_TF.T @ features_TF
    gram_FF.diagonal().mul_(1 + penalty).add_(1e-6 * gram_FF.diagonal().mean())
    if before_FN is None:
        return torch.linalg.solve(gram_FF, features_TF.T @ target_TN)
    missing_TN = target_TN - features_TF @ before_FN
    return before_FN + torch.linalg.solve(gram_FF, features_TF.T @ missing_TN)


def fit_router(x_TD: Tensor, added_TX: Tensor, spread: float) -> Tensor:
    """Logits that follow how much each expert adds beside the others."""
    beside_TX = added_TX / added_TX.mean(1, keepdim=True)
    router_XD = ridge(x_TD, beside_TX - 1, ROUTER_RIDGE).T
    logits_TX = x_TD @ router_XD.T
    return router_XD * (spread / logits_TX.std(1).mean())


def derive_layer(x_TD: Tensor, dense: Dense, shape: Shape, seed: int) -> Sparse:
    """Part one layer, by the hidden states that come into it."""
    neurons_TF = dense.neurons(x_TD)
    wanted_TD = neurons_TF @ dense.down_DF.T
    order = neuron_order(importance(neurons_TF, dense.down_DF), shape, seed)
    parted = Dense(dense.gate_FD[order], dense.up_FD[order], dense.down_DF[:, order])
    routed_TF, down_DF = neurons_TF[:, order[shape.shared :]], parted.down_DF[:, shape.shared :]
    parts = zip(routed_TF.chunk(shape.num_experts, 1), down_DF.chunk(shape.num_experts, 1), strict=True)
    added_TX = torch.stack([(part @ down.T).norm(dim=1) for part, down in parts], 1)
    sparse = Sparse(shape, parted, fit_router(x_TD, added_TX, shape.spread))
    scaled_DF = torch.cat([parted.down_DF[:, : shape.shared], down_DF * shape.top_k], 1)
    fitted_DF = ridge(sparse.features(x_TD), wanted_TD, DOWN_RIDGE, scaled_DF.T).T
    return sparse._replace(dense=parted._replace(down_DF=fitted_DF))


# -- the model -------------------------------------------------------------------------------------------------------


def documents() -> list[str]:
    from pydoc_data.topics import topics

    files = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    return [topics[name] for name in sorted(topics)] + [file.read_text() for file in files]


def pieces(encode: Callable[[str], list[int]], num: int, seed: int, *, held_out: bool) -> list[list[int]]:
    """Pieces of equal length from all over the documents that are held out, or from the others."""
    found = []
    for number, text in enumerate(documents()):
        if (number % 5 == 4) == held_out:
            ids = encode(text)
            found += [ids[at : at + PIECE] for at in range(0, len(ids) - PIECE + 1, PIECE)]
    return random.Random(seed).sample(found, num)


def load_dense(checkpoint: Any) -> Any:
    """The model in transformers, with the weights as Braid reads them."""
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.initialization import no_init_weights

    from braid.checkpoint.weights import iter_weights

    fields = {key: value for key, value in checkpoint.config.items() if key not in ("model_type", "dtype")}
    config = AutoConfig.for_model(checkpoint.config["model_type"], **fields)
    with no_init_weights():
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.load_state_dict(dict(iter_weights(checkpoint, torch.float32)), strict=False)
    model.tie_weights()
    return model.eval()


def perplexity(model: Any, texts: Sequence[list[int]]) -> float:
    losses = [model(torch.tensor([ids]), labels=torch.tensor([ids])).loss.item() for ids in texts]
    return math.exp(sum(losses) / len(losses))


def derive(model: Any, texts: Sequence[list[int]], shape: Shape, seed: int) -> list[Sparse]:
    """All layers, in one pass: each is fitted to the hidden states that the derived layers before it lead to."""
    made: list[Sparse] = []

    def part(mlp: Any, layer: int) -> Callable[[Tensor], Tensor]:
        dense = Dense(mlp.gate_proj.weight, mlp.up_proj.weight, mlp.down_proj.weight)

        def forward(x_BTD: Tensor) -> Tensor:
            x_TD = x_BTD.flatten(0, 1)
            made.append(derive_layer(x_TD, dense, shape, seed + layer))
            return made[-1](x_TD).view_as(x_BTD)

        return forward

    mlps = [layer.mlp for layer in model.model.layers]
    with replaced(mlps, [part(mlp, at) for at, mlp in enumerate(mlps)]):
        model.model(torch.tensor(texts))
    return made


@contextmanager
def replaced(modules: Sequence[Any], forwards: Sequence[Callable[[Tensor], Tensor]]) -> Iterator[None]:
    before = [module.forward for module in modules]
    for module, forward in zip(modules, forwards, strict=True):
        module.forward = forward
    yield
    for module, forward in zip(modules, before, strict=True):
        module.forward = forward


def sparse_perplexity(model: Any, layers: Sequence[Sparse], texts: Sequence[list[int]]) -> float:
    """With the derived layers in place of the dense ones."""

    def forward(sparse: Sparse) -> Callable[[Tensor], Tensor]:
        return lambda x_1TD: sparse(x_1TD[0])[None]

    with replaced([layer.mlp for layer in model.model.layers], [forward(sparse) for sparse in layers]):
        return perplexity(model, texts)


# -- the folder ------------------------------------------------------------------------------------------------------


def expert_tensors(layer: int, sparse: Sparse) -> Iterator[tuple[str, Tensor]]:
    """One layer in Qwen2-MoE's names. A shared gate of zeros halves the shared expert, so that is doubled."""
    shape, (gate_FD, up_FD, down_DF), place = sparse.shape, sparse.dense, f"model.layers.{layer}.mlp"
    width = gate_FD.shape[1]
    yield f"{place}.gate.weight", sparse.router_XD
    yield f"{place}.shared_expert_gate.weight", torch.zeros(1, width)
    size = (len(gate_FD) - shape.shared) // shape.num_experts
    parts = {"shared_expert": slice(0, shape.shared)}
    for expert in range(shape.num_experts):
        begin = shape.shared + expert * size
        parts[f"experts.{expert}"] = slice(begin, begin + size)
    for name, part in parts.items():
        factor = 2.0 if name == "shared_expert" else 1.0
        yield f"{place}.{name}.gate_proj.weight", gate_FD[part]
        yield f"{place}.{name}.up_proj.weight", up_FD[part]
        yield f"{place}.{name}.down_proj.weight", down_DF[:, part] * factor


def derived_config(dense: dict[str, Any], shape: Shape, facts: dict[str, Any]) -> dict[str, Any]:
    """Qwen2-MoE's config; ``derived`` says what this is."""
    return {
        **dense,
        "architectures": ["Qwen2MoeForCausalLM"],
        "model_type": "qwen2_moe",
        "num_experts": shape.num_experts,
        "num_experts_per_tok": shape.top_k,
        "moe_intermediate_size": (dense["intermediate_size"] - shape.shared) // shape.num_experts,
        "shared_expert_intermediate_size": shape.shared,
        "norm_topk_prob": True,
        "qkv_bias": False,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "use_sliding_window": False,
        "derived": facts,
    }


def save(folder: Path, model: Any, config: dict[str, Any], layers: Sequence[Sparse]) -> None:
    from safetensors.torch import save_file

    kept = {name: value for name, value in model.state_dict().items() if ".mlp." not in name}
    if config.get("tie_word_embeddings"):
        kept.pop("lm_head.weight", None)
    tensors = kept | {
        name: value for at, layer in enumerate(layers) for name, value in expert_tensors(at, layer)
    }
    stored = {
        name: value.to(torch.bfloat16 if value.dim() > 1 else torch.float32).contiguous().clone()
        for name, value in tensors.items()
    }
    folder.mkdir(parents=True, exist_ok=True)
    save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")


# -- the command -----------------------------------------------------------------------------------------------------


def parse_shape(text: str) -> Shape:
    """``16/8/512``: experts, chosen, shared neurons."""
    try:
        num_experts, top_k, shared = (int(part) for part in text.split("/"))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not EXPERTS/CHOSEN/SHARED, such as 16/8/512") from None
    return Shape(num_experts, top_k, shared)


def check_shape(shape: Shape, neurons: int) -> None:
    routed = neurons - shape.shared
    if not 0 < shape.top_k <= shape.num_experts or shape.shared < 1 or routed < shape.num_experts:
        raise SystemExit(
            f"{shape} does not part {neurons} neurons: choose fewer experts, or a smaller shared one"
        )
    if routed % shape.num_experts:
        raise SystemExit(
            f"{shape}: {routed} neurons beside the shared ones do not part into {shape.num_experts}"
        )


def main() -> None:
    from braid.checkpoint.open import open_checkpoint
    from braid.checkpoint.resolve import DEFAULT_MODEL, resolve
    from braid.cli.convert import write_tokenizer
    from braid.text.tokenizer import load_tokenizer

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--model", default=DEFAULT_MODEL, help="a Llama without biases (default: %(default)s)"
    )
    parser.add_argument("--out", type=Path, help="the folder; without it only perplexities are told")
    parser.add_argument(
        "--shapes", type=parse_shape, nargs="+", default=[Shape(16, 8, 1024)], metavar="E/K/S"
    )
    parser.add_argument(
        "--pieces", type=int, default=10, help=f"of {PIECE} tokens, to fit to (default: %(default)s)"
    )
    parser.add_argument("--held-out", type=int, default=4, help="pieces to judge by (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    checkpoint = open_checkpoint(resolve(options.model))
    if checkpoint.config["model_type"] != "llama" or checkpoint.config.get("mlp_bias"):
        raise SystemExit(f"{options.model} is no Llama without biases: other layers are not parted here")
    for shape in options.shapes:
        check_shape(shape, checkpoint.config["intermediate_size"])
    encode = load_tokenizer(checkpoint).encode
    with torch.no_grad():
        model = load_dense(checkpoint)
        fitted = pieces(encode, options.pieces, options.seed, held_out=False)
        judged = pieces(encode, options.held_out, options.seed, held_out=True)
        dense_ppl = perplexity(model, judged)
        print(f"dense                    perplexity {dense_ppl:.2f}", flush=True)
        best: tuple[float, list[Sparse]] | None = None
        for shape in options.shapes:
            begin = time.monotonic()
            layers = derive(model, fitted, shape, options.seed)
            ppl = sparse_perplexity(model, layers, judged)
            neurons = checkpoint.config["intermediate_size"]
            size = (neurons - shape.shared) // shape.num_experts
            used = (shape.shared + size * shape.top_k) / neurons
            print(
                f"{shape.num_experts:3} experts of {size}, top {shape.top_k}, shared {shape.shared}: perplexity "
                f"{ppl:.2f}, {ppl / dense_ppl:.2f} x dense, {used:.0%} of the neurons, "
                f"{time.monotonic() - begin:.0f} s",
                flush=True,
            )
            if best is None or ppl < best[0]:
                best = (ppl, layers)
        if options.out is not None and best is not None:
            facts = {
                "from": options.model,
                "by": "benchmarks/derive_moe.py: neurons parted into experts, down projections fitted again",
                "seed": options.seed,
                "pieces": options.pieces,
                "perplexity": round(best[0], 3),
                "dense_perplexity": round(dense_ppl, 3),
            }
            shape = best[1][0].shape
            save(options.out, model, derived_config(checkpoint.config, shape, facts), best[1])
            write_tokenizer(checkpoint, options.out)
            print(f"{options.out}: derived from {options.model}, {shape}")


if __name__ == "__main__":
    main()
