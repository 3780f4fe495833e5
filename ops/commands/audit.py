"""`holdfast audit`: prove the ledger."""

import typer

from infra.postgres.audit import Finding, SchemaNotCurrent, run_audit
from infra.postgres.chain import Coverage, read_coverage
from ops.environment import Environment, Need
from ops.failures import NO, CommandFailed
from ops.options import JsonOption
from ops.output import print_json, print_table, say


def audit(*, json: JsonOption = False) -> None:
    """Prove every invariant from the rows, in one snapshot; exits 1 if one fails."""
    with Environment(Need.DATABASE).reading() as connection:
        try:
            findings = run_audit(connection)
            coverage = read_coverage(connection)
        except SchemaNotCurrent as error:
            raise CommandFailed(f"{error}: run `holdfast migrate`") from None
    ok = all(finding.ok for finding in findings)
    if json:
        print_json(
            {
                "ok": ok,
                "checks": [
                    {
                        "name": finding.check.name,
                        "ok": finding.ok,
                        "checked": finding.checked,
                        "violations": finding.violations,
                    }
                    for finding in findings
                ],
            }
        )
    else:
        _print_for_people(findings, coverage)
    if not ok:
        raise typer.Exit(NO)


def _print_for_people(findings: list[Finding], coverage: Coverage) -> None:
    print_table(
        ("", "check", "promise", "checked#", "violations#"),
        [
            (
                "ok" if finding.ok else "BROKEN",
                finding.check.name,
                finding.check.promise,
                f"{finding.checked:,}",
                f"{finding.violations:,}",
            )
            for finding in findings
        ],
    )
    broken = [finding for finding in findings if not finding.ok]
    for finding in broken:
        more = ", ..." if finding.violations > len(finding.examples) else ""
        say(f"{finding.check.name}: {', '.join(finding.examples)}{more}")
    _say_what_the_chain_proves(coverage)
    say(
        f"{len(broken)} of {len(findings)} invariants are broken"
        if broken
        else f"all {len(findings)} invariants hold"
    )


def _say_what_the_chain_proves(coverage: Coverage) -> None:
    say(
        f"the hash chain has {coverage.chained:,} of {coverage.postings:,} postings, in {coverage.links:,}"
        f" links; {coverage.signed:,} are below a signed head"
    )
    if not coverage.judged:
        say(
            "those that it lacks are not judged: they came from another server, and the relay has yet to"
            " chain them"
        )
