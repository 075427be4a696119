"""`lora-chat report`: write the report of a run as a web page, or compare several runs."""

import argparse
from pathlib import Path

from lora_chat.system.console import display_path, print_json, print_message


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `report`."""
    parser.add_argument("runs", nargs="+", metavar="RUN", help="a run folder; several are compared")
    parser.add_argument(
        "--to",
        type=Path,
        metavar="FILE",
        help="file to write (RUN/report.html; comparison-report.html for several runs)",
    )


def run(options: argparse.Namespace) -> None:
    """Write the report of a run as one web page that works offline, or a page that compares several runs."""
    from lora_chat.pipeline.report_runs import write_reports

    report = write_reports(options.runs, options.to)
    if options.json:
        judgements = [judgement.as_dict() for judgement in report.judgements]
        print_json({"report": str(report.path.absolute()), "runs": options.runs, "judgements": judgements})
    else:
        print_message(f"Report: {display_path(report.path)}")
        for line in report.lines:
            print_message(line)
