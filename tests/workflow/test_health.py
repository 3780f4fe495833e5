"""Real processes answer for themselves on a port of their own."""

import sys
from pathlib import Path

import httpx
from workflow_support.system import Process, System

from infra.local.ports import choose_ports


def test_a_worker_tells_that_it_lives_and_works_and_refuses_a_port_that_is_taken(
    system: System, tmp_path: Path
) -> None:
    port = choose_ports(tmp_path / "ports.json", ["health"])["health"]
    environment = system.environment | {"HOLDFAST_METRICS_PORT": str(port)}
    command = [sys.executable, "-m", "workers.payment.worker"]
    process = Process("payment-health", command, environment, tmp_path)
    process.start()
    process.wait_until_ready()
    answers = {
        path: httpx.get(f"http://127.0.0.1:{port}{path}") for path in ("/livez", "/readyz", "/metrics")
    }
    assert {path: answer.status_code for path, answer in answers.items()} == dict.fromkeys(answers, 200), {
        path: answer.text for path, answer in answers.items()
    }
    second = Process("payment-second", command, environment, tmp_path)
    second.start()
    assert second.ends_by_itself() == 2
    assert "HOLDFAST_METRICS_PORT" in second.log
    assert process.stop() == 0
