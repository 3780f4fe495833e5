"""The `holdfast` command: exit code 0 for success, 1 where the answer is 'no', 2 for bad usage."""

import logging
import sys
from collections.abc import Sequence

import structlog
import typer

from infra.settings import SettingsError
from ops.commands import (
    actions,
    audit,
    balances,
    banks,
    chain,
    claims,
    contract,
    database,
    doctor,
    events,
    keys,
    payouts,
    quarantine,
    recover,
    refunds,
    sellers,
    shops,
    statement,
    suspense,
    topology,
    trace,
    withdrawals,
)
from ops.failures import BAD_USAGE, NO, CommandFailed, one_line
from ops.output import complain

# What a shell reports for a process that was interrupted: 128 + SIGINT.
_INTERRUPTED = 130

app = typer.Typer(
    name="holdfast",
    help="Holdfast, an escrow engine: operate and look into it.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.command("migrate")(database.migrate_database)
app.add_typer(database.app, name="database")
app.add_typer(topology.app, name="topology")
app.add_typer(shops.app, name="shop")
app.add_typer(sellers.app, name="seller")
app.add_typer(withdrawals.app, name="withdrawal")
app.add_typer(payouts.app, name="payouts")
app.add_typer(banks.app, name="bank")
app.add_typer(keys.app, name="keys")
app.command("balances")(balances.show_balances)
app.command("statement")(statement.show_statement)
app.add_typer(claims.app, name="claim")
app.add_typer(refunds.app, name="refund")
app.add_typer(suspense.app, name="suspense")
app.command("trace")(trace.trace)
app.command("audit")(audit.audit)
app.add_typer(chain.app, name="chain")
app.add_typer(events.app, name="events")
app.add_typer(quarantine.app, name="quarantine")
app.add_typer(contract.app, name="contract")
app.add_typer(actions.app, name="actions")
app.add_typer(recover.app, name="recover")
app.command("doctor")(doctor.doctor)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; whatever goes wrong is one line on standard error, never a traceback."""
    _silence_logs()
    try:
        outcome = app(
            args=None if arguments is None else list(arguments), prog_name="holdfast", standalone_mode=False
        )
    except (KeyboardInterrupt, typer.Abort):
        return _INTERRUPTED
    except Exception as error:  # noqa: BLE001 - see the docstring
        sentence, exit_code = _explain(error)
        if sentence:
            complain(sentence)
        return exit_code
    return outcome if isinstance(outcome, int) else 0


def _explain(error: Exception) -> tuple[str, int]:
    if isinstance(error, typer.TyperException):
        # Without a message, a group that was called without a command has shown its help.
        message = " ".join(error.format_message().split())
        context = getattr(error, "ctx", None)
        if not message or context is None:
            return message, error.exit_code
        command = context.command_path.removeprefix("holdfast").strip()
        prefix = f"{command}: " if command else ""
        return f"{prefix}{message} (see `{context.command_path} --help`)", error.exit_code
    if isinstance(error, SettingsError):
        return f"settings: {error}", BAD_USAGE
    if isinstance(error, CommandFailed):
        return str(error), error.exit_code
    return f"this should not happen: {type(error).__name__}: {one_line(error)}", NO


def _silence_logs() -> None:
    """What matters to the operator is in the command's own line; libraries' logs would spoil JSON."""
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    logging.getLogger().addHandler(logging.NullHandler())


if __name__ == "__main__":
    sys.exit(main())
