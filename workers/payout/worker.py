"""`python -m workers.payout.worker`: judges withdrawals and pays them out through the bank."""

import sys

from infra.security.passwords import Passwords
from infra.settings import Environment
from workers.payout.actors import declare_actors
from workers.payout.bank import HttpBank
from workers.process import WorkerProcess, WrongDeployment, run_worker


def _declare(process: WorkerProcess) -> None:
    settings = process.settings
    if settings.bank_url is None:
        raise WrongDeployment("no bank to pay out through: set HOLDFAST_BANK_URL")
    if settings.peppers is None and settings.environment is Environment.PRODUCTION:
        raise WrongDeployment("HOLDFAST_PASSWORD_PEPPERS: production needs a pepper, see docs/running.md")
    declare_actors(
        process,
        passwords_=Passwords(
            memory_kib=settings.argon2_memory_kib,
            iterations=settings.argon2_iterations,
            parallelism=settings.argon2_parallelism,
            concurrency=settings.password_threads,
            peppers=settings.peppers,
        ),
        bank=HttpBank(str(settings.bank_url), timeout_s=settings.bank_timeout_seconds),
    )


if __name__ == "__main__":
    sys.exit(run_worker("payout", _declare))
