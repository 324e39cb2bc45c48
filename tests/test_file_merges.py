"""Merges of users' files: all parts, text encoders by the same rule, weights, and metadata of their origin."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors import safe_open
from torch import Tensor, nn

import lorabench
from lorabench import UserLoRA, merge
from lorabench.base import UserError
from lorabench.config.schemas import ModelSpec
from lorabench.engine.record import sha256
from lorabench.lora.adapter import Adapter
from lorabench.lora.compress import nearest, truncated
from lorabench.lora.factors import Factors
from lorabench.models.files import preset
from lorabench.models.shapes import layer_map

TEXT = ("text_encoder.encoder.layers.0.self_attn.q_proj", "text_encoder_2.text_model.encoder.layers.1.mlp.fc1")
LAYER = "up_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"


@pytest.fixture
def spec(folder: Path) -> ModelSpec:
    return preset(folder)


def drawn(spec: ModelSpec, seed: int, rank: int, scale: float = 1.0, unet: bool = True) -> Adapter:
    """Return an adapter of one UNet layer and two text-encoder layers."""
    layers, rng = layer_map(spec), torch.Generator().manual_seed(seed)

    def factors(layer: Any) -> Factors:
        down = torch.randn(rank, layer.in_features, generator=rng)
        return Factors(down, torch.randn(layer.out_features, rank, generator=rng) * scale, scale)

    return Adapter({LAYER: factors(layers[LAYER])} if unet else {}, {name: factors(layers.text[name]) for name in TEXT})


def saved(adapter: Adapter, path: Path) -> Path:
    adapter.save(path, format="store")
    return path


@pytest.fixture
def pair(spec: ModelSpec, tmp_path: Path) -> tuple[Path, Path]:
    return tuple(saved(drawn(spec, k, 3), tmp_path / f"{'ab'[k]}.safetensors") for k in (0, 1))  # pyright: ignore[reportReturnType]


def dense(adapter: Adapter) -> dict[str, Tensor]:
    return {name: each.up @ each.down for name, each in [*adapter.items(), *adapter.text.items()]}


def test_text_encoders_are_merged_by_same_rule(pair, folder: Path) -> None:
    """`svd` of rank 2 reduces them too, to the nearest update."""
    exact, cut = dense(merge(*pair, model=folder)), merge(*pair, method="svd", model=folder, rank=2)
    assert set(cut.text) == set(TEXT) and {each.rank for each in cut.text.values()} == {2}
    for name, update in dense(cut).items():
        u, s, vt = torch.linalg.svd(exact[name])
        torch.testing.assert_close(update, u[:, :2] * s[:2] @ vt[:2], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("method", "settings"), [("slerp", {"t": 0.0}), ("content_only", {})])
def test_merge_that_is_content_has_its_text_encoders(pair, folder: Path, method: str, settings) -> None:
    content, found = Adapter.load(pair[0]), merge(*pair, method=method, model=folder, **settings)
    for name, update in dense(content).items():
        torch.testing.assert_close(dense(found)[name], update, rtol=1e-4, atol=1e-5)
    if method == "content_only":  # nothing is left of the style's ranks
        assert {each.rank for each in found.text.values()} == {3}


def test_text_encoders_only_are_merged(spec: ModelSpec, folder: Path, tmp_path: Path) -> None:
    paths = [saved(drawn(spec, k, 2, unet=False), tmp_path / f"{k}.safetensors") for k in (0, 1)]
    merged = merge(*paths, method="ties", model=folder, density=1.0)
    assert not merged and set(merged.text) == set(TEXT)
    merged.save(tmp_path / "merged.safetensors")
    assert set(Adapter.load(tmp_path / "merged.safetensors").text) == set(TEXT)


def peft_merge(adapters: list[Adapter], name: str, combination: str, density: float) -> Tensor:
    """Return the same merge by peft, from A, B and alpha as they are in a file."""
    parts = [adapter[name] if name in adapter else adapter.text[name] for adapter in adapters]
    base = nn.Sequential()
    base.add_module("layer", nn.Linear(parts[0].down.shape[1], parts[0].up.shape[0], bias=False))
    model: Any = None
    for k, part in enumerate(parts):
        config = LoraConfig(r=part.rank, lora_alpha=part.rank * part.scale, target_modules=["layer"])  # pyright: ignore[reportArgumentType]
        if model is None:
            model = get_peft_model(base, config, adapter_name=str(k))
        else:
            model.add_adapter(str(k), config)
        module = model.base_model.model.layer
        module.lora_A[str(k)].weight.data, module.lora_B[str(k)].weight.data = part.down, part.up / part.scale
    model.add_weighted_adapter(["0", "1"], [1.0, 1.0], "merged", combination, density=density)
    module = model.base_model.model.layer
    return module.scaling["merged"] * module.lora_B["merged"].weight.data @ module.lora_A["merged"].weight.data


@pytest.mark.parametrize("combination", ["linear", "ties", "magnitude_prune"])
def test_peft_merges_keep_alpha_and_rank_apart(spec: ModelSpec, folder: Path, tmp_path: Path, combination: str) -> None:
    """Return inputs with alpha / rank 0.25 and 2, which kohya's files have as alpha and ours as metadata."""
    adapters = [drawn(spec, k, 3, scale) for k, scale in ((0, 0.25), (1, 2.0))]
    paths = [saved(each, tmp_path / f"{k}.safetensors") for k, each in enumerate(adapters)]
    found = dense(
        merge(
            *paths, method=f"peft_{combination}", model=folder, **({} if combination == "linear" else {"density": 0.5})
        )
    )
    for name in (LAYER, *TEXT):
        expected = peft_merge(adapters, name, combination, 0.5)
        torch.testing.assert_close(found[name], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "shape", "words"),
    [
        (TEXT[0], (2, 1280, 1280), "maps 1280 to 1280 channels at text_encoder.encoder"),
        (
            "text_encoder.encoder.layers.40.mlp.fc1",
            (2, 32, 64),
            "adapts text_encoder.encoder.layers.40.mlp.fc1, which is",
        ),
    ],
)
def test_text_layers_that_do_not_fit_are_refused(pair, folder: Path, tmp_path: Path, name, shape, words: str) -> None:
    rank, inputs, outputs = shape
    adapter = Adapter({}, {name: Factors(torch.ones(rank, inputs), torch.ones(outputs, rank))})
    with pytest.raises(UserError, match=words):
        merge(saved(adapter, tmp_path / "wide.safetensors"), pair[1], model=folder)


def test_weights_scale_inputs_of_any_method(pair, folder: Path) -> None:
    content, style = (dense(Adapter.load(path)) for path in pair)
    halves = merge(UserLoRA(pair[0], weight=0.5), UserLoRA(pair[1], weight=2.0), "tsv", model=folder)
    whole = merge(*pair, model=folder)
    assert dense(halves).keys() == dense(whole).keys()
    found = dense(merge(UserLoRA(pair[0], weight=0.5), UserLoRA(pair[1], weight=2.0), model=folder))
    for name, update in found.items():
        torch.testing.assert_close(update, 0.5 * content[name] + 2 * style[name], rtol=1e-5, atol=1e-5)


def test_token_embeddings_are_joined(spec: ModelSpec, pair, folder: Path, tmp_path: Path) -> None:
    one, two = ({"<s0>": {"text_encoder": torch.full((1, 32), value)}} for value in (1.0, 2.0))
    embedding = tmp_path / "style_emb.safetensors"
    Adapter({}, tokens=one).save(tmp_path / "style.safetensors")
    assert embedding.is_file()
    content = Adapter.load(pair[0]).with_tokens(two)
    merged = merge(saved(content, tmp_path / "c.safetensors"), UserLoRA(pair[1], embedding=embedding), model=folder)
    assert {name: float(each["text_encoder"].mean()) for name, each in merged.tokens.items()} == {
        "<s0>": 2.0,
        "<s0>_2": 1.0,
    }
    only = merge(embedding, UserLoRA(pair[1], embedding=embedding, trigger="szn"), "ties", model=folder)
    assert list(only.tokens) == ["<s0>", "szn"]
    with pytest.raises(UserError, match=r"has token embeddings only, which ziplora cannot learn from"):
        merge(UserLoRA(embedding, "a"), UserLoRA(pair[1], "b"), "ziplora", prompt="c", model=folder)


def test_own_lora_is_alias_for_one_version() -> None:
    assert lorabench.OwnLoRA is UserLoRA


@pytest.mark.parametrize("rank", [700, 20])
def test_rank_above_width_is_merged(spec: ModelSpec, folder: Path, tmp_path: Path, rank: int) -> None:
    """`knots` with density 1 gives the mean of equal updates, which is the update."""
    adapter = drawn(spec, 0, rank)
    path = saved(adapter, tmp_path / "a.safetensors")
    merged = merge(path, path, "knots", model=folder, density=1.0)
    for name, update in dense(adapter).items():
        largest = float(update.abs().max())
        torch.testing.assert_close(dense(merged)[name], update, rtol=1e-3, atol=1e-4 * largest)


@pytest.mark.parametrize("rank", [4, 40, 150])
def test_nearest_factors_are_those_of_svd(rank: int) -> None:
    """Subspace iteration for a small rank has a squared error within 0.5 % of the minimum for noise."""
    torch.manual_seed(0)
    update = torch.randn(200, 30) @ torch.randn(30, 300) + torch.randn(200, 300)
    factors, cut, total = nearest(update, rank)
    squares = torch.linalg.svdvals(update.double()).square()
    assert total == pytest.approx(float(squares.sum()), rel=1e-5)
    assert cut == pytest.approx(float((update - factors.up @ factors.down).double().square().sum()), rel=1e-3)
    assert float(squares[rank:].sum()) * 0.999 <= cut <= float(squares[rank:].sum()) * 1.005


def test_truncated_factors_are_those_of_svd() -> None:
    torch.manual_seed(0)
    factors = Factors(torch.randn(9, 30), torch.randn(20, 9))
    u, s, vt = torch.linalg.svd(factors.up @ factors.down)
    kept, cut, total = truncated(factors, 4)
    torch.testing.assert_close(kept.up @ kept.down, u[:, :4] * s[:4] @ vt[:4], rtol=1e-4, atol=1e-4)
    assert (cut, total) == pytest.approx((float(s[4:].square().sum()), float(s.square().sum())), rel=1e-4)


@pytest.fixture
def run(commands, pair, folder: Path, tmp_path: Path):
    def start(*words: str):
        files = ["content=a.safetensors", "style=b.safetensors", "model=micro", f"model.path={folder}"]
        return commands.run("task=merge", *files, *words, cwd=tmp_path)

    return start


def test_file_says_what_was_merged(run, tmp_path: Path) -> None:
    result = run("method=custom_weights", "method.style=0.5", "weights=[2,1]", "task.dtype=float32")
    assert result.returncode == 0, result.stderr
    assert "2 of text encoders" in result.stdout
    with safe_open(tmp_path / "merged.safetensors", "pt") as file:
        notes = file.metadata()
    inputs = json.loads(notes["lorabench.inputs"])
    assert [(each["role"], each["name"], each["weight"]) for each in inputs] == [
        ("content", "a.safetensors", 2.0), ("style", "b.safetensors", 1.0),
    ]  # fmt: skip
    assert inputs[0]["sha256"] == sha256(tmp_path / "a.safetensors")
    assert notes["lorabench.method"] == "custom_weights" and "0.5" in notes["lorabench.settings"]
    found, content, style = (dense(Adapter.load(tmp_path / f"{name}.safetensors")) for name in ("merged", "a", "b"))
    for name, update in found.items():
        torch.testing.assert_close(update, 2 * content[name] + 0.5 * style[name], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["output=a.safetensors"], "output=a.safetensors must not be an input"),
        (["output=./b.safetensors"], "must not be an input"),
        ([f"output={'x' * 250}.safetensors"], "must have at most 255 bytes"),
        (["weights=[1]"], "must have 2 numbers; use weights=[0.8,0.6]"),
    ],
)
def test_command_is_refused_in_one_line(run, tmp_path: Path, words: list[str], message: str) -> None:
    before = {path.name: path.read_bytes() for path in tmp_path.glob("*.safetensors")}
    result = run("method=direct", *words)
    assert (result.returncode, result.stderr.count("\n")) == (2, 1), result.stderr
    assert message in result.stderr
    assert before == {path.name: path.read_bytes() for path in tmp_path.glob("*.safetensors")}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("method", ["ties", "dare_ties", "della", "breadcrumbs"])
def test_dense_merge_on_gpu_equals_that_on_cpu(pair, folder: Path, method: str) -> None:
    cpu, gpu = (dense(merge(*pair, method=method, model=folder, device=device)) for device in ("cpu", "gpu"))
    for name, update in cpu.items():
        torch.testing.assert_close(gpu[name], update, rtol=1e-3, atol=1e-4)
