"""Prompts that a text encoder would cut are found before training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import open_clip
import pytest
from photos import dreambooth, styledrop
from transformers import CLIPTokenizer

from lorabench.base import ASSETS, UserError
from lorabench.config.dataset_schemas import DreamBoothStyleDropSpec
from lorabench.data.catalogue import load_pairs
from lorabench.data.packaged import packaged
from lorabench.data.pairs import Pair
from lorabench.data.prompt_length import TextReader, check_prompts, clip_reader, cut, model_readers
from lorabench.data.scenes import Prompts
from lorabench.scoring.files import MICRO_SCORERS, read_config
from lorabench.tasks.prompts import check_style_kept, fitting
from lorabench.tasks.user_loras import UserLoRA

MICRO = ASSETS / "micro_sdxl"
TEXTS = [
    "a sks dog in szn style",
    "it's a CAFÉ, déjà-vu 123 (x)!",
    "watercolor painting of the Eiffel Tower",
    "日本 ~ Œ",
]
LONG = "a sks dog with a tree and autumn leaves in the background in szn style"


@pytest.fixture(scope="module")
def readers() -> list[TextReader]:
    return model_readers(MICRO, "model=micro")


def test_tokens_are_counted_as_by_transformers(readers: list[TextReader], tmp_path: Path) -> None:
    tokenizer = CLIPTokenizer.from_pretrained(MICRO / "tokenizer")
    tokenizer.backend_tokenizer.model.save(str(tmp_path))  # vocab.json and merges.txt, as SDXL has them
    (tmp_path / "tokenizer").mkdir()
    for name in ("vocab.json", "merges.txt"):
        (tmp_path / name).rename(tmp_path / "tokenizer" / name)
    (tmp_path / "tokenizer" / "tokenizer_config.json").write_text('{"model_max_length": 77}')
    [slow] = model_readers(tmp_path, "m")
    assert slow.limit == 77 and [reader.limit for reader in readers] == [32, 32]
    for text in TEXTS[:3]:
        expected = len(tokenizer(text).input_ids)
        assert [reader.count(text) for reader in (*readers, slow)] == [expected] * 3


def test_tokens_are_counted_as_by_open_clip() -> None:
    micro = read_config(MICRO_SCORERS / "clip" / "config.json")["architecture"]
    own = open_clip.SimpleTokenizer(bpe_path=str(MICRO_SCORERS / "clip" / micro["merges"]))
    readers = {
        clip_reader("clip@micro", micro, MICRO_SCORERS / "clip"): own,
        clip_reader("clip", {"model": "ViT-B-32-quickgelu"}, MICRO): open_clip.SimpleTokenizer(),
    }
    assert [reader.limit for reader in readers] == [32, 77]
    for reader, tokenizer in readers.items():
        assert [reader.count(text) for text in TEXTS] == [len(tokenizer.encode(text)) + 2 for text in TEXTS]
        assert not any(reader.unknown(text) for text in TEXTS)


def test_lost_end_and_unknown_characters_are_named(readers: list[TextReader]) -> None:
    assert cut(LONG, readers) == (
        f"the prompt {LONG!r} has 40 tokens, but model=micro reads 32: 'ground in szn style' is lost; shorten it"
    )
    assert "has 'ü', which model=micro cannot read" in str(cut("a sks dog in grün style", readers))
    assert cut("a sks dog in the snow in szn style", readers) is None
    with pytest.raises(UserError, match="has 40 tokens"):
        check_prompts(["a sks dog", LONG], readers)


def pairs_of(tmp_path: Path, contexts: Any, **prompts: str) -> tuple[list[Pair], Prompts]:
    dreambooth(tmp_path)
    styledrop(tmp_path)
    spec = DreamBoothStyleDropSpec(
        name="dreambooth_styledrop", root=str(tmp_path), style_root=None, contents=None, subjects=["dog", "teapot"],
        styles=["image_01_05"], pairs="all", count=1, pairs_seed=0, references="same",
    )  # fmt: skip
    named = Prompts(contexts=contexts, **prompts)
    return load_pairs(spec, named), named


def test_listed_scenes_that_are_cut_are_left_out_of_all_pairs_by_name(
    readers: list[TextReader], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """ "teapot" has more tokens than "dog"; a scene that is too long for one pair is left out of all pairs."""
    listed, prompts = pairs_of(tmp_path, "object")
    found, left_out = fitting(listed, prompts, readers, [])
    assert [[scene.context for scene in pair.scenes] for pair in found] == [
        ["a {} in the jungle", "a cube shaped {}"]
    ] * 2
    assert list(left_out) == ["a {} with the Eiffel Tower in the background"] and "is lost" in next(
        iter(left_out.values())
    )
    assert "1 scenes are left out: the prompt 'a sks dog with the Eiffel Tower" in capsys.readouterr().err


def test_scenes_of_user_that_are_cut_are_errors(readers: list[TextReader], tmp_path: Path) -> None:
    own, prompts = pairs_of(tmp_path, ["in the snow", "with the Eiffel Tower in the background"])
    with pytest.raises(UserError, match=r"Eiffel Tower .* has 33 tokens, but model=micro reads 32: 'style' is lost"):
        fitting(own, prompts, readers, [])


def test_caption_and_plain_words_that_are_cut_are_errors(readers: list[TextReader], tmp_path: Path) -> None:
    pairs, prompts = pairs_of(tmp_path, "none", content_token="qwertyuiopasdfghjklzxcvbnm123")
    with pytest.raises(UserError, match="'a qwertyuiopasdfghjklzxcvbnm123 dog"):
        fitting(pairs, prompts, readers, [])
    pairs, prompts = pairs_of(tmp_path, "none")
    short = TextReader("clip@short", 6, readers[0].load)
    with pytest.raises(UserError, match="but clip@short reads 6"):
        fitting(pairs, prompts, readers, [short])


def test_packaged_scenes_fit_sdxl() -> None:
    """Tokens are those of SDXL's first encoder and of open_clip."""
    reader = clip_reader("SDXL", {"model": "ViT-L-14"}, MICRO)
    scenes = [scene for kind in ("object", "live") for scene in packaged("contexts")[kind]]
    prompts = [
        Prompts().scene(["stuffed animal"], ["abstract rainbow colored flowing smoke wave design"], s) for s in scenes
    ]
    assert len(scenes) == 50 and not any(cut(text, [reader]) for scene in prompts for text in scene[:2])


def test_prompt_of_user_is_warned_of_and_never_loses_its_style(
    readers: list[TextReader], capsys: pytest.CaptureFixture[str]
) -> None:
    check_style_kept(
        "a sks dog in szn style with a tree and autumn leaves in the background of a city", ["szn"], readers
    )
    assert capsys.readouterr().err.startswith("warning: the prompt 'a sks dog in szn style with a tree")
    with pytest.raises(UserError, match="'ground in szn style' is lost"):
        check_style_kept(LONG, ["SZN"], readers)

    class HalfWord(TextReader):
        def lost(self, text: str) -> str:
            return "n"

    with pytest.raises(UserError, match="'n' is lost"):  # the limit is inside the word of the style
        check_style_kept("a sks dog in szn", ["szn"], [HalfWord("half", 6, readers[0].load)])


def test_words_of_user_style_are_those_after_its_preposition() -> None:
    assert UserLoRA("a.safetensors", "a boat in szn style", trigger="<s0>").style_words == ["<s0>", "szn", "style"]
    assert UserLoRA("a.safetensors", "szn drawing").style_words == ["szn", "drawing"]
    assert UserLoRA("a.safetensors").style_words == []


def test_scenes_that_are_equal_as_prompts_are_sampled_once(tmp_path: Path) -> None:
    pairs, _ = pairs_of(tmp_path, ["in the snow", "a {} in the snow", "a {}  in the snow"])
    assert [scene.prompt for scene in pairs[0].scenes] == ["a sks dog in the snow in szn style"]


def test_read_of_folder_without_tokenizer_has_no_limit(tmp_path: Path) -> None:
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / "tokenizer" / "vocab.json").write_text(json.dumps({"a": 0}))
    assert model_readers(tmp_path, "m") == []
