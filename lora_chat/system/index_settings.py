"""Package indexes of this user, as pip and uv are told about them.

The program pip itself is not used, because environments of uv contain none and pip does not continue a broken download.
Its settings files are read, so that a mirror of a company works here too. Keyrings and client certificates do not.
"""

import configparser
import os
import sys
from dataclasses import dataclass
from pathlib import Path

import platformdirs

_PYPI = "https://pypi.org/simple"
_TRUE = {"1", "true", "yes", "on", "y", "t"}
_SECTIONS = ("global", "install", "download")
"""Sections of pip's settings files; a later one wins."""


@dataclass(frozen=True)
class IndexSettings:
    """The places of packages."""

    indexes: tuple[str, ...]
    """Addresses of indexes, the default one first."""
    links: tuple[str, ...]
    """Folders and pages with files, which come before the indexes."""
    certificates: str | None
    """File or folder with certificates of authorities, in place of the usual ones."""
    is_offline: bool
    """Whether the user wants no network."""


def read_index_settings() -> IndexSettings:
    """Return the settings of this process: environment variables come before pip's files, and PyPI is the default."""
    pip = _read_pip_files()
    default = _first(
        os.environ.get("PIP_INDEX_URL"),
        _without_name(os.environ.get("UV_DEFAULT_INDEX", "")),
        os.environ.get("UV_INDEX_URL"),
        pip.get("index-url"),
    )
    extras = [
        *(os.environ.get("PIP_EXTRA_INDEX_URL") or pip.get("extra-index-url", "")).split(),
        *map(_without_name, os.environ.get("UV_INDEX", "").split()),
        *os.environ.get("UV_EXTRA_INDEX_URL", "").split(),
    ]
    links = [
        *(os.environ.get("PIP_FIND_LINKS") or pip.get("find-links", "")).split(),
        *os.environ.get("UV_FIND_LINKS", "").split(","),
    ]
    certificates = _first(
        os.environ.get("PIP_CERT"),
        pip.get("cert"),
        os.environ.get("REQUESTS_CA_BUNDLE"),
        os.environ.get("CURL_CA_BUNDLE"),
    )
    has_index = not _is_true(os.environ.get("PIP_NO_INDEX") or pip.get("no-index", ""))
    is_offline = _is_true(os.environ.get("UV_OFFLINE", ""))
    indexes = dict.fromkeys(url.rstrip("/") for url in [default or _PYPI, *extras] if url) if has_index else {}
    return IndexSettings(tuple(indexes), tuple(filter(None, map(str.strip, links))), certificates, is_offline)


def _read_pip_files() -> dict[str, str]:
    """Return the settings of pip's files; a file that cannot be read is skipped."""
    values: dict[str, str] = {}
    for path in _list_pip_files():
        parser = configparser.RawConfigParser()
        try:
            parser.read(path, encoding="utf-8")
        except (OSError, ValueError, configparser.Error):
            continue
        for section in filter(parser.has_section, _SECTIONS):
            values |= {name.replace("_", "-"): value for name, value in parser.items(section)}
    return values


def _list_pip_files() -> list[Path]:
    """Return the paths of pip's settings files, the weakest first (https://pip.pypa.io/en/stable/topics/configuration/)."""
    named = os.environ.get("PIP_CONFIG_FILE")
    if named == os.devnull:
        return []
    name = "pip.ini" if os.name == "nt" else "pip.conf"
    shared = platformdirs.site_config_dir("pip", appauthor=False, multipath=True).split(os.pathsep)
    folders = [*shared, "/etc", str(Path.home() / ".pip"), platformdirs.user_config_dir("pip", False, roaming=True)]
    files = [Path(folder) / name for folder in (*folders, sys.prefix)]
    return [path for path in (*files, *([Path(named)] if named else [])) if path.is_absolute()]


def _first(*values: str | None) -> str | None:
    return next((value.strip() for value in values if value and value.strip()), None)


def _without_name(index: str) -> str:
    """Return the address of an index of uv, which may be written as NAME=ADDRESS."""
    name, separator, address = index.partition("=")
    return address if separator and "/" not in name else index


def _is_true(text: str) -> bool:
    return text.strip().lower() in _TRUE
