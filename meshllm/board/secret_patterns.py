"""The shapes of secrets that services give out, by which they are known wherever they stand in a text.

Each shape has a fixed prefix, so that ordinary words and hashes do not match. The prefixes and lengths are those that
the services document, or that their secret scanning reports.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import orjson

# A token begins where a word begins: "task-1" and "disk-full" hold no "sk-".
_START: Final = r"(?<![A-Za-z0-9_])"
# ... and is not cut in its middle.
_END: Final = r"(?![A-Za-z0-9_])"


@dataclass(frozen=True, slots=True)
class SecretPattern:
    """One shape. `label` stands in place of what is found; `hints` are lower-case strings of which every match holds
    one; the group `secret` of `pattern`, if it has one, is what is replaced. `check` may refuse a match."""

    label: str
    hints: tuple[str, ...]
    pattern: re.Pattern[str]
    check: Callable[[str], bool] | None = None


def _token(label: str, shape: str, *hints: str) -> SecretPattern:
    return SecretPattern(label, hints, re.compile(f"{_START}(?:{shape}){_END}"))


def _is_jwt(text: str) -> bool:
    """Whether the first part of a JSON web token is a JSON object (RFC 7519)."""
    head = text.partition(".")[0]
    try:
        return isinstance(orjson.loads(base64.urlsafe_b64decode(head + "=" * (-len(head) % 4))), dict)
    except (ValueError, binascii.Error):
        return False


SECRET_PATTERNS: Final = (
    SecretPattern(
        "private-key",
        ("private key",),
        # A cut block, too: what looks like lines of it.
        re.compile(
            r"-----BEGIN [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?-----[A-Za-z0-9+/=\s\\:,.-]{40,16000}"
            r"(?:-----END [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?-----)?"
        ),
    ),
    _token("private-key", r"AGE-SECRET-KEY-1[0-9A-Z]{58}", "age-secret-key-1"),
    _token("mesh-invite", r"mesh[0-9]{1,3}-[A-Za-z0-9_-]{8,4000}", "mesh"),
    _token("github-token", r"gh[pousr]_[A-Za-z0-9]{36,255}|github_pat_[A-Za-z0-9_]{22,255}", "gh", "github_pat_"),
    _token(
        "gitlab-token",
        r"gl(?:pat|dt|rt|cbt|ptt|ft|imt|agent|oas|soat|ffct)-[A-Za-z0-9_.-]{20,300}|GR1348941[A-Za-z0-9_-]{20,60}",
        "gl",
        "gr1348941",
    ),
    _token("anthropic-key", r"sk-ant-[A-Za-z0-9_-]{20,200}", "sk-ant-"),
    _token(
        "api-key",
        r"sk-(?:proj|svcacct|admin|None|or-v1|lf)-[A-Za-z0-9_-]{20,250}|sk-[A-Za-z0-9]{20,250}",
        "sk-",
    ),
    _token("stripe-key", r"[spr]k_(?:live|test|prod)_[A-Za-z0-9]{10,250}|whsec_[A-Za-z0-9+/]{20,100}", "k_", "whsec_"),
    _token("aws-key", r"(?:A3T[A-Z0-9]|AKIA|ASIA|ABIA|ACCA)[A-Z0-9]{16}", "a3t", "akia", "asia", "abia", "acca"),
    _token("aws-key", r"ABSK[A-Za-z0-9+/]{109,269}={0,2}", "absk"),
    _token("slack-token", r"xox[abeoprs](?:\.xox[bp])?-[A-Za-z0-9-]{10,250}", "xox"),
    _token("slack-token", r"xapp-[0-9]-[A-Za-z0-9]{5,20}-[0-9]{5,20}-[a-f0-9]{20,100}", "xapp-"),
    SecretPattern(
        "webhook",
        ("hooks.slack.com", "discord", "office.com"),
        re.compile(
            r"https://(?:hooks\.slack\.com/(?:services|workflows|triggers)/[A-Za-z0-9/_-]{20,200}"
            r"|(?:canary\.|ptb\.)?discord(?:app)?\.com/api/webhooks/[0-9]{15,22}/[A-Za-z0-9_-]{50,100}"
            r"|[a-z0-9-]{1,63}\.webhook\.office\.com/webhookb2/[A-Za-z0-9@/_-]{40,300})"
        ),
    ),
    _token("google-key", r"AIza[A-Za-z0-9_-]{35}|GOCSPX-[A-Za-z0-9_-]{28}", "aiza", "gocspx-"),
    _token("google-token", r"ya29\.[A-Za-z0-9_-]{20,500}|1//0[A-Za-z0-9_-]{40,200}", "ya29.", "1//0"),
    _token("npm-token", r"npm_[A-Za-z0-9]{36}", "npm_"),
    _token("pypi-token", r"pypi-AgE[A-Za-z0-9_-]{50,1000}", "pypi-age"),
    _token("rubygems-token", r"rubygems_[a-f0-9]{48}", "rubygems_"),
    _token("docker-token", r"dckr_(?:pat|oat)_[A-Za-z0-9_-]{27,40}", "dckr_"),
    _token("hugging-face-token", r"hf_[A-Za-z0-9]{30,50}|api_org_[A-Za-z0-9]{34}", "hf_", "api_org_"),
    _token("supabase-key", r"sb_(?:secret|publishable)_[A-Za-z0-9_-]{20,80}|sbp_[a-f0-9]{40}", "sb_", "sbp_"),
    _token("digitalocean-token", r"do[opr]_v1_[a-f0-9]{64}", "_v1_"),
    _token("sendgrid-key", r"SG\.[A-Za-z0-9_-]{16,32}\.[A-Za-z0-9_-]{16,64}", "sg."),
    _token("mailgun-key", r"(?:key|pubkey)-[a-f0-9]{32}", "key-"),
    _token("mailchimp-key", r"[0-9a-f]{32}-us[0-9]{1,2}", "-us"),
    _token("twilio-key", r"(?:SK|AC)[0-9a-f]{32}", "sk", "ac"),
    _token(
        "artifactory-key",
        r"AKC[A-Za-z0-9]{60,100}|AP[0-9A-F][A-Za-z0-9]{30,90}|cmVmdGtuO[A-Za-z0-9]{50,100}",
        "akc",
        "ap",
        "cmvmdgtuo",
    ),
    _token("square-token", r"sq0(?:atp|csp|idp)-[A-Za-z0-9_-]{22,60}|EAAA[A-Za-z0-9+=-]{60}", "sq0", "eaaa"),
    _token("shopify-token", r"shp(?:at|ca|pa|ss)_[a-fA-F0-9]{32}", "shp"),
    _token("telegram-token", r"[0-9]{5,16}:A[A-Za-z0-9_-]{34}", ":a"),
    _token("discord-token", r"[MNO][A-Za-z0-9_-]{23,27}\.[A-Za-z0-9_-]{6}\.[A-Za-z0-9_-]{27,45}", "."),
    _token("databricks-token", r"dapi[a-f0-9]{32}(?:-[0-9])?", "dapi"),
    _token("new-relic-key", r"NRAK-[A-Z0-9]{27}|NRII-[A-Za-z0-9-]{32}|NRJS-[a-f0-9]{19}", "nrak-", "nrii-", "nrjs-"),
    _token("grafana-token", r"glc_[A-Za-z0-9+/]{32,400}={0,3}|glsa_[A-Za-z0-9]{32}_[A-Fa-f0-9]{8}", "glc_", "glsa_"),
    _token("heroku-key", r"HRKU-[A-Za-z0-9_-]{30,70}", "hrku-"),
    _token("linear-key", r"lin_(?:api|oauth)_[A-Za-z0-9]{32,80}", "lin_"),
    _token("notion-token", r"ntn_[A-Za-z0-9]{40,60}|secret_[A-Za-z0-9]{43}", "ntn_", "secret_"),
    _token("atlassian-token", r"ATATT3[A-Za-z0-9_=-]{180,220}|ATCTT3[A-Za-z0-9_=-]{60,220}", "att3", "ctt3"),
    _token("vault-token", r"hv[sbr]\.[A-Za-z0-9_-]{24,300}|[sbr]\.[A-Za-z0-9]{24}", "hv", "s.", "b.", "r."),
    _token("terraform-token", r"[A-Za-z0-9]{14}\.atlasv1\.[A-Za-z0-9_=-]{60,70}", ".atlasv1."),
    _token("doppler-token", r"dp\.(?:pt|ct|sa|scim|audit|st(?:\.[a-z0-9_-]{2,35})?)\.[A-Za-z0-9]{40,44}", "dp."),
    _token("postman-key", r"PMAK-[a-f0-9]{24}-[a-f0-9]{34}", "pmak-"),
    _token("pulumi-token", r"pul-[a-f0-9]{40}", "pul-"),
    _token("fly-token", r"fo1_[A-Za-z0-9_-]{43}|fm[12][ar]?_[A-Za-z0-9+/]{100,1000}={0,3}", "fo1_", "fm1", "fm2"),
    _token("cloudflare-key", r"v1\.0-[a-f0-9]{24}-[a-f0-9]{146}", "v1.0-"),
    _token(
        "api-key", r"gsk_[A-Za-z0-9]{40,60}|xai-[A-Za-z0-9]{70,90}|pplx-[A-Za-z0-9]{40,60}", "gsk_", "xai-", "pplx-"
    ),
    _token(
        "api-key", r"r8_[A-Za-z0-9]{37}|tvly-[A-Za-z0-9-]{20,60}|nvapi-[A-Za-z0-9_-]{60,80}", "r8_", "tvly-", "nvapi-"
    ),
    _token("api-key", r"figd_[A-Za-z0-9_-]{40,60}|CFPAT-[A-Za-z0-9_-]{43}", "figd_", "cfpat-"),
    _token(
        "api-key",
        r"pscale_(?:tkn|pw|oauth)_[A-Za-z0-9_.=-]{32,64}|sntry[su]_[A-Za-z0-9+/=_-]{60,300}",
        "pscale_",
        "sntry",
    ),
    _token("api-key", r"ops_eyJ[A-Za-z0-9+/]{200,2000}={0,3}|A3-[A-Z0-9]{6}-[A-Z0-9-]{20,60}", "ops_eyj", "a3-"),
    SecretPattern(
        "azure-key",
        ("accountkey", "sharedaccesskey", "sig="),
        re.compile(r"(?i)(?:AccountKey|SharedAccessKey|[?&]sig)=(?P<secret>[A-Za-z0-9+/%]{40,120}={0,2})"),
    ),
    SecretPattern(
        "azure-secret", ("q~",), re.compile(r"(?<![\w~.-])[A-Za-z0-9_~.]{3}[0-9]Q~[A-Za-z0-9_~.-]{31,34}(?![\w~])")
    ),
    SecretPattern(
        "jwt",
        ("eyj",),
        re.compile(rf"{_START}eyJ[A-Za-z0-9_-]{{8,4000}}\.eyJ[A-Za-z0-9_-]{{2,8000}}\.[A-Za-z0-9_-]{{10,2000}}"),
        _is_jwt,
    ),
)
