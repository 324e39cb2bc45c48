"""The one reader of LoRA files: any naming convention in, factors by layer out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from math import prod
from pathlib import Path

from safetensors import SafetensorError
from torch import Tensor, einsum

from lorabench.base import UserError
from lorabench.lora.factors import Factors, LazyFactors, Shape
from lorabench.lora.files import dora, embeddings, lycoris, names, refuse, stored, transformer_names
from lorabench.lora.files.names import DENOISER
from lorabench.lora.files.peft_config import PeftConfig, read_configs
from lorabench.lora.files.tensors import TensorFile, is_finite
from lorabench.lora.parts import Parts

PRODUCT = "lorabench.product"  # metadata key of an adapter that has LoHa or LoKr layers
FOLDED = "lorabench.folded"  # metadata key of a DoRA, with a line on its folding


def read(path: Path | str, base: dora.BaseWeights | None = None) -> Parts:
    """Return the parts of the adapter in a .safetensors file, or in a folder of diffusers or peft.

    Names, shapes and metadata are checked here. Factors are read from the file on demand, in fp32. They are paired by
    name, and alpha / rank is folded into `up`. alpha is the `.alpha` of a layer (kohya), else that of peft's config in
    the file's metadata or next to the file, else the rank, as in all other readers.

    Args:
        path: Of the file or folder.
        base: Base weights, into which a DoRA is folded.

    Raises:
        UserError: If the file is not an adapter of a model of a known family, see refuse.py.
    """
    path = refuse.resolve(path)
    try:
        file = TensorFile(path)
        metadata, shapes = file.metadata, file.shapes
        keys = list(shapes)
        if embeddings.is_embedding(shapes):
            tokens = embeddings.read_tokens(path, keys, file.tensor, metadata)
            return Parts({}, tokens=tokens, metadata=metadata)
        masks = stored.masks({key: file.tensor(key) for key in keys if stored.is_mask(key)})
        tokens = embeddings.read_tokens(path, embeddings.bundled(keys), file.tensor)
        keys = [key for key in keys if not stored.is_mask(key) and not embeddings.BUNDLE.fullmatch(key)]
        refuse.other_kinds(path, keys)
        layers, parts_of = _layers(path, keys)
        magnitudes = {layer: parts.pop(dora.MAGNITUDE) for layer, parts in layers.items() if dora.MAGNITUDE in parts}
        _check(path, layers, shapes, metadata)
        _check_fused(path, layers, parts_of, shapes, magnitudes)
        configs = read_configs(path, keys, metadata)
        plain = [layer for layer in parts_of if "up" in layers[layer]]
        used = {layer: parts_of[layer].used(file.tensor(layers[layer]["up"])) for layer in plain}
        layers = {layer: keys for layer, keys in layers.items() if (kept := used.get(layer)) is None or len(kept)}
    except (OSError, SafetensorError) as error:
        raise refuse.broken(path, error) from None
    scales = stored.scales(metadata)

    def factors(layer: str) -> Factors:
        tensors = {part: file.tensor(key) for part, key in layers[layer].items()}
        _check_finite(path, layer, tensors)
        whole = lycoris.factors(tensors) if lycoris.kind(tensors) else _factors(layer, tensors, configs, scales)
        return parts_of[layer].of(whole, used.get(layer)) if layer in parts_of else whole

    def size(layer: str, keys: Mapping[str, str]) -> Shape:
        rank, inputs, outputs = _size({part: shapes[key] for part, key in keys.items()})
        if layer not in parts_of:
            return rank, inputs, outputs
        kept = used.get(layer)
        return rank if kept is None else len(kept), inputs, len(range(outputs)[parts_of[layer].rows(outputs)])

    sizes = {layer: size(layer, keys) for layer, keys in layers.items()}
    folded: dict[str, Factors] = {}
    if magnitudes:
        if base is None:
            raise dora.needs_base(path, next(iter(magnitudes.values())))
        folded, error = dora.fold(path, {layer: partial(_dora, factors, layer, file.tensor(key), "magnitude_v" in key)
                                         for layer, key in magnitudes.items()}, base)  # fmt: skip
        sizes |= {layer: each.shape for layer, each in folded.items()}
        metadata = {**metadata, FOLDED: f"DoRA folded into a LoRA of rank {dora.RANK}, relative error {error:.2%}"}
    kinds = {kind for keys in layers.values() if (kind := lycoris.kind(keys))}
    if kinds:
        metadata = {**metadata, PRODUCT: " and ".join(sorted(kinds))}
    head = f"{DENOISER}."
    return Parts(
        LazyFactors(
            {layer.removeprefix(head): size for layer, size in sizes.items() if layer.startswith(head)},
            lambda layer: folded.get(head + layer) or factors(head + layer),
        ),
        LazyFactors(
            {layer: size for layer, size in sizes.items() if not layer.startswith(head)},
            lambda layer: folded.get(layer) or factors(layer),
        ),
        tokens,
        masks,
        metadata.get(stored.BACKBONE),
        metadata,
    )


def _dora(read: Callable[[str], Factors], layer: str, magnitude: Tensor, outputs: bool) -> tuple[Factors, Tensor, bool]:
    return read(layer), magnitude, outputs


def _layers(path: Path, keys: list[str]) -> tuple[dict[str, dict[str, str]], dict[str, transformer_names.Piece]]:
    """Return the keys of "down", "up" and "alpha", if there is one, by layer, and the layers that are parts of others.

    Raises:
        UserError: If a key is not known, or two adapt the same layer.
    """
    parts = {}
    for key in keys:
        if (split := names.split(key) or lycoris.split(key) or dora.split(key)) is None:
            raise refuse.unknown_key(path, key, keys)
        parts[key] = split
    layers = names.layers_of([stem for stem, _ in parts.values()])
    found: dict[str, dict[str, str]] = {}
    parts_of: dict[str, transformer_names.Piece] = {}
    for key, (stem, part) in parts.items():
        layer = names.layer(stem, layers)
        pieces = {layer: None} if layer else transformer_names.layers(stem)
        if not pieces:
            raise refuse.unknown_key(path, key, keys)
        for layer, piece in pieces.items():
            other = found.setdefault(layer, {}).setdefault(part, key)
            if other != key:
                raise UserError(
                    f"{path} has two adapters on {layer} ({other!r} and {key!r}); save each in a file of its own"
                )
            if piece is not None and not piece.is_whole:
                parts_of[layer] = piece
    return found, parts_of


def _size(shapes: Mapping[str, tuple[int, ...]]) -> Shape:
    """Return rank, inputs and outputs of a layer, fused or not, from the shapes of its parts."""
    if lycoris.kind(shapes):
        return lycoris.shape(shapes)
    down, up = shapes["down"], shapes["up"]
    return down[0], prod(down[1:]) * (prod(shapes["mid"][2:]) if "mid" in shapes else 1), up[0]


def _check_fused(path: Path, layers: Mapping[str, Mapping[str, str]], parts_of: Mapping[str, transformer_names.Piece],
                 shapes: Mapping[str, tuple[int, ...]], magnitudes: Mapping[str, str]) -> None:  # fmt: skip
    """Check that fused layers can be split: the outputs are those of the parts, and there are no magnitudes of a DoRA.

    Raises:
        UserError: If they cannot, as in a file of FLUX.2, whose fused layers have other parts.
    """
    for layer, piece in parts_of.items():
        if layer in magnitudes:
            raise UserError(
                f"{path} is a DoRA of a fused layer (key {magnitudes[layer]!r}), which cannot be split; "
                f"{refuse.EXPECTED}: train one with diffusers' layers, or a plain LoRA"
            )
        _, _, outputs = _size({part: shapes[key] for part, key in layers[layer].items()})
        if outputs % piece.total:
            raise UserError(
                f"{path} has {outputs} outputs at {next(iter(layers[layer].values()))!r}, not {piece.total} parts of "
                f"one width; {refuse.EXPECTED}: give one trained on SD3 or FLUX.1"
            )


def _check(path: Path, layers: Mapping[str, Mapping[str, str]], shapes: Mapping[str, tuple[int, ...]],
           metadata: Mapping[str, str]) -> None:  # fmt: skip
    """Raise UserError if a factor is missing, shapes do not match, or the base model is another one."""
    if not layers:
        raise UserError(f"{path} lacks every factor; {refuse.EXPECTED}: write it again with pipe.save_lora_weights")
    widths = {}
    for layer, keys in layers.items():
        if lycoris.kind(keys):
            widths[layer] = _check_product(path, layer, {part: shapes[key] for part, key in keys.items()})
            continue
        for part in ("down", "up"):
            if part not in keys:
                raise UserError(
                    f"{path} lacks one of the two factors of {layer} ({part}); every layer needs both: download or "
                    "export the file again"
                )
        down, up = (shapes[keys[part]] for part in ("down", "up"))
        refuse.kernels(path, layer, down, shapes[keys["mid"]] if "mid" in keys else None, up)
        if down[0] != up[1] or down[0] == 0:
            raise UserError(
                f"{path} has a rank mismatch at {layer}: down is {list(down)} and up {list(up)}, which do not "
                "multiply; download or export the file again"
            )
        if "alpha" in keys and prod(shapes[keys["alpha"]]) != 1:
            raise UserError(
                f"{path} has an alpha of shape {list(shapes[keys['alpha']])} at {layer}, not one number; download or "
                "export the file again"
            )
        widths[layer] = down[1]
    refuse.other_bases(path, widths, metadata)


def _check_product(path: Path, layer: str, shapes: Mapping[str, tuple[int, ...]]) -> int:
    """Return the inputs of a LoHa or LoKr; raise UserError if parts are missing or are not matrices."""
    if not lycoris.whole(shapes) or any(len(shape) != 2 for part, shape in shapes.items() if part != "alpha"):
        raise UserError(
            f"{path} has a {lycoris.kind(shapes)} of convolutions or without all parts at {layer}; {refuse.EXPECTED}: "
            "download the file again, or train one of linear layers only"
        )
    return lycoris.shape(shapes)[1]


def _check_finite(path: Path, layer: str, tensors: Mapping[str, Tensor]) -> None:
    for part, tensor in tensors.items():  # diffusers' kohya converter writes alpha as an integer
        if (part != "alpha" and not tensor.is_floating_point()) or not is_finite(tensor):
            raise UserError(f"{path} has values at {layer} that are not finite floats; download the file again")


def _factors(
    layer: str, tensors: dict[str, Tensor], configs: Mapping[str, PeftConfig], scales: Mapping[str, float]
) -> Factors:
    """Return down [rank, in] and up [out, rank] in fp32 with alpha / rank in `up`.

    The fold is in fp32: alpha / rank of 1/128 would make half-precision values too small for their type.
    """
    down, up = (tensors[part].float().flatten(1) for part in ("down", "up"))
    if "mid" in tensors:  # LyCORIS 3.0, lycoris/functional/general.py: the kernel is between the factors
        down = einsum("ojhw,ji->oihw", tensors["mid"].float(), down).flatten(1)
    if layer in scales and "alpha" not in tensors:  # files of the store: `up` contains the scale
        return Factors(down, up, scales[layer])
    rank = down.shape[0]
    component, _, module = layer.partition(".")
    if "alpha" in tensors:
        scale = tensors["alpha"].float().item() / rank
    else:
        scale = configs.get(component, PeftConfig()).scale(module, rank)
    return Factors(down, up if scale == 1 else up * scale, scale)
