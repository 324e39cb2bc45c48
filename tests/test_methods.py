"""Every method: its files, its ablations, its initial masks, and the passes of a step."""

import inspect
from dataclasses import fields, replace
from itertools import combinations
from typing import Any

import pytest
import torch
from conftest import random_lora
from merges import fitting, merge_all, ranks_of
from omegaconf import OmegaConf

from lorabench.base import CONF, UserError
from lorabench.config.components import component_name, components, values_of
from lorabench.merging import presets
from lorabench.merging.learned import LearnedMasks
from lorabench.merging.merge import MergeItem
from lorabench.merging.method import build, load
from lorabench.merging.method_names import parse
from lorabench.merging.methods.peft_linear import APART, DENSE
from lorabench.merging.presets import GROUPS
from lorabench.sampling.rule import Sampling

PRESETS = presets.presets()


def test_every_component_has_option_of_its_name() -> None:
    for group in GROUPS:
        classes = set(components(*presets.PACKAGES[group]))
        assert classes <= set(presets.options(group))
        assert {component_name(presets.component_class(group, each)) for each in presets.options(group)} == classes


def test_every_option_has_value_for_every_setting_and_no_other() -> None:
    for group in GROUPS:
        for option in presets.options(group):
            expected = presets.settings_of({group: presets.component_class(group, option)})
            assert set(presets.values(group, option)) == expected, option


def test_every_preset_is_three_options_and_nothing_else() -> None:
    for name in PRESETS:
        text: Any = OmegaConf.to_container(OmegaConf.load(CONF / "method" / f"{name}.yaml"))
        assert set(text) == {"defaults"} and [list(each) for each in text["defaults"]] == [[group] for group in GROUPS]
        assert load(name).name == name and load(name).options == presets.choices(name)


def test_components_share_only_settings_that_mean_same() -> None:
    """One value reaches every component that has the key, so a shared name must be one setting with one default."""
    keys = {
        group: set().union(
            *(presets.settings_of({group: kind}) for kind in components(*presets.PACKAGES[group]).values())
        )
        for group in GROUPS
    }
    shared = {key for one, other in combinations(GROUPS, 2) for key in keys[one] & keys[other]}
    assert shared == {"content_block", "style_block", "prompt_separation"}
    blora, unzip = ({"training": "blora", "merge": "blora"}, {"training": "unziplora", "sampling": "three_prompts"})
    for options in (blora, unzip):
        one, other = (presets.values(*each) for each in options.items())
        assert all(one[key] == other[key] for key in one.keys() & other.keys())


def test_components_are_at_most_two_classes_deep() -> None:
    for group in GROUPS:
        package, base = presets.PACKAGES[group]
        for kind in components(package, base).values():
            ours = [each for each in kind.__mro__ if each.__module__.startswith("lorabench")]
            assert len(ours) <= 3 and ours[-1] is base, kind  # the component, its kind, and the base of all


def test_file_is_derived_from_hooks_and_not_declared() -> None:
    """A rule that changes scales or guidance cannot be sampled as a file, whatever it declares or forgets."""
    from lorabench.sampling.rules.plain import Plain

    class Scales(Sampling):
        def scales(self, parts: Any, context: Any) -> Any:
            return None

    class Branches(Plain):
        def branches(self, context: Any) -> Any:
            return None

    plain = load("direct")
    assert plain.is_file and not any(replace(plain, sampling=rule()).is_file for rule in (Scales, Branches))
    for kind in components(*presets.PACKAGES["sampling"]).values():
        hooks = kind.branches is not Sampling.branches or kind.scales is not Sampling.scales
        settings = presets.values("sampling", component_name(kind))
        assert kind(**settings).is_plain != hooks
    for group in GROUPS:
        for kind in components(*presets.PACKAGES[group]).values():
            assert not {"exports", "is_file"} & {*vars(kind), *(each.name for each in fields(kind))}
    merges = components(*presets.PACKAGES["merge"]).values()
    assert not any(
        "progress" in inspect.signature(each.scales).parameters for each in merges if hasattr(each, "scales")
    )


def test_every_ablation_changes_little_and_fits_something() -> None:
    for name in presets.ablations():
        keys = set(presets.ablation_values(name))
        assert (CONF / "ablation" / f"{name}.yaml").read_text().startswith("# @package method\n")
        assert name == "released" or (len(keys) <= 3 and (name == "none") == (not keys))
        assert presets.fitting_presets(name)


def test_ablation_of_another_method_does_not_fit() -> None:
    assert presets.fitting_presets("no_cycle") == ["duolora", "duolora_released"]
    assert presets.fitting_presets("none") == PRESETS
    assert presets.fitting_presets("short_content_lora") == ["duolora", "duolora_released"]
    with pytest.raises(UserError, match="no_cycle changes settings that ziplora does not have; use method=<duolora"):
        load("ziplora", "no_cycle")
    with pytest.raises(UserError, match="method=ziplore is unknown, did you mean ziplora"):
        load("ziplore")
    with pytest.raises(UserError, match="ablation=no_circle is unknown"):
        load("duolora", "no_circle")


def test_method_is_built_from_its_settings() -> None:
    for name in PRESETS:
        method = load(name)
        assert build(method.options, method.settings, name) == method


COMBINATIONS = [
    ("direct+training.blora", "direct+training.blora"),
    ("blora+merge.ties", "blora+merge.ties"),
    ("duolora+sampling.composite", "duolora+sampling.composite"),
    ("direct+sampling.plain", "direct"),
    ("ziplora+training.pair+sampling.style_guidance", "ziplora+training.pair+sampling.style_guidance"),
    ("lora_rar+sampling.klora", "lora_rar+sampling.klora"),
]


@pytest.mark.parametrize(("typed", "name"), COMBINATIONS)
def test_components_combine(typed: str, name: str) -> None:
    method = load(typed)
    assert method.name == name and load(name) == method and parse(name)[1] == method.options


@pytest.mark.parametrize(
    ("name", "words"),
    [
        (
            "ties+sampling.klora",
            "method/sampling=klora scales each LoRA separately, but method/merge=ties computes one",
        ),
        ("dare_ties+sampling.switch", "method/merge=dare_ties computes one update"),
        ("dreambooth_joint+merge.duolora", "method/training=joint trains one LoRA .* method/merge=duolora has nothing"),
        ("dreambooth_joint+sampling.klora", "method/sampling=klora cannot scale content and style separately"),
        ("direct+training.given", "method/training=given trains nothing; use task=merge"),
        ("direct+sampling.kloro", "method/sampling=kloro is unknown, did you mean klora"),
        ("direct+rule.klora", "component=rule is unknown"),
    ],
)
def test_combinations_without_sense_are_refused_in_one_line(name: str, words: str) -> None:
    with pytest.raises(UserError, match=words) as error:
        load(name)
    assert "\n" not in str(error.value)


def test_errors_name_method_that_was_typed() -> None:
    with pytest.raises(UserError, match="dare_ties does not have") as error:
        load("dare_ties", "uniform")
    assert " ties" not in str(error.value)


def test_short_spelling_reaches_one_component_that_has_key() -> None:
    method = load("duolora", content_lora_steps=0.5, lambda_cycle=0.3)
    assert values_of(method.training)["content_lora_steps"] == 0.5 and values_of(method.merge)["lambda_cycle"] == 0.3
    both = load("blora", content_block="mid_block")
    assert values_of(both.training)["content_block"] == values_of(both.merge)["content_block"] == "mid_block"
    with pytest.raises(UserError, match=r"method\.tau is unknown to method/training=dreambooth method/merge=direct"):
        load("direct", tau=3)


# Ablations of duolora that each make one difference between the paper and the released code.
DEPARTURES = (
    "released_blocks", "vector_nuclear_norm", "no_hinge", "cycle_adapters", "detached_cycle", "shared_masks",
    "early_stop", "swapped_lambdas", "ones_init", "short_content_lora", "raw_basis", "summed_prior",
)  # fmt: skip


def test_released_preset_is_all_departures_at_once() -> None:
    switched, preset = load("duolora", "released"), load("duolora_released")
    assert switched.settings == preset.settings
    paper = load("duolora").settings
    single = [load("duolora", ablation).settings for ablation in DEPARTURES]
    changed = {key: each[key] for each in single for key in each if each[key] != paper[key]}
    assert changed == {key: value for key, value in preset.settings.items() if value != paper[key]}


def test_settings_that_make_no_sense_are_refused() -> None:
    with pytest.raises(UserError, match="mask_dim=rows"):
        load("ziplora", mask_dim="rows")
    with pytest.raises(UserError, match="minor_ones=2"):
        load("duolora", minor_ones=2.0)
    with pytest.raises(UserError, match="constyle=attached is unknown, did you mean detached"):
        load("duolora", constyle="attached")
    with pytest.raises(UserError, match="basis=qr"):
        load("ziprank", basis="qr")


CELLS = [(name, "none") for name in PRESETS] + [
    (presets.fitting_presets(name)[0], name)
    for name in presets.ablations()
    if name not in ("none", "uniform")  # uniform concerns several subjects: see test_merge.py
]


@pytest.mark.parametrize(("name", "ablation"), CELLS)
def test_every_method_and_ablation_merges(model, loras, pair, hypernetwork, name, ablation) -> None:
    method = load(name, ablation, **({"weights": str(hypernetwork)} if name == "lora_rar" else {}))
    if isinstance(method.merge, LearnedMasks):
        method = method.with_settings(fit=replace(method.merge.fit, steps=1))
    if getattr(method.merge, "combination", "cat") in APART:
        loras = [random_lora(model, 3, "content"), random_lora(model, 3, "style")]
    loras = fitting(model, method, loras)
    [result] = merge_all(model, method, [MergeItem(tuple(loras), pair)])
    greatest = name == "svd" or getattr(method.merge, "combination", "cat") in (*APART, *DENSE)
    if name == "base":
        assert not result.file
    elif name == "blora":
        assert {layer[:24] for layer in result.file} == {"up_blocks.0.attentions.0", "up_blocks.0.attentions.1"}
        assert {each.rank for each in result.file.values()} == {2, 3}
    else:
        single = {"content_only": 3, "style_only": 2}
        rank = 3 if greatest else single.get(name, 5)
        assert set(result.file) == set(loras[0]) and result.file.rank == rank
    assert all(torch.isfinite(each.up).all() and torch.isfinite(each.down).all() for each in result.file.values())
    assert (result.learned_params > 0) == (result.masks is not None and name != "lora_rar")
    if method.merge.keeps_parts:
        ranks = ranks_of(method, result, loras, pair)
        assert all(0 <= rank <= 3.001 for several in ranks.values() for rank in several)
    else:
        assert result.masks is None and method.merge.parts(loras, pair.roles, None) is None


def test_experiment_of_all_methods_has_every_preset_that_merges() -> None:
    values: Any = OmegaConf.to_container(OmegaConf.load(CONF.parent / "experiments" / "all_methods.yaml"))
    names = values["task"]["rows"]
    assert len(names) == len(set(names))
    merging = {name for name in PRESETS if load(name).training.images != "stylised" and load(name).training.has_factors}
    assert set(names) == merging - {"base", "content_only", "style_only", "custom_weights", "dreambooth_lora"}
