"""Sentences with personal data, used to develop the detectors."""

from made_up import Maker, Planted, groups


def make_personal_data(seed):
    m = Maker(seed)
    entries = []
    people = ["anna.meier", "j.o.smith", "li_wei88", "marie-claire", "pedro+shop", "k.nowak"]
    domains = ["gmail.com", "web.de", "qq.com", "orange.fr", "empresa.com.br", "wp.pl"]
    mails = [f"{p}{m.digits('##')}@{d}" for p, d in zip(people, domains, strict=True)]
    cards = [
        groups(m.card("4", 16)),
        m.card("53", 16),
        groups(m.card("4", 16), by="-"),
        m.card("37", 15),
        groups(m.card("62", 16)),
    ]
    ibans = [
        groups(m.iban("DE", m.digits("#" * 18))),
        m.iban("NL", "INGB" + m.digits("#" * 10)).replace(" ", ""),
        m.iban("AT", m.digits("#" * 16)),
        groups(m.iban("PL", m.digits("#" * 24))),
    ]
    for detail, values, texts in (
        (
            "e-mail",
            mails,
            (
                "Write to @@.",
                "Meine Adresse ist @@",
                "我的邮箱是@@，谢谢",
                "Contact <@@> today",
                "mailto:@@",
                "To: @@, cc: none",
            ),
        ),
        (
            "card number",
            cards,
            ("My card is @@.", "Charge @@ please", "Karte @@, gültig bis 04/29", "Amex @@", "卡号@@"),
        ),
        ("IBAN", ibans, ("Transfer it to @@ by Friday", "IBAN @@.", "Konto: @@", "na konto @@ proszę")),
        (
            "phone number",
            [
                m.digits(p)
                for p in (
                    "+49 151 2#######",
                    "+1 415-73#-####",
                    "(212) 73#-####",
                    "06 1# ## ## ##",
                    "1381#######",
                    "07911 12####",
                    "+44 20 7946 1###",
                    "+91 98### #####",
                    "612 34# ###",
                )
            ],
            (
                "Ruf mich an: @@",
                "Call @@ now",
                "My number: @@.",
                "Appelez le @@",
                "手机@@",
                "text @@",
                "Phone @@",
                "WhatsApp @@",
                "mi móvil es @@",
            ),
        ),
        (
            "US social security number",
            [m.checked("us.ssn", "5##-##-####"), m.checked("us.ssn", "4########")],
            ("Her number is @@.", "SSN @@"),
        ),
        (
            "UK national insurance number",
            [m.digits("JG ## ## ## C"), m.digits("NS######A")],
            ("It says @@ on the letter", "National Insurance: @@"),
        ),
        (
            "German tax id",
            [m.checked("de.idnr", "8##########"), m.checked("de.idnr", "4# ### ### ###")],
            ("Steuer-ID: @@", "Meine Steueridentifikationsnummer ist @@"),
        ),
        (
            "French social security number",
            [m.checked("fr.nir", "1 ## 0# 75 ### ### ##"), m.checked("fr.nir", "2##0#33########")],
            ("Mon numéro : @@", "NIR @@."),
        ),
        (
            "Spanish DNI",
            [m.checked("es.dni", "########A"), m.checked("es.dni", "########-A")],
            ("Mi DNI es @@", "Soy @@."),
        ),
        (
            "Italian tax code",
            [m.checked("it.codicefiscale", "RSSMRA8#C1#H501A"), m.checked("it.codicefiscale", "BNCLCU7#A0#F205A")],
            ("Codice fiscale @@", "Sono @@"),
        ),
        (
            "Chinese resident id",
            [
                m.checked("cn.ric", "11010519#00#1####X"[:17] + "#"),
                m.checked("cn.ric", "4403011#8#0#1#####"[:6] + "198#0#1#####"),
            ],
            ("身份证号@@。", "ID @@"),
        ),
        (
            "Indian Aadhaar",
            [groups(m.checked("in_.aadhaar", "5###########")), m.checked("in_.aadhaar", "7###########")],
            ("It is @@.", "My Aadhaar is @@"),
        ),
        (
            "Brazilian CPF",
            [m.checked("br.cpf", "###.###.###-##"), m.checked("br.cpf", "###########")],
            ("Sou @@", "CPF: @@"),
        ),
        ("Dutch BSN", [m.checked("nl.bsn", "1########")], ("BSN @@",)),
        ("Polish PESEL", [m.checked("pl.pesel", "8#0#1######")], ("PESEL @@",)),
    ):
        for value, text in zip(values, texts, strict=True):
            entries.append(Planted("personal_data", detail, text.replace("@@", value), value))
    return entries
