"""An emulated `pynvml` (package nvidia-ml-py) that describes the emulated cards. `install` puts it into sys.modules."""

import sys
import types


def install(driver="580.95.05", cuda=(13, 0), cards=(), error=None):
    """Put the module into sys.modules.

    `cards` are mappings with the keys name, uuid, capability, total and free (bytes). `error` is the message of the
    error that `nvmlInit` raises, for a machine without a driver.
    """
    module = types.ModuleType("pynvml")

    class NVMLError(Exception):
        """The error of the real module, without its numbers."""

    class NVMLError_LibraryNotFound(NVMLError):
        """The error for a machine without NVIDIA's library."""

    def initialize():
        if error is not None:
            raise NVMLError_LibraryNotFound(error)

    def memory_info(card):
        free = card["free"]() if callable(card["free"]) else card["free"]
        return types.SimpleNamespace(total=card["total"], free=free, used=card["total"] - free)

    def handle(index):
        if not 0 <= index < len(cards):
            raise NVMLError("Invalid Argument")
        return cards[index]

    cuda_version = cuda[0] * 1000 + cuda[1] * 10
    module.NVMLError, module.NVMLError_LibraryNotFound = NVMLError, NVMLError_LibraryNotFound
    module.nvmlInit = initialize
    module.nvmlShutdown = lambda: None
    module.nvmlSystemGetDriverVersion = lambda: driver
    module.nvmlSystemGetCudaDriverVersion = module.nvmlSystemGetCudaDriverVersion_v2 = lambda: cuda_version
    module.nvmlDeviceGetCount = lambda: len(cards)
    module.nvmlDeviceGetHandleByIndex = handle
    module.nvmlDeviceGetName = lambda card: card["name"]
    module.nvmlDeviceGetUUID = lambda card: card["uuid"]
    module.nvmlDeviceGetMemoryInfo = memory_info
    module.nvmlDeviceGetCudaComputeCapability = lambda card: tuple(card["capability"])
    sys.modules["pynvml"] = module
    return module


def install_for_cards():
    """Put the module into sys.modules with the cards and the driver that `fake_card.install` has configured."""
    import card_driver
    import torch

    def free(card):
        if card_driver.VISIBLE is None or card not in card_driver.VISIBLE:
            return card.memory - card.used_by_others
        used, _, total, others = torch.ops.fake_card.memory(card_driver.VISIBLE.index(card))
        return total - others - used

    cards = [
        {
            "name": card.name,
            "uuid": card.uuid,
            "capability": card.capability,
            "total": card.memory,
            "free": lambda card=card: free(card),
        }
        for card in card_driver.CARDS
    ]
    return install(card_driver.DRIVER.version, card_driver.DRIVER.cuda, cards)
