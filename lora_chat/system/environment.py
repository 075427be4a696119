"""The environment of child processes: no secrets, no search paths that depend on the working directory."""

import os
import re
from collections.abc import Iterable, MutableMapping
from fnmatch import fnmatchcase
from pathlib import Path

_SECRET_NAME = re.compile(
    r"(^|_)(TOKENS?|KEYS?|KEY_?ID|SECRETS?|PWD|PASS|PASSWD|PASSPHRASE|PAT|PSK|AUTH|COOKIES?|NETRC)(_|\d|$)"
    r"|PASSW|PASSPHRASE|SECRET|CREDENTIAL|TOKEN$|API_?KEY|PRIVATE_?KEY|ACCESS_?KEY|KEYRING|WEBHOOK|KUBECONFIG"
    r"|^(AWS|AZURE|GCP|GCLOUD|GOOGLE|SSH|GPG|DBUS|DOCKER|VAULT|PG)_|^(PGPASSFILE|MYSQL_PWD|BASH_FUNC_.*)$",
    re.IGNORECASE,
)
_NOT_SECRET = {"PWD", "OLDPWD"}
_SECRET_VALUE = re.compile(
    r"://[^/\s@]+@"  # a name or a password inside a URL
    r"|\b(hf_|gh[pousr]_|github_pat_|glpat-|sk-|xox[abp]-|AKIA|ASIA|AIza|eyJ)[A-Za-z0-9_-]{12,}"
    r"|-----BEGIN"
)
_SEARCH_PATHS = ("PATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "DYLD_FALLBACK_LIBRARY_PATH", "PYTHONPATH")
_OFFLINE = {
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_IMPLICIT_TOKEN": "1",  # the login that lies in a file
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "USE_HUB_KERNELS": "0",
    "PYTHONSAFEPATH": "1",  # for what a worker itself starts
    "PYTHONNOUSERSITE": "1",
}


def worker_environment(folder: Path, keep: Iterable[str] = (), only: Iterable[str] | None = None) -> dict[str, str]:
    """Return the environment of a worker whose own folder is `folder`.

    Names that match a pattern in `keep` pass unfiltered; `only` lists the names that may pass at all.
    """
    patterns, names = tuple(keep), None if only is None else set(only)
    found = {
        name: value
        for name, value in os.environ.items()
        if any(fnmatchcase(name, pattern) for pattern in patterns)
        or ((names is None or name in names) and not (_is_python(name) or is_secret(name, value)))
    }
    make_search_paths_absolute(found)
    return {**found, **_OFFLINE, "PWD": str(folder), **dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(folder))}


def is_secret(name: str, value: str) -> bool:
    """Return whether an environment variable looks like a password, a key or a token."""
    return (name.upper() not in _NOT_SECRET and bool(_SECRET_NAME.search(name))) or bool(_SECRET_VALUE.search(value))


def make_search_paths_absolute(environment: MutableMapping[str, str]) -> list[str]:
    """Remove empty and relative elements of search paths, which mean the working directory.

    Returns the names of the variables that changed.
    """
    changed = []
    for name in _SEARCH_PATHS:
        value = environment.get(name)
        if not value:
            continue  # an empty variable is ignored, except by old shells
        kept = os.pathsep.join(absolute_elements(value))
        if kept != value:
            changed.append(name)
            if kept:
                environment[name] = kept
            else:
                del environment[name]
    return changed


def absolute_elements(value: str) -> list[str]:
    """Return the elements of a search path that do not depend on the working directory."""
    return [element for element in value.split(os.pathsep) if element and Path(element).is_absolute()]


def _is_python(name: str) -> bool:
    return name.upper().startswith("PYTHON")
