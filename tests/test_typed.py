"""Messages about mistakes on the command line quote the user's words."""

from __future__ import annotations

import pytest
from omegaconf import OmegaConf

from lorabench.base import CONF, UserError
from lorabench.config.checks import check_dataset, check_logger
from lorabench.engine.failures import unwritable
from lorabench.report.loggers.views import logger_of
from lorabench.tasks.typed import ambiguous, mistake

GROUPS = (
    "method/merge",
    "method/sampling",
    "method/training",
    "dataset",
    "judge",
    "logger",
    "lora",
    "method",
    "model",
    "protocol",
    "scorers",
    "task",
    "trainer",
)


@pytest.mark.parametrize("group", GROUPS)
def test_group_without_choice_names_key_and_choices(group: str) -> None:
    first = min(path.stem for path in (CONF / group).glob("*.yaml"))
    for value in ("null", ""):
        line = mistake(["seed=1", f"{group}={value}"])
        assert line is not None and line.startswith(f"{group}={value} is unknown") and f"use {group}=<{first}|" in line
    assert mistake([f"{group}={first}", "experiments=null", "ablation=null", "model.vae=null"]) is None


def test_several_choices_without_m_are_told_to_take_it() -> None:
    line = "method=direct,ziplora has several choices, one run each; use -m method=direct,ziplora"
    assert mistake(["method=direct,ziplora"]) == line
    assert mistake(["method=direct,ziplora", "-m"]) is None
    message = "Ambiguous value for argument 'lora.rank=4,8'\n1. To use it as a list, use key=[value1,value2]"
    assert ambiguous(message) == (
        "lora.rank=4,8 has several values; use lora.rank=[4,8] for a list, or -m lora.rank=4,8 for one run each"
    )


def test_numbers_as_names_are_shown_with_quotes() -> None:
    dataset = {"contents": None, "subjects": ["mug_1"], "styles": [1, 2], "references": 4}
    with pytest.raises(UserError, match=r"use \"dataset\.styles=\['1','2'\]\""):
        check_dataset(dataset)


@pytest.mark.parametrize("project", ["a/b", "a:b", "", "x" * 129])
def test_project_that_wandb_does_not_take_is_refused(project: str) -> None:
    with pytest.raises(UserError, match="must have 1 to 128 characters"):
        check_logger({"kind": "wandb", "project": project})
    check_logger({"kind": "none", "project": project})
    check_logger({"kind": "wandb", "project": "lorabench"})


@pytest.mark.parametrize(("name", "value"), [("WANDB_MODE", "disabled"), ("WANDB_DISABLED", "true")])
def test_disabled_wandb_is_no_logger(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    from lorabench.config.schemas import LoggerSpec

    cfg = OmegaConf.create({"logger": OmegaConf.structured(LoggerSpec(kind="wandb"))})
    assert logger_of(cfg).kind == "wandb"
    monkeypatch.setenv(name, value)
    assert logger_of(cfg).kind == "none"


def test_long_name_of_run_is_told_as_such() -> None:
    from errno import ENAMETOOLONG

    assert unwritable(ENAMETOOLONG, "/x").startswith(
        "the name of /x is too long for the file system; use a shorter one"
    )
