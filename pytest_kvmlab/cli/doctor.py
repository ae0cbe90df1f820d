"""`kvmlab doctor`: what this machine can do, and what to do about what it cannot."""

import os
import sys
from typing import Annotated

import typer

from pytest_kvmlab.checks import CHECKS, Check, Finding, examine
from pytest_kvmlab.cli.output import AsJson, console, print_json
from pytest_kvmlab.drivers.debian import install
from pytest_kvmlab.errors import HostError


def doctor(
    as_json: AsJson = False,
    fix: Annotated[
        bool, typer.Option("--fix", help="Install the Debian packages that are missing (as root).")
    ] = False,
) -> None:
    """Check this machine; the exit status is 1 if guests cannot run here."""
    findings = list(examine(CHECKS))
    if fix and (packages := _lacking(findings)):
        _install(packages)
        findings = list(examine(CHECKS))
    if as_json:
        print_json([_as_document(check, finding) for check, finding in findings])
    else:
        for check, finding in findings:
            _show(check, finding)
    if any(not finding.ok and not check.optional for check, finding in findings):
        raise typer.Exit(1)


def _lacking(findings: list[tuple[Check, Finding]]) -> list[str]:
    return sorted({package for _, finding in findings if not finding.ok for package in finding.packages})


def _install(packages: list[str]) -> None:
    if os.geteuid() != 0:
        raise HostError(
            f"only root can install {' '.join(packages)}", f"sudo apt install {' '.join(packages)}"
        )
    print(f"installing {' '.join(packages)}", file=sys.stderr)  # standard output may be read as JSON
    install(packages)


def _as_document(check: Check, finding: Finding) -> dict[str, object]:
    return {
        "check": check.name,
        "purpose": check.purpose,
        "optional": check.optional,
        "ok": finding.ok,
        "seen": finding.seen,
        "remedy": finding.remedy,
        "packages": list(finding.packages),
    }


def _show(check: Check, finding: Finding) -> None:
    sign, style = (
        ("ok", "green") if finding.ok else ("--", "yellow") if check.optional else ("NO", "bold red")
    )
    console.print(f"[{style}]{sign}[/]  [bold]{check.name}[/]", f"({check.purpose}):", end=" ")
    console.print(finding.seen, markup=False, highlight=False, soft_wrap=True)
    if not finding.ok and finding.remedy:
        console.print(f"      to do: {finding.remedy}", markup=False, highlight=False, soft_wrap=True)
