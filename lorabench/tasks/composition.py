"""The method, ablation and images of a configuration that Hydra has composed."""

from collections.abc import Mapping
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from lorabench.base import UserError
from lorabench.config.dataset_schemas import DatasetSpec, MicroworldSpec, StylisedSpec
from lorabench.merging.method import Method, composed, named

# Images that trainings need besides those of each concept, and the dataset that has them.
NEEDED = {
    "aligned": ("an image before and after styling", "microworld"),
    "stylised": ("images of the subject in the style", "microworld_stylised"),
}


def row_name(choices: Mapping[str, Any]) -> str:
    """Return the method's name in tables for Hydra's choices of options."""
    return named(choices)


# At import, because the jobs of a launcher compose in processes that import only this module.
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
        UserError: If they are missing.
    """
    kinds: dict[str, type] = {"aligned": MicroworldSpec, "stylised": StylisedSpec}
    if not isinstance(dataset, kinds.get(method.training.images, object)):
        needed, usable = NEEDED[method.training.images]
        raise UserError(
            f"method/training={method.options['training']} is trained on {needed}, which dataset={dataset.name} does "
            f"not have; use dataset={usable}"
        )
    method.training.check_dataset(dataset)
