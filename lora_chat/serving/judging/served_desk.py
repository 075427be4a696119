"""The desk of a server that answers requests, too: the first served run of this user against the bare base."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from lora_chat.models.adapter_files import WEIGHTS_NAME
from lora_chat.pipeline.admitted_model import BARE_BASE
from lora_chat.pipeline.judge_plan import JudgeSettings, plan_judgement
from lora_chat.pipeline.open_adapter import TrustOptions
from lora_chat.runs.origin import find_foreign_reason
from lora_chat.runs.run_folder import RunFolder
from lora_chat.serving.judging.judge_desk import JudgeDesk, JudgeUnavailableError
from lora_chat.serving.judging.judge_session import JudgeSession
from lora_chat.system.hashing import digest_file

if TYPE_CHECKING:
    from lora_chat.pipeline.served_models import ServedModels


def make_served_desk(models: "ServedModels", trust: TrustOptions, settings: JudgeSettings) -> JudgeDesk:
    """Return the desk of a server: the first served run of this user against the bare base."""
    for model in models.list():
        if model.run is not None and find_foreign_reason(model.run) is None:
            return JudgeDesk(_make_opener(models, model.run, trust, settings))
    return JudgeDesk(None)


def _make_opener(
    models: "ServedModels", run: RunFolder, trust: TrustOptions, settings: JudgeSettings
) -> Callable[[], JudgeSession]:
    """Return a function that opens a session, unless the run was trained again after its adapter was loaded."""
    loaded = digest_file(run.adapter / WEIGHTS_NAME)

    def open_session() -> JudgeSession:
        source = str(run.path)
        plan = plan_judgement(source, source, BARE_BASE, trust, settings)
        if plan.comparison.a.adapter != loaded:
            raise JudgeUnavailableError("The run has other weights than this server loaded. Start the server again.")
        return JudgeSession(plan.with_precision(models.precision), models)

    return open_session
