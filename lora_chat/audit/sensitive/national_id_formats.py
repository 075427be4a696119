"""How states write the numbers they give to people; the checksums are python-stdnum's."""

import re
from typing import NamedTuple


class NationalId(NamedTuple):
    """A kind of number: believed when written in its own way, or plainly after one of its words."""

    detail: str
    check: str
    """Module of stdnum with the checksum; empty where the number has none."""
    own: re.Pattern[str] | None
    """A form that hardly anything else has."""
    plain: re.Pattern[str] | None
    """A form that other numbers have too: one of the words must stand near."""
    words: re.Pattern[str] | None


def _id(detail: str, check: str, own: str = "", plain: str = "", words: str = "") -> NationalId:
    def bounded(pattern: str) -> re.Pattern[str] | None:
        if not pattern:
            return None
        return re.compile(rf"(?<![A-Za-z0-9])(?<![0-9][.,/_-])(?:{pattern})(?![A-Za-z0-9]|[.,/_-][0-9])")

    near = re.compile(rf"(?<![a-z])(?:{words})", re.IGNORECASE) if words else None
    return NationalId(detail, check, bounded(own), bounded(plain), near)


_D2, _D3, _D4 = (f"[0-9]{{{n}}}" for n in (2, 3, 4))
_TAX = r"tax (?:id|number|no)|\btin\b|"

NATIONAL_IDS: tuple[NationalId, ...] = (
    _id("US social security number", "us.ssn", rf"{_D3}-{_D2}-{_D4}", rf"{_D3}[ ]?{_D2}[ ]?{_D4}", "ssn|social sec"),
    _id("US taxpayer number", "us.itin", rf"9{_D2}-{_D2}-{_D4}"),
    _id(
        "UK national insurance number",  # www.gov.uk: HMRC's manual NIM39110; there is no checksum
        "",
        r"(?!BG|GB|NK|KN|TN|NT|ZZ)[A-CEGHJ-PR-TW-Z][A-CEGHJ-NPR-TW-Z] [0-9]{2} [0-9]{2} [0-9]{2} [A-D]",
        r"(?!BG|GB|NK|KN|TN|NT|ZZ)[A-CEGHJ-PR-TW-Z][A-CEGHJ-NPR-TW-Z][0-9]{6} ?[A-D]",
        r"national insurance|nino\b|\bni\b",
    ),
    _id("UK NHS number", "gb.nhs", "", rf"{_D3}[ -]?{_D3}[ -]?{_D4}", "nhs"),
    _id("German tax id", "de.idnr", "", rf"{_D2} ?{_D3} ?{_D3} ?{_D3}", _TAX + "steuer|idnr|identifikationsnummer"),
    _id(
        "French social security number",
        "fr.nir",
        r"[12] ?[0-9]{2} ?[01][0-9] ?(?:[0-9]{2}|2[AB]) ?[0-9]{3} ?[0-9]{3} ?[0-9]{2}",
    ),
    _id("Spanish DNI", "es.dni", "[0-9]{8}-[A-Z]", "[0-9]{8}[ ]?[A-Z]", "dni|nif|documento|identidad|identity"),
    _id("Spanish NIE", "es.nie", "[XYZ]-?[0-9]{7}-?[A-Z]"),
    _id(
        "Italian tax code",
        "it.codicefiscale",
        "[A-Za-z]{6}[0-9LMNP-V]{2}[A-EHLMPR-Ta-ehlmpr-t][0-9LMNP-V]{2}[A-Za-z][0-9LMNP-V]{3}[A-Za-z]",
    ),
    _id("Chinese resident id", "cn.ric", "[1-8][0-9]{5}(?:19|20)[0-9]{2}[01][0-9][0-3][0-9]{4}[0-9Xx]"),
    _id(
        "Indian Aadhaar",
        "in_.aadhaar",
        rf"(?<![0-9] )[2-9]{_D3} {_D4} {_D4}(?! [0-9])",
        "[2-9][0-9]{11}",
        "a[ad]*haa?r|uid|आधार",
    ),
    _id("Indian PAN", "in_.pan", "", "[A-Z]{3}[ABCFGHJLPT][A-Z][0-9]{4}[A-Z]", r"pan\b|permanent account"),
    _id("Brazilian CPF", "br.cpf", rf"{_D3}\.{_D3}\.{_D3}-{_D2}", "[0-9]{9}-?[0-9]{2}", "cpf"),
    _id("Dutch BSN", "nl.bsn", "", rf"{_D4}\.?{_D2}\.?{_D3}", "bsn|burgerservice|sofi"),
    _id("Polish PESEL", "pl.pesel", "", "[0-9]{11}", "pesel"),
    _id("Belgian national number", "be.nn", rf"{_D2}\.{_D2}\.{_D2}-{_D3}\.{_D2}"),
    _id(
        "Swedish personal number",
        "se.personnummer",
        rf"(?:19|20)?{_D2}[01][0-9][0-3][0-9]-{_D4}",
        "[0-9]{10}(?:[0-9]{2})?",
        "personn",
    ),
    _id("Finnish personal code", "fi.hetu", "[0-3][0-9][01][0-9]{3}[A-FU-Y+-][0-9]{3}[0-9A-FHJ-NPR-Y]"),
    _id("Danish CPR number", "dk.cpr", "", rf"[0-3][0-9][01][0-9]{_D2}-?{_D4}", "cpr|personnummer"),
    _id("Norwegian birth number", "no.fodselsnummer", "", r"[0-9]{6}[ -]?[0-9]{5}", "fødsel|fodsel|personn"),
    _id("Canadian social insurance number", "ca.sin", "", rf"[1-9][0-9]{{2}}[ -]?{_D3}[ -]?{_D3}", r"sin\b|social ins"),
    _id("Australian tax file number", "au.tfn", "", rf"{_D3} ?{_D3} ?{_D3}", "tfn|tax file"),
    _id("Mexican CURP", "mx.curp", "[A-Z]{4}[0-9]{6}[HM][A-Z]{5}[0-9A-Z][0-9]"),
    _id("Korean resident number", "kr.rrn", "[0-9]{6}-[1-8][0-9]{6}"),
    _id("Turkish id number", "tr.tckimlik", "", "[1-9][0-9]{10}", r"kimlik|t\.?c\.?\b"),
    _id("South African id number", "za.idnr", "", "[0-9]{13}|[0-9]{6} [0-9]{4} [0-9]{3}", r"\bid\b|identity"),
    _id("Romanian CNP", "ro.cnp", "", "[1-8][0-9]{12}", "cnp|cod numeric"),
    _id("Swiss social security number", "ch.ssn", rf"756\.{_D4}\.{_D4}\.{_D2}", "756[0-9]{10}", "ahv|avs|ssn"),
    _id("Czech birth number", "cz.rc", "[0-9]{2}[0-8][0-9][0-3][0-9]/[0-9]{4}", "[0-9]{10}", "rodné|rodne"),
    _id("Japanese My Number", "jp.in_", "", rf"{_D4}[ -]?{_D4}[ -]?{_D4}", "マイナンバー|個人番号|my ?number"),
    _id("Bulgarian EGN", "bg.egn", "", "[0-9]{10}", "егн|egn"),
)
