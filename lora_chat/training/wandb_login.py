"""Whether wandb has a login, without using the network."""

import netrc
import os
from configparser import ConfigParser
from configparser import Error as ConfigError
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit

from lora_chat.errors import UnavailableError

_WANDB_HOSTS = ("api.wandb.ai", "api.forge.coreweave.com")
"""Hosts of wandb's own service, in older and newer versions."""


def check_wandb_login() -> None:
    """Raise UnavailableError if wandb would ask for a login."""
    if not _has_wandb_login():
        raise UnavailableError(
            "output.report_to names wandb, which has no login on this machine. Fix: wandb login, or set WANDB_API_KEY, "
            "or set WANDB_MODE=offline, which writes files beside the run."
        )


def _has_wandb_login() -> bool:
    """Return whether wandb is offline or finds a key in the environment, in ~/.netrc or in its own settings."""
    settings = _read_wandb_settings()
    mode = os.environ.get("WANDB_MODE") or settings.get("mode", "")
    if mode in ("offline", "disabled", "dryrun") or settings.get("api_key"):
        return True
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    host = urlsplit(os.environ.get("WANDB_BASE_URL") or settings.get("base_url") or "").hostname
    hosts = _WANDB_HOSTS if host in (None, *_WANDB_HOSTS) else (host,)
    names = [os.environ["NETRC"]] if os.environ.get("NETRC") else ["~/.netrc", "~/_netrc"]
    for name in names:
        with suppress(OSError, netrc.NetrcParseError, ValueError, RuntimeError):
            known_hosts = netrc.netrc(Path(name).expanduser()).hosts
            if any(known in known_hosts for known in hosts):
                return True
    return False


def _read_wandb_settings() -> dict[str, str]:
    """Return the user's own settings of wandb; none if the file is missing or damaged."""
    folder = os.environ.get("WANDB_CONFIG_DIR") or "~/.config/wandb"
    parser = ConfigParser(interpolation=None)
    with suppress(OSError, ConfigError, ValueError, RuntimeError):
        parser.read(Path(folder).expanduser() / "settings", encoding="utf-8")
        return dict(parser["default"]) if "default" in parser else {}
    return {}
