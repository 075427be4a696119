"""Environment variables of child processes, without secrets and without relative search paths."""

import os
import re
from collections.abc import Iterable, MutableMapping
from fnmatch import fnmatchcase
from pathlib import Path

from lora_chat.errors import UsageError
from lora_chat.system.sanitize import sanitize_line

_MAX_SHOWN_CHARACTERS = 200
_SECRET_NAME = re.compile(
    r"(^|_)(KEYS?|KEY_?ID|PWD|PW|PASS|PAT|PSK|SAS|SIG|OTP|PIN|O?AUTH|COOKIES?|CREDS?|NETRC)(_|\d|$)"
    r"|TOKEN(?!IZ)|PASSW|PASSPHRASE|SECRET|CREDENTIAL|API_?KEYS?|PRIVATE_?KEY|ACCESS_?KEY|KEYRING|WEBHOOK|KUBECONFIG"
    r"|JWT|BEARER|AUTHORIZATION|CONN(ECTION)?_?STR(ING)?|DSN$|[A-Z]AUTH$|([A-Z]{3}|SSH)KEY\d*$"
    r"|^(AWS|AZURE|GCP|GCLOUD|GOOGLE|SSH|GPG|DBUS|DOCKER|VAULT|PG)_|^(PGPASSFILE|MYSQL_PWD|BASH_FUNC_.*)$",
    re.IGNORECASE,
)
_NOT_SECRET = {"PWD", "OLDPWD"}
_SECRET_VALUE = re.compile(
    r"://[^/\s@]+@"  # a user name or a password in a URL
    r"|\b(hf_|gh[pousr]_|github_pat_|glpat-|sk[-_]|rk_|xox[abp]-|xapp-|AKIA|ASIA|AIza|eyJ|npm_|pypi-|dckr_pat_|dop_v1_"
    r"|nvapi-|gsk_|r8_|hvs\.|tskey-|shpat_|ya29\.|SG\.)[A-Za-z0-9_-]{12,}"
    r"|-----BEGIN|AGE-SECRET-KEY|(?i:\b(bearer|basic)\s+[A-Za-z0-9._~+/=-]{8,})"
    r"|(?i:(password|passwd|pwd|secret|token|account_?key|api_?key)[\"']?\s*[=:])"
    r"|^[0-9a-fA-F]{32,}$"  # the form of random keys; no worker needs such a value
)
_SEARCH_PATH_VARIABLES = ("PATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "DYLD_FALLBACK_LIBRARY_PATH", "PYTHONPATH")
_PATH_VARIABLES = (
    *("HOME", "USERPROFILE", "LOCALAPPDATA", "APPDATA", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME"),
    *("TMPDIR", "TEMP", "TMP", "HF_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_ASSETS_CACHE", "HF_XET_CACHE"),
    *("HF_DATASETS_CACHE", "HF_MODULES_CACHE", "HF_TOKEN_PATH", "HF_STORED_TOKENS_PATH", "TRANSFORMERS_CACHE"),
    *("TORCH_HOME", "TORCH_EXTENSIONS_DIR", "TORCHINDUCTOR_CACHE_DIR", "PYTORCH_KERNEL_CACHE_PATH", "TRITON_HOME"),
    *("TRITON_CACHE_DIR", "CUDA_CACHE_PATH", "MPLCONFIGDIR", "MATPLOTLIBRC", "NUMBA_CACHE_DIR", "SSL_CERT_FILE"),
    *("SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "NETRC", "LORA_CHAT_LLAMA_CPP", "PYTHONPYCACHEPREFIX"),
)
"""Variables with the path of a folder or file that this program or one of its libraries trusts."""
_WORKER_SETTINGS = {
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_IMPLICIT_TOKEN": "1",  # the token in the user's login file
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "USE_HUB_KERNELS": "0",
    "PYTHONSAFEPATH": "1",  # for child processes of the worker
    "PYTHONNOUSERSITE": "1",
}


def worker_environment(
    folder: Path, passed_variables: Iterable[str] = (), only: Iterable[str] | None = None
) -> dict[str, str]:
    """Return the environment of a worker that works in `folder`.

    Variables that match a pattern in `passed_variables` pass unfiltered. With `only`, no other variable passes.
    """
    patterns, names = tuple(passed_variables), None if only is None else set(only)
    variables = {
        name: value
        for name, value in os.environ.items()
        if any(fnmatchcase(name, pattern) for pattern in patterns)
        or ((names is None or name in names) and not (_is_python_variable(name) or is_secret(name, value)))
    }
    make_search_paths_absolute(variables)
    return {
        **variables,
        **_WORKER_SETTINGS,
        "PWD": str(folder),
        **dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(folder)),
    }


def is_secret(name: str, value: str) -> bool:
    """Return whether an environment variable looks like a password, a key or a token."""
    return (name.upper() not in _NOT_SECRET and bool(_SECRET_NAME.search(name))) or bool(_SECRET_VALUE.search(value))


def make_search_paths_absolute(environment: MutableMapping[str, str]) -> list[str]:
    """Remove empty and relative elements of search paths, because they mean the working directory.

    Return the names of the variables that changed.
    """
    changed = []
    for name in _SEARCH_PATH_VARIABLES:
        value = environment.get(name)
        if not value:
            continue  # an empty variable is ignored, except by old shells
        absolute = os.pathsep.join(list_absolute_elements(value))
        if absolute != value:
            changed.append(name)
            if absolute:
                environment[name] = absolute
            else:
                del environment[name]
    return changed


def check_path_variables(environment: MutableMapping[str, str]) -> None:
    """Remove empty path variables. Raise UsageError for a path that depends on the working directory.

    The working directory may belong to a stranger and contain the stranger's cache, key or login. Some libraries also
    take an empty variable for the working directory: with HF_HOME="" the hub's cache is `./hub`.
    """
    for name in _PATH_VARIABLES:
        value = environment.get(name)
        if value is None:
            continue
        if not value.strip():
            del environment[name]
        elif not Path(value).is_absolute() and not (name.startswith("HF_") and value.startswith("~")):
            raise UsageError(
                f"{name} is {sanitize_line(value, _MAX_SHOWN_CHARACTERS)}, which depends on the working directory. "
                f'Fix: set its full path, {name}="$PWD/...".'
            )


def list_absolute_elements(value: str) -> list[str]:
    """Return the elements of a search path that do not depend on the working directory."""
    return [element for element in value.split(os.pathsep) if element and Path(element).is_absolute()]


def _is_python_variable(name: str) -> bool:
    return name.upper().startswith("PYTHON")
