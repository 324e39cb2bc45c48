"""A sweep on a real SLURM: munge, slurmctld and slurmd of the distribution's packages, in a temporary folder.

Skipped if they are missing, or if the user is not root, because only root may start them. `.ci/run` installs them.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pandas as pd
import pytest

RUN = Path(__file__).parents[1] / "run.py"
PROGRAMS = ("munged", "slurmctld", "slurmd", "sinfo", "sbatch", "srun", "scontrol")
lacking = [name for name in PROGRAMS if shutil.which(name) is None]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(lacking), reason=f"SLURM is not installed: {', '.join(lacking)} missing"),
    pytest.mark.skipif(os.getuid() != 0, reason="only root may start SLURM's daemons"),
]
CONF = """
ClusterName=local
SlurmctldHost={host}(127.0.0.1)
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CryptoType=crypto/munge
SlurmUser=root
SlurmctldPort={control}
SlurmdPort={node}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
ReturnToService=2
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} RealMemory={memory} State=UNKNOWN
PartitionName=debug Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


@pytest.fixture(scope="module")
def cluster() -> Iterator[dict[str, str]]:
    """Yield the environment in which SLURM's commands find a cluster of this machine only; end it afterwards."""
    with ExitStack() as stack:
        folder = Path(tempfile.mkdtemp(prefix="slurm-", dir="/tmp"))  # a socket's path must be short
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        env = os.environ | {"SLURM_CONF": str(folder / "slurm.conf")}
        (folder / "slurm.conf").write_text(
            CONF.format(
                folder=folder,
                host=socket.gethostname().split(".")[0],
                control=free_port(),
                node=free_port(),
                cpus=2,
                memory=memory_mib(),
            )
        )
        for name in ("state", "spool"):
            (folder / name).mkdir()
        folder.chmod(0o755)  # munge refuses a folder that others may write to
        (folder / "munge.key").write_bytes(os.urandom(64))
        (folder / "munge.key").chmod(0o600)
        files = ("key-file=munge.key", "log-file=munge.log", "pid-file=munge.pid", "seed-file=munge.seed")
        options = [f"--{name}={folder / file}" for name, file in (each.split("=") for each in files)]
        start = [f"--socket={folder}/munge.socket", *options]
        daemon(stack, ["munged", "--foreground", "--force", *start], env)
        until(lambda: works(["munge", "-n", f"--socket={folder}/munge.socket"], env))
        daemon(stack, ["slurmctld", "-D", "-f", env["SLURM_CONF"]], env)
        daemon(stack, ["slurmd", "-D", "-f", env["SLURM_CONF"]], env)
        stack.callback(subprocess.run, ["scancel", "--user=root"], env=env, timeout=20, capture_output=True)
        logs = [folder / "slurmctld.log", folder / "slurmd.log"]
        until(lambda: "idle" in output_of(["sinfo", "-h", "-o", "%T"], env), logs)
        yield env


def daemon(stack: ExitStack, command: list[str], env: dict[str, str]) -> None:
    """Start a program in the foreground, which ends with the stack."""
    process = subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def end() -> None:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    stack.callback(end)


def output_of(command: list[str], env: dict[str, str]) -> str:
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=20).stdout


def works(command: list[str], env: dict[str, str]) -> bool:
    return subprocess.run(command, env=env, capture_output=True, timeout=20).returncode == 0


def until(ready: Callable[[], bool], logs: list[Path] | None = None) -> None:
    deadline = time.monotonic() + 30
    while not ready():
        if time.monotonic() > deadline:
            pytest.fail("SLURM does not start:\n" + "\n".join(log.read_text() for log in logs or [] if log.is_file()))
        time.sleep(0.2)


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def memory_mib() -> int:
    """Return slightly less memory than the machine has, because SLURM drains a node with less than configured."""
    return int(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") * 0.9 / 2**20)


def test_sweep_of_four_jobs_into_one_store(cluster: dict[str, str], tiny: list[str], tmp_path: Path) -> None:
    small = [
        "dataset.subjects=[mug_1]", "dataset.styles=[ink_1]", "dataset.content_images=2", "dataset.style_images=2",
        "dataset.references=2", "generate.images=1", "trainer.workers=0",
    ]  # fmt: skip
    launcher = [f"hydra.launcher.{each}" for each in ("cpus_per_task=1", "mem_gb=2", "timeout_min=5")]
    sweep = ["-m", "hydra/launcher=submitit_slurm", *launcher, "method=direct,base", "seed=0,1"]
    command = [sys.executable, str(RUN), *tiny, *small, f"output={tmp_path}", *sweep]
    done = subprocess.run(command, cwd=tmp_path, env=cluster, capture_output=True, text=True, timeout=300)
    folder = tmp_path / "adhoc"
    logs = "\n".join(log.read_text()[-2000:] for log in folder.glob(".submitit/*/*_log.*"))
    assert done.returncode == 0, done.stderr + logs
    runs = [f"{method}-none-s{seed}" for method in ("direct", "base") for seed in (0, 1)]
    assert all((folder / run / "manifest.json").is_file() for run in runs)
    assert {"direct", "base", "oracle"} <= set(pd.read_csv(folder / "table.csv")["method"])
    assert (folder / "table.md").read_text() in done.stdout
    store = tmp_path / "store"
    assert len(list(store.glob("personalize/*/key.json"))) == 4  # 2 LoRAs per seed, shared by the jobs
    assert not list(folder.glob(".sweep-*"))
    nodes = [log.read_text() for log in folder.glob(".submitit/*/*_log.out")]
    assert len(nodes) == 4 and all("Starting with JobEnvironment" in text for text in nodes)
