"""Markers in prompts, and adapters that follow them."""

from __future__ import annotations

import numpy as np
import pytest
from merges import draw, merged

from lorabench.base import UserError
from lorabench.config.schemas import GenerateSpec
from lorabench.data.concepts import ROLES, Role
from lorabench.data.markers import parse
from lorabench.data.scenes import Prompts, Scene
from lorabench.data.uses import scene_for
from lorabench.merging.method import load
from lorabench.sampling.routing import marker_scales, unmarked

BOTH = "a <c>sks mug</c> in <s>szn style</s>"
SPEC = GenerateSpec(images=4, steps=2, guidance=3.0, batch=4)


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("a <c>dog in <s>ink</s></c>", "<s> is nested in <c>"),
        ("a <c>dog", "<c> is not closed"),
        ("a dog</s>", "</s> closes nothing"),
        ("a <c>dog</s>", "</s> closes nothing"),
        ("a <c> </c> dog", "<c></c> is empty"),
        ("<c>a</c> <c>b</c>", "<c> is there twice"),
    ],
)
def test_wrong_markers_are_refused_in_one_line(prompt: str, message: str) -> None:
    with pytest.raises(UserError) as error:
        parse(prompt)
    assert str(error.value).startswith(f"{message} in the prompt") and "; use 'a <c>sks dog</c>" in str(error.value)
    assert "\n" not in str(error.value)


def test_markers_are_removed_and_their_words_kept() -> None:
    assert parse("a  <c> sks  dog </c> in <s>ink style</s>!") == (
        "a sks dog in ink style!",
        {"content": "sks dog", "style": "ink style"},
    )
    assert parse("a  dog <x>") == ("a  dog <x>", {})


def test_scenes_know_their_marked_words() -> None:
    scene = Prompts().scene(["dog"], ["ink style"], "a {} in the snow")
    assert (scene.content, scene.style) == ("sks dog", "szn style")
    assert scene.content in scene.prompt and scene.style in scene.prompt
    content, style = (scene_for(scene, role) for role in ROLES)
    assert (content.content, content.style, style.content, style.style) == ("sks dog", "", "", "szn style")
    own = Prompts().scene(["dog"], ["ink style"], "a <c>wet {}</c> in the snow")
    assert own[:5] == Prompts().scene(["dog"], ["ink style"], "a wet {} in the snow")[:5]
    assert own.content == "wet sks dog" and own.context == "a wet {} in the snow"
    assert marker_scales([scene, content, style, Scene.of("a dog")], ROLES).tolist() == [[1, 1], [1, 0], [0, 1], [0, 0]]
    assert [unmarked(each, ("content", *ROLES)) for each in (scene, content, style)] == [[], ["style"], ["content"]]


@pytest.mark.parametrize("rule", ["plain", "acfg", "switch", "composite", "klora"])
def test_adapters_of_absent_markers_are_off_in_their_rows(model, loras, pair, rule: str) -> None:
    """One batch with all four cases equals four samplings with the adapters scaled by hand."""
    method = load(f"direct+sampling.{rule}", routing="marker")
    result = merged(model, method, loras, pair)
    prompts = [BOTH, "a <c>sks mug</c> in szn style", "a sks mug in <s>szn style</s>", "a sks mug in szn style"]
    found = draw(model, method, lambda: loras, ROLES, result, prompts, [5] * 4, SPEC)
    plain = load(f"direct+sampling.{rule}")
    for image, (content, style) in zip(found, [(1, 1), (1, 0), (0, 1), (0, 0)], strict=True):
        strength: dict[Role, float] = {"content": float(content), "style": float(style)}
        expected = draw(
            model, plain, lambda: loras, ROLES, result, [parse(BOTH).text], [5], SPEC, strength=strength
        )  # fmt: skip
        assert np.abs(image.astype(int) - expected[0].astype(int)).max() <= 1
    assert np.abs(found[0].astype(int) - found[3].astype(int)).max() > 1


def test_routing_is_no_file_and_changes_keys_only_if_on() -> None:
    from lorabench.tasks.sample_keys import sampling_key

    plain, routed = load("direct"), load("direct", routing="marker")
    assert plain.is_file and not routed.is_file
    assert "routing" not in sampling_key(plain.sampling)["settings"]
    assert sampling_key(routed.sampling)["settings"]["routing"] == "marker"
    assert load("craft").sampling.routing == "marker"
    with pytest.raises(UserError, match=r"method.routing=marker scales each LoRA separately, but method/merge=ties"):
        load("ties", routing="marker")
