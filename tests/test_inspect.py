"""task=inspect: descriptions of files, their conflicts, and recommended commands."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from commands import Commands
from PIL import Image
from safetensors.torch import save_file

from lorabench.lora.adapter import Adapter
from lorabench.lora.conflict import meetings
from lorabench.lora.factors import Factors
from lorabench.tasks.inspect_files import block_of, blocks, commands, conflict, described, norm

Q = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
K = Q.replace("to_q", "to_k")
TEXT = "text_encoder.encoder.layers.0.mlp.fc1"


def unit(size: int, *places: int) -> torch.Tensor:
    """Return columns of the identity matrix, [size, places]."""
    return torch.eye(size)[:, list(places)]


def update(outputs: tuple[int, ...], inputs: tuple[int, ...], weight: float = 1.0) -> Factors:
    return Factors(unit(6, *inputs).mT, weight * unit(5, *outputs))


def test_norms_cosine_and_angles_are_those_of_updates() -> None:
    content = Adapter({Q: update((0, 1), (0, 1), 3.0), K: update((0,), (0,))})
    turned = math.sqrt(0.5) * (unit(6, 0) + unit(6, 3)).mT  # 45 degrees from an input that the content reads
    style = Adapter({Q: Factors(turned, 2.0 * unit(5, 0))}, {TEXT: update((1,), (2,))})
    found = {each.layer: each for each in meetings([content], [style])}
    key, query, text = found[K], found[Q], found[TEXT]
    assert query.content == pytest.approx(3 * math.sqrt(2)) and query.style == pytest.approx(2)
    dense = [each[Q].up @ each[Q].down for each in (content, style)]
    cosine = (dense[0] * dense[1]).sum() / dense[0].norm() / dense[1].norm()
    assert query.cosine == pytest.approx(float(cosine), abs=1e-6)
    assert query.outputs == pytest.approx([1.0]) and query.inputs == pytest.approx([math.sqrt(0.5)])
    assert query.shared == pytest.approx(0.75)
    assert (key.content, key.style, key.shared) == (1.0, 0.0, 0.0) and text.style == 1.0


def test_several_files_of_role_are_summed() -> None:
    twice = Adapter({Q: update((0,), (0,))})
    [found] = meetings([twice, twice], [Adapter({Q: update((1,), (1,))})])
    assert found.content == pytest.approx(2) and found.cosine == 0 and found.shared == 0


def test_commands_follow_from_conflict() -> None:
    strong, weak = Adapter({Q: update((0,), (0,), 8.0)}), Adapter({Q: update((0,), (0,), 2.0)})
    report = conflict(meetings([strong], [weak]), "content=a", "style=b")
    assert report["dominant"] == "content" and report["both"] == 1
    assert any(each.endswith("method.content=0.25 method.style=1.0") for each in report["commands"])
    assert any(each.endswith("method=np_lora") for each in report["commands"])
    apart = conflict(meetings([strong], [Adapter({K: update((0,), (0,), 8.0)})]), "content=a", "style=b")
    assert apart["only"] == {"content": 1, "style": 1} and apart["dominant"] is None
    assert list(apart["commands"].values()) == ["the LoRAs share no layer: the sum is exact"]
    weaker_content = commands("content=a", "style=b", [2.0, 8.0], 0.0, True, "style")
    assert any(each.endswith("method.content=1.0 method.style=0.25") for each in weaker_content)


def test_description_has_ranks_scales_and_training(tmp_path: Path) -> None:
    stem = "lora_unet_up_blocks_0_attentions_1_transformer_blocks_0_attn1_to_q"
    tensors = {f"{stem}.lora_down.weight": torch.ones(4, 6), f"{stem}.lora_up.weight": torch.ones(5, 4),
               f"{stem}.alpha": torch.tensor(1.0)}  # fmt: skip
    save_file(tensors, tmp_path / "a.safetensors", {"ss_steps": "1200", "ss_tag_frequency": "left out"})
    facts = described("a", Adapter.open(tmp_path / "a.safetensors"))
    assert facts["ranks"] == [4] and facts["alpha / rank"] == [0.25] and facts["metadata"] == {"ss_steps": "1200"}
    assert facts["base"] == "sdxl_base_v1-0" and facts["blocks"] == ["up_blocks.0.attentions.1"]
    assert facts["norm"] == pytest.approx(float(torch.ones(5, 6).norm()))


def test_norm_of_adapter_is_that_of_its_dense_updates() -> None:
    torch.manual_seed(0)
    adapter = Adapter({name: Factors(torch.randn(3, 6), torch.randn(5, 3)) for name in (Q, K)})
    dense = torch.cat([(each.up @ each.down).flatten() for each in adapter.values()])
    assert norm(adapter) == pytest.approx(float(dense.norm()), rel=1e-5)


def test_blocks_are_in_order_of_forward_pass() -> None:
    layers = ["text_encoder_2.text_model.x", Q, "up_blocks.1.attentions.0.proj_in",
              "down_blocks.2.attentions.1.proj_in", "time_embedding.linear_1"]  # fmt: skip
    assert blocks(layers) == ["down_blocks.2.attentions.1", "mid_block.attentions.0", "up_blocks.1.attentions.0",
                              "text_encoder_2", "time_embedding.linear_1"]  # fmt: skip
    assert block_of("down_blocks.1.resnets.0.time_emb_proj") == "down_blocks.1"


def test_inspect_on_command_line(commands: Commands, loras, tmp_path: Path) -> None:
    for lora, name in zip(loras, "ab", strict=True):
        lora.save(tmp_path / f"{name}.safetensors")
    files = ["content=a.safetensors", "style=b.safetensors"]
    result = commands.run("task=inspect", *files, "output=out/look", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "method=direct" in result.stdout and "shared directions" in result.stdout
    report = json.loads((tmp_path / "out" / "look.json").read_text())
    assert [each["ranks"] for each in report["files"]] == [[3], [2]] and len(report["layers"]) == len(loras[0])
    assert Image.open(tmp_path / "out" / "look.png").width > 500
    single = commands.run("task=inspect", "content=a.safetensors", "output=one", cwd=tmp_path)
    assert single.returncode == 0 and "rank 3" in single.stdout and not (tmp_path / "one.png").exists()
    nothing = commands.run("task=inspect", cwd=tmp_path)
    assert nothing.returncode == 2 and "task=inspect needs a file; use content=" in nothing.stderr
