"""Loading and unloading of models while a server runs: a watched folder, and the admin socket."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from lora_chat.serving.adapter_folder import AdapterFolder, check_adapter_folder
from lora_chat.serving.admin_socket import AdminListener, AdminServer
from lora_chat.system.user_path import expand_user_path

if TYPE_CHECKING:
    from lora_chat.pipeline.open_adapter import TrustOptions
    from lora_chat.pipeline.served_models import ServedModels

StartLoading = Callable[["ServedModels", "TrustOptions"], None]


@contextmanager
def prepared_loading(adapters: Path | None, admin: Path | None) -> Iterator[StartLoading]:
    """Check the folder and bind the socket before weights load, and yield a function that starts both.

    They end with the block. Raises UsageError or InUseError.
    """
    with ExitStack() as stack:
        folder = None if adapters is None else expand_user_path(str(adapters))
        if folder is not None:
            check_adapter_folder(folder)
        listener = None if admin is None else AdminListener(expand_user_path(str(admin)))
        if listener is not None:
            stack.callback(listener.close)

        def start(models: "ServedModels", trust: "TrustOptions") -> None:
            if folder is not None:
                watcher = AdapterFolder(folder, models)
                stack.callback(watcher.close)
                watcher.start()
            if listener is not None:
                AdminServer(listener, models, trust).start()

        yield start
