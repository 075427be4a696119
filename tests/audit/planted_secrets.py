"""Sentences with secrets, used to develop the detectors."""

import string

from made_up import ALNUM, BASE32, BASE64URL, HEX, Maker, Planted


def make_secrets(seed):
    m = Maker(seed)
    secret, assigned = [], []

    def add(detail, value, *texts):
        secret.extend(Planted("secret", detail, text.replace("@@", value()), "") for text in texts)

    for detail, make, texts in (
        (
            "AWS access key",
            lambda: "AK" + "IA" + m.chars(BASE32, 16),
            ("aws_access_key_id = @@", "Is @@ still active?", "我的密钥是@@，请保密。"),
        ),
        (
            "GitHub token",
            lambda: "gh" + "p_" + m.chars(ALNUM, 36),
            ("git clone with @@ please", "GITHUB_TOKEN=@@", '{"token": "@@"}'),
        ),
        (
            "GitHub fine-grained token",
            lambda: "github" + "_pat_" + m.chars(ALNUM, 22) + "_" + m.chars(ALNUM, 59),
            ("Use @@.", "export GH=@@"),
        ),
        (
            "GitLab token",
            lambda: "gl" + "pat-" + m.chars(BASE64URL[:-2], 20),
            ("PRIVATE-TOKEN: @@", "Mein Token lautet @@."),
        ),
        (
            "Slack token",
            lambda: "xo" + "xb-" + m.digits("############-############-") + m.chars(ALNUM, 24),
            ("bot: @@", "slack=@@"),
        ),
        (
            "Google API key",
            lambda: "AI" + "za" + m.chars(BASE64URL, 34) + "Q",
            ("https://maps.googleapis.com/?key=@@", "key: @@"),
        ),
        (
            "OpenAI-style API key",
            lambda: "s" + "k-proj-" + m.chars(ALNUM, 40) + "7aB",
            ("openai.api_key = '@@'", "My key @@ stopped working"),
        ),
        (
            "Anthropic API key",
            lambda: "s" + "k-ant-api03-" + m.chars(ALNUM, 93) + "AA",
            ("ANTHROPIC_API_KEY=@@", "here: @@"),
        ),
        (
            "Hugging Face token",
            lambda: "h" + "f_" + m.chars(string.ascii_letters, 34),
            ("login(token='@@')", "HF token @@"),
        ),
        ("Stripe key", lambda: "s" + "k_live_" + m.chars(ALNUM, 24), ("stripe.api_key = '@@'", "La clé est @@ ?")),
        ("npm token", lambda: "np" + "m_" + m.chars(ALNUM, 36), ("//registry.npmjs.org/:_authToken=@@",)),
        ("PyPI token", lambda: "py" + "pi-AgEIcHlwaS5vcmc" + m.chars(BASE64URL[:-2], 120), ("password = @@",)),
        (
            "SendGrid key",
            lambda: "S" + "G." + m.chars(ALNUM, 22) + "." + m.chars(ALNUM, 43),
            ("SENDGRID=@@", "use @@ to send"),
        ),
        ("Twilio key", lambda: "S" + "K" + m.chars(HEX, 32), ("Twilio(@@)",)),
        (
            "Azure storage key",
            lambda: m.chars(ALNUM + "+/", 86) + "==",
            ("DefaultEndpointsProtocol=https;AccountName=shop;AccountKey=@@;EndpointSuffix=core.windows.net",),
        ),
        ("private key", lambda: m.private_key("RSA "), ("This is it:\n@@\nKeep it safe.",)),
        ("private key", lambda: m.private_key("OPENSSH "), ("cat id_ed25519\n@@",)),
        ("JSON web token", m.jwt, ("Cookie: session=@@", "Decode @@ for me")),
        (
            "password in a URL",
            lambda: m.chars(ALNUM, 10) + "7k",
            ("postgres://app:@@@db.internal:5432/shop", "curl https://anna:@@@intranet.firm.de/x"),
        ),
    ):
        for text in texts:
            value = make()
            secret.append(Planted("secret", detail, text.replace("@@", value), value))
    for detail, alphabet, length, text in (
        ("assigned key or token", HEX, 40, 'api_key = "@@"'),
        ("assigned key or token", ALNUM + "+/", 40, "AWS_SECRET_ACCESS_KEY=@@"),
        ("assigned key or token", ALNUM, 32, '{"client_secret": "@@"}'),
        ("assigned key or token", ALNUM, 24, "access token: @@"),
        ("authorization header", ALNUM, 40, "curl -H 'Authorization: Bearer @@' https://api.shop.de"),
        ("password", ALNUM, 12, "The password is @@7q."),
        ("password", ALNUM, 10, "Passwort: @@4x"),
        ("password", ALNUM, 10, "密码是@@5t，别告诉别人"),
    ):
        value = m.chars(alphabet, length)
        assigned.append(Planted("possible_secret", detail, text.replace("@@", value), value))
    return [*secret, *assigned]
