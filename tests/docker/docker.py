"""Docker, as a user calls it, and the engine behind it."""

import json
import os
import pathlib
import subprocess

from harness.kube import wait_for

PROGRAMS = pathlib.Path(os.environ["DOCKER"])
WORK = pathlib.Path(os.environ["ORTOLAN_WORK"])
SOCKET = f"unix://{WORK}/docker.sock"
ENVIRONMENT = {
    **os.environ,
    "PATH": f"{PROGRAMS}:{os.environ['PATH']}",
    "DOCKER_HOST": SOCKET,
    "DOCKER_CONFIG": str(WORK / "client"),
}


class DockerError(Exception):
    """docker ended with an error; the text is what it printed."""


def run(*arguments: str, environment: dict | None = None, timeout: float = 90) -> subprocess.CompletedProcess:
    """Runs docker; what it printed and its exit code."""
    command = [str(PROGRAMS / "docker"), *arguments]
    return subprocess.run(
        command, env={**ENVIRONMENT, **(environment or {})}, capture_output=True, text=True, timeout=timeout, check=False
    )


def docker(*arguments: str, **options) -> str:
    """Runs docker and returns what it prints; raises DockerError with its words when it fails."""
    done = run(*arguments, **options)
    if done.returncode != 0:
        raise DockerError(done.stdout + done.stderr)
    return done.stdout.strip()


def inspect(name: str) -> dict:
    return json.loads(docker("inspect", name))[0]


class Engine:
    """A dockerd with everything of its own; its namespaces and folders are made by `run`."""

    def __init__(self):
        self.log = WORK / "dockerd.log"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [
                    str(PROGRAMS / "dockerd"), "--host", SOCKET, "--data-root", str(WORK / "data"),
                    "--exec-root", str(WORK / "exec"), "--pidfile", str(WORK / "dockerd.pid"),
                    "--cgroup-parent", f"/{os.environ['ORTOLAN_GROUP']}", "--exec-opt", "native.cgroupdriver=cgroupfs",
                    # Where this process stands: some machines do not let anyone go below that.
                    "--oom-score-adjust", pathlib.Path("/proc/self/oom_score_adj").read_text().strip(),
                ],
                env=ENVIRONMENT, stdout=log, stderr=subprocess.STDOUT,
            )
        try:
            wait_for("the Docker engine answers", self.answers, 60)
        except AssertionError as late:
            raise AssertionError(f"{late}\n{self.log.read_text()}") from None

    def answers(self) -> bool:
        assert self.process.poll() is None, self.log.read_text()
        return run("version").returncode == 0

    def stop(self) -> None:
        for name in docker("ps", "--all", "--quiet").split():
            docker("rm", "--force", "--volumes", name)
        self.process.terminate()
        self.process.wait(30)
