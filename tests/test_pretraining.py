"""Pretraining of the micro model: its pieces, its loss, and a stopped training that goes on as if never stopped."""

import json
from functools import partial

import numpy as np
import pytest
import torch

from lorabench.data import microworld as mw
from lorabench.micro import bank
from lorabench.micro.architecture import build_scheduler, build_unet
from lorabench.micro.export import averaged, export
from lorabench.micro.latents import PatchPCA, encode_bank, to_tensor
from lorabench.micro.tokens import IDENTIFIERS, build_tokenizer
from lorabench.micro.unet import Denoiser, Pretraining, pretrain, tokenize
from lorabench.micro.vae import distil
from lorabench.models.sdxl import SDXL


@pytest.fixture(scope="module")
def pictures():
    return np.stack([bank.picture(i)[0] for i in range(60)])


@pytest.fixture
def work(tmp_path, pictures, monkeypatch):
    """A working folder with one small shard."""
    monkeypatch.setattr(bank, "SHARD", len(pictures))
    (tmp_path / "bank").mkdir()
    np.save(tmp_path / "bank" / "0000.npy", pictures)
    (tmp_path / "bank" / "0000.json").write_text(json.dumps(["a mug"] * len(pictures)))
    return tmp_path


def test_every_word_of_the_world_is_one_token():
    tokenizer = build_tokenizer()
    for word in [*mw.vocabulary(), *IDENTIFIERS]:
        assert len(tokenizer.tokenize(word)) == 1, word
    assert len(tokenizer.tokenize("wombat")) > 1
    assert tokenizer.unk_token_id not in tokenizer("an oil painting of a dog, 3-d", add_special_tokens=False).input_ids


def test_patch_code_is_the_best_linear_one(pictures):
    """Reconstruction error equals the variance of the components left out; with all 48 nothing is lost."""
    images = to_tensor(pictures)
    whole = PatchPCA.fit(pictures, channels=48)
    assert torch.allclose(whole.decode(whole.encode(images)), images, atol=1e-4)
    pca = PatchPCA.fit(pictures)
    latents = pca.encode(images)
    assert latents.shape == (60, 12, 16, 16)
    assert latents.var(dim=(0, 2, 3), correction=0).mean() == pytest.approx(1, rel=1e-3)
    patches = torch.nn.functional.unfold(images, 4, stride=4).transpose(1, 2).reshape(-1, 48)
    spread = torch.linalg.svdvals((patches - patches.mean(0)).double()).square()
    linear = torch.nn.functional.fold(
        torch.einsum("pk,nkl->npl", pca.decoder, latents.flatten(2)) + pca.mean[:, None], (64, 64), 4, stride=4
    )
    assert (linear - images).square().sum().item() == pytest.approx(spread[12:].sum().item(), rel=1e-2)


def test_bank_latents_match_the_code(pictures):
    pca = PatchPCA.fit(pictures)
    expected = pca.encode(to_tensor(pictures))
    assert torch.allclose(encode_bank(pca, [pictures]).float(), expected, atol=2e-2)


def test_the_last_step_is_noise_alone():
    """Terminal SNR: SDXL's own schedule would leave the mean colour visible (SNR 0.005)."""
    alpha_bar = build_scheduler().alphas_cumprod[-1]
    assert alpha_bar / (1 - alpha_bar) < 1e-4


def test_unet_has_the_blocks_of_sdxl():
    names = {name.split(".transformer_blocks")[0] for name, _ in build_unet().named_modules() if "attn2" in name}
    expected = {f"down_blocks.{b}.attentions.{i}" for b in (1, 2) for i in (0, 1)}
    expected |= {f"up_blocks.{b}.attentions.{i}" for b in (0, 1) for i in (0, 1, 2)} | {"mid_block.attentions.0"}
    assert names == expected


def test_stopped_training_goes_on_as_if_never_stopped(work, monkeypatch):
    narrow = partial(build_unet, widths=(8, 16, 16), heads=(1, 2, 2), layers=(1, 1, 2), groups=8)
    monkeypatch.setattr("lorabench.micro.unet.build_unet", narrow)

    def train(name: str) -> dict[str, torch.Tensor]:
        pretrain(work, work / name, steps=4, decay=2, batch=2, lr=1e-3, devices=1, start=None, save_every=2)
        return torch.load(work / name / "last.ckpt", weights_only=True)["state_dict"]

    undisturbed = train("undisturbed")
    step = Pretraining.training_step

    def dying(self, *args):
        if self.global_step == 3:
            raise OSError("power cut")
        return step(self, *args)

    with monkeypatch.context() as patch, pytest.raises(OSError, match="power cut"):
        patch.setattr(Pretraining, "training_step", dying)
        train("stopped")
    resumed = train("stopped")
    assert all(torch.equal(weight, resumed[name]) for name, weight in undisturbed.items())


def test_checkpoints_become_a_pipeline_that_loads(work):
    """Two steps of each training, exported: what ships is what diffusers reads back."""
    pretrain(work, work / "unet", steps=2, decay=1, batch=2, lr=1e-3, devices=1, start=None)
    distil(work, steps=2, decay=1, batch=2, lr=1e-3)
    size = export(work / "unet" / "last.ckpt", work / "vae" / "model", work / "pipeline")
    assert 30e6 < size < 40e6
    assert not [p for p in (work / "pipeline").rglob("*.json") if str(work) in p.read_text()], "paths of this machine"
    loaded = SDXL.load(work / "pipeline")
    trained = averaged(work / "unet" / "last.ckpt").unet.state_dict()
    for name, weight in loaded.unet.state_dict().items():
        assert torch.equal(weight, trained[name].half().float()), name
    assert (loaded.prediction_type, loaded.resolution) == ("v_prediction", 64)


def test_loss_is_the_error_of_v_with_a_capped_weight(pictures, monkeypatch):
    latents = encode_bank(PatchPCA.fit(pictures), [pictures])
    module = Pretraining(latents, tokenize(["a mug"] * 60), batch=4, lr=1e-3, steps=1, decay=1)
    seen = {}

    def predict(noisy, t, ids):
        seen.update(noisy=noisy, t=t)
        return torch.zeros_like(noisy)

    monkeypatch.setattr(Denoiser, "forward", lambda self, *args: predict(*args))
    monkeypatch.setattr(module, "log", lambda *args, **kwargs: None)
    loss = module.training_step(torch.zeros(1), 0)
    # With v predicted as zero the clean estimate is sqrt(abar) x_t, so |v|^2 = |x_0 - sqrt(abar) x_t|^2 / (1 - abar).
    abar = build_scheduler().alphas_cumprod[seen["t"]].view(-1, 1, 1, 1)
    rng = torch.Generator().manual_seed(0)
    clean = latents[torch.randint(60, (4,), generator=rng)].float()
    squared = (clean - abar.sqrt() * seen["noisy"]).square() / (1 - abar)
    snr = abar / (1 - abar)
    assert loss.item() == pytest.approx((torch.clamp(5 / (snr + 1), max=1) * squared).mean().item(), rel=1e-4)
