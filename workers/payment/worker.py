"""`python -m workers.payment.worker`: books payments and what the banks say of them."""

import sys

from workers.payment.actors import declare_actors
from workers.process import run_worker

if __name__ == "__main__":
    sys.exit(run_worker("payment", declare_actors))
