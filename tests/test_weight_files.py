"""Sources of weights (a given file, the hub's cache, none), and pickles read without executing code."""

import argparse
import logging
import os
import zipfile
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import numpy as np
import pytest
import torch
from real_weights import DINO, dino_shapes, random_state
from safetensors.torch import load_file, save_file
from tiny_scorers import write_scorer

from lorabench.base import UserError
from lorabench.config.schemas import ScorerSpec
from lorabench.scoring.backbone_weights import find_weights
from lorabench.scoring.convert_csd import main
from lorabench.scoring.description import KINDS, read_config
from lorabench.scoring.files import backbones, scorer_set
from lorabench.scoring.networks import build_network
from lorabench.scoring.pickles import convert

SPEC = ScorerSpec(name="real", path=None, backbones=["dino@vits16"], weights={"dino_vits16": None, "dino_vitb8": None})
DINO_CONFIG = read_config(backbones()["dino@vits16"])
SMALL = {"architecture": {"config": {
    "embed_dim": 16, "quick_gelu": True,
    "vision_cfg": {"image_size": 16, "patch_size": 8, "width": 32, "layers": 1, "head_width": 16},
    "text_cfg": {"context_length": 12, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
}}}  # fmt: skip
SMALL_CSD = {**read_config(backbones()["csd@vitl14"]), **SMALL}


@pytest.fixture(autouse=True)
def offline(tmp_path, monkeypatch):
    """Make the hub unreachable and use empty caches."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_ASSETS_CACHE", str(tmp_path / "assets"))


def csd_checkpoint(path, state):
    """Write a checkpoint like the published one: prefixed names, optimizer, arguments, a scalar of an old numpy."""
    wrapped = OrderedDict((f"module.{name}", value) for name, value in state.items())
    optimizer = {"state": {0: {"exp_avg": torch.zeros(3)}}, "param_groups": [{"lr": np.float64(1e-4)}]}
    whole = {
        "model_state_dict": wrapped, "opt_bb": optimizer, "opt_proj": optimizer, "iter": np.float64(80000),
        "args": argparse.Namespace(arch="vit_large", lr=3e-4), "fp16_scaler": None,
    }  # fmt: skip
    torch.save(whole, path.with_suffix(".new"))
    with zipfile.ZipFile(path.with_suffix(".new")) as new, zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as old:
        for entry in new.infolist():
            data = new.read(entry)
            if entry.filename.endswith("data.pkl"):
                assert b"numpy._core.multiarray" in data
                data = data.replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
            old.writestr(entry.filename, data)
    return path


def small_csd():
    torch.manual_seed(0)
    return {name: torch.randn(value.shape) for name, value in build_network(SMALL_CSD).state_dict().items()}


def cached(folder, repository, file, state):
    """Write one file of one repository into the hub's cache."""
    root = folder / "hub" / f"models--{repository.replace('/', '--')}"
    snapshot = root / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (root / "refs").mkdir()
    (root / "refs" / "main").write_text("0" * 40)
    save_file(state, snapshot / file)
    return snapshot / file


def one_line(error, *words):
    text = str(error.value)
    assert "\n" not in text and all(word in text for word in words), text


def test_weights_come_from_hubs_cache_without_connection(tmp_path):
    path = cached(tmp_path, "timm/vit_small_patch16_224.dino", "model.safetensors", {"x": torch.zeros(1)})
    found = scorer_set(SPEC)
    assert [files.weights for files in found.scorers] == [path] and found.truth is None
    assert found.sources() == [backbones()["dino@vits16"], path]


def test_given_file_goes_before_cache(tmp_path):
    cached(tmp_path, "timm/vit_small_patch16_224.dino", "model.safetensors", {"x": torch.zeros(1)})
    save_file({"x": torch.zeros(1)}, tmp_path / "own.safetensors")
    own = replace(SPEC, weights={"dino_vits16": str(tmp_path / "own.safetensors")})
    assert scorer_set(own).scorers[0].weights == tmp_path / "own.safetensors"


def test_nothing_here_and_no_connection_is_one_line_that_says_what_to_get():
    with pytest.raises(UserError) as error:
        scorer_set(SPEC)
    one_line(
        error, "dino@vits16", "model.safetensors", "timm/vit_small_patch16_224.dino", "scorers.weights.dino_vits16="
    )


def test_hubs_own_warnings_are_not_shown(monkeypatch, caplog):
    """The host refuses connections; the client would warn about each of its attempts."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", "http://127.0.0.1:9/{filename}")
    monkeypatch.setattr(logging.getLogger("huggingface_hub"), "propagate", True)  # to caplog
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)
    with pytest.raises(UserError, match="the hub cannot be reached"):
        scorer_set(SPEC)
    assert not caplog.records


def test_what_is_named_wrongly_is_one_line(tmp_path):
    (tmp_path / "notes.txt").write_text("x")
    for change, words in (
        ({"backbones": ["dino@vits6"]}, ("dino@vits6", "dino@vits16")),
        ({"weights": {"dino@vits16": "x"}}, ("dino_vits16",)),
        ({"weights": {"dino_vitb8": "x"}}, ("scorers.backbones=[dino@vits16,dino@vitb8]",)),
        ({"weights": {"dino_vits16": "nowhere.safetensors"}}, ("nowhere.safetensors", "model.safetensors")),
        ({"weights": {"dino_vits16": str(tmp_path / "notes.txt")}}, ("must be a .safetensors file",)),
        ({"backbones": [], "weights": {}}, ("scorers=real",)),
        ({"path": str(tmp_path), "backbones": []}, ("scorers=micro",)),
    ):
        with pytest.raises(UserError) as error:
            scorer_set(replace(SPEC, **change))
        one_line(error, *words)


def test_folders_and_published_backbones_score_together(tmp_path):
    for kind in KINDS:
        write_scorer(tmp_path / "own" / kind, kind)
    cached(tmp_path, "timm/vit_small_patch16_224.dino", "model.safetensors", {"x": torch.zeros(1)})
    found = scorer_set(replace(SPEC, path=str(tmp_path / "own")))
    assert [read_config(files.config)["name"] for files in found.scorers] == [
        "dino@test", "clip@test", "csd@test", "dino@vits16",
    ]  # fmt: skip
    write_scorer(tmp_path / "own" / "again", "dino")
    with pytest.raises(UserError, match="scorer dino@test is defined twice"):
        scorer_set(replace(SPEC, path=str(tmp_path / "own"), backbones=[]))
    assert scorer_set(replace(SPEC, path="micro", backbones=[])).truth is not None


def test_pickle_of_weights_is_converted_once(tmp_path):
    state = random_state(dino_shapes(*DINO["vits16"]), shared_blocks=True)
    path = tmp_path / "dino_deitsmall16_pretrain.pth"
    torch.save(state, path)
    found = find_weights(DINO_CONFIG, "dino_vits16", str(path))
    assert found.suffix == ".safetensors" and found.is_relative_to(tmp_path / "assets")
    assert all(torch.equal(value, state[name]) for name, value in load_file(found).items())
    stamp = found.stat().st_mtime_ns
    assert find_weights(DINO_CONFIG, "dino_vits16", str(path)) == found and found.stat().st_mtime_ns == stamp
    os.utime(path, (1, 1))
    assert find_weights(DINO_CONFIG, "dino_vits16", str(path)) != found
    with pytest.raises(UserError, match="does not fit the architecture of dino@vitb8"):
        find_weights(read_config(backbones()["dino@vitb8"]), "dino_vitb8", str(path))


def test_csd_checkpoint_gives_its_model_alone(tmp_path):
    state = small_csd()
    convert(csd_checkpoint(tmp_path / "checkpoint.pth", state), tmp_path / "csd.safetensors", SMALL_CSD)
    found = load_file(tmp_path / "csd.safetensors")
    assert found.keys() == state.keys() and all(torch.equal(found[name], state[name]) for name in state)
    assert not list(tmp_path.glob("csd.safetensors.*"))


class Opens:
    """A pickle that writes a file when it is loaded without restrictions."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_what_is_no_csd_checkpoint_is_one_line(tmp_path):
    state, path, target = small_csd(), tmp_path / "checkpoint.pth", tmp_path / "csd.safetensors"
    wrapped = {"model_state_dict": {f"module.{name}": value for name, value in state.items()}}
    lost = {"model_state_dict": {name: value for name, value in state.items() if name != "last_layer_style"}}
    heads = {"last_layer_style": "backbone", "x": 1}
    for content, words in (
        (state, ("not a CSD checkpoint", "tomg-group-umd/CSD-ViT-L")),
        (lost, ("1 tensors missing", "last_layer_style")),
        ({"model_state_dict": {**state, "fc.weight": torch.zeros(2)}}, ("1 unknown", "fc.weight")),
        ({"model_state_dict": heads}, ("more than tensors",)),
        (wrapped | {"args": Opens(tmp_path / "opened")}, ("without executing code",)),
        ([1, 2], ("contains a list",)),
    ):
        torch.save(content, path)
        with pytest.raises(UserError) as error:
            convert(path, target, SMALL_CSD)
        one_line(error, str(path), *words)
    whole = path.read_bytes()
    for data, words in (
        (whole[: len(whole) // 2], "download it again"),
        (b"<html>Google Drive can't scan this file</html>", "without executing code"),
        (b"", "without executing code"),
    ):
        path.write_bytes(data)
        with pytest.raises(UserError) as error:
            convert(path, target, SMALL_CSD)
        one_line(error, str(path), words)
    torch.jit.script(torch.nn.Linear(2, 2)).save(str(path))
    with pytest.raises(UserError) as error:
        convert(path, target, SMALL_CSD)
    one_line(error, str(path), "safetensors")
    assert not target.exists() and not (tmp_path / "opened").exists()


def test_another_file_under_published_name_is_refused(tmp_path):
    config = read_config(backbones()["csd@vitl14"])
    path = cached(tmp_path, config["weights"]["hub"], config["weights"]["file"], {"x": torch.zeros(1)})
    with pytest.raises(UserError) as error:
        find_weights(config, "csd_vitl14", None)
    one_line(error, str(path), "sha256", config["weights"]["sha256"][:12])


def test_command_says_what_to_type(tmp_path, capsys):
    assert main(["", "checkpoint.pth"]) == 2 and "csd.safetensors" in capsys.readouterr().err
    assert main(["", str(tmp_path / "checkpoint.pth"), str(tmp_path / "csd.safetensors")]) == 2
    assert "checkpoint not found" in capsys.readouterr().err


def test_run_compares_headers_before_it_trains(tmp_path):
    from types import SimpleNamespace

    from lorabench.tasks.checks import check_scorers

    path = cached(
        tmp_path, "timm/vit_small_patch16_224.dino", "model.safetensors", {"cls_token": torch.zeros(1, 1, 384)}
    )
    plan: Any = SimpleNamespace(scorers=scorer_set(SPEC))
    with pytest.raises(UserError) as error:
        check_scorers(plan)
    one_line(error, str(path), "dino@vits16", "149 tensors missing")
