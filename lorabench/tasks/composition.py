"""What Hydra composed, as the tasks see it."""

from collections.abc import Mapping
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from lorabench.base import UserError
from lorabench.config.dataset_schemas import DatasetSpec, MicroworldSpec
from lorabench.merging.method import Method, composed, named


def row_name(choices: Mapping[str, Any]) -> str:
    """Return the method's name in tables, given Hydra's choices."""
    return named(choices)


# At import, because the jobs of a launcher compose in processes that import this module only.
OmegaConf.register_new_resolver("row_name", row_name, replace=True)


def method_of(cfg: DictConfig) -> Method:
    """Return the method of a composed configuration.

    Raises:
        UserError: If its settings are not valid or its components do not go together.
    """
    return composed(cfg.method, HydraConfig.get().runtime.choices)


def ablation_of() -> str:
    """Return the ablation of the composed configuration."""
    return HydraConfig.get().runtime.choices["ablation"]


def check_images(method: Method, dataset: DatasetSpec) -> None:
    """Check that a dataset has the images that the training needs.

    Raises:
        UserError: If it has not.
    """
    if method.training.images == "aligned" and not isinstance(dataset, MicroworldSpec):
        raise UserError(
            f"method/training={method.options['training']} is trained on an image before and after styling, which "
            f"dataset={dataset.name} does not have; use dataset=microworld"
        )
