"""Check names, docstrings, layout and language of the package; `make check` runs it.

python tools/style_gate.py            check lora_chat, print a table, list offenders, exit with 1 if a limit is exceeded
python tools/style_gate.py FOLDER     check another package folder

Only the standard library is used, and nothing of the checked package is imported. Limits are in LIMITS, and
banned words are in the tables below it.
"""

from __future__ import annotations

import argparse
import ast
import io
import re
import sys
import tokenize
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

LIMITS = {
    "function docstrings without a verb first, %": 3.0,
    "docstrings that begin in the middle of a thought, %": 0.5,
    "annotations that mention Any, %": 3.0,
    "odd English per 1,000 words": 2.0,
    "modules at the package root": 3,
    "class names used twice": 0,
    "banned words in identifiers": 0,
    "vague names of values": 0,
    "modules with a vague name": 0,
    "modules named by a bare gerund": 0,
}
"""Largest allowed value of each rule."""

EXEMPT_ROOT_MODULES = {"__init__", "__main__"}
VAGUE_MODULES = {"util", "utils", "common", "helper", "helpers", "misc", "core", "manager", "engine"}
NOUN_GERUNDS = {"batching", "hashing", "packing"}
"""Gerunds that are the usual name of a technique."""

BANNED_WORDS = frozenset(
    """
    afresh anew backbone behind forecast forecasted forecasts held mend mended misread patient perhaps probe probed
    probes probing proof proofs proven spoil spoilt stands stood swallow swallowed tells thoughtless told twin twins
    """.split()  # noqa: SIM905
)
"""Words of identifiers for which the glossary in docs/architecture.md has a standard term."""
STANDARD_PHRASES = ("held_out", "HeldOut", "HELD_OUT")
"""Parts of identifiers that may contain a banned word."""
SERIALIZED_FIELDS = {"forecast", "found", "proof", "proofs", "thoughtless", "twin"}
"""Fields of records whose names are keys on disk, so they stay."""
VAGUE_NAMES = {"found", "given", "one", "kept", "most", "again", "above", "thing", "place"}
"""Names of values that say nothing about the value."""

ODD_ENGLISH = {
    "behind (say: after)": r"\bbehind\b",
    "stand (say: is)": r"\bstands?\b|\bstood\b|\bstanding\b",
    "go on (say: continue)": r"\bgo(es|ing)? on\b|\bwent on\b",
    "anew (say: again)": r"\banew\b|\bafresh\b|\bonce more\b",
    "so many (say: N)": r"\bso (many|much|few)\b",
    "of its own (say: own, separate)": r"\bof (its|their|our|your|one's) own\b",
    "is no (say: is not a)": r"\b(is|are|was|were) (no|none)\b",
    "what as a noun (name the thing)": (
        r"\b[Ww]hat (is|are|was|were|it|they|a|an|the|comes|goes|stands|follows|others?|people)\b"
    ),
    "that of (repeat the noun)": r"\b(that|those|the one) of\b",
    "hold, held (say: keep, contain, cached)": r"\bheld\b(?!-out)|\bholds?\b",
    "tell, told (say: report, show)": r"\btells?\b|\btold\b|\btelling\b",
    "made of (say: built from)": r"\bmade (of|out of|anew)\b",
    "by itself, alone (say: separately, only)": r"\bby itself\b|\balone\b",
    "as it is, as they do (name the thing)": (
        r"\bas (it|they|people|we|he) (is|are|was|were|stands?|says?|read|have|has|had|do|does)\b"
    ),
    "perhaps, nevertheless": r"\b[Pp]erhaps\b|\bnevertheless\b|\bin spite\b",
    "mend, spoil, swallow": r"\bmend(s|ed)?\b|\bspoils?\b|\bswallow(s|ed)?\b",
}
FRAGMENT = re.compile(
    r"(Of|That|The same|As|Without|With|In|For|From|To|By|At|On|Beside|Below|Above|Than|So|Such as|And|But|Or|\.\.\.)\b"
)
VERBS = frozenset(
    """
    accept add adopt align allocate allow announce answer append apply ask assert attach audit batch begin bind
    bound broadcast build cache calculate calibrate call cast check choose clamp clean clear clip close collapse
    collate collect combine compare compile compute concatenate configure construct convert copy count create cut
    decide decode define delete dequantize derive describe deserialize detach detect determine disable dispatch
    display distribute divide download draft draw drop dump emit enable encode end ensure enter escape estimate
    evaluate exclude execute expand explain export extend extract extrapolate fetch fill filter finalize find
    fine-tune fit flatten flush fold follow forget fork format forward free freeze gather generate get give go
    group guard guess handle hash have hide hold ignore implement import include infer init initialize inject
    insert install instantiate interleave interpret invert iterate join keep kill know launch leave let link list
    load locate lock log look make map mark mask match measure merge monitor move multiply normalize note notify
    offer open override pack pad parametrize parse patch perform pick plan plot poll pop prepare pretrain print
    process project provide prune publish pull push put quantize quote raise rank read rebuild receive recompute
    record redact reduce refuse register reject remember remove rename render repeat replace report represent
    request require reserve reset reshape resolve restore restrict resume retry return rotate round route run
    sample sanitize save say scale scan schedule score seal search see select send serialize serve set setup shard
    shift show shuffle sign simulate skip sort specify split stack start step stop store stream strip submit
    subtract suggest sum suppress swap switch sync synchronize take talk tell test tokenize track train transform
    translate transpose trim truncate try turn undo unflatten unify unpack unregister unwrap update upload use
    validate verify visit wait walk warn weigh widen wrap write yield
    """.split()  # noqa: SIM905
)
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
DOCUMENTED = (*FUNCTIONS, ast.ClassDef, ast.Module)


@dataclass(frozen=True)
class Result:
    """The value of one rule, with its offenders."""

    rule: str
    value: float
    offenders: tuple[str, ...]

    @property
    def passed(self) -> bool:
        """Return whether the value is within the limit."""
        return self.value <= LIMITS[self.rule]


@dataclass(frozen=True)
class Module:
    """A parsed source file."""

    path: Path
    """Path that begins with the name of the package."""
    text: str
    tree: ast.Module


def read_modules(package: Path) -> list[Module]:
    """Read and parse every Python file below a package folder."""
    texts = [(path, path.read_text(encoding="utf-8")) for path in sorted(package.rglob("*.py"))]
    return [Module(path.relative_to(package.parent), text, ast.parse(text, str(path))) for path, text in texts]


def check_package(package: Path) -> list[Result]:
    """Check a package folder against every rule."""
    modules = read_modules(package)
    return [
        _check_verbs(modules),
        _check_fragments(modules),
        _check_any(modules),
        _check_english(modules),
        _check_root(package),
        _check_class_names(modules),
        _check_identifiers(modules, "banned words in identifiers", _has_banned_word),
        _check_identifiers(modules, "vague names of values", lambda name: name in VAGUE_NAMES),
        _check_module_names(modules, "modules with a vague name", lambda stem: stem in VAGUE_MODULES),
        _check_module_names(modules, "modules named by a bare gerund", _is_bare_gerund),
    ]


def _check_verbs(modules: list[Module]) -> Result:
    total, offenders = 0, []
    for module in modules:
        for node in ast.walk(module.tree):
            if isinstance(node, FUNCTIONS) and (text := ast.get_docstring(node)):
                total += 1
                if not begins_with_verb(text):
                    offenders.append(f"{module.path}:{node.lineno}: {node.name}: {_first_line(text)}")
    return _share("function docstrings without a verb first, %", total, offenders)


def begins_with_verb(text: str) -> bool:
    """Return whether a docstring begins with a verb in the imperative or third person."""
    first = re.match(r"[`*(]*([A-Za-z-]+)", text.strip())
    word = first[1].lower() if first else ""
    stems = {word, word.removesuffix("s"), word.removesuffix("es"), re.sub(r"ies$", "y", word)}
    return bool(stems & VERBS)


def _check_fragments(modules: list[Module]) -> Result:
    total, offenders = 0, []
    for module in modules:
        for line, text in docstrings(module):
            total += 1
            if FRAGMENT.match(text.strip()):
                offenders.append(f"{module.path}:{line}: {_first_line(text)}")
    return _share("docstrings that begin in the middle of a thought, %", total, offenders)


def _check_any(modules: list[Module]) -> Result:
    total, offenders = 0, []
    for module in modules:
        for node in ast.walk(module.tree):
            if isinstance(node, FUNCTIONS):
                for annotation in _annotations(node):
                    total += 1
                    if re.search(r"\bAny\b", source := ast.unparse(annotation)):
                        offenders.append(f"{module.path}:{annotation.lineno}: {node.name}: {source}")
    return _share("annotations that mention Any, %", total, offenders)


def _check_english(modules: list[Module]) -> Result:
    word_count, offenders = 0, []
    for module in modules:
        for line, text in (*docstrings(module), *comments(module)):
            word_count += len(re.findall(r"[A-Za-z][A-Za-z'-]*", text))
            for name, pattern in ODD_ENGLISH.items():
                for match in re.finditer(pattern, text):
                    at = line + text.count("\n", 0, match.start())
                    offenders.append(f"{module.path}:{at}: {' '.join(match[0].split())!r}: {name}")
    return Result("odd English per 1,000 words", 1000 * len(offenders) / (word_count or 1), tuple(offenders))


def _check_root(package: Path) -> Result:
    paths = [path for path in sorted(package.glob("*.py")) if path.stem not in EXEMPT_ROOT_MODULES]
    extra = tuple(str(path.relative_to(package.parent)) for path in paths)
    return Result("modules at the package root", len(extra), extra)


def _check_class_names(modules: list[Module]) -> Result:
    places: dict[str, list[str]] = {}
    for module in modules:
        for node in ast.walk(module.tree):
            if isinstance(node, ast.ClassDef):
                places.setdefault(node.name, []).append(f"{module.path}:{node.lineno}")
    twice = tuple(f"{name}: {', '.join(lines)}" for name, lines in sorted(places.items()) if len(lines) > 1)
    return Result("class names used twice", len(twice), twice)


def _check_identifiers(modules: list[Module], rule: str, is_offender: Callable[[str], bool]) -> Result:
    offenders = tuple(
        f"{module.path}:{line}: {name}"
        for module in modules
        for line, name in sorted(set(identifiers(module)))
        if is_offender(name)
    )
    return Result(rule, len(offenders), offenders)


def _has_banned_word(name: str) -> bool:
    for phrase in STANDARD_PHRASES:
        name = name.replace(phrase, "")
    return bool(BANNED_WORDS & set(split_identifier(name)))


def _check_module_names(modules: list[Module], rule: str, is_offender: Callable[[str], bool]) -> Result:
    offenders = tuple(str(module.path) for module in modules if is_offender(module.path.stem.strip("_")))
    return Result(rule, len(offenders), offenders)


def _is_bare_gerund(stem: str) -> bool:
    return stem.endswith("ing") and "_" not in stem and stem not in NOUN_GERUNDS


def docstrings(module: Module) -> Iterator[tuple[int, str]]:
    """Yield the line and text of each docstring of a module, class, function, constant or field."""
    for node in ast.walk(module.tree):
        if isinstance(node, DOCUMENTED):
            if text := ast.get_docstring(node):
                yield node.body[0].lineno, text
            for before, after in zip(node.body, node.body[1:], strict=False):
                if isinstance(before, (ast.Assign, ast.AnnAssign)) and isinstance(after, ast.Expr):
                    value = after.value
                    if isinstance(value, ast.Constant) and isinstance(value.value, str):
                        yield after.lineno, value.value


def comments(module: Module) -> Iterator[tuple[int, str]]:
    """Yield the line and text of each comment that is not an instruction for a tool."""
    for token in tokenize.generate_tokens(io.StringIO(module.text).readline):
        if token.type == tokenize.COMMENT and not re.match(r"#\s*(noqa|type:|pragma|!)", token.string):
            yield token.start[0], token.string.lstrip("# ")


def identifiers(module: Module) -> Iterator[tuple[int, str]]:
    """Yield the line and name of each definition. Names that are keys on disk or on the wire are left out."""
    keys: set[int] = set()
    for node in ast.walk(module.tree):
        if isinstance(node, ast.ClassDef):
            is_typed_dict = any("TypedDict" in ast.unparse(base) for base in node.bases)
            fields = [statement.target for statement in node.body if isinstance(statement, ast.AnnAssign)]
            keys |= {id(field) for field in fields if is_typed_dict or ast.unparse(field) in SERIALIZED_FIELDS}
    yield 1, module.path.stem
    for node in ast.walk(module.tree):
        if isinstance(node, (*FUNCTIONS, ast.ClassDef)):
            yield node.lineno, node.name
        elif isinstance(node, ast.arg):
            yield node.lineno, node.arg
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store) and id(node) not in keys:
            yield node.lineno, node.id


def split_identifier(name: str) -> list[str]:
    """Split a name in snake case or camel case into lower-case words."""
    return [word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", name)]


def _annotations(node: ast.FunctionDef | ast.AsyncFunctionDef) -> list[ast.expr]:
    arguments = node.args
    named = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
    named += [argument for argument in (arguments.vararg, arguments.kwarg) if argument]
    return [a.annotation for a in named if a.annotation] + ([node.returns] if node.returns else [])


def _share(rule: str, total: int, offenders: list[str]) -> Result:
    return Result(rule, 100 * len(offenders) / (total or 1), tuple(offenders))


def _first_line(text: str) -> str:
    return text.strip().splitlines()[0]


def main(arguments: list[str] | None = None) -> int:
    """Print the table and the offenders; return 1 if a limit is exceeded."""
    parser = argparse.ArgumentParser(description="Check names, docstrings, layout and language of a package.")
    parser.add_argument(
        "package", nargs="?", type=lambda text: Path(text).resolve(), default=Path(__file__).parents[1] / "lora_chat"
    )
    parser.add_argument("--list", type=int, default=5, metavar="N", help="print N offenders of each rule (5)")
    parser.add_argument("--all", action="store_true", help="print offenders of rules that pass, too")
    options = parser.parse_args(arguments)
    results = check_package(options.package)
    for result in results:
        state = "ok" if result.passed else "FAILED"
        print(f"{state:<7} {result.value:>7.1f} of at most {LIMITS[result.rule]:>5.1f}  {result.rule}")
        for offender in result.offenders[: options.list] if options.all or not result.passed else ():
            print(f"          {offender}")
    return 0 if all(result.passed for result in results) else 1


if __name__ == "__main__":
    sys.exit(main())
