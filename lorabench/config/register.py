"""Registration of the schemas with Hydra, for the line `defaults: [schema/<name>, _self_]` of YAML files."""

from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import OmegaConf

from lorabench.base import CONF_ROOT
from lorabench.config.dataset_schemas import DreamBoothStyleDropSpec, FolderSpec, MicroworldSpec, StylisedSpec
from lorabench.config.judging import (
    JudgeSpec,
    OpenAIJudgeSpec,
    StudyResultsTask,
    StudyTask,
    TransformersJudgeSpec,
    TruthJudgeSpec,
)
from lorabench.config.schemas import Config, LoggerSpec, LoRASpec, ModelSpec, ProtocolSpec, ScorerSpec, TrainerSpec
from lorabench.config.task_schemas import (
    CalibrationTask,
    CompareTask,
    CostTask,
    FileTask,
    GridTask,
    HypernetworkTask,
    ImportTask,
    LayerProbeTask,
    MemoryTask,
    ModelsTask,
    ParamsTask,
    RecipeTask,
    SamplersTask,
    SensitivityTask,
    StabilityTask,
    TaskSpec,
    TradeoffTask,
    TuneTask,
    TuningTask,
    UnzipTask,
)

SCHEMAS = {
    "model": {"diffusers": ModelSpec},
    "scorers": {"scorers": ScorerSpec},
    "dataset": {
        "microworld": MicroworldSpec,
        "microworld_stylised": StylisedSpec,
        "dreambooth_styledrop": DreamBoothStyleDropSpec,
        "folder": FolderSpec,
    },
    "protocol": {"protocol": ProtocolSpec},
    "lora": {"lora": LoRASpec},
    "trainer": {"trainer": TrainerSpec},
    "logger": {"logger": LoggerSpec},
    "judge": {
        "none": JudgeSpec,
        "truth": TruthJudgeSpec,
        "openai": OpenAIJudgeSpec,
        "transformers": TransformersJudgeSpec,
    },
    "task": {
        "task": TaskSpec,
        "theorem1": TaskSpec,
        "params": ParamsTask,
        "layer_probe": LayerProbeTask,
        "compare": CompareTask,
        "grid": GridTask,
        "tradeoff": TradeoffTask,
        "sensitivity": SensitivityTask,
        "stability": StabilityTask,
        "samplers": SamplersTask,
        "models": ModelsTask,
        "calibration": CalibrationTask,
        "cost": CostTask,
        "files": FileTask,
        "tune": TuneTask,
        "tuning": TuningTask,
        "recipe": RecipeTask,
        "memory": MemoryTask,
        "hypernetwork": HypernetworkTask,
        "import_results": ImportTask,
        "unzip": UnzipTask,
        "study": StudyTask,
        "study_results": StudyResultsTask,
    },
}


# At import, because the jobs of a launcher compose in processes that do not call `register`.
OmegaConf.register_new_resolver("count", lambda names: len(names or [None]), replace=True)


class ExperimentsGroup(SearchPathPlugin):
    """Plugin that makes experiments/ a config group."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Add the folder that contains experiments/ to Hydra's search path."""
        search_path.append("lorabench", f"file://{CONF_ROOT}")


def register() -> None:
    """Register the schemas and experiments with Hydra."""
    Plugins.instance().register(ExperimentsGroup)
    store = ConfigStore.instance()
    store.store(name="schema", node=Config)
    for group, schemas in SCHEMAS.items():
        for name, node in schemas.items():
            store.store(group=f"{group}/schema", name=name, node=node, package=group)
