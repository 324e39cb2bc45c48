"""Every YAML file composes, wrong combinations do not, values are checked, and composition is fast."""

from __future__ import annotations

import os
import random
import re
import subprocess
import sys
from itertools import product
from pathlib import Path

import pytest
from hydra import compose
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf, open_dict

from lorabench.base import UserError
from lorabench.config.checks import validate
from lorabench.merging import presets
from lorabench.merging.method import load
from lorabench.tasks.composition import method_of

ROOT = Path(__file__).parents[1]
CONF = ROOT / "conf"
GROUPS = ("dataset", "judge", "lora", "logger", "method", "model", "protocol", "scorers", "task", "trainer")


def options(group: str) -> list[str]:
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


pytestmark = pytest.mark.usefixtures("hydra")


def composed(*overrides: str) -> DictConfig:
    """Compose as Hydra does for a task: the run folder's name is resolved from the choices."""
    cfg = compose("config", list(overrides), return_hydra_config=True)
    HydraConfig.instance().set_config(cfg)
    with open_dict(cfg):
        del cfg["hydra"]
    return cfg


def check(cfg: DictConfig) -> None:
    """Check a configuration as the command line does before it runs a task."""
    validate(cfg)
    method_of(cfg)


@pytest.mark.parametrize(
    "choice",
    [f"{group}={name}" for group in GROUPS for name in options(group)],
)
def test_every_choice_composes_and_passes_checks(choice: str) -> None:
    cfg = composed(choice)
    check(cfg)
    assert not OmegaConf.missing_keys(cfg)


COMBINED = [
    ("method=direct", "method/training=blora"),
    ("method=blora", "method/merge=ties"),
    ("method=duolora", "method/sampling=composite"),
    ("method=dare_ties", "method/training=blora", "method/merge=lora_rar", "method/sampling=klora"),
]


@pytest.mark.parametrize("overrides", COMBINED)
def test_components_are_groups_that_can_be_exchanged(overrides: tuple[str, ...]) -> None:
    """The run folder has the components in its name, so that no combination overwrites the preset."""
    cfg = composed(*overrides)
    check(cfg)
    changed = [each.removeprefix("method/").replace("=", ".") for each in overrides[1:]]
    name = "+".join([overrides[0].removeprefix("method="), *changed])
    assert cfg.task.folder == f"{name}-none-s0"
    assert method_of(cfg) == load(name)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["method=ties", "method/sampling=klora"], "method/merge=ties computes one update"),
        (["method=dreambooth_joint", "method/merge=svd"], "method/merge=svd has nothing to merge"),
        (["method=content_only", "method/merge=ties", "method.density=2"], "method.density=2.0 must be"),
        (["method=duolora", "method.constyle=attached"], "did you mean detached"),
        (["method=duolora", "method.fit.lr=fast"], "method.fit.lr: Value 'fast'"),
        (["method=ziplora", "ablation=no_cycle"], "ablation=no_cycle changes settings that ziplora does not have"),
    ],
)
def test_methods_without_sense_are_refused_in_one_line(overrides: list[str], words: str) -> None:
    with pytest.raises(UserError, match=words) as error:
        check(composed(*overrides))
    assert "\n" not in str(error.value)


def test_value_that_is_no_finite_number_is_refused() -> None:
    with pytest.raises(UserError, match=r"method\.lambda_cycle=inf must be a finite number"):
        validate(composed("method=duolora", "method.lambda_cycle=inf"))


def test_modules_of_custom_weights_are_typed_by_user() -> None:
    cfg = composed("method=custom_weights", "method.blocks={mid_block: {style: 0.5}}")
    assert cfg.method.blocks == {"mid_block": {"style": 0.5}}


@pytest.mark.parametrize("experiment", sorted(path.stem for path in (ROOT / "experiments").glob("*.yaml")))
def test_every_experiment_composes_and_every_run_of_its_sweep_has_method(experiment: str) -> None:
    """Compose the experiment and three runs of its sweep, because each takes a tenth of a second; load all methods."""
    cfg = compose("config", [f"experiments={experiment}"], return_hydra_config=True)
    assert cfg.name == experiment
    sweep = cfg.hydra.sweeper.params or {}
    axes = [[f"{key}={value}" for value in sweep_values(str(values))] for key, values in sweep.items()]
    runs = list(product(*axes))
    assert len(set(runs)) == len(runs)  # no run writes over another
    names = {run: name_of_run(*run) for run in runs if run}
    for run in random.Random(experiment).sample(runs, min(3, len(runs))):
        each = composed(f"experiments={experiment}", *run)
        check(each)
        assert each.task.folder == names.get(run, each.task.folder)


def name_of_run(*overrides: str) -> str:
    """Return the name of the run folder; fail if the ablation does not fit the method."""
    chosen = dict(each.split("=", 1) for each in overrides)
    ablation = chosen.get("ablation", "none")
    return f"{load(chosen['method'], ablation).name}-{ablation}-s0"


def sweep_values(values: str) -> list[str]:
    """Return the choices of a sweep, which commas outside brackets separate."""
    return [each.strip() for each in re.findall(r"\[[^]]*\]|[^,\[\]]+", values)]


@pytest.mark.parametrize("ablation", options("ablation"))
def test_ablation_composes_with_methods_it_fits_and_with_no_other(ablation: str) -> None:
    """Compose with one method that the ablation changes, and load one preset per class."""
    chosen = {type(load(name).merge): name for name in sorted(options("method"), key=len, reverse=True)}.values()
    fitting = presets.fitting_presets(ablation)
    changed = [name for name in fitting if load(name, ablation) != load(name)]
    assert fitting and (not changed) == (ablation == "none")
    method = (changed or fitting)[0]
    assert method_of(composed(f"method={method}", f"ablation={ablation}")) == load(method, ablation)
    for method in set(chosen) - set(fitting):
        with pytest.raises(UserError, match=f"ablation={ablation} changes settings that {method} does not have"):
            load(method, ablation)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("lora.steps=-1", "lora.steps=-1 must be at least 1"),
        ("lora.rank=0", "lora.rank=0 must be at least 1"),
        ("lora.lr=0", "must be greater than 0"),
        ("method.fit.steps=-100", "method.fit.steps=-100 must be at least 1"),
        ("generate.images=0", "generate.images=0 must be at least 1"),
        ("generate.steps=0", "generate.steps=0 must be at least 1"),
        ("seed=-1", "seed=-1 must be at least 0"),
        ("trainer.workers=-1", "trainer.workers=-1 must be at least 0"),
        ("trainer.accelerator=gpus", "did you mean gpu"),
        ("mode=onlin", "did you mean online"),
        ("dataset.styles=[]", "use dataset.styles="),
        ("dataset.styles=[ink_1,ink_1]", "name each once"),
        ("prompts.style_token=sks", "must differ"),
        *(
            (f"prompts.contexts={contexts}", "not a list of scenes")
            for contexts in ("[]", "null", "3", "[' ']", "{a: b}")
        ),
        ("name=???", "use name="),
    ],
)
def test_values_are_checked(override: str, words: str) -> None:
    with pytest.raises(UserError, match=words) as error:
        check(composed(override))
    assert "\n" not in str(error.value)


def test_models_have_their_own_sampling_defaults() -> None:
    def sampled(*overrides: str) -> tuple[int, float]:
        cfg = composed(*overrides)
        return cfg.generate.steps, cfg.generate.guidance

    assert sampled("model=sdxl") == sampled("experiments=sdxl") == (50, 5.0)
    assert sampled("model=flux_schnell") == (4, 1.0)
    assert sampled("model=flux_schnell", "generate.steps=2", "model.guidance=3") == (2, 3.0)


def test_store_and_folders_follow_output() -> None:
    cfg = composed("output=/somewhere")
    assert cfg.store == "/somewhere/store"


def test_printing_config_imports_nothing_heavy() -> None:
    code = (
        "import runpy, sys; sys.argv = ['run.py', '--cfg', 'job']\n"
        "try: runpy.run_path('run.py', run_name='__main__')\n"
        "except SystemExit as end: assert not end.code\n"
        "heavy = {'torch', 'diffusers', 'transformers', 'pytorch_lightning', 'pandas', 'wandb', 'timm', 'open_clip'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=os.environ, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("name: adhoc")
