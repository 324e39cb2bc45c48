"""The command line: compose the configuration with Hydra, check it, run the task, and report errors in one line.

Exit codes: 0 done, 2 a user's mistake (one line has the fix), 130 interrupted, 1 any other error.
"""

import difflib
import importlib
import os
import re
import sys
import traceback
from contextlib import suppress
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import MissingConfigException, OverrideParseException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

from lorabench.base import CONF, UserError
from lorabench.config.checks import validate
from lorabench.config.choices import unknown
from lorabench.config.free_text import as_typed, quoted
from lorabench.config.register import register
from lorabench.engine.commit import commit
from lorabench.engine.environment import clear_environment
from lorabench.engine.failures import Failed, Incomplete, system_fault, unwritable
from lorabench.engine.output_folder import INCOMPLETE, OutputFolder
from lorabench.report.sweep import OWN_TASKS, JointReport
from lorabench.tasks import help as help_page
from lorabench.tasks.composition import method_of
from lorabench.tasks.typed import ambiguous, mistake

TASKS = {
    "benchmark": "lorabench.tasks.benchmark",
    "compare": "lorabench.tasks.compare",
    "grid": "lorabench.tasks.grid",
    "tradeoff": "lorabench.tasks.tradeoff",
    "sensitivity": "lorabench.tasks.sensitivity",
    "stability": "lorabench.tasks.stability",
    "samplers": "lorabench.tasks.samplers",
    "tuning": "lorabench.tasks.tuning",
    "recipe": "lorabench.tasks.recipe",
    "models": "lorabench.tasks.models",
    "calibration": "lorabench.tasks.calibration",
    "cost": "lorabench.tasks.cost",
    "layer_probe": "lorabench.tasks.layer_probe",
    "theorem1": "lorabench.tasks.theorem1",
    "params": "lorabench.tasks.params",
    "memory": "lorabench.tasks.memory",
    "hypernetwork": "lorabench.tasks.hypernetwork",
    "import_results": "lorabench.tasks.import_results",
    "judge": "lorabench.tasks.judge",
    "study": "lorabench.tasks.study",
    "study_results": "lorabench.tasks.study_results",
    "merge": "lorabench.tasks.files",
    "generate": "lorabench.tasks.files",
    "inspect": "lorabench.tasks.inspect_files",
    "unzip": "lorabench.tasks.unzip",
    "tune": "lorabench.tasks.tune",
}
# Each module has run(cfg, folder), which returns the name of its main file; but these fill a run folder themselves:
RUNS = ("benchmark", "compare")
LAUNCHERS = ("joblib", "submitit_local", "submitit_slurm")  # launchers of the extra `launch`
INTERRUPTED = 130
OVERRIDE = re.compile(r"[+~]*[\w./@]+=")
SHORT = re.compile(r"^(content|style)=")  # short for content.lora=, so that content.prompt= can be set as well
TRACEBACK = "LORABENCH_FULL_ERROR"  # the user's HYDRA_FULL_ERROR, also for the processes of a launcher
ERROR_FILE = "error.txt"  # log of a failed job of a sweep, in its run folder


def main() -> int:
    """Run the command line of sys.argv and return the exit code."""
    if ignored := clear_environment():
        print(f"note: {', '.join(ignored)} of the environment would change results and is ignored", file=sys.stderr)
    if help_page.wanted(sys.argv[1:]):
        print(help_page.text(TASKS))
        return 0
    os.environ[TRACEBACK] = os.environ.get("HYDRA_FULL_ERROR", "0")
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then raises an error instead of printing it; `main` prints it
    if line := mistake(sys.argv[1:]):
        return fail(line).code
    words = as_typed(SHORT.sub(r"\1.lora=", word) for word in sys.argv[1:])
    sys.argv[1:] = sorted(words, key=lambda word: not OVERRIDE.match(word))  # argparse accepts none after a flag
    register()
    try:
        hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")(task)()
        return 0
    except KeyboardInterrupt:
        return interrupted()
    except Exception as error:  # raised by the composition or by a launcher; `task` raises none
        if traceback_wanted():
            raise
        if JointReport.current is not None and of_launcher(error):
            return JointReport.current.broken(str(error).strip())
        return fail(one_line(error)).code


def task(cfg: DictConfig) -> Failed | None:
    """Run a composed configuration. Hydra calls this, once per run of a sweep.

    A failed single run exits here, because Hydra would add lines to an exception. A failed run of a sweep returns its
    failure: the other runs continue, and report/sweep.py lists failures at the end. A launcher may call this function
    in another process, in which `main` was never called.
    """
    hydra_config = HydraConfig.get()
    if hydra_config.job.chdir:  # paths of the configuration are relative to the user's working folder
        os.chdir(hydra_config.runtime.cwd)
    failed, text = attempt(cfg)
    if failed and (failed.code == INTERRUPTED or hydra_config.mode == RunMode.RUN):
        sys.exit(failed.code)
    if failed and cfg.task.name not in OWN_TASKS:
        # The failure may be that nothing can be written; and a folder of the user is left as it is.
        with suppress(OSError, UserError):
            output = OutputFolder(Path(hydra_config.runtime.output_dir))
            output.check()
            output.claim()
            log = output.add(ERROR_FILE)
            log.write_text(f"{' '.join(hydra_config.overrides.task)}\n{failed.line}\n\n{text}", encoding="utf-8")
            return Failed(failed.code, failed.line, str(log))
    return failed


def attempt(cfg: DictConfig) -> tuple[Failed | None, str]:
    """Run a configuration. Return the failure or None, and the traceback if it is not the user's mistake."""
    clear_environment()  # a job of a scheduler may have its own environment
    try:
        validate(cfg)
        method_of(cfg)
        fill(cfg, OutputFolder(Path(HydraConfig.get().runtime.output_dir)))
        return None, ""
    except UserError as error:
        if traceback_wanted():
            traceback.print_exc()
        return fail(str(error)), ""
    except Incomplete as error:
        print(f"error: {error}", file=sys.stderr)
        return Failed(1, str(error).splitlines()[0]), str(error)
    except KeyboardInterrupt:
        return Failed(interrupted(), "interrupted"), ""
    except SystemExit as error:
        # Lightning turns Ctrl-C into an exit of its own, if jobs run in this process.
        if isinstance(error.__context__, KeyboardInterrupt):
            return Failed(interrupted(), "interrupted"), ""
        if error.code:  # submitit exits when the scheduler preempts the job
            raise
        return None, ""  # a node of several without rank 0 has finished
    except Exception as error:
        text = traceback.format_exc()
        line = system_fault(error, str(cfg.store))
        if line is None or traceback_wanted():
            print(text, end="", file=sys.stderr)
        return (fail(line) if line else Failed(1, text.strip().split("\n")[-1])), text


def fill(cfg: DictConfig, output: OutputFolder) -> None:
    """Run the task into its folder.

    Raises:
        UserError: If the folder has files of the user.
    """
    commit()  # that of the code from here on
    work = importlib.import_module(TASKS[cfg.task.name]).run
    if cfg.task.name in OWN_TASKS:
        return work(cfg, output.path)
    output.check(ignored=[f"{HydraConfig.get().job.name}.log"])  # Hydra's log, if the user asks for one
    output.path.mkdir(parents=True, exist_ok=True)
    output.remove(ERROR_FILE)
    if cfg.task.name in RUNS:
        if cfg.judge.kind == "none":
            return work(cfg, output.path)
        judge = importlib.import_module(TASKS["judge"])
        judge.check_judge(cfg)
        work(cfg, output.path)
        return judge.judge_run(cfg, output.path)
    shown, incomplete = "", None
    with output.filled() as draft:
        try:
            shown = work(cfg, draft)
        except Incomplete as error:  # files that it has written are kept
            incomplete = error
            OutputFolder(draft).write_manifest({INCOMPLETE: str(error).splitlines()[0]}, {})
    if incomplete is not None:
        raise incomplete
    print(output.path / shown)


def traceback_wanted() -> bool:
    """Return whether the user has asked for tracebacks by HYDRA_FULL_ERROR=1."""
    return os.environ.get(TRACEBACK) == "1"


def of_launcher(error: Exception) -> bool:
    """Return whether Hydra's launcher raised the error, and not the composition of the jobs."""
    frames = (frame.f_globals.get("__name__", "") for frame, _ in traceback.walk_tb(error.__traceback__))
    return any(name.startswith("hydra_plugins.") for name in frames)


def fail(line: str) -> Failed:
    """Print an error that is the user's mistake, and return it."""
    print(f"error: {line}", file=sys.stderr)
    return Failed(2, line)


def interrupted() -> int:
    """Print that the run was interrupted, and return the exit code."""
    print("\ninterrupted; finished artifacts are kept; run the same command to resume", file=sys.stderr)
    return INTERRUPTED


def one_line(error: Exception) -> str:
    """Return one line with the problem and the fix for an error of Hydra."""
    if isinstance(error, MissingConfigException):
        return missing_choice(error)
    if isinstance(error, OSError) and error.errno:
        return unwritable(error.errno, str(error.filename))
    return wrong_override(error)


def missing_choice(error: MissingConfigException) -> str:
    """Return the message for an unknown option of a config group, such as method=foo."""
    group, _, name = (error.missing_cfg_file or "").rpartition("/")
    options = [option for option in error.options or [] if option != "schema"]
    if group == "hydra/launcher" and name in LAUNCHERS:
        return f"{group}={name} is not installed; run {sys.executable} -m pip install -c constraints.txt -e '.[launch]'"
    if not group:
        return f"{str(error).splitlines()[0]}; run python run.py --info defaults to see every group"
    return unknown(group, name, options)


def wrong_override(error: Exception) -> str:
    """Return the message for an unknown key, a value of a wrong type, or an override that cannot be parsed."""
    if line := ambiguous(str(error)):
        return line
    if isinstance(error, OverrideParseException):
        word = str(error.override)
        return f'{error.override} must be key=value; use quotes around text with special characters: "{quoted(word)}"'
    cause = error.__cause__
    if isinstance(cause, ConfigKeyError | ConfigAttributeError) and cause.full_key and cause.parent_node is not None:
        group = cause.full_key.rpartition(".")[0]
        known = [f"{group}.{name}" if group else str(name) for name in cause.parent_node]
        if not known:
            return f"the key {cause.full_key} is unknown; run python run.py --cfg job to see every key"
        near = difflib.get_close_matches(cause.full_key, known, n=1)
        return f"the key {cause.full_key} is unknown; use one of {', '.join(near or known)}"
    reason = str(cause if isinstance(cause, OmegaConfBaseException) else "").split("\n")[0]
    text = "; ".join(filter(None, [str(error).split("\n")[0], reason]))
    return f"{text}; run python run.py --cfg job to see every key"
