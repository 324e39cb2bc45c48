"""A judge that runs here: any vision-language model of transformers with a chat template, answering greedily."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

from lorabench.base import UserError
from lorabench.config.judging import TransformersJudgeSpec
from lorabench.models.hub import HUB_ID, fetch
from lorabench.scoring.judges.comparison import Comparison, shown
from lorabench.scoring.judges.questions import Ask

FILES = ("*.json", "*.safetensors", "*.jinja", "*.txt", "*.model")
DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}


class LocalJudge(Comparison):
    """A vision-language model on this machine.

    Args:
        spec: Settings; `model` is a folder or a hub id.
        device: Device of torch.

    Raises:
        UserError: If the model is not there.
    """

    def __init__(self, spec: TransformersJudgeSpec, device: str) -> None:
        self.spec, self.device = spec, device
        name = str(spec.model)
        if (Path(name) / "config.json").is_file():
            self.folder = Path(name)
        elif HUB_ID.fullmatch(name) and not Path(name).exists():
            self.folder = fetch(name, FILES)
        else:
            raise UserError(
                f"judge.model={name} must be a folder with config.json or a hub id; use judge.model=<folder>"
            )

    @property
    def name(self) -> str:
        return Path(str(self.spec.model)).name

    def identity(self) -> dict[str, Any]:
        return {
            "kind": "transformers", "model": self.digest, "size": self.spec.size, "max_tokens": self.spec.max_tokens,
            "dtype": self.spec.dtype,
        }  # fmt: skip

    @cached_property
    def digest(self) -> str:
        """Return a hash of the model's files."""
        from lorabench.engine.record import key_of, sha256

        files = sorted(file for pattern in FILES for file in self.folder.glob(pattern))
        return key_of("model", {file.name: sha256(file) for file in files})

    def answer(self, ask: Ask) -> str:
        import torch

        processor, model = self.loaded
        content = [
            {"type": "text", "text": part} if isinstance(part, str) else {"type": "image", "image": self.image(part)}
            for part in ask.parts
        ]
        inputs = processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=True, return_dict=True,
            return_tensors="pt",
        ).to(self.device)  # fmt: skip
        floats = {name: value.to(model.dtype) for name, value in inputs.items() if value.is_floating_point()}
        with torch.inference_mode():
            made = model.generate(**{**inputs, **floats}, do_sample=False, max_new_tokens=self.spec.max_tokens)
        return processor.decode(made[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()

    def image(self, path: Path) -> Any:
        """Return an image as the model reads it."""
        return shown(path, self.spec.size)

    @cached_property
    def loaded(self) -> tuple[Any, Any]:
        """Return processor and model.

        Raises:
            UserError: If transformers cannot load them as a vision-language model.
        """
        import torch
        from transformers import AutoModelForImageTextToText, AutoProcessor

        try:
            processor = AutoProcessor.from_pretrained(self.folder)
            model: Any = AutoModelForImageTextToText.from_pretrained(
                self.folder, dtype=getattr(torch, DTYPES[self.spec.dtype])
            )
        except (OSError, ValueError, KeyError) as error:
            reason = str(error).strip().splitlines()[0]
            raise UserError(
                f"judge.model={self.spec.model} is not a vision-language model that transformers can load ({reason}); "
                "use judge.model=<folder or hub id of one>"
            ) from error
        if getattr(processor, "chat_template", None) is None:
            raise UserError(f"judge.model={self.spec.model} has no chat template; use the instruction-tuned version")
        return processor, model.eval().to(self.device)
