"""How vendors write their keys, from what they document; one line for each."""

import re
from typing import NamedTuple


class KeyFormat(NamedTuple):
    """A kind of key: found by `pattern`, which is tried only on text with one of `keywords`."""

    detail: str
    keywords: tuple[str, ...]
    pattern: re.Pattern[str]
    may_touch_text: bool
    """Whether the form is so distinct that a key is known between other letters and digits too."""


def _key_format(detail: str, keywords: str, pattern: str, *, may_touch_text: bool = True) -> KeyFormat:
    """Return a format; one that is not distinct matches only where it touches no further letter or digit."""
    bounded = pattern if may_touch_text else rf"(?<![A-Za-z0-9])(?:{pattern})(?![A-Za-z0-9])"
    return KeyFormat(detail, tuple(keywords.split()), re.compile(bounded, re.ASCII), may_touch_text)


KEY_FORMATS: tuple[KeyFormat, ...] = (
    # docs.aws.amazon.com/IAM/latest/UserGuide/reference_identifiers.html
    _key_format("AWS access key", "AKIA ASIA ABIA ACCA", r"(?:AKIA|ASIA|ABIA|ACCA)[A-Z2-7]{16}"),
    # github.blog/engineering/behind-githubs-new-authentication-token-formats
    _key_format("GitHub token", "ghp_ gho_ ghu_ ghs_ ghr_", r"gh[pousr]_[A-Za-z0-9]{36,251}"),
    _key_format("GitHub fine-grained token", "github_pat_", r"github_pat_[A-Za-z0-9]{22}_[A-Za-z0-9]{59}"),
    # docs.gitlab.com/security/tokens
    _key_format(
        "GitLab token", "glpat- gldt- glrt- glptt- glft- glsoat-", r"gl(?:pat|dt|rt|ptt|ft|soat)-[\w.-]{20,300}"
    ),
    # docs.slack.dev/authentication/tokens
    _key_format("Slack token", "xox xapp-", r"(?:xox[abeoprs]|xapp)-(?=[A-Za-z-]{0,60}[0-9])[A-Za-z0-9-]{16,250}"),
    _key_format(
        "Slack webhook", "hooks.slack.com", r"hooks\.slack\.com/services/T\w{8,}/B\w{8,}/\w{20,}", may_touch_text=False
    ),
    _key_format(
        "Discord webhook",
        "/api/webhooks/",
        r"discord(?:app)?\.com/api/webhooks/[0-9]{17,20}/[\w-]{60,}",
        may_touch_text=False,
    ),
    _key_format("Telegram bot token", ":AA", r"[0-9]{8,10}:AA[\w-]{33}", may_touch_text=False),
    # cloud.google.com/docs/authentication/api-keys
    _key_format("Google API key", "AIza", r"AIza[\w-]{35}"),
    _key_format("Google OAuth secret", "GOCSPX-", r"GOCSPX-[\w-]{28}"),
    _key_format("Google OAuth token", "ya29.", r"ya29\.[\w-]{30,}"),
    _key_format("Anthropic API key", "sk-ant-", r"sk-ant-[a-z0-9]{3,10}-[\w-]{40,120}"),
    _key_format(
        "OpenAI-style API key",
        "sk-",
        r"(?:(?<![A-Za-z0-9])sk-|sk-(?:proj|svcacct|admin|or-v1)-)(?=[\w-]{0,60}[0-9])(?=[\w-]{0,60}[A-Za-z]{2})[\w-]{20,200}",
    ),
    _key_format("Groq API key", "gsk_", r"gsk_[A-Za-z0-9]{52}"),
    _key_format("xAI API key", "xai-", r"xai-[A-Za-z0-9]{80}"),
    _key_format("Perplexity API key", "pplx-", r"pplx-[A-Za-z0-9]{40,}"),
    _key_format("Replicate token", "r8_", r"r8_[A-Za-z0-9]{37}"),
    # huggingface.co/docs/hub/security-tokens
    _key_format("Hugging Face token", "hf_ api_org_", r"(?:hf|api_org)_[A-Za-z0-9]{34,40}"),
    # docs.stripe.com/keys
    _key_format("Stripe key", "k_live_ k_test_", r"[sr]k_(?:live|test)_[A-Za-z0-9]{20,250}"),
    _key_format("Stripe webhook secret", "whsec_", r"whsec_[A-Za-z0-9+/]{32,}={0,2}"),
    _key_format("Square token", "sq0", r"sq0(?:atp|csp)-[\w-]{22,43}"),
    _key_format("Shopify token", "shp", r"shp(?:at|ca|pa|ss)_[0-9a-fA-F]{32}"),
    # docs.npmjs.com/about-access-tokens, pypi.org/help/#apitoken
    _key_format("npm token", "npm_", r"npm_[A-Za-z0-9]{36}"),
    _key_format("PyPI token", "pypi-AgE", r"pypi-AgE[\w-]{50,}"),
    _key_format("RubyGems key", "rubygems_", r"rubygems_[0-9a-f]{48}"),
    _key_format("Docker token", "dckr_", r"dckr_[po]at_[\w-]{27,}"),
    _key_format("SendGrid key", "SG.", r"SG\.[\w-]{22}\.[\w-]{43}"),
    _key_format("Mailgun key", "key-", r"key-[0-9a-f]{32}", may_touch_text=False),
    _key_format("Mailchimp key", "-us", r"[0-9a-f]{32}-us[0-9]{1,2}", may_touch_text=False),
    # www.twilio.com/docs/glossary/what-is-a-sid
    _key_format(
        "Twilio key", "SK AC", r"(?:SK|AC)(?=[0-9a-f]*[a-f])(?=[0-9a-f]*[0-9])[0-9a-f]{32}", may_touch_text=False
    ),
    # learn.microsoft.com: storage connection strings, service bus, Entra client secrets
    _key_format("Azure storage key", "AccountKey", r"(?<=AccountKey=)[A-Za-z0-9+/]{86}==", may_touch_text=False),
    _key_format(
        "Azure shared access key", "SharedAccessKey", r"(?<=SharedAccessKey=)[A-Za-z0-9+/]{43}=", may_touch_text=False
    ),
    _key_format("Azure client secret", "Q~", r"[\w~.-]{3}[0-9]Q~[\w~.-]{31,34}", may_touch_text=False),
    _key_format("DigitalOcean token", "_v1_", r"do[opr]_v1_[0-9a-f]{64}"),
    _key_format("Databricks token", "dapi", r"dapi[0-9a-f]{32}(?:-[0-9])?"),
    _key_format("HashiCorp Vault token", "hvs. hvb.", r"hv[sb]\.[\w-]{24,250}"),
    _key_format("Grafana token", "glsa_", r"glsa_[A-Za-z0-9]{32}_[0-9a-fA-F]{8}"),
    _key_format("Postman key", "PMAK-", r"PMAK-[0-9a-f]{24}-[0-9a-f]{34}"),
    _key_format("New Relic key", "NRAK-", r"NRAK-[A-Z0-9]{27}"),
    _key_format("Linear key", "lin_api_", r"lin_api_[A-Za-z0-9]{40}"),
    _key_format("Notion token", "ntn_", r"ntn_[A-Za-z0-9]{40,}"),
    # RFC 7519: header and payload are JSON objects, so both parts begin with `{"` in base64url
    _key_format("JSON web token", "eyJ", r"eyJ[\w-]{10,2000}\.eyJ[\w-]{10,16000}\.[\w-]{10,}"),
)
