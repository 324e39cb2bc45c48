"""Kill runs at random moments (kill -9 of all their processes) and check that the same command completes them.

A small but complete run gives the expected scores. Each kill then uses a new store: the run is killed at a random
moment of its duration and the same command is run to its end. Its scores.parquet must be equal byte for byte.

    python -m benchmarks.kills                             # 20 kills: half an hour on two cores
    python -m benchmarks.kills trainer=ddp trainer.devices=2
    python -m benchmarks.kills --chain                     # cheaper, see below; used by the test suite

With `--chain`, the commands that follow a kill use the same store and are killed as well: the first one in the first
stage, a random moment after an artifact of that stage was stored, the next one in the next stage, and so on. Then the
run is completed, and a new chain starts. So all stages are hit, however quick the run. Commands are forked from a
process with all imports, so that the time is spent in runs and not in Python's start.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import os
import pkgutil
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from hydra.core.plugins import Plugins

from benchmarks.measure import markdown, new_file, publish

ROOT = Path(__file__).parents[1]
SMALL = [
    "logger=none", "method=duolora", "method.fit.steps=20", "lora.steps=60", "generate.images=4", "generate.steps=10",
    "dataset.subjects=[mug_1]", "dataset.styles=[halftone_1,ink_1]", "dataset.content_images=2",
    "dataset.style_images=2", "dataset.references=2",
]  # fmt: skip
STAGES = ("personalize", "merge", "generate", "score")
LIFE = 0.05  # longest life of a command of a chain in its stage, as a share of the duration of an undisturbed run


@dataclass(frozen=True)
class Kill:
    """One kill.

    Args:
        moment: Seconds after the start, or in a chain after an artifact of the stage was stored.
        stage: The latest stage in the store, or in a chain the stage of that artifact.
        equal: Whether the final scores are equal; None if unknown.
    """

    moment: float
    stage: str
    equal: bool | None = None


def main(arguments: list[str]) -> int:
    """Run the benchmark; return 1 if the scores of a killed run differ."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--chain", action="store_true")
    parser.add_argument("--out", type=new_file)
    parser.add_argument("--json", type=new_file)
    parser.add_argument("overrides", nargs="*", help="additional overrides of run.py")
    options = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the current command is stopped too
    draw = random.Random(options.seed)
    if options.chain:
        preload()
    run = forked if options.chain else executed
    with tempfile.TemporaryDirectory(prefix="kills-") as folder:
        bench = Bench(Path(folder), [*SMALL, *options.overrides], run)
        seconds, expected = bench.undisturbed()
        kills: list[Kill] = []
        while len(kills) < options.kills:
            if options.chain:
                kills += bench.chain(expected, options.kills - len(kills), lambda: draw.uniform(0, LIFE * seconds))
            else:
                kills += bench.once(expected, draw.uniform(0, seconds))
            last = kills[-1] if kills else "none yet"
            print(f"{len(kills)} of {options.kills} kills, last: {last}", file=sys.stderr, flush=True)
    report(kills, seconds, options)
    return 0 if all(kill.equal for kill in kills) else 1


@dataclass
class Bench:
    """Runs of one command line, each in its own folder; `run` executes the command in the child process."""

    folder: Path
    overrides: list[str]
    run: Callable[[list[str]], int]
    count: int = 0

    def fresh(self) -> Path:
        """Return a new output folder."""
        self.count += 1
        return self.folder / str(self.count)

    def undisturbed(self) -> tuple[float, bytes]:
        """Run without a kill and return its seconds and scores."""
        output, start = self.fresh(), time.monotonic()
        self.finish(output)
        return time.monotonic() - start, scores(output)

    def once(self, expected: bytes, moment: float) -> list[Kill]:
        """Kill one run in a new store and complete it; return an empty list if it ended before the kill."""
        output = self.fresh()
        if not self.killed(output, moment):
            return []
        stage = reached(output)
        self.finish(output)
        return [Kill(moment, stage, scores(output) == expected)]

    def chain(self, expected: bytes, most: int, life: Callable[[], float]) -> list[Kill]:
        """Kill up to `most` successive commands on one store, one in each stage, then complete the run."""
        output, kills = self.fresh(), []
        for stage in STAGES[:most]:
            if self.killed(output, moment := life(), partial(has_more, output, stage, stored(output)[stage])):
                kills.append(Kill(moment, stage))
        self.finish(output)
        equal = scores(output) == expected
        return [Kill(kill.moment, kill.stage, equal) for kill in kills]

    def start(self, output: Path) -> int:
        """Start the command and return its process id."""
        return start(self.run, [*self.overrides, f"output={output}"], self.folder / "log.txt")

    def killed(self, output: Path, moment: float, begun: Callable[[], bool] = lambda: True) -> bool:
        """Start a command; return True if it still ran `moment` seconds after `begun`, when its group is killed."""
        return ended(self.start(output), moment, begun) == -signal.SIGKILL

    def finish(self, output: Path) -> None:
        """Run the command to its end; exit if it fails."""
        if code := ended(self.start(output)):
            raise SystemExit(f"a run ended with code {code}:\n{(self.folder / 'log.txt').read_text()[-4000:]}")


def ended(pid: int, moment: float = float("inf"), begun: Callable[[], bool] = lambda: True) -> int:
    """Wait for a command and return its exit code; kill its group on an interruption, or `moment` s after `begun`."""
    end = float("inf")
    try:
        while time.monotonic() < end:
            if end == float("inf") and begun():
                end = time.monotonic() + moment
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                return os.waitstatus_to_exitcode(status)
            time.sleep(0.005)
    except BaseException:
        kill(pid)
        raise
    kill(pid)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def kill(pid: int) -> None:
    """Kill a process group, or the process if it does not have a group yet."""
    try:
        os.killpg(pid, signal.SIGKILL)
    except ProcessLookupError:  # the process group does not exist yet
        os.kill(pid, signal.SIGKILL)


def start(run: Callable[[list[str]], int], overrides: list[str], log: Path) -> int:
    """Start a command as the leader of a new process group and append its output to the log; return the process id."""
    if pid := fork():
        return pid
    code = 1
    try:
        os.setsid()
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(file, 1)
        os.dup2(file, 2)
        code = run([str(ROOT / "run.py"), *overrides])
    except SystemExit as end:  # raised by Hydra or by a failed run
        code = int(end.code or 0)
    finally:
        os._exit(code)


def fork() -> int:
    """Call os.fork with a frozen garbage collector, so that a collection in the child does not copy all memory."""
    gc.freeze()
    if pid := os.fork():
        gc.unfreeze()
    return pid


def executed(command: list[str]) -> int:
    """Execute the command in a new interpreter, as a user would."""
    os.execv(sys.executable, [sys.executable, *command])


def forked(command: list[str]) -> int:
    """Run the command in this process, whose imports `preload` has made."""
    from lorabench.tasks.cli import main

    workers = [] if any(word.startswith("trainer.workers=") for word in command) else ["trainer.workers=0"]
    sys.argv = [*command, *workers]
    return main()


def preload() -> None:
    """Import the modules that a run needs, with one thread, because threads do not survive a fork."""
    os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1")
    for package in (
        "lorabench.personalization",
        "lorabench.merging",
        "lorabench.scoring",
        "lorabench.models",
        "lorabench.report",
        "lorabench.data",
    ):
        for module in pkgutil.iter_modules(importlib.import_module(package).__path__, f"{package}."):
            if not module.name.endswith("__main__"):
                importlib.import_module(module.name)
    importlib.import_module("lorabench.tasks.files")
    importlib.import_module("lorabench.report.papers").papers()
    Plugins.instance()


def scores(output: Path) -> bytes:
    """Return the bytes of the only scores.parquet in an output folder."""
    (file,) = output.glob("*/*/scores.parquet")
    return file.read_bytes()


def stored(output: Path) -> Counter[str]:
    """Return the number of artifacts by stage."""
    return Counter(path.parts[-3] for path in output.glob("store/*/*/key.json"))


def has_more(output: Path, stage: str, count: int) -> bool:
    """Return whether the store has more than so many artifacts of a stage."""
    return stored(output)[stage] > count


def reached(output: Path) -> str:
    """Return the latest stage of a killed run with its number of artifacts, "report", or "start" if there is none."""
    if list(output.glob("*/*/scores.parquet")):
        return "report"
    made = stored(output)
    return next((f"{stage} {made[stage]}" for stage in reversed(STAGES) if made[stage]), "start")


def report(kills: list[Kill], seconds: float, options: argparse.Namespace) -> None:
    """Print or write the table of all kills."""
    rows = [
        [str(number), f"{kill.moment:.1f}", kill.stage, "yes" if kill.equal else "NO"]
        for number, kill in enumerate(kills, 1)
    ]
    equal = sum(bool(kill.equal) for kill in kills)
    found = f"{len(kills)} kills, {equal} with the scores of the undisturbed run, which took {seconds:.1f} s."
    text = f"{markdown(['kill', 'after s', 'stage', 'scores equal'], rows)}\n\n{found}\n"
    facts = {"seconds": seconds, "overrides": options.overrides, "kills": [asdict(kill) for kill in kills]}
    publish(text, facts, options)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
