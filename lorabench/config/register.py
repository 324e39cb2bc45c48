"""Registers the schemas where the yaml files find them: `defaults: [schema/<name>, _self_]`."""

from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf

from lorabench.config.schemas import (
    CalibrationTask,
    CompareTask,
    Config,
    CostTask,
    DreamBoothStyleDropSpec,
    FileTask,
    FolderSpec,
    HypernetworkTask,
    LayerProbeTask,
    LoggerSpec,
    LoRASpec,
    MemoryTask,
    MicroworldSpec,
    ModelSpec,
    ParamsTask,
    ProtocolSpec,
    ScorerSpec,
    TaskSpec,
    TradeoffTask,
    TrainerSpec,
)

SCHEMAS = {
    "model": {"diffusers": ModelSpec},
    "scorers": {"scorers": ScorerSpec},
    "dataset": {
        "microworld": MicroworldSpec,
        "dreambooth_styledrop": DreamBoothStyleDropSpec,
        "folder": FolderSpec,
    },
    "protocol": {"protocol": ProtocolSpec},
    "lora": {"lora": LoRASpec},
    "trainer": {"trainer": TrainerSpec},
    "logger": {"logger": LoggerSpec},
    "task": {
        "task": TaskSpec,
        "theorem1": TaskSpec,
        "params": ParamsTask,
        "layer_probe": LayerProbeTask,
        "compare": CompareTask,
        "tradeoff": TradeoffTask,
        "calibration": CalibrationTask,
        "cost": CostTask,
        "files": FileTask,
        "memory": MemoryTask,
        "hypernetwork": HypernetworkTask,
    },
}


# At import, since the jobs of a launcher compose in processes where `register` was never called.
OmegaConf.register_new_resolver("count", lambda names: len(names or [None]), replace=True)


def register() -> None:
    """Put every schema where the yaml files find it: `defaults: [schema/<name>, _self_]`."""
    from lorabench.merging import method

    store = ConfigStore.instance()
    store.store(name="schema", node=Config)
    for group, schemas in SCHEMAS.items():
        for name, node in schemas.items():
            store.store(group=f"{group}/schema", name=name, node=node, package=group)
    method.register()
