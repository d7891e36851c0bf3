"""What of deriving a mixture of experts needs no model: parting neurons, routing, fitting, names and sizes."""

from __future__ import annotations

import argparse

import derive_moe
import pytest
import torch
from derive_moe import Dense, Shape, Sparse
from torch import Tensor
from torch.nn.functional import silu

WIDTH, NEURONS, TOKENS = 12, 40, 400
SHAPE = Shape(4, 2, 8)


def numbers(*sizes: int, seed: int = 0) -> Tensor:
    return torch.randn(sizes, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def dense() -> Dense:
    return Dense(
        numbers(NEURONS, WIDTH, seed=1), numbers(NEURONS, WIDTH, seed=2), numbers(WIDTH, NEURONS, seed=3)
    )


@pytest.fixture(scope="module")
def x_TD() -> Tensor:
    return numbers(TOKENS, WIDTH, seed=4)


def output(dense: Dense, x_TD: Tensor) -> Tensor:
    return dense.neurons(x_TD) @ dense.down_DF.T


def test_clusters_are_equal_and_find_what_belongs_together() -> None:
    centres = 4 * numbers(5, 20, seed=5)
    owners = torch.arange(40) % 5
    clusters = derive_moe.balanced_clusters(centres[owners] + 0.3 * numbers(40, 20), 5, seed=3)
    assert sorted(point for members in clusters for point in members) == list(range(40))
    assert [len(members) for members in clusters] == [8] * 5
    random = derive_moe.balanced_clusters(numbers(40, 20), 5, seed=3)
    assert [len(members) for members in random] == [8] * 5
    alike = sum(len({int(owners[point]) for point in members}) == 1 for members in clusters)
    assert alike >= 3  # where k-means begins decides about the others


def test_the_shared_neurons_are_the_strongest() -> None:
    strength = numbers(50, NEURONS).abs()
    strength[:, [3, 30, 17]] += 10
    order = derive_moe.neuron_order(strength, Shape(4, 2, 4), seed=0)
    assert sorted(order) == list(range(NEURONS))
    assert {3, 30, 17} < set(order[:4])
    assert order == derive_moe.neuron_order(strength, Shape(4, 2, 4), seed=0)


def test_weights_are_of_the_best_and_sum_to_one(x_TD: Tensor) -> None:
    router = numbers(6, WIDTH)
    weights = derive_moe.route(x_TD, router, 2)
    assert torch.allclose(weights.sum(1), torch.ones(TOKENS))
    best = (x_TD @ router.T).topk(2).indices.sort().values
    assert torch.equal(weights.nonzero()[:, 1].view(-1, 2), best)


def test_a_router_learns_who_adds_most(x_TD: Tensor) -> None:
    true = numbers(4, WIDTH, seed=6)
    router = derive_moe.fit_router(x_TD, 10 + x_TD @ true.T, spread=0.5)
    said, meant = (x_TD @ router.T).argmax(1), (x_TD @ true.T).argmax(1)
    assert (said == meant).float().mean() > 0.8
    assert (x_TD @ router.T).std(1).mean() == pytest.approx(0.5, rel=1e-3)


def test_all_experts_with_equal_weights_are_the_dense_layer(dense: Dense, x_TD: Tensor) -> None:
    sparse = derive_moe.derive_layer(x_TD, dense, Shape(4, 4, 8, spread=1e-6), seed=0)
    assert torch.allclose(sparse(x_TD), output(dense, x_TD), atol=1e-3)


def test_fitting_again_brings_the_layer_nearer(dense: Dense, x_TD: Tensor) -> None:
    sparse = derive_moe.derive_layer(x_TD, dense, SHAPE, seed=0)
    order = derive_moe.neuron_order(derive_moe.importance(dense.neurons(x_TD), dense.down_DF), SHAPE, seed=0)
    old_DF = dense.down_DF[:, order].clone()
    old_DF[:, SHAPE.shared :] *= SHAPE.top_k
    plain = sparse._replace(dense=sparse.dense._replace(down_DF=old_DF))
    fresh = numbers(TOKENS, WIDTH, seed=9)
    wanted = output(dense, fresh)
    assert (sparse(fresh) - wanted).norm() < 0.98 * (plain(fresh) - wanted).norm()


def as_qwen2_moe(tensors: dict[str, Tensor], x_D: Tensor, shape: Shape) -> Tensor:
    """One token, word for word as the family computes it."""

    def ffn(name: str) -> Tensor:
        gate, up, down = (tensors[f"m.{name}.{part}_proj.weight"] for part in ("gate", "up", "down"))
        return down @ (silu(gate @ x_D) * (up @ x_D))

    scores = (tensors["m.gate.weight"] @ x_D).softmax(0)
    best, ids = scores.topk(shape.top_k)
    routed = sum(
        weight * ffn(f"experts.{id}") for weight, id in zip(best / best.sum(), ids.tolist(), strict=True)
    )
    return routed + (tensors["m.shared_expert_gate.weight"] @ x_D).sigmoid() * ffn("shared_expert")


def test_the_folders_tensors_compute_the_same(dense: Dense, x_TD: Tensor) -> None:
    sparse: Sparse = derive_moe.derive_layer(x_TD, dense, SHAPE, seed=0)
    named = {name.replace("model.layers.7.mlp", "m"): t for name, t in derive_moe.expert_tensors(7, sparse)}
    assert len(named) == 2 + 3 * (1 + SHAPE.num_experts)
    assert named["m.experts.3.down_proj.weight"].shape == (WIDTH, 8)
    for x_D, y_D in zip(x_TD[:20], sparse(x_TD[:20]), strict=True):
        assert torch.allclose(as_qwen2_moe(named, x_D, SHAPE), y_D, atol=1e-4)


def test_the_config_says_what_it_is() -> None:
    config = derive_moe.derived_config(
        {"intermediate_size": NEURONS, "model_type": "llama"}, SHAPE, {"from": "x"}
    )
    assert config["architectures"] == ["Qwen2MoeForCausalLM"]
    assert (config["moe_intermediate_size"], config["shared_expert_intermediate_size"]) == (8, 8)
    assert config["derived"] == {"from": "x"}


def test_shapes_that_do_not_part_a_layer() -> None:
    assert derive_moe.parse_shape("4/2/8") == SHAPE
    with pytest.raises(argparse.ArgumentTypeError, match="EXPERTS/CHOSEN/SHARED"):
        derive_moe.parse_shape("4/2")
    derive_moe.check_shape(SHAPE, NEURONS)
    for shape in (Shape(4, 5, 8), Shape(4, 2, 0), Shape(4, 2, 39), Shape(5, 2, 8)):
        with pytest.raises(SystemExit):
            derive_moe.check_shape(shape, NEURONS)


def test_documents_are_text_and_held_out_ones_are_not_fitted_to() -> None:
    texts = derive_moe.documents()
    assert len(texts) > 60
    asked = [
        derive_moe.pieces(lambda text: list(text.encode()), 6, 0, held_out=held) for held in (False, True)
    ]
    assert all(len(piece) == derive_moe.PIECE for found in asked for piece in found)
    assert not {tuple(piece) for piece in asked[0]} & {tuple(piece) for piece in asked[1]}
