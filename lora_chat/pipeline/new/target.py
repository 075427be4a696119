"""The device that a new recipe is for."""

from dataclasses import dataclass

from lora_chat.pipeline.estimate import find_target
from lora_chat.pipeline.new.user_questions import UserQuestions
from lora_chat.planning.device import TargetDevice
from lora_chat.planning.gpu_specs import list_memory_variants
from lora_chat.planning.local_device import measure_cpu_speed
from lora_chat.system.hardware import Hardware


@dataclass(frozen=True)
class RecipeTarget:
    """A device, and a sentence about its choice."""

    device: TargetDevice
    hardware: Hardware
    note: str = ""


def find_recipe_target(gpu: str | None, memory: str | None, questions: UserQuestions) -> RecipeTarget:
    """Return the named GPU, a GPU of this much memory, or this machine.

    Of GPUs that differ in their memory only, the user chooses; the default is the smallest, whose recipe fits all.
    """
    note = ""
    variants = list_memory_variants(gpu) if gpu else ()
    if gpu and len(variants) > 1:
        names = [variant.name for variant in variants]
        answer = questions.ask(f"{len(names)} GPUs have this name: {', '.join(names)}. Which one?", names[0], names)
        others = [name for name in names if name != answer]
        if not questions.is_asking:
            note = f"{gpu} is also the name of {', '.join(others)}; the recipe is for the one with the least memory."
        gpu = answer
    device, hardware = find_target(gpu, memory, "auto")
    if device.device == "cpu" and device.speed is None:
        device = measure_cpu_speed(device)
    return RecipeTarget(device, hardware, note)
