"""The judge of transformers, with a tiny random vision-language model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers

from lorabench.base import UserError
from lorabench.config.judging import TransformersJudgeSpec
from lorabench.scoring.judges.answers import both_orders
from lorabench.scoring.judges.build import build
from lorabench.scoring.judges.comparison import Comparison
from lorabench.scoring.judges.questions import Item, asks

TEMPLATE = (
    "{% for message in messages %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image> {% else %}{{ part['text'] }} {% endif %}"
    "{% endfor %}{% endfor %}{% if add_generation_prompt %}ASSISTANT: {% endif %}"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a random LLaVA whose vocabulary is a few words."""
    from transformers import (
        CLIPImageProcessor,
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
        PreTrainedTokenizerFast,
    )

    words = [
        "<unk>",
        "<s>",
        "</s>",
        "<image>",
        "A",
        "B",
        "TIE",
        "YES",
        "NO",
        "Image",
        ":",
        "subject",
        "style",
        "answer",
    ]
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="</s>",
        additional_special_tokens=["<image>"],
    )  # fmt: skip
    torch.manual_seed(0)
    vision = CLIPVisionConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=16, patch_size=8,
        projection_dim=16,
    )  # fmt: skip
    text = LlamaConfig(
        vocab_size=len(words), hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, pad_token_id=2, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_index=3)
    path = tmp_path_factory.mktemp("vlm") / "tiny-llava"
    LlavaForConditionalGeneration(config).save_pretrained(path)
    size = {"height": 16, "width": 16}
    LlavaProcessor(
        CLIPImageProcessor(size={"shortest_edge": 16}, crop_size=size), fast, patch_size=8, chat_template=TEMPLATE,
        vision_feature_select_strategy="default", num_additional_image_tokens=1,
    ).save_pretrained(path)  # fmt: skip
    return path


def judge(folder: Path | str) -> Comparison:
    spec = TransformersJudgeSpec(kind="transformers", model=str(folder), size=32, max_tokens=4, dtype="fp32")
    return build(spec, "cpu")


@pytest.fixture(scope="module")
def item(tmp_path_factory: pytest.TempPathFactory) -> Item:
    root = tmp_path_factory.mktemp("images")
    paths = [root / f"{number}.png" for number in range(4)]
    for number, path in enumerate(paths):
        Image.new("RGB", (64, 48), (60 * number, 90, 200)).save(path)
    return Item((paths[0], paths[1]), (paths[2], paths[3]), ("mug_1", "ink_1"))


def test_random_model_answers_in_words_of_its_vocabulary(folder: Path, item: Item) -> None:
    own = judge(folder)
    answers = [own.answer(ask) for ask in asks("pairwise", item, "both")]
    assert all(answers) and all(len(answer.split()) <= 4 for answer in answers)
    assert own.answer(asks("pairwise", item, "both")[0]) == answers[0]  # greedy
    assert both_orders(*answers) in ("a", "b", "tie", "invalid")


def test_model_sees_images_in_their_order(folder: Path, item: Item) -> None:
    """The last logits differ if the two images are swapped, and not if the same ones are shown again."""
    own = judge(folder)
    _, model = own.loaded  # pyright: ignore[reportAttributeAccessIssue]
    seen, first = [], []
    hook = model.register_forward_hook(lambda model, inputs, output: seen.append(output.logits[0, -1]))
    for ask in [*asks("pairwise", item, "style"), asks("pairwise", item, "style")[0]]:
        seen.clear()
        own.answer(ask)
        first.append(seen[0])
    hook.remove()
    assert not torch.allclose(first[0], first[1], atol=1e-5)
    assert torch.equal(first[0], first[2])


def test_identity_follows_files(folder: Path, tmp_path: Path) -> None:
    one = judge(folder).identity()
    copy = tmp_path / "renamed"
    copy.mkdir()
    for file in folder.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    assert judge(copy).identity() == one
    (copy / "generation_config.json").write_text("{}")
    assert judge(copy).identity() != one


def test_folder_without_model_is_refused(tmp_path: Path, item: Item, folder: Path) -> None:
    with pytest.raises(UserError, match=r"must be a folder with config.json or a hub id"):
        judge(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(UserError, match="is not a vision-language model that transformers can load"):
        judge(tmp_path).answer(asks("pairwise", item, "both")[0])
