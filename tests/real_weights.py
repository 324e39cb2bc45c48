"""Random weights with the key names and shapes of the published backbones."""

import torch

DINO = {"vits16": (384, 16), "vitb16": (768, 16), "vits8": (384, 8), "vitb8": (768, 8)}
DINOV2 = {"vits14": 384, "vitb14": 768}
CLIP = {
    "vitb32": (768, 12, 32, 512, 512),
    "vitl14": (1024, 24, 14, 768, 768),
}  # width, layers, patch, text width, joint


def both(name, *shape):
    """Return the shapes of weight and bias."""
    return {f"{name}.weight": shape, f"{name}.bias": shape[:1]}


def dino_shapes(dim, patch, image=224, scales=False, depth=12):
    """Return the shapes of a DINO file, which timm and the authors share; `scales`: with DINOv2's LayerScale."""
    shapes = {"cls_token": (1, 1, dim), "pos_embed": (1, 1 + (image // patch) ** 2, dim)}
    shapes |= both("patch_embed.proj", dim, 3, patch, patch) | both("norm", dim)
    for i in range(depth):
        at = f"blocks.{i}"
        shapes |= both(f"{at}.norm1", dim) | both(f"{at}.norm2", dim)
        shapes |= both(f"{at}.attn.qkv", 3 * dim, dim) | both(f"{at}.attn.proj", dim, dim)
        shapes |= both(f"{at}.mlp.fc1", 4 * dim, dim) | both(f"{at}.mlp.fc2", dim, 4 * dim)
        if scales:
            shapes |= {f"{at}.ls1.gamma": (dim,), f"{at}.ls2.gamma": (dim,)}
    return shapes


def tower_shapes(at, width, layers):
    shapes = {}
    for i in range(layers):
        block = f"{at}transformer.resblocks.{i}"
        shapes |= {f"{block}.attn.in_proj_weight": (3 * width, width), f"{block}.attn.in_proj_bias": (3 * width,)}
        shapes |= both(f"{block}.attn.out_proj", width, width) | both(f"{block}.ln_1", width)
        shapes |= both(f"{block}.mlp.c_fc", 4 * width, width) | both(f"{block}.mlp.c_proj", width, 4 * width)
        shapes |= both(f"{block}.ln_2", width)
    return shapes


def image_tower_shapes(at, width, layers, patch):
    """Return the shapes of OpenAI's image tower without its projection."""
    shapes = {f"{at}class_embedding": (width,), f"{at}positional_embedding": (1 + (224 // patch) ** 2, width)}
    shapes |= {f"{at}conv1.weight": (width, 3, patch, patch)} | both(f"{at}ln_pre", width) | both(f"{at}ln_post", width)
    return shapes | tower_shapes(at, width, layers)


def clip_shapes(width, layers, patch, text, joint):
    """Return the shapes of open_clip_model.safetensors of OpenAI's CLIP."""
    shapes = image_tower_shapes("visual.", width, layers, patch) | {"visual.proj": (width, joint)}
    shapes |= {"token_embedding.weight": (49408, text), "positional_embedding": (77, text), "logit_scale": ()}
    return shapes | tower_shapes("", text, 12) | both("ln_final", text) | {"text_projection": (text, joint)}


def csd_shapes():
    """Return the shapes of CSD's model_state_dict, without the prefix `module.`."""
    heads = {"last_layer_style": (1024, 768), "last_layer_content": (1024, 768)}
    return image_tower_shapes("backbone.", 1024, 24, 14) | heads


def shapes_of(name):
    """Return the shapes of a published file by the name of its backbone."""
    kind, size = name.split("@")
    if kind == "dino":
        return dino_shapes(*DINO[size])
    if kind == "dinov2":
        return dino_shapes(DINOV2[size], 14, 518, scales=True)
    return clip_shapes(*CLIP[size]) if kind == "clip" else csd_shapes()


def random_state(shapes, seed=0, shared_blocks=False):
    """Return realistic random values: norms near one and products that keep the scale of their input.

    shared_blocks: Use the same tensors for all layers, which then share memory and space in a torch.save file.
    """
    generator = torch.Generator().manual_seed(seed)
    made, state = {}, {}
    for name, shape in shapes.items():
        parts = name.split(".")
        kind = ".".join("N" if part.isdigit() and shared_blocks else part for part in parts)
        if kind not in made:
            value = torch.randn(shape, generator=generator)
            if len(shape) == 4:
                value *= (shape[1] * shape[2] * shape[3]) ** -0.5
            elif len(shape) == 2 and "embed" not in name:
                value *= 1.5 * shape[-1] ** -0.5
            elif parts[-1] == "weight" and len(shape) == 1:
                value = 1 + 0.1 * value
            elif parts[-1] == "gamma":
                value = 0.3 + 0.1 * value
            made[kind] = value
        state[name] = made[kind]
    return state
