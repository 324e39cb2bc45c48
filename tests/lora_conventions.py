"""LoRA files in the conventions of other programs, written independently of the code under test.

Content is {layer: (down, up, alpha)}. Layers are "unet.<path>", "text_encoder.<path>" and "text_encoder_2.<path>" with
the module paths of a loaded pipeline; alpha is None if the convention has none.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, tensor

LDM_BLOCKS = {
    "down_blocks_1_attentions_0": "input_blocks_4_1",
    "down_blocks_1_attentions_1": "input_blocks_5_1",
    "down_blocks_2_attentions_0": "input_blocks_7_1",
    "down_blocks_2_attentions_1": "input_blocks_8_1",
    "mid_block_attentions_0": "middle_block_1",
    "up_blocks_0_attentions_0": "output_blocks_0_1",
    "up_blocks_0_attentions_1": "output_blocks_1_1",
    "up_blocks_0_attentions_2": "output_blocks_2_1",
    "up_blocks_1_attentions_0": "output_blocks_3_1",
    "up_blocks_1_attentions_1": "output_blocks_4_1",
    "up_blocks_1_attentions_2": "output_blocks_5_1",
}
LDM_RESNETS = {
    **{f"down_blocks_{i // 3}_resnets_{i % 3}": f"input_blocks_{i + 1}_0" for i in (0, 1, 3, 4, 6, 7)},
    **{f"mid_block_resnets_{i}": f"middle_block_{2 * i}" for i in (0, 1)},
    **{f"up_blocks_{i // 3}_resnets_{i % 3}": f"output_blocks_{i}_0" for i in range(9)},
}
LDM_LAYERS = {
    **{f"{ours}_time_emb_proj": f"{theirs}_emb_layers_1" for ours, theirs in LDM_RESNETS.items()},
    "time_embedding_linear_1": "time_embed_0",
    "time_embedding_linear_2": "time_embed_2",
    "add_embedding_linear_1": "label_emb_0_0",
    "add_embedding_linear_2": "label_emb_0_2",
}
Triples = dict[str, tuple[Tensor, Tensor, float | None]]


def with_text_model(layer: str) -> str:
    """Insert `text_model` for the first encoder, as files have it; transformers 5 has removed this module."""
    return layer.replace("text_encoder.", "text_encoder.text_model.", 1)


def keyed(triples: Triples, name: Callable[[str], str], down: str, up: str, alpha: bool = False) -> dict[str, Tensor]:
    tensors = {}
    for layer, (a, b, scale) in triples.items():
        stem = name(layer)
        tensors[stem + down], tensors[stem + up] = a.contiguous(), b.contiguous()
        if alpha and scale is not None:
            tensors[f"{stem}.alpha"] = tensor(scale)
    return tensors


def peft(triples: Triples) -> dict[str, Tensor]:
    """unet.X.lora_A.weight: current diffusers."""
    return keyed(triples, with_text_model, ".lora_A.weight", ".lora_B.weight")


def peft_live(triples: Triples) -> dict[str, Tensor]:
    """As `diffusers_lora`, but with module names of transformers 5: current save_lora_weights."""
    unet = {layer: each for layer, each in triples.items() if layer.startswith("unet.")}
    text = {layer: each for layer, each in triples.items() if not layer.startswith("unet.")}
    tensors = keyed(unet, str, ".lora.down.weight", ".lora.up.weight")
    return tensors | keyed(text, str, ".lora_linear_layer.down.weight", ".lora_linear_layer.up.weight")


def diffusers_lora(triples: Triples) -> dict[str, Tensor]:
    """unet.X.lora.down.weight and, in the encoders, X.lora_linear_layer.down.weight: diffusers 0.22 to 0.26."""
    unet = {layer: each for layer, each in triples.items() if layer.startswith("unet.")}
    text = {with_text_model(layer): each for layer, each in triples.items() if not layer.startswith("unet.")}
    tensors = keyed(unet, str, ".lora.down.weight", ".lora.up.weight")
    return tensors | keyed(text, str, ".lora_linear_layer.down.weight", ".lora_linear_layer.up.weight")


def processors(triples: Triples) -> dict[str, Tensor]:
    """unet.X.attn1.processor.to_q_lora.down.weight, for attention only: diffusers before 0.22."""

    def name(layer: str) -> str:
        head, _, module = layer.removesuffix(".0").rpartition(".")
        if layer.startswith("unet."):
            return f"{head}.processor.{module}_lora"
        return f"{with_text_model(head)}.to_{module.removesuffix('_proj')}_lora"

    return keyed(triples, name, ".down.weight", ".up.weight")


def double(triples: Triples) -> dict[str, Tensor]:
    """unet.unet.X.lora.down.weight: diffusers 0.24 and 0.25."""
    return keyed(triples, lambda layer: f"unet.{layer}", ".lora.down.weight", ".lora.up.weight")


def bare(triples: Triples) -> dict[str, Tensor]:
    return keyed(triples, lambda layer: layer.removeprefix("unet."), ".lora_A.weight", ".lora_B.weight")


def base_model(triples: Triples) -> dict[str, Tensor]:
    """base_model.model.X.lora_A.weight: written by PeftModel.save_pretrained of the UNet."""
    return keyed(
        triples, lambda layer: layer.replace("unet.", "base_model.model.", 1), ".lora_A.weight", ".lora_B.weight"
    )


def adapter_named(triples: Triples) -> dict[str, Tensor]:
    """unet.X.lora_A.default.weight: the state dict of a UNet with injected adapters."""
    return keyed(triples, with_text_model, ".lora_A.default.weight", ".lora_B.default.weight")


def kohya(triples: Triples) -> dict[str, Tensor]:
    """lora_unet_down_blocks_..., with alpha."""

    def name(layer: str) -> str:
        stem = with_text_model(layer).replace(".", "_")
        if layer.startswith("unet."):
            return f"lora_{stem}"
        return stem.replace("text_encoder_2_", "lora_te2_").replace("text_encoder_", "lora_te1_")

    return keyed(triples, name, ".lora_down.weight", ".lora_up.weight", alpha=True)


def kohya_ldm(triples: Triples) -> dict[str, Tensor]:
    """lora_unet_input_blocks_4_1_...: written by kohya's SDXL trainer."""

    def rename(key: str) -> str:
        for ours, theirs in LDM_BLOCKS.items():
            key = key.replace(f"lora_unet_{ours}_", f"lora_unet_{theirs}_")
        for ours, theirs in LDM_LAYERS.items():
            key = key.replace(f"lora_unet_{ours}.", f"lora_unet_{theirs}.")
        return key

    return {rename(key): value for key, value in kohya(triples).items()}


def comfy(triples: Triples) -> dict[str, Tensor]:
    """diffusion_model.input_blocks.4.1....: written by ComfyUI."""

    def name(layer: str) -> str:
        for ours, theirs in LDM_BLOCKS.items():
            layer = layer.replace(f"unet.{ours.replace('_', '.').replace('.block', '_block')}.",
                                f"diffusion_model.{theirs.replace('_', '.').replace('.block', '_block')}.")  # fmt: skip
        return layer

    return keyed(triples, name, ".lora_down.weight", ".lora_up.weight")


def lycoris(triples: Triples) -> dict[str, Tensor]:
    """lycoris_down_blocks_...: plain LoRAs of SimpleTuner."""
    return {key.replace("lora_unet_", "lycoris_"): value for key, value in kohya(triples).items()}


def comfy_encoders(triples: Triples) -> dict[str, Tensor]:
    """text_encoders.clip_l.transformer.text_model...: the encoders' layers as ComfyUI saves them."""
    names = {
        "text_encoder.": "text_encoders.clip_l.transformer.",
        "text_encoder_2.": "text_encoders.clip_g.transformer.",
    }

    def name(layer: str) -> str:
        encoder = f"{layer.partition('.')[0]}."
        return with_text_model(layer).replace(encoder, names.get(encoder, encoder), 1)

    return keyed(triples, name, ".lora_down.weight", ".lora_up.weight", alpha=True)


WHOLE = {
    each.__name__: each for each in (peft, peft_live, diffusers_lora, adapter_named, kohya, kohya_ldm, comfy_encoders)
}
ATTENTION_ONLY = {"processors": processors}
UNET_ONLY = {each.__name__: each for each in (double, bare, base_model, comfy, lycoris)}
ALL = WHOLE | ATTENTION_ONLY | UNET_ONLY
WITH_ALPHA = {"kohya", "kohya_ldm", "comfy_encoders", "lycoris"}
