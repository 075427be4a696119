"""How vendors write their keys, from what they document; one line for each."""

import re
from typing import NamedTuple


class KeyFormat(NamedTuple):
    """A kind of key: found by `pattern`, which is tried only on text with one of `keywords`."""

    detail: str
    keywords: tuple[str, ...]
    pattern: re.Pattern[str]
    glued: bool
    """Whether the form is so distinct that a key is known between other letters and digits too."""


def _key(detail: str, keywords: str, pattern: str, *, glued: bool = True) -> KeyFormat:
    """Return a format; one that is not distinct matches only where it touches no further letter or digit."""
    bounded = pattern if glued else rf"(?<![A-Za-z0-9])(?:{pattern})(?![A-Za-z0-9])"
    return KeyFormat(detail, tuple(keywords.split()), re.compile(bounded, re.ASCII), glued)


KEY_FORMATS: tuple[KeyFormat, ...] = (
    # docs.aws.amazon.com/IAM/latest/UserGuide/reference_identifiers.html
    _key("AWS access key", "AKIA ASIA ABIA ACCA", r"(?:AKIA|ASIA|ABIA|ACCA)[A-Z2-7]{16}"),
    # github.blog/engineering/behind-githubs-new-authentication-token-formats
    _key("GitHub token", "ghp_ gho_ ghu_ ghs_ ghr_", r"gh[pousr]_[A-Za-z0-9]{36,251}"),
    _key("GitHub fine-grained token", "github_pat_", r"github_pat_[A-Za-z0-9]{22}_[A-Za-z0-9]{59}"),
    # docs.gitlab.com/security/tokens
    _key("GitLab token", "glpat- gldt- glrt- glptt- glft- glsoat-", r"gl(?:pat|dt|rt|ptt|ft|soat)-[\w.-]{20,300}"),
    # docs.slack.dev/authentication/tokens
    _key("Slack token", "xox xapp-", r"(?:xox[abeoprs]|xapp)-(?=[A-Za-z-]{0,60}[0-9])[A-Za-z0-9-]{16,250}"),
    _key("Slack webhook", "hooks.slack.com", r"hooks\.slack\.com/services/T\w{8,}/B\w{8,}/\w{20,}", glued=False),
    _key(
        "Discord webhook", "/api/webhooks/", r"discord(?:app)?\.com/api/webhooks/[0-9]{17,20}/[\w-]{60,}", glued=False
    ),
    _key("Telegram bot token", ":AA", r"[0-9]{8,10}:AA[\w-]{33}", glued=False),
    # cloud.google.com/docs/authentication/api-keys
    _key("Google API key", "AIza", r"AIza[\w-]{35}"),
    _key("Google OAuth secret", "GOCSPX-", r"GOCSPX-[\w-]{28}"),
    _key("Google OAuth token", "ya29.", r"ya29\.[\w-]{30,}"),
    _key("Anthropic API key", "sk-ant-", r"sk-ant-[a-z0-9]{3,10}-[\w-]{40,120}"),
    _key(
        "OpenAI-style API key",
        "sk-",
        r"(?:(?<![A-Za-z0-9])sk-|sk-(?:proj|svcacct|admin|or-v1)-)(?=[\w-]{0,60}[0-9])(?=[\w-]{0,60}[A-Za-z]{2})[\w-]{20,200}",
    ),
    _key("Groq API key", "gsk_", r"gsk_[A-Za-z0-9]{52}"),
    _key("xAI API key", "xai-", r"xai-[A-Za-z0-9]{80}"),
    _key("Perplexity API key", "pplx-", r"pplx-[A-Za-z0-9]{40,}"),
    _key("Replicate token", "r8_", r"r8_[A-Za-z0-9]{37}"),
    # huggingface.co/docs/hub/security-tokens
    _key("Hugging Face token", "hf_ api_org_", r"(?:hf|api_org)_[A-Za-z0-9]{34,40}"),
    # docs.stripe.com/keys
    _key("Stripe key", "k_live_ k_test_", r"[sr]k_(?:live|test)_[A-Za-z0-9]{20,250}"),
    _key("Stripe webhook secret", "whsec_", r"whsec_[A-Za-z0-9+/]{32,}={0,2}"),
    _key("Square token", "sq0", r"sq0(?:atp|csp)-[\w-]{22,43}"),
    _key("Shopify token", "shp", r"shp(?:at|ca|pa|ss)_[0-9a-fA-F]{32}"),
    # docs.npmjs.com/about-access-tokens, pypi.org/help/#apitoken
    _key("npm token", "npm_", r"npm_[A-Za-z0-9]{36}"),
    _key("PyPI token", "pypi-AgE", r"pypi-AgE[\w-]{50,}"),
    _key("RubyGems key", "rubygems_", r"rubygems_[0-9a-f]{48}"),
    _key("Docker token", "dckr_", r"dckr_[po]at_[\w-]{27,}"),
    _key("SendGrid key", "SG.", r"SG\.[\w-]{22}\.[\w-]{43}"),
    _key("Mailgun key", "key-", r"key-[0-9a-f]{32}", glued=False),
    _key("Mailchimp key", "-us", r"[0-9a-f]{32}-us[0-9]{1,2}", glued=False),
    # www.twilio.com/docs/glossary/what-is-a-sid
    _key("Twilio key", "SK AC", r"(?:SK|AC)(?=[0-9a-f]*[a-f])(?=[0-9a-f]*[0-9])[0-9a-f]{32}", glued=False),
    # learn.microsoft.com: storage connection strings, service bus, Entra client secrets
    _key("Azure storage key", "AccountKey", r"(?<=AccountKey=)[A-Za-z0-9+/]{86}==", glued=False),
    _key("Azure shared access key", "SharedAccessKey", r"(?<=SharedAccessKey=)[A-Za-z0-9+/]{43}=", glued=False),
    _key("Azure client secret", "Q~", r"[\w~.-]{3}[0-9]Q~[\w~.-]{31,34}", glued=False),
    _key("DigitalOcean token", "_v1_", r"do[opr]_v1_[0-9a-f]{64}"),
    _key("Databricks token", "dapi", r"dapi[0-9a-f]{32}(?:-[0-9])?"),
    _key("HashiCorp Vault token", "hvs. hvb.", r"hv[sb]\.[\w-]{24,250}"),
    _key("Grafana token", "glsa_", r"glsa_[A-Za-z0-9]{32}_[0-9a-fA-F]{8}"),
    _key("Postman key", "PMAK-", r"PMAK-[0-9a-f]{24}-[0-9a-f]{34}"),
    _key("New Relic key", "NRAK-", r"NRAK-[A-Z0-9]{27}"),
    _key("Linear key", "lin_api_", r"lin_api_[A-Za-z0-9]{40}"),
    _key("Notion token", "ntn_", r"ntn_[A-Za-z0-9]{40,}"),
    # RFC 7519: header and payload are JSON objects, so both parts begin with `{"` in base64url
    _key("JSON web token", "eyJ", r"eyJ[\w-]{10,2000}\.eyJ[\w-]{10,16000}\.[\w-]{10,}"),
)
