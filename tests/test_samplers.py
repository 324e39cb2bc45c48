"""Other samplers than the model's, and the task that compares them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
from diffusers.schedulers.scheduling_euler_discrete import EulerDiscreteScheduler
from hydra import compose

from lorabench.config.schemas import SAMPLERS, GenerateSpec
from lorabench.models.sampler import ScheduledSampler
from lorabench.models.schedulers import SAMPLERS as KNOWN
from lorabench.sampling.sampler import sample_latents
from lorabench.tasks.benchmark import plan_of
from lorabench.tasks.rows import Row
from lorabench.tasks.samplers import fewest_steps, run, setting


def test_every_sampler_has_class_and_other_noise_levels_are_its_own(model) -> None:
    assert set(SAMPLERS) == {"model", *KNOWN}
    own = model.sampler(10)
    for name in KNOWN:
        other = model.sampler(10, name)
        assert type(other.scheduler).__name__ == KNOWN[name][0]
        same = ("prediction_type", "beta_start", "beta_end", "beta_schedule", "timestep_spacing")
        assert all(other.scheduler.config[key] == own.scheduler.config[key] for key in same)
    assert not torch.equal(model.sampler(10, "euler_karras").timesteps, own.timesteps)
    assert model.sampler(10).scheduler is not model.pipeline.scheduler


def test_latents_are_those_of_diffusers_scheduler(model) -> None:
    """The loop of diffusers with DPM-Solver++ 2M from the same noise."""
    ours = sample_latents(model, ["a mug"], [3], 4, 1.0, sampler="dpmpp_2m")
    scheduler: Any = DPMSolverMultistepScheduler.from_config(
        model.pipeline.scheduler.config, algorithm_type="dpmsolver++"
    )
    scheduler.set_timesteps(4)
    latents, prompt = model.initial_noise([3]) * scheduler.init_noise_sigma, model.encode_prompts(["a mug"])
    with torch.no_grad():
        for t in scheduler.timesteps:
            prediction = model.predict(scheduler.scale_model_input(latents, t), t, prompt)
            latents = scheduler.step(prediction, t, latents).prev_sample
    torch.testing.assert_close(ours, latents, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(ours, sample_latents(model, ["a mug"], [3], 4, 1.0), atol=1e-3)


def test_more_steps_come_nearer_to_limit() -> None:
    """For data that is a point, v is known, and every sampler ends at the point."""
    scheduler = EulerDiscreteScheduler(prediction_type="v_prediction", timestep_spacing="trailing")
    alphas = scheduler.alphas_cumprod
    point = torch.full((1, 1, 2, 2), 0.7)
    for kind in ("model", "euler", "dpmpp_2m"):  # those with levels at whole timesteps
        sampler = ScheduledSampler(scheduler, 12, torch.device("cpu"), kind)
        latents = sampler.start(torch.randn(1, 1, 2, 2, generator=torch.Generator().manual_seed(0)))
        for t in sampler.timesteps:
            x, a = sampler.scaled(latents, t), alphas[int(t)]
            noise = (x - a.sqrt() * point) / (1 - a).sqrt()
            latents = sampler.step(a.sqrt() * noise - (1 - a).sqrt() * point, t, latents)
        torch.testing.assert_close(latents, point, rtol=0, atol=0.02)


def test_models_own_sampler_leaves_keys_as_they_were() -> None:
    spec = GenerateSpec(images=2, steps=3, guidance=3.0, batch=2)
    assert spec.params() == {"images": 2, "steps": 3, "guidance": 3.0, "batch": 2}
    assert GenerateSpec(2, 3, 3.0, 2, "dpmpp_2m").params()["sampler"] == "dpmpp_2m"


def test_fewest_steps_count_only_with_all_greater_ones() -> None:
    response = pd.DataFrame(
        {
            "kind": ["a"] * 4 + ["b"] * 2, "dose": [8, 12, 8, 12, 8, 12], "score": ["x", "x", "y", "y", "x", "x"],
            "separated": [False, False, True, False, False, True],
        }
    )  # fmt: skip
    found = fewest_steps(response)
    assert found["a"] == 12 and np.isnan(found["b"])


SMALL = [
    "task=samplers", "trainer.workers=0", "task.samplers=[model,dpmpp_2m]", "task.steps=[2]", "task.reference_steps=4",
    "dataset.pairs=[mug_1/ink_1,cat_1/neon_1]", "lora.steps=1", "dataset.references=1", "dataset.content_images=1",
    "dataset.style_images=1", "generate.images=1",
]  # fmt: skip


@pytest.mark.usefixtures("hydra")
def test_task_shares_loras_and_merges(tiny, tmp_path: Path, capsys) -> None:
    run(compose("config", [*tiny, *SMALL, f"output={tmp_path}"]), tmp_path)
    store = tmp_path / "store"
    assert (len(list((store / "personalize").iterdir())), len(list((store / "merge").iterdir()))) == (4, 2)
    found = pd.read_csv(tmp_path / "samplers.csv")
    assert set(found["kind"]) == {"model", "dpmpp_2m"} and set(found["dose"]) == {2}
    printed = capsys.readouterr().out
    assert "| sampler | steps |" in printed and "Fewest steps from which on no score is separated: model: " in printed


@pytest.mark.usefixtures("hydra")
def test_settings_share_loras_that_are_trained_on_class_images(tiny) -> None:
    plan = plan_of(compose("config", [*tiny, *SMALL, "lora.prior_weight=1"]), [Row.of("direct")])
    for sampler, steps in (("model", 4), ("dpmpp_2m", 2)):
        changed = setting(plan, sampler, steps)
        keys = [[each.key for each in one.artifacts("personalize")] for one in (plan, changed)]
        assert keys[0] == keys[1] and len(keys[0]) == 4
        assert changed.generation.steps == steps
        assert not {each.key for each in plan.artifacts("generate")} & {
            each.key for each in changed.artifacts("generate")
        }


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("task.samplers=[eulr]", "task.samplers=eulr is unknown, did you mean euler"),
        ("task.steps=[4]", "must be from 1 to 3"),
        ("task.steps=[]", "must be from 1 to 3"),
    ],
)
def test_mistakes_are_one_line(refused, override: str, words: str) -> None:
    refused(run, [*SMALL, override], words)
