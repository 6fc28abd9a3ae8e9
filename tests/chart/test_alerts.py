"""The alerts, by Prometheus' own checker."""

import subprocess

from chart import CHART, ROOT


def promtool(*arguments: str) -> str:
    done = subprocess.run(["promtool", *arguments], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_prometheus_reads_the_rules():
    assert "13 rules found" in promtool("check", "rules", str(CHART / "files" / "alerts.yaml"))


def test_alerts_fire_when_they_should_and_not_before():
    promtool("test", "rules", str(ROOT / "tests" / "chart" / "alerts.yaml"))
