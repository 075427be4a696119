"""A second set of secrets, personal data and look-alikes, written after the detectors were finished.

The patterns were not changed for this set. Its first run had a recall of 67 of 79 and one false alarm, and revealed two
errors in the cheap tests before the patterns. With those fixed, the recall is 69 of 79.
"""

import base64
import hashlib
import string

from made_up import ALNUM, BASE64URL, HEX, Maker, Planted, groups, read_lookalikes


def make_secrets(seed):
    m = Maker(seed)
    made = []
    for detail, value, text in (
        (
            "AWS access key",
            "AS" + "IA" + m.chars("ABCDEFGHIJKLMNOPQRSTUVWXYZ234567", 16),
            "temporary credentials (@@) expire soon",
        ),
        ("AWS secret without a name", m.chars(ALNUM + "/+", 40), "the other half goes like so: @@ got it?"),
        (
            "GitHub token",
            "gh" + "o_" + m.chars(ALNUM, 36),
            "remote: https://x-access-token:@@@github.com/acme/shop.git",
        ),
        ("GitHub token", "gh" + "s_" + m.chars(ALNUM, 36), "**@@**"),
        ("GitLab token", "gl" + "pat-" + m.chars(ALNUM, 20), "git clone https://oauth2:@@@gitlab.com/a/b.git"),
        (
            "Slack token",
            "xo" + "xp-" + m.digits("###########-###########-") + m.chars(HEX, 32),
            "legacy token「@@」です",
        ),
        (
            "Slack webhook",
            "hooks.slack"
            + ".com/services/T"
            + m.chars(ALNUM, 9).upper()
            + "/B"
            + m.chars(ALNUM, 9).upper()
            + "/"
            + m.chars(ALNUM, 24),
            "POST https://@@ with a payload",
        ),
        ("Google OAuth secret", "GOC" + "SPX-" + m.chars(ALNUM, 28), '{"client_id": "shop", "client_secret":"@@"}'),
        (
            "OpenAI-style API key",
            "s" + "k-" + m.chars(ALNUM, 20) + "T3Blbk" + "FJ" + m.chars(ALNUM, 20),
            "Why does `@@` give 401?",
        ),
        ("OpenAI-style API key", "s" + "k-or-v1-" + m.chars(HEX, 64), "openrouter: @@"),
        ("Hugging Face token", "h" + "f_" + m.chars(ALNUM, 34), "huggingface-cli login --token @@"),
        ("Stripe key", "r" + "k_live_" + m.chars(ALNUM, 40), "Schlüssel «@@» bitte löschen"),
        ("Stripe webhook secret", "whs" + "ec_" + m.chars(ALNUM, 32), "endpoint secret @@"),
        ("Telegram bot token", m.digits("6########") + ":A" + "A" + m.chars(BASE64URL, 32) + "b", "Бот: @@"),
        ("Shopify token", "shp" + "at_" + m.chars(HEX, 32), "X-Shopify-Access-Token: @@"),
        ("DigitalOcean token", "do" + "p_v1_" + m.chars(HEX, 64), "doctl auth init -t @@"),
        ("Databricks token", "da" + "pi" + m.chars(HEX, 32), "DATABRICKS_TOKEN @@"),
        ("Mailgun key", "ke" + "y-" + m.chars(HEX, 32), "curl -u 'api:@@'"),
        (
            "Azure shared access key",
            m.chars(ALNUM + "+/", 43) + "=",
            "Endpoint=sb://bus.servicebus.windows.net/;SharedAccessKeyName=Root;SharedAccessKey=@@",
        ),
        (
            "Azure SAS signature",
            m.chars(ALNUM, 42) + "%3D",
            "https://shop.blob.core.windows.net/c/f?sv=2022-11-02&sp=r&sig=@@",
        ),
        ("private key", m.private_key("EC "), "-- key --\n@@\n-- end --"),
        ("private key", m.private_key("").replace("\n", "\\n"), '{"private_key": "@@"}'),
        ("JSON web token", m.jwt(), "Authorization: Bearer @@"),
        ("password in a URL", m.chars(ALNUM, 12) + "3!", "redis://default:@@@cache.firm.io:6379/0"),
        ("password in a URL", m.chars(ALNUM, 9) + "5", "amqp://guest2:@@@mq:5672"),
        ("password", m.chars(ALNUM, 11) + "8", "mysqldump --password=@@ shop"),
        ("password", m.chars(ALNUM, 11) + "8", "PGPASSWORD=@@ psql -h db"),
        ("password", m.chars(ALNUM, 9) + "1#", "La contraseña del wifi es @@"),
        ("password", m.chars(ALNUM, 9) + "2", "username: admin\npassword: @@\n"),
        ("password after a flag", m.chars(ALNUM, 10) + "6", "sshpass -p @@ ssh root@host"),
        ("password in .pgpass", m.chars(ALNUM, 12) + "4", "db.internal:5432:shop:anna:@@"),
        ("assigned key or token", m.chars(HEX, 32), "x-api-key: @@"),
        ("assigned key or token", m.chars(ALNUM, 30) + "1", "const secretKey = '@@';"),
        ("assigned key or token", m.chars(BASE64URL[:-2], 44) + "9", "refresh_token=@@&grant_type=refresh_token"),
        (
            "authorization header",
            base64.b64encode(f"anna:{m.chars(ALNUM, 16)}".encode()).decode(),
            "Authorization: Basic @@",
        ),
    ):
        kind = (
            "possible_secret"
            if detail.startswith(("password", "assigned", "auth")) and "URL" not in detail
            else "secret"
        )
        made.append(Planted(kind, detail, text.replace("@@", value), value))
    return made


def make_personal_data(seed):
    m = Maker(seed)
    made = []
    for detail, value, text in (
        ("e-mail", m.digits("Ana.Lucia##@Uol.com.br"), "Mande para @@!"),
        ("e-mail", m.digits("o'neill##@mail.co.uk"), "(@@)"),
        ("e-mail", m.digits("x###@t-online.de"), "E-Mail:@@;Tel:-"),
        ("e-mail written out", m.digits("jane## [at] gmail [dot] com"), "reach me via @@"),
        ("phone number", m.digits("+1 (415) 73#-####"), "Cell: @@"),
        ("phone number", m.digits("+33 (0)6 12 ## ## ##"), "Tél. : @@"),
        ("phone number", m.digits("0043 664 1######"), "Meine Nummer lautet @@"),
        ("phone number", m.digits("(030) 90#####"), "Sie erreichen uns telefonisch unter @@."),
        ("phone number", m.digits("415 73# ####"), "just text me: @@"),
        ("phone number", m.digits("22 62# ## ##"), "Proszę zadzwonić: @@"),
        ("phone number", m.digits("090-1234-####"), "携帯は@@です"),
        ("phone number", m.digits("13901######"), "请打我手机@@。"),
        ("phone number", m.digits("(11) 98###-####"), "Liga pra mim no @@"),
        ("phone number", m.digits("+7 916 12#-##-##"), "мой телефон @@"),
        ("phone number without a word", m.digits("9876######"), "@@ that's mine"),
        ("card number", m.card("4", 16), "Visa @@ exp 11/27 cvv 123"),
        ("card number", groups(m.card("2221", 16)), "Pay with @@ thanks"),
        ("card number", (lambda c: f"{c[:4]} {c[4:10]} {c[10:]}")(m.card("34", 15)), "amex: @@"),
        ("card number", groups(m.card("3528", 16)), "JCBカード@@"),
        ("card number", m.card("36", 14), "Diners card number @@"),
        ("IBAN", groups(m.iban("IE", "AIBK" + m.digits("#" * 14))), "Send the rent to @@, thanks"),
        ("IBAN", m.iban("SE", m.digits("500########" + "#" * 9))[:24].lower(), "mitt konto @@"),
        ("IBAN", groups(m.iban("GB", "LOYD" + m.digits("#" * 14))), "@@ IS MY ACCOUNT"),
        ("IBAN", m.iban("PT", m.digits("#" * 21)), "o meu IBAN: @@"),
        ("Spanish NIE", m.checked("es.nie", "X#######A"), "Su NIE: @@"),
        ("Swiss social security number", m.checked("ch.ssn", "756.####.####.##"), "AHV-Nr. @@"),
        ("Swedish personal number", m.checked("se.personnummer", "8#0#1#-####"), "Personnummer @@"),
        ("Finnish personal code", m.checked("fi.hetu", "1#0#8#-####"[:10] + "A"), "HETU @@"),
        ("Korean resident number", m.checked("kr.rrn", "8#0#1#-1######"), "주민등록번호 @@"),
        ("Mexican CURP", m.checked("mx.curp", "GOMC8#0#1#HDFRRL0#"), "CURP @@"),
        ("Belgian national number", m.checked("be.nn", "8#.0#.1#-###.##"), "Rijksregisternummer @@"),
        ("Canadian social insurance number", groups(m.checked("ca.sin", "1########"), 3), "my SIN is @@"),
        ("UK NHS number", m.checked("gb.nhs", "4## ### ####"), "NHS no. @@"),
        ("Danish CPR number", m.checked("dk.cpr", "1#0#8#-####"), "CPR-nr: @@"),
        ("Norwegian birth number", m.checked("no.fodselsnummer", "1#0#8######"), "fødselsnummer @@"),
        ("Indian PAN", m.checked("in_.pan", "ABCPD####A"), "PAN: @@"),
        ("Turkish id number", m.checked("tr.tckimlik", "1##########"), "TC Kimlik No @@"),
        ("Polish PESEL", m.checked("pl.pesel", "9#0#2######"), "Mój numer to @@"),
        ("German tax id", m.checked("de.idnr", "6##########"), "Meine IdNr. @@ liegt bei"),
        ("US social security number", m.checked("us.ssn", "2##-##-####"), "my social is @@ ok"),
        ("Dutch BSN", m.checked("nl.bsn", "2########"), "burgerservicenummer: @@"),
        ("Chinese resident id", m.checked("cn.ric", "310101199#0#1#####"), "他的身份证号码：@@"),
        ("Japanese My Number", groups(m.checked("jp.in_", "############")), "マイナンバーは @@"),
        ("Brazilian CPF", m.checked("br.cpf", "###.###.###-##"), "cliente @@, São Paulo"),
    ):
        made.append(Planted("personal_data", detail, text.replace("@@", value), value))
    return made


def make_lookalikes(seed):
    m = Maker(seed)
    texts = [
        *read_lookalikes(m, "held_out_lookalikes.txt"),
        f'etag: "{hashlib.md5(b"a").hexdigest()}"',
        f"integrity sha512-{base64.b64encode(hashlib.sha512(b'a').digest()).decode()}",
        f"blob {hashlib.sha1(b'q').hexdigest()}",
        f"trace {hashlib.sha256(b'z').hexdigest()[:32]}",
        f'src="data:font/woff2;base64,{base64.b64encode(m.random.randbytes(120)).decode()}"',
        f"{m.chars(string.ascii_uppercase, 12)} was the licence plate game",
        "ghp_0000000000000000" + "00000000000000000000",
    ]
    return [Planted("", "", text, "") for text in texts]


def make_planted(seed):
    return [*make_secrets(seed), *make_personal_data(seed), *make_lookalikes(seed)]
