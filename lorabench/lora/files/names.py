"""Names of adapted layers in the conventions of LoRA files, and as module paths of the live model.

A *layer* in this package is a component and a module path inside it: "unet.mid_block.attentions.0.proj_in",
"text_encoder.encoder.layers.0.mlp.fc1", "text_encoder_2.text_model.encoder.layers.0.self_attn.q_proj" (transformers 5
has no `text_model` module in the first encoder). A *stem* is a key of a file without its ending.

kohya's and similar trainers write every dot as an underscore. Many also use the block numbers of the original (LDM)
code, which count the layers of all blocks consecutively. Module names contain underscores too. The modules of this
family have few names, so a list of those with underscores is enough to recover the dots.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

DENOISER = "unet"  # component of the layers in an adapter's mapping
LAYERS = 2  # ResNets of a down block: 2 in SDXL, 1 in KOALA; an up block has one more
ENCODERS = {"lora_te_": "text_encoder", "lora_te1_": "text_encoder", "lora_te2_": "text_encoder_2"}
COMFY_ENCODERS = {"clip_l": "text_encoder", "clip_g": "text_encoder_2"}
UNET_ROOTS = {"down_blocks", "mid_block", "up_blocks", "time_embedding", "add_embedding", "conv_in", "conv_out"}
TRANSFORMER_ROOTS = {
    "transformer_blocks", "single_transformer_blocks", "time_text_embed", "context_embedder", "x_embedder", "norm_out",
    "proj_out",
}  # fmt: skip
LDM_ROOTS = {"input_blocks", "middle_block", "output_blocks", "time_embed", "label_emb", "out"}

ENDING = re.compile(
    r"(?P<stem>.+?)(?:\.lora_(?P<letter>[AB])(?:\.(?P<adapter>[^.]+))?\.weight"  # peft, with an adapter's name or not
    r"|(?:[._]lora\.|\.lora_|\.lora_linear_layer\.)(?P<word>down|up)\.weight"  # diffusers, kohya, diffusers' encoders
    r"|(?<=_lora[12])\.(?P<factor>down|up)\.weight"  # x-flux, both streams of a block
    r"|\.lora_(?P<mid>mid)\.weight"  # LyCORIS, between the factors of a convolution
    r"|\.(?P<alpha>alpha))"
)
WORD = (
    r"down_blocks|mid_block|up_blocks|attentions|resnets|downsamplers|upsamplers|transformer_blocks|attn[12]|ff|net"
    r"|to_[qkv]|to_out|proj_in|proj_out|proj|time_embedding|add_embedding|linear_[12]|time_emb_proj|conv_shortcut"
    r"|conv_in|conv_out|conv[12]?|encoder|layers|self_attn|[qkv]_proj|out_proj|mlp|fc[12]|text_projection|\d+"
)
PATH = re.compile(rf"({WORD})(_({WORD}))*")
INPUT = re.compile(r"input_blocks_(\d+)_(\d)_(.+)")
MIDDLE = re.compile(r"middle_block_([012])_(.+)")
OUTPUT = re.compile(r"output_blocks_(\d+)_(\d)_(.+)")
CONVOLUTION = re.compile(r"(?:^|\.)(conv[12]?|conv_in|conv_out|conv_shortcut)$")
BLOCK = re.compile(r"(down|up)_blocks_(\d+)_(attentions|resnets)_(\d+)_(.+)")
SCALER = re.compile(r"(down|up)_blocks_(\d+)_(?:down|up)samplers_0_conv")
MID = re.compile(r"mid_block_(attentions|resnets)_(\d+)_(.+)")
COMFY_ENCODER = re.compile(r"(?:text_encoders\.)?(clip_[lg])\.transformer\.")
ENCODER_LAYER = re.compile(r"encoder\.layers\.\d+\.(self_attn\.([qkv]|out)_proj|mlp\.fc[12])")

LDM_SINGLES = {
    "time_embed_0": "time_embedding_linear_1",
    "time_embed_2": "time_embedding_linear_2",
    "label_emb_0_0": "add_embedding_linear_1",
    "label_emb_0_2": "add_embedding_linear_2",
    "input_blocks_0_0": "conv_in",
    "out_2": "conv_out",
}
LDM_OF_SINGLES = {ours: theirs for theirs, ours in LDM_SINGLES.items()}  # diffusers garbles its own names of these
LDM_RESNET = {
    "in_layers_2": "conv1",
    "out_layers_3": "conv2",
    "emb_layers_1": "time_emb_proj",
    "skip_connection": "conv_shortcut",
}


def split(key: str) -> tuple[str, str] | None:
    """Split a key into (stem, "down" | "mid" | "up" | "alpha"); return None if it does not end like a LoRA's key."""
    match = ENDING.fullmatch(key)
    if match is None:
        return None
    letters = {"A": "down", "B": "up"}
    return match["stem"], match["alpha"] or match["mid"] or match["word"] or match["factor"] or letters[match["letter"]]


def kernel(layer: str) -> int | None:
    """Return the edge of the kernel of a convolution of the UNet, 3 or 1; None for a linear layer."""
    match = CONVOLUTION.search(layer)
    return match and (1 if match[1] == "conv_shortcut" else 3)


def layer(stem: str, layers: int = LAYERS) -> str | None:
    """Return the layer that a stem names in any convention, or None for a layer of another model.

    Args:
        stem: Key of a file without its ending.
        layers: ResNets of a down block, on which LDM's block numbers depend.
    """
    if stem.startswith("lora_unet_"):
        path = unet_path(stem.removeprefix("lora_unet_"), layers)
        return path and f"unet.{path}"
    if stem.startswith("lycoris_"):  # SimpleTuner, with diffusers' block names
        path = unet_path(stem.removeprefix("lycoris_"), layers)
        return path and f"unet.{path}"
    for prefix, encoder in ENCODERS.items():
        if stem.startswith(prefix):
            return text_layer(encoder, stem.removeprefix(prefix))
    if comfy := COMFY_ENCODER.match(stem):
        return text_layer(COMFY_ENCODERS[comfy[1]], stem[comfy.end() :].replace(".", "_"))
    component = "unet"
    while (
        head := re.match(r"(base_model\.model|unet|transformer|text_encoder_2|text_encoder|diffusion_model)\.", stem)
    ) is not None:
        component = head[1] if head[1].startswith("text") else component
        stem = stem[head.end() :]
    if component != "unet":
        return text_layer(component, stem.replace(".", "_"))
    root = stem.partition(".")[0]
    if root in LDM_ROOTS:
        path = unet_path(stem.replace(".", "_"), layers)
        return path and f"unet.{path}"
    if root in TRANSFORMER_ROOTS:
        return f"unet.{stem}"
    if root not in UNET_ROOTS:
        return None
    stem = stem.replace(".processor.", ".")  # diffusers before 0.22: attn1.processor.to_out_lora.down.weight
    return f"unet.{stem}.0" if stem.endswith(".to_out") else f"unet.{stem}"


def unet_path(name: str, layers: int = LAYERS) -> str | None:
    """Return the module path of an underscored name with the block names of diffusers or of LDM."""
    name = _from_ldm(name, layers)
    return _dotted(name) if name.startswith(tuple(UNET_ROOTS)) else None


def text_layer(encoder: str, name: str) -> str | None:
    """Return the layer of an underscored name inside a text encoder."""
    name = name.removeprefix("base_model_model_").removeprefix("text_model_")
    old = re.fullmatch(r"(.+_self_attn)_to_([qkv]|out)", name)  # diffusers before 0.22: self_attn.to_q_lora
    path = _dotted(f"{old[1]}_{old[2]}_proj" if old else name)
    if path is not None and ENCODER_LAYER.fullmatch(path):
        return f"text_encoder_2.text_model.{path}" if encoder == "text_encoder_2" else f"text_encoder.{path}"
    return f"{encoder}.{path}" if (encoder, path) == ("text_encoder_2", "text_projection") else None


def layers_of(stems: list[str]) -> int:
    """Return the ResNets of a down block from LDM's block numbers; only KOALA's input block 3 has attention."""
    return 1 if any(re.search(r"input_blocks[._]3[._]1[._]", stem) for stem in stems) else LAYERS


def kohya_stem(layer: str, ldm: bool) -> str:
    """Return the underscored name of a layer, with LDM's block numbers if `ldm`, as kohya's trainer names SDXL's."""
    component, _, path = layer.partition(".")
    if component == "unet":
        name = path.replace(".", "_")
        return f"lora_unet_{_to_ldm(name) if ldm or name in LDM_OF_SINGLES else name}"
    number = 2 if component == "text_encoder_2" else 1
    return f"lora_te{number}_{file_path(layer).replace('.', '_')}"


def file_component(layer: str) -> str:
    """Return the component of a layer as diffusers' files name it: the denoiser of SD3 and FLUX.1 is `transformer`."""
    component, _, path = layer.partition(".")
    return "transformer" if component == DENOISER and is_transformer([path]) else component


def is_transformer(layers: Iterable[str]) -> bool:
    """Return whether any layer of an adapter belongs to a transformer: the denoiser of SD3 and FLUX.1."""
    return any(layer.partition(".")[0] in TRANSFORMER_ROOTS for layer in layers)


def file_path(layer: str) -> str:
    """Return the path of a layer in files of diffusers, which have encoder layers below `text_model`."""
    component, _, path = layer.partition(".")
    return f"text_model.{path}" if component == "text_encoder" and not path.startswith("text_model.") else path


def ldm_is_safe(paths: list[str]) -> bool:
    """Return whether LDM's block numbers of SDXL are right for these module paths of a UNet with any number of layers.

    The numbers are the same in the first up block and the middle. Elsewhere, a layer that KOALA lacks shows that the
    model is SDXL.
    """
    if any(re.match(r"down_blocks\.\d+\.(attentions|resnets)\.1\.|up_blocks\.\d+\.(attentions|resnets)\.2\.", path)
           for path in paths):  # fmt: skip
        return True
    return all(path.startswith(("up_blocks.0.", "mid_block.")) for path in paths)


def _from_ldm(name: str, layers: int) -> str:
    """Convert LDM's block numbers to diffusers' blocks; other names are unchanged."""
    if name in LDM_SINGLES:
        return LDM_SINGLES[name]
    if match := INPUT.fullmatch(name):
        block, layer = divmod(int(match[1]) - 1, layers + 1)
        if layer == layers:
            return f"down_blocks_{block}_downsamplers_0_conv"
        return f"down_blocks_{block}_{_inner(match[2] == '1', layer, match[3])}"
    if match := OUTPUT.fullmatch(name):
        block, layer = divmod(int(match[1]), layers + 1)
        if match[3] == "conv":
            return f"up_blocks_{block}_upsamplers_0_conv"
        return f"up_blocks_{block}_{_inner(match[2] == '1', layer, match[3])}"
    if match := MIDDLE.fullmatch(name):
        return f"mid_block_{_inner(match[1] == '1', int(match[1]) // 2, match[2])}"
    return name


def _inner(attention: bool, layer: int, rest: str) -> str:
    return f"attentions_{layer}_{rest}" if attention else f"resnets_{layer}_{LDM_RESNET.get(rest, rest)}"


def _to_ldm(name: str) -> str:
    """Convert SDXL's diffusers blocks to LDM's numbers."""
    if name in LDM_OF_SINGLES:
        return LDM_OF_SINGLES[name]
    resnet = {ours: theirs for theirs, ours in LDM_RESNET.items()}
    if match := BLOCK.fullmatch(name):
        side, block, kind, layer, rest = match.groups()
        index = int(block) * (LAYERS + 1) + int(layer)
        rest = resnet.get(rest, rest)
        blocks = f"input_blocks_{index + 1}" if side == "down" else f"output_blocks_{index}"
        return f"{blocks}_{int(kind == 'attentions')}_{rest}"
    if match := SCALER.fullmatch(name):
        index = int(match[2]) * (LAYERS + 1)
        return f"input_blocks_{index + 3}_0_op" if match[1] == "down" else f"output_blocks_{index + 2}_2_conv"
    if match := MID.fullmatch(name):
        kind, layer, rest = match.groups()
        return f"middle_block_{1 if kind == 'attentions' else 2 * int(layer)}_{resnet.get(rest, rest)}"
    return name


def _dotted(name: str) -> str | None:
    if PATH.fullmatch(name) is None:
        return None
    return ".".join(re.findall(WORD, name))
