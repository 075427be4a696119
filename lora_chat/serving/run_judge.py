"""The server of `lora-chat judge`: only the judge page, for one run and two models."""

import logging
import os
import sys
import threading
import webbrowser
from dataclasses import replace
from typing import TYPE_CHECKING

from lora_chat.evaluation.judgement_text import format_notes, format_result
from lora_chat.evaluation.run_judgements import RunJudgements, collect_run_judgements
from lora_chat.inference.continuous.request import BatchLimits
from lora_chat.pipeline.judge_plan import JudgeSettings, plan_judgement
from lora_chat.pipeline.report_runs import try_write_report
from lora_chat.pipeline.served_models import open_served_models
from lora_chat.serving.judging.judge_desk import JudgeDesk
from lora_chat.serving.judging.judge_session import JudgeSession
from lora_chat.serving.run_server import prepare_server, run_server
from lora_chat.serving.server_options import ServerOptions

if TYPE_CHECKING:
    from lora_chat.pipeline.open_adapter import TrustOptions

logger = logging.getLogger(__name__)


def run_judge(
    run_source: str,
    models: tuple[str, str],
    trust: "TrustOptions",
    settings: JudgeSettings,
    *,
    judge: str | None,
    port: int,
    opens_browser: bool,
) -> RunJudgements:
    """Serve the judge page until a signal ends it, and return the result of all votes on the two models.

    Raises the errors of the run and the models before weights load.
    """
    prepared = prepare_server(ServerOptions(port=port))
    try:
        plan = plan_judgement(run_source, *models, trust, settings)
        collect_run_judgements(plan.run)  # refuses a damaged log before weights load
        logger.info(plan.summary)
        served = open_served_models(plan.sources, trust, settings.mode, BatchLimits())
        plan.check_weights_unchanged()
        session = JudgeSession(plan.with_precision(served.precision), served, judge)
        desk = JudgeDesk(lambda: session, is_only_page=True, opens_page=open_page if opens_browser else None)
        logging.getLogger("lora_chat.serving.request_log").setLevel(logging.WARNING)  # its lines would hide the link
        if not run_server(served, prepared, lambda: desk.announce(prepared.listener.url), desk):
            os._exit(0)  # nobody reads the messages, and the result is in the run
    finally:
        prepared.close()
    result, shown = collect_run_judgements(plan.run), session.summarize()
    if result.results:
        try_write_report(plan.run)
    for line in (format_result(shown), *format_notes(shown), *result.notes):
        logger.info(line)
    return replace(result, results=(shown,))


def open_page(link: str) -> None:
    """Open a link in the user's browser, if this session has a display."""
    if sys.platform in ("darwin", "win32") or os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"):
        threading.Thread(target=webbrowser.open, args=(link,), name="browser", daemon=True).start()
