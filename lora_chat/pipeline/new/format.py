"""A new recipe, the profile of its data and the bases that were compared, as text."""

from collections.abc import Callable, Sequence

from lora_chat.pipeline.new.base_candidates import BaseCandidate
from lora_chat.pipeline.new.inputs import RecipeInputs
from lora_chat.pipeline.new.languages import LanguageShare
from lora_chat.pipeline.new.new_recipe import NewRecipe
from lora_chat.pipeline.new.profile import DataProfile
from lora_chat.planning.format import format_duration, format_gib
from lora_chat.system.console import format_bytes
from lora_chat.system.sanitize import sanitize_line


class TextView:
    """Display of proposals as text."""

    def __init__(self, show: Callable[[str], None]) -> None:
        self._show = show

    def show_data(self, inputs: RecipeInputs) -> None:
        """Show the profile of the data and its task."""
        self._show(format_profile(inputs))

    def show_bases(self, inputs: RecipeInputs, candidates: Sequence[BaseCandidate], chosen: BaseCandidate) -> None:
        """Show the bases that were planned, and the default."""
        self._show(format_candidates(inputs, candidates, chosen))


_HEADER = ("", "base", "bits", "length", "memory", "time", "download", "remarks")


def format_profile(inputs: RecipeInputs) -> str:
    """Format the profile of the data, its columns and its task."""
    profile, roles = inputs.profile, inputs.roles
    lines = [f"Data      {_format_counts(profile)}", f"Language  {_format_languages(profile)}"]
    if roles is not None:
        if roles.text is not None:
            columns = f"text: {roles.text}"
        else:
            user = roles.user if isinstance(roles.user, str) else " and ".join(roles.user or ())
            columns = f"question: {user}; answer: {roles.assistant}"
        columns += f"; system message: {roles.system}" if roles.system else ""
        lines.append(f"Columns   {sanitize_line(columns, 300)} ({roles.reason})")
    lines.append(f"Task      {inputs.task_name}, {inputs.task.title} (because {inputs.task_reason})")
    return "\n".join(lines)


def _format_counts(profile: DataProfile) -> str:
    """Format the number of rows and their lengths in characters."""
    more = "more than " if profile.is_part else ""
    unit = ("text" if profile.is_text else "dialogue") + ("s" if profile.rows != 1 else "")
    if profile.is_text:
        return f"{more}{profile.rows:,} {unit}, {profile.prompts.total:,} characters (format text)"
    return (
        f"{more}{profile.rows:,} {unit} (format {profile.data_format}), {profile.exchanges:.1f} replies each; "
        f"messages of the user {profile.prompts.median:,} characters in the median and {profile.prompts.longest:,} at "
        f"most, replies {profile.replies.median:,} and {profile.replies.longest:,}"
    )


def _format_languages(profile: DataProfile) -> str:
    """Format the languages of prompts and replies."""
    if profile.is_text:
        return _format_shares(profile.prompt_languages)
    return f"questions {_format_shares(profile.prompt_languages)}; replies {_format_shares(profile.reply_languages)}"


def _format_shares(shares: Sequence[LanguageShare]) -> str:
    return ", ".join(f"{share.language} {share.share:.0%}" for share in shares) or "without words"


def format_candidates(inputs: RecipeInputs, candidates: Sequence[BaseCandidate], chosen: BaseCandidate) -> str:
    """Format the table of bases; `>` marks the proposed one."""
    rows = [_HEADER, *(_list_cells(candidate, candidate is chosen) for candidate in candidates)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEADER))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    device = inputs.target.device
    location = "this machine" if device.at_hand else "not this machine"
    title = f"Bases for {device.name} ({location}, {format_gib(device.free)} GiB free); times are rough:"
    return "\n".join([title, *lines])


def _list_cells(candidate: BaseCandidate, is_chosen: bool) -> tuple[str, ...]:
    """Return the cells of a row."""
    estimate = candidate.estimate
    memory = f"{format_gib(estimate.peak)} GiB" if estimate is not None else "-"
    total = estimate.total_time if estimate is not None else None
    time = f"{format_duration(total.low)} to {format_duration(total.high)}" if total is not None else "unknown"
    size = estimate.download_bytes if estimate is not None else None
    reasons = candidate.list_reasons()
    return (
        ">" if is_chosen else "",
        sanitize_line(candidate.name, 60),
        {"none": "16", "4bit": "4", "8bit": "8"}.get(candidate.mode, candidate.mode),
        f"{candidate.limit.tokens:,}",
        memory,
        time,
        format_bytes(size) if size else "none" if size == 0 else "unknown",
        "; ".join(reasons) or "fits",
    )


def format_new_recipe(recipe: NewRecipe) -> str:
    """Format the end of the command: notes, the path and the commands that follow."""
    name = recipe.inputs.path.name
    lines = [f"Note      {sanitize_line(note, 400)}" for note in recipe.notes]
    size = recipe.chosen.estimate.download_bytes if recipe.chosen.estimate is not None else None
    if size:
        lines.append(f"Note      {recipe.chosen.name} is not on this machine: `sft` downloads {format_bytes(size)}.")
    lines += [
        f"Written   {name}",
        f"Next      lora-chat data {name} --show 3    the tokens with loss",
        f"          lora-chat audit {name}    secrets, personal data, duplicates",
        f"          lora-chat sft {name}",
    ]
    return "\n".join(lines)
