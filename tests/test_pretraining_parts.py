"""Parts of a training of the micro models: tokens, latent code, networks and losses."""

from typing import Any

import pytest
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from small_pretraining import pictures

from lorabench.data import microworld as mw
from lorabench.models.files import MICRO
from pretraining import bank, heldout
from pretraining.architecture import build_scheduler, build_unet
from pretraining.encoded import CODE
from pretraining.heldout import heldout_losses
from pretraining.latents import PatchPCA, encode_bank, to_tensor
from pretraining.tokens import IDENTIFIERS, build_tokenizer, tokenize
from pretraining.transformer import FlowLoss, build_flow_scheduler, build_transformer
from pretraining.unet import VLoss


def test_every_word_of_world_is_one_token():
    tokenizer = build_tokenizer()
    for word in [*mw.vocabulary(), *IDENTIFIERS]:
        assert len(tokenizer.tokenize(word)) == 1, word
    assert len(tokenizer.tokenize("wombat")) > 1
    assert tokenizer.unk_token_id not in tokenizer("an oil painting of a dog, 3-d", add_special_tokens=False).input_ids


def test_patch_code_is_best_linear_one():
    """The reconstruction error equals the variance of the omitted components; with all 48 it is zero."""
    images = to_tensor(pictures())
    whole = PatchPCA.fit(pictures(), channels=48)
    assert torch.allclose(whole.decode(whole.encode(images)), images, atol=1e-4)
    pca = PatchPCA.fit(pictures())
    latents = pca.encode(images)
    assert latents.shape == (60, 12, 16, 16)
    assert latents.var(dim=(0, 2, 3), correction=0).mean() == pytest.approx(1, rel=1e-3)
    patches = torch.nn.functional.unfold(images, 4, stride=4).transpose(1, 2).reshape(-1, 48)
    spread = torch.linalg.svdvals((patches - patches.mean(0)).double()).square()
    linear = torch.nn.functional.fold(
        torch.einsum("pk,nkl->npl", pca.decoder, latents.flatten(2)) + pca.mean[:, None], (64, 64), 4, stride=4
    )
    assert (linear - images).square().sum().item() == pytest.approx(spread[12:].sum().item(), rel=1e-2)


def test_bank_latents_match_code():
    pca = PatchPCA.fit(pictures())
    expected = pca.encode(to_tensor(pictures()))
    assert torch.allclose(encode_bank(pca, [pictures()]).float(), expected, atol=2e-2)


def test_shipped_code_is_latent_space_of_shipped_vae():
    vae: Any = AutoencoderKL.from_pretrained(MICRO / "vae")
    with torch.no_grad():
        mean = vae.encode(to_tensor(pictures()[:8])).latent_dist.mean
    assert (mean - PatchPCA.load(CODE).encode(to_tensor(pictures()[:8]))).square().mean() < 2e-3


def test_last_step_is_only_noise():
    """Terminal SNR: SDXL's own schedule would leave the mean color visible (SNR 0.005)."""
    alpha_bar = build_scheduler().alphas_cumprod[-1]
    assert alpha_bar / (1 - alpha_bar) < 1e-4


def test_unet_has_blocks_of_sdxl():
    names = {name.split(".transformer_blocks")[0] for name, _ in build_unet().named_modules() if "attn2" in name}
    expected = {f"down_blocks.{b}.attentions.{i}" for b in (1, 2) for i in (0, 1)}
    expected |= {f"up_blocks.{b}.attentions.{i}" for b in (0, 1) for i in (0, 1, 2)} | {"mid_block.attentions.0"}
    assert names == expected


def test_blocks_of_new_transformer_change_nothing():
    transformer = build_transformer(32, 2, 2)
    block = transformer.transformer_blocks[0]
    image, text, time = torch.randn(2, 64, 32), torch.randn(2, 32, 32), torch.randn(2, 32)
    text_out, image_out = block(hidden_states=image, encoder_hidden_states=text, temb=time)
    assert torch.equal(image_out, image) and torch.equal(text_out, text)


class Predicts(torch.nn.Module):
    """Predicts a multiple of the noisy latents and keeps its input."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, noisy, t, ids):
        self.noisy, self.t, self.ids = noisy, t, ids
        return self.factor * noisy


def batch_of_four():
    x0 = torch.randn(4, 12, 16, 16, generator=torch.Generator().manual_seed(0))
    return x0, tokenize(["a mug", "a cat", "a red duck", "a boat in ink style"]).long()


@pytest.mark.parametrize("loss", [VLoss(), FlowLoss()])
def test_loss_does_not_depend_on_number_of_devices(loss):
    x0, ids = batch_of_four()
    model, place = Predicts(0.3), torch.device("cpu")
    whole = loss(model, x0, ids, 7, slice(0, 4), place)
    halves = [loss(model, x0, ids, 7, rows, place) for rows in (slice(0, 2), slice(2, 4))]
    assert whole.item() == pytest.approx(torch.stack(halves).mean().item())


def test_loss_of_unet_draws_as_for_shipped_weights():
    """The number was computed by the code that trained the shipped weights."""
    loss = VLoss()(Predicts(0.3), *batch_of_four(), 7, slice(0, 4), torch.device("cpu"))
    assert loss.item() == pytest.approx(0.8985719680786133, rel=1e-6)


def test_loss_is_error_of_v_with_capped_weight():
    clean = torch.randn(4, 12, 16, 16, generator=torch.Generator().manual_seed(0))
    model = Predicts(0.0)
    loss = VLoss()(model, clean, torch.zeros(4, 32).long(), 3, slice(0, 4), torch.device("cpu"))
    # With v predicted as zero the clean estimate is sqrt(abar) x_t, so |v|^2 = |x_0 - sqrt(abar) x_t|^2 / (1 - abar).
    abar = build_scheduler().alphas_cumprod[model.t].view(-1, 1, 1, 1)
    squared = (clean - abar.sqrt() * model.noisy).square() / (1 - abar)
    snr = abar / (1 - abar)
    assert loss.item() == pytest.approx((torch.clamp(5 / (snr + 1), max=1) * squared).mean().item(), rel=1e-4)


def test_loss_of_transformer_is_that_of_training_script():
    """diffusers' train_dreambooth_lora_sd3.py: logit_normal places u index the table of the scheduler."""
    x0, ids = batch_of_four()
    model = Predicts(0.3)
    scheduler: Any = build_flow_scheduler()
    loss = FlowLoss()(model, x0, ids, 7, slice(0, 4), torch.device("cpu"))
    rng = torch.Generator().manual_seed(7)
    torch.rand(4, 1, generator=rng)
    u = torch.nn.functional.sigmoid(torch.normal(mean=0.0, std=1.0, size=(4,), generator=rng))
    indices = (u * len(scheduler.timesteps)).long()
    noise = torch.randn(x0.shape, generator=rng)
    sigmas = scheduler.sigmas[indices].view(4, 1, 1, 1)
    noisy = (1.0 - sigmas) * x0 + sigmas * noise
    assert torch.allclose(model.t, scheduler.timesteps[indices], atol=1e-3)
    assert torch.allclose(model.noisy, noisy, atol=1e-5)
    expected = ((0.3 * noisy - (noise - x0)) ** 2).reshape(4, -1).mean(1).mean()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-4)


def test_heldout_loss_is_error_of_v():
    """With v predicted as zero, the mean of v^2 is abar + (1 - abar) E[x0^2], or 1 + E[x0^2], for independent noise."""
    x0 = 0.5 * torch.randn(128, 12, 16, 16, generator=torch.Generator().manual_seed(1))
    abar = build_scheduler().alphas_cumprod
    for loss in (VLoss(), FlowLoss()):
        losses = heldout_losses(Predicts(0.0), loss, x0, torch.zeros(128, 32))
        assert list(losses) == list(loss.levels)
        for t, found in losses.items():
            expected = float(abar[t] + (1 - abar[t]) * 0.25) if isinstance(loss, VLoss) else 1.25
            assert found == pytest.approx(expected, rel=0.02)


def test_heldout_pictures_are_outside_every_bank():
    assert bank.HELDOUT_FROM > 10_000_000
    latents, ids = heldout.heldout_data(count=2)
    assert latents.shape == (2, 12, 16, 16) and ids.shape == (2, 32)
