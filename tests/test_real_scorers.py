"""Published backbones at their real size on random weights: strict loading, features against second implementations."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from real_weights import random_state, shapes_of
from safetensors.torch import save_file
from torchvision import transforms

from lorabench.base import UserError
from lorabench.scoring.description import ScorerFiles, read_config
from lorabench.scoring.files import backbones
from lorabench.scoring.load import check_scorer, load_scorer
from lorabench.scoring.networks import build_network
from lorabench.scoring.preprocess import Preprocess, to_uint8
from lorabench.scoring.weights import Unfilled, check_fit

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
OPENAI = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
NAMES = sorted(backbones())


def picture(width, height, seed=0):
    """Return an image with structure at all scales."""
    rng = np.random.default_rng(seed)
    layers = [
        np.asarray(Image.fromarray(rng.integers(0, 256, (n, n, 3), dtype=np.uint8)).resize((width, height)), float)
        for n in (4, 16, 64, 256)
    ]
    return Image.fromarray(np.mean(layers, axis=0).astype(np.uint8))


def field(resize, mean, std) -> Callable[[Image.Image], torch.Tensor]:
    """Return the usual transform of evaluation code, for PIL images."""
    bicubic = transforms.InterpolationMode.BICUBIC
    steps = [transforms.Resize(resize, bicubic), transforms.CenterCrop(224), transforms.ToTensor()]
    return transforms.Compose([*steps, transforms.Normalize(mean, std)])


def written(folder, name, state):
    """Save weights and return them with the description of a published backbone."""
    path = folder / "model.safetensors"
    save_file({key: value.clone().contiguous() for key, value in state.items()}, path)
    return ScorerFiles(backbones()[name], path)


def same(left, right, tolerance=5e-6):
    """Compare L2-normalized rows with features that are not normalized."""
    right = F.normalize(right.float(), dim=-1)
    assert left.shape == right.shape
    return float((left - right).abs().max()) < tolerance


@pytest.mark.parametrize("name", NAMES)
def test_published_names_and_shapes_load_strictly(name):
    config, shapes = read_config(backbones()[name]), shapes_of(name)
    tensors = {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}
    network = build_network(config)
    check_fit(network, tensors, config, Path("file"))
    lost = sorted(tensors)[5]
    for broken, word in (
        ({key: value for key, value in tensors.items() if key != lost}, "1 tensors missing"),
        ({f"module.{key}": value for key, value in tensors.items()}, "missing"),
        (tensors | {"head.weight": torch.empty(1, device="meta")}, "1 unknown"),
        (tensors | {lost: torch.empty(7, device="meta")}, "1 of wrong shape"),
    ):
        with pytest.raises(UserError, match=word) as error:
            check_fit(network, broken, config, Path("file"))
        assert name in str(error.value) and "\n" not in str(error.value)


def test_weights_of_another_backbone_are_refused_by_their_header(tmp_path):
    files = written(tmp_path, "dino@vits16", random_state(shapes_of("dino@vits16")))
    check_scorer(files)
    for other in ("dino@vits8", "clip@vitb32"):
        with pytest.raises(UserError, match=f"does not fit the architecture of {other}"):
            check_scorer(ScorerFiles(backbones()[other], files.weights))
    whole = files.weights.read_bytes()
    files.weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="not a readable safetensors file"):
        check_scorer(files)


@pytest.mark.parametrize("name", NAMES)
def test_preprocessing_is_that_of_field(name):
    config = read_config(backbones()[name])
    kind = config["kind"]
    resize, norm = (256, IMAGENET) if kind == "dino" else (224, OPENAI)
    ours = Preprocess(**config["preprocess"])
    assert (ours.mean, ours.std) == norm
    for width, height in ((1024, 1024), (640, 463), (331, 900), (200, 150), (225, 300)):
        image = picture(width, height)
        expected = field(resize, *norm)(image)
        found = ours([np.asarray(image)])[0]
        assert float((found - expected).abs().max()) < 1e-6


def test_dino_is_not_resized_as_timm_would():
    import timm
    from timm.data.config import resolve_data_config
    from timm.data.transforms_factory import create_transform

    timms = resolve_data_config({}, model=timm.create_model("vit_small_patch16_224.dino", num_classes=0))
    transform: Any = create_transform(**timms)
    image = picture(615, 615)
    theirs = transform(image)
    ours = Preprocess(**read_config(backbones()["dino@vits16"])["preprocess"])([np.asarray(image)])[0]
    assert float((theirs - ours).abs().mean()) > 0.01


def test_crops_round_to_middle_where_rest_is_odd():
    side = 224
    image = np.zeros((side, side + 3, 3), np.uint8)
    image[:, 2 : 2 + side] = np.arange(side, dtype=np.uint8)[None, :, None]
    found = Preprocess(side, side, (0, 0, 0), (1, 1, 1))([image])[0] * 255
    assert torch.equal(found[0, 0].round(), torch.arange(float(side)))  # 1.5 is rounded to 2, not truncated to 1


@pytest.mark.parametrize("mode", ["L", "P", "CMYK", "LA", "RGBA", "I;16"])
def test_pictures_of_every_mode_become_rgb(mode):
    colors = picture(40, 30)
    image = Image.new("I;16", (40, 30), 300) if mode == "I;16" else colors.convert(mode)
    found = to_uint8(image)
    assert found.shape == (30, 40, 3) and found.dtype == np.uint8
    if mode == "I;16":
        assert (found == 300 // 256).all()  # scaled, not clipped
    if mode in ("CMYK", "RGBA"):
        assert np.abs(found.astype(int) - np.asarray(colors)).max() <= 1


def test_half_transparent_pixels_are_laid_on_white_and_exif_turns_picture():
    half = to_uint8(Image.new("RGBA", (2, 2), (0, 0, 0, 128)))
    assert abs(int(half[0, 0, 0]) - 127) <= 1
    sideways = picture(40, 30)
    sideways.getexif()[0x0112] = 6
    assert np.array_equal(to_uint8(sideways), np.rot90(np.asarray(sideways), -1))


def test_floats_are_refused_whatever_their_range():
    dino = Preprocess(**read_config(backbones()["dino@vits16"])["preprocess"])
    for image in (np.ones((300, 300, 3), np.float32), 255 * np.ones((300, 300, 3)), np.ones((300, 300), np.uint8)):
        with pytest.raises(TypeError, match="uint8"):
            dino([image])


def vit(state, dim, layers, names):
    """Convert timm's names to a transformers model: separate q, k and v, and LayerScale if present."""
    found = {}
    for i in range(layers):
        at, to = f"blocks.{i}.", names["layer"].format(i)
        for part in ("weight", "bias"):
            for which, value in zip("qkv", state[f"{at}attn.qkv.{part}"].split(dim), strict=True):
                found[f"{to}attention.{which}_proj.{part}"] = value
            found[f"{to}attention.o_proj.{part}"] = state[f"{at}attn.proj.{part}"]
            for ours, theirs in (
                ("norm1", names["norm1"]),
                ("norm2", names["norm2"]),
                ("mlp.fc1",) * 2,
                ("mlp.fc2",) * 2,
            ):
                found[f"{to}{theirs}.{part}"] = state[f"{at}{ours}.{part}"]
        for k in (1, 2):
            if f"{at}ls{k}.gamma" in state:
                found[f"{to}layer_scale{k}.lambda1"] = state[f"{at}ls{k}.gamma"]
    for part in ("weight", "bias"):
        found[f"embeddings.patch_embeddings.projection.{part}"] = state[f"patch_embed.proj.{part}"]
        found[f"layernorm.{part}"] = state[f"norm.{part}"]
    return found | {"embeddings.cls_token": state["cls_token"], "embeddings.position_embeddings": state["pos_embed"]}


@pytest.mark.parametrize("name", ["dino@vits16", "dino@vits8"])
def test_dino_is_class_token_of_second_implementation(tmp_path, name):
    from transformers import ViTConfig, ViTModel

    patch = int(name.removeprefix("dino@vits"))
    state, image = random_state(shapes_of(name), shared_blocks=True), picture(640, 463)
    config = ViTConfig(
        hidden_size=384, num_hidden_layers=12, num_attention_heads=6, intermediate_size=1536, patch_size=patch,
        layer_norm_eps=1e-6,
    )  # fmt: skip
    model = ViTModel(config, add_pooling_layer=False).eval()
    names = {"layer": "layers.{}.", "norm1": "layernorm_before", "norm2": "layernorm_after"}
    model.load_state_dict(vit(state, 384, 12, names), strict=True)
    with torch.no_grad():
        expected = model(field(256, *IMAGENET)(image)[None]).last_hidden_state[:, 0]
    found = load_scorer(written(tmp_path, name, state)).embed([to_uint8(image)])
    assert same(found["content"], expected)
    assert torch.equal(found["content"], found["style"])


def test_dinov2_at_224_has_positions_resampled_as_in_dreambench_pp(tmp_path):
    from transformers import Dinov2Config, Dinov2Model

    name, image = "dinov2@vits14", picture(500, 500)
    state = random_state(shapes_of(name), shared_blocks=True)
    config = Dinov2Config(
        hidden_size=384, num_hidden_layers=12, num_attention_heads=6, image_size=518, patch_size=14,
        layer_norm_eps=1e-6, use_mask_token=False,
    )  # fmt: skip
    model = Dinov2Model(config).eval()
    names = {"layer": "encoder.layer.{}.", "norm1": "norm1", "norm2": "norm2"}
    model.load_state_dict(vit(state, 384, 12, names), strict=True)
    with torch.no_grad():
        expected = model(field(256, *IMAGENET)(image)[None]).last_hidden_state[:, 0]
    scorer = load_scorer(written(tmp_path, name, state | {"mask_token": torch.zeros(1, 384)}))
    assert same(scorer.embed([to_uint8(image)])["content"], expected)


def test_clip_in_both_layouts_is_that_of_transformers(tmp_path):
    """This also checks QuickGELU, because GELU would give other features."""
    from transformers import CLIPConfig, CLIPModel

    from lorabench.scoring.layouts import translated

    config = CLIPConfig()  # the configuration of openai/clip-vit-base-patch32
    with Unfilled():
        model: Any = CLIPModel(config).eval()
    theirs = random_state({key: tuple(value.shape) for key, value in model.state_dict().items()}, shared_blocks=True)
    model.load_state_dict(theirs, strict=True)
    counters = {"text_model.embeddings.position_ids": torch.arange(77)[None]}  # the published file has them too
    files = written(tmp_path, "clip@vitb32", theirs | counters)
    scorer: Any = load_scorer(files)
    image = picture(463, 640)
    texts = ["a sks dog in szn style", "A dog, in watercolor painting style!"]
    pixels, tokens = field(224, *OPENAI)(image)[None], scorer.tokenizer(texts)
    with torch.no_grad():
        seen = model.get_image_features(pixels).pooler_output
        read = model.get_text_features(tokens).pooler_output
        here = scorer.embed([to_uint8(image)])
        assert same(here["content"], seen) and same(scorer.embed_text(texts), read)
        for layer in (*model.vision_model.encoder.layers, *model.text_model.encoder.layers):
            layer.mlp.activation_fn = torch.nn.GELU()
        assert not same(here["content"], model.get_image_features(pixels).pooler_output, 1e-4)
        assert not same(scorer.embed_text(texts), model.get_text_features(tokens).pooler_output, 1e-4)
    shapes = {key: tuple(value.shape) for key, value in translated(theirs, read_config(files.config)).items()}
    assert shapes == shapes_of("clip@vitb32")


def plain_tower(state, pixels, heads):
    """Compute OpenAI's image tower up to ln_post of the class token; `state` has names without a prefix."""
    x = F.conv2d(pixels, state["conv1.weight"], stride=state["conv1.weight"].shape[-1]).flatten(2).transpose(1, 2)
    start = state["class_embedding"].expand(len(x), 1, -1)
    x = torch.cat([start, x], dim=1) + state["positional_embedding"]

    def norm(x, name):
        return F.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"], 1e-5)

    def product(x, name):
        return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]

    x, depth = norm(x, "ln_pre"), sum(name.endswith("ln_1.weight") for name in state)
    for i in range(depth):
        at = f"transformer.resblocks.{i}"
        joint = norm(x, f"{at}.ln_1") @ state[f"{at}.attn.in_proj_weight"].T + state[f"{at}.attn.in_proj_bias"]
        q, k, v = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in joint.chunk(3, dim=-1))
        weights = (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).softmax(dim=-1)
        x = x + product((weights @ v).transpose(1, 2).flatten(2), f"{at}.attn.out_proj")
        hidden = product(norm(x, f"{at}.ln_2"), f"{at}.mlp.c_fc")
        x = x + product(hidden * torch.sigmoid(1.702 * hidden), f"{at}.mlp.c_proj")
    return norm(x[:, 0], "ln_post")


def test_csd_from_its_training_checkpoint_is_plain_formula(tmp_path, monkeypatch, capsys):
    """The pickle has a namespace, a numpy scalar and an optimizer; it is the only one in full size."""
    from real_weights import csd_shapes
    from test_weight_files import csd_checkpoint

    from lorabench.scoring.convert_csd import main

    state, image = random_state(csd_shapes(), shared_blocks=True), picture(640, 463)
    checkpoint, target = csd_checkpoint(tmp_path / "checkpoint.pth", state), tmp_path / "csd.safetensors"
    assert main(["", str(checkpoint), str(target)]) == 0
    assert f"scorers.weights.csd_vitl14={target}" in capsys.readouterr().out
    found = load_scorer(ScorerFiles(backbones()["csd@vitl14"], target)).embed([to_uint8(image)])
    backbone = {key.removeprefix("backbone."): value for key, value in state.items() if key.startswith("backbone.")}
    with torch.no_grad():
        feature = plain_tower(backbone, field(224, *OPENAI)(image)[None], heads=16)
    for role in ("content", "style"):
        assert same(found[role], feature @ state[f"last_layer_{role}"])
    assert not same(found["content"], feature @ state["last_layer_style"], 1e-2)


def test_descriptions_say_where_weights_come_from():
    for name, path in backbones().items():
        config = json.loads(path.read_text())
        assert config["name"] == name and "/" in config["weights"]["hub"] and config["weights"]["file"]
        if config["kind"] != "dino":
            assert config["architecture"]["model"].endswith("-quickgelu")


def test_every_published_backbone_has_its_key_on_command_line():
    from omegaconf import OmegaConf

    from lorabench.base import CONF
    from lorabench.scoring.files import key_of

    real = OmegaConf.load(CONF / "scorers" / "real.yaml")
    assert set(real.weights) == {key_of(name) for name in backbones()}
    assert set(real.backbones) <= set(backbones())
