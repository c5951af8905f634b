# SPDX-FileCopyrightText: The Kestrel Authors
# SPDX-License-Identifier: Apache-2.0
"""`kestrel doctor`: look for what keeps a machine or a ROS graph from working."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from kestrel_nodes.doctor import Finding


def doctor(
    graph: Annotated[bool, typer.Option(help="Listen to the ROS graph too.")] = True,
    listen_s: Annotated[float, typer.Option(help="How long to listen to the graph, seconds.")] = 4.0,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of a list.")] = False,
) -> None:
    """Check the machine and the ROS graph, and say what to do about each finding.

    Ends with exit code 1 if anything is broken.
    """
    from kestrel_nodes import transport
    from kestrel_nodes.doctor import Level
    from kestrel_nodes.doctor.machine import check_machine

    transport.prepare()
    findings = list(check_machine())
    if graph and not any(f.subject == "rclpy" and f.level is Level.BROKEN for f in findings):
        from kestrel_nodes.doctor.graph import check_graph

        findings += check_graph(listen_s)
    broken = sum(finding.level is Level.BROKEN for finding in findings)
    if json:
        _print_json(findings, broken)
    else:
        _print_list(findings, broken)
    raise typer.Exit(1 if broken else 0)


def _print_json(findings: list[Finding], broken: int) -> None:
    import json

    from kestrel.report import Figure, Report

    report = json.loads(Report("doctor", {"broken": Figure(broken, "findings")}).to_json())
    report["findings"] = [
        {"level": f.level.value, "subject": f.subject, "found": f.found, "advice": f.advice} for f in findings
    ]
    print(json.dumps(report))


def _print_list(findings: list[Finding], broken: int) -> None:
    from rich.console import Console
    from rich.markup import escape

    from kestrel_nodes.doctor import Level

    marks = {
        Level.OK: "[green]ok    [/]",
        Level.NOTE: "[yellow]note  [/]",
        Level.BROKEN: "[bold red]broken[/]",
    }
    console = Console(highlight=False)
    for finding in findings:
        console.print(f"{marks[finding.level]} {escape(finding.subject)}: {escape(finding.found)}")
        if finding.advice:
            console.print(f"       -> {escape(finding.advice)}")
    console.print(f"{broken} broken" if broken else "all is well")
