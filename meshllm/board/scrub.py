"""Replaces secrets and personal data in the text of a blackboard message, and says what it replaced. Pure.

Invariants: nothing is blocked; what is replaced is told; scrubbing twice changes nothing more; the time is linear in
the text's length. Randomness alone is never a reason: hashes, ids and lock files stay as they are.
"""

from __future__ import annotations

import ipaddress
import math
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from meshllm.board.secret_patterns import SECRET_PATTERNS, SecretPattern

# A shorter value is no secret that could be told from a word.
MIN_VALUE: Final = 6
# A value of letters alone is random if it has so many, and with letters of one case so many bits of entropy in each
# (Shannon); words have fewer.
MIN_MIXED_CASE: Final = 8
MIN_ONE_CASE: Final = 16
RANDOM_BITS: Final = 3.6
# Names of this machine and its user that are shorter occur in ordinary text.
MIN_NAME: Final = 4
HOME: Final = "~"


@dataclass(frozen=True, slots=True)
class Scrubbed:
    """`text` as it may be shared; `replaced`: how often each label stands in place of something."""

    text: str
    replaced: tuple[tuple[str, int], ...] = ()

    @property
    def report(self) -> str:
        """What was replaced, for people: "2 email, 1 github-token"; empty if nothing was."""
        return ", ".join(f"{count} {label}" for label, count in self.replaced)


def scrub(text: str, names: Iterable[tuple[str, str]] = ()) -> Scrubbed:
    """Replace what must not be shared. `names`: further texts, each with its label (the host's and the user's name)."""
    replaced: Counter[str] = Counter()
    lowered = text.lower()
    for rule in _RULES:
        if any(hint in lowered for hint in rule.hints):
            text = _apply(rule, text, replaced)
    for name, label in names:
        if len(name) >= MIN_NAME and name.lower() in lowered:
            pattern = re.compile(rf"(?i)(?<![A-Za-z0-9_]){re.escape(name)}(?![A-Za-z0-9_])")
            text = _apply(SecretPattern(label, (), pattern), text, replaced)
    return Scrubbed(text, tuple(sorted(replaced.items())))


def _apply(rule: SecretPattern, text: str, replaced: Counter[str]) -> str:
    has_group = "secret" in rule.pattern.groupindex

    def replacement(match: re.Match[str]) -> str:
        whole = match[0]
        secret = match["secret"] if has_group else whole
        if secret is None or (rule.check is not None and not rule.check(secret)):
            return whole
        replaced[rule.label] += 1
        mask = rule.label if rule.label == HOME else f"[{rule.label}]"
        if not has_group:
            return mask
        begin, end = match.span("secret")
        begin, end = begin - match.start(), end - match.start()
        return whole[:begin] + mask + whole[end:]

    return rule.pattern.sub(replacement, text)


# -- secrets that are known by their name


_PLACEHOLDER: Final = re.compile(
    r"(?i:x{3,}|\*+|\.{2,}|-+|<[^>]*>?|%[a-z_]*%?|\{.*|\[.*|@[\w./-]*|none|null|nil|true|false|undefined|redacted|todo"
    r"|string|str|bytes|int|bool|text|secret|password|passwd|token|key|(?:optional|required|file://).*"
    r"|(?:change[-_ ]?(?:me|it|this)|dummy|fake|placeholder|example)[a-z_. -]*[0-9]{0,2}"
    r"|(?:an?|my|the|your|some|test|sample)[-_ ]?(?:api|secret|password|passwd|token|key|value|own)?"
    r"(?:[-_ ][a-z_ -]*)?)"
    r"|\$(?:[{(].*|[A-Z_][A-Z0-9_]*|[a-z_]+)"
)
# What stands for a value in source code: a name, a call, a subscript, a type.
_CODE: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*(?:[.:]{1,2}[A-Za-z_][A-Za-z0-9_]*)*[?!]?(?:[\[(<|].*)?")
_CALL: Final = re.compile(r"[A-Za-z_][\w.]*[\[(].*")
# The name of a class, in an annotation: Ed25519PrivateKey.
_TYPE_NAME: Final = re.compile(
    r"(?:[A-Za-z_]\w*\.)*[A-Z]\w*[a-z0-9](?:Key|Token|Secret|Password|Credentials?|Type|Config|Store|Source)\??"
)
_WORDS: Final = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])")
_HASH: Final = re.compile(r"(?i)(?:sha(?:1|256|384|512)|md5|blake2b|blake3)[:-].*")
_SECRET_NAME: Final = (
    r"(?:pass(?:word|wd|phrase|code)|(?<![A-Za-z])pass|pwd|secret|credential|token"
    r"|(?:api|access|private|secret|signing|encryption|master|account|shared|service|auth|session|webhook|license|admin"
    r"|deploy|app|client|consumer|crypto|hmac|jwt|ssh|storage)[_-]?key)"
)


def entropy(text: str) -> float:
    """Shannon entropy in bits per character."""
    length = len(text)
    return -sum(count / length * math.log2(count / length) for count in Counter(text).values()) if length else 0.0


def is_secret_value(value: str) -> bool:
    """Whether the value of something that is called a secret is one, rather than a placeholder or source code."""
    if len(value) < MIN_VALUE or _PLACEHOLDER.fullmatch(value) or _HASH.fullmatch(value):
        return False
    if any(letter.isdigit() for letter in value):
        return not _is_code_with_digits(value)
    if _CODE.fullmatch(value):
        return value.isalpha() and _is_random(value)
    return any(letter.isalpha() for letter in value) and not any(letter in "()[]{}" for letter in value)


def _is_code_with_digits(value: str) -> bool:
    """Whether a value with digits is a number, a call or a subscript."""
    if re.fullmatch(r"[0-9][0-9_.,]*[a-zA-Z%]{0,3}", value):
        return len(value) < 8
    return bool(_CALL.fullmatch(value) or _TYPE_NAME.fullmatch(value))


def _is_random(letters: str) -> bool:
    """Whether letters are drawn by chance, and not words written as one name: fooBarBaz, a_long_name."""
    if letters.islower() or letters.isupper():
        return len(letters) >= MIN_ONE_CASE and entropy(letters) > RANDOM_BITS
    parts = _WORDS.findall(letters)
    words = "".join(parts) == letters and all(len(part) > 2 for part in parts)
    return len(letters) >= MIN_MIXED_CASE and not words


# Without what stands before the name: a pattern that begins with it takes the square of its length.
_ASSIGNED: Final = re.compile(
    rf"(?i){_SECRET_NAME}(?:[_-]?[0-9]{{1,3}})?"
    r"[\"'`]?[ \t]{0,8}(?:=>|:=|==|=|:)[ \t]{0,8}(?:[a-z]{0,2}(?P<quote>[\"'`]))?"
    r"(?P<secret>(?(quote)[^\"'`\n]{6,400}(?=[\"'`\n]|\Z)|[^\s\"'`,;)}\]]{6,400}))"
)
_OPTION: Final = re.compile(
    r"(?i)(?<![\w-])--?(?:[a-z]{1,20}-){0,2}(?:password|passwd|passphrase|token|secret|api-?key|access-?key)"
    r"[ =][\"']?(?P<secret>[^\s\"']{6,400})"
)
_USER_OPTION: Final = re.compile(
    r"(?<![\w-])(?:-u|--user|--proxy-user)[ =][\"']?[^\s:\"'/]{1,100}:(?P<secret>[^\s\"']{4,200})"
)
_HEADER: Final = re.compile(
    r"(?i)(?<![\w-])(?:proxy-)?authorization[\"']?\s{0,4}[:=]\s{0,4}[\"'`]?"
    r"(?:(?:bearer|basic|token|digest|apikey|negotiate)\s+)?(?P<secret>[^\s\"'`,;]{6,4000})"
)
_API_HEADER: Final = re.compile(
    r"(?i)(?<![\w-])x-[a-z0-9-]{0,40}(?:key|token|secret|auth)[\"'`]?\s{0,4}[:=]\s{0,4}[\"'`]?(?P<secret>[^\s\"'`,;]{6,4000})"
)
_BEARER: Final = re.compile(r"(?i)(?<![\w-])bearer\s{1,4}(?P<secret>[A-Za-z0-9_.~+/=-]{12,4000})")
_COOKIE: Final = re.compile(
    r"(?i)(?<![\w-])(?:set-)?cookie[\"']?\s{0,4}:\s{0,4}[\"']?(?P<secret>[\w.-]{1,64}=[^\r\n\"']{6,4000})"
)
_IN_URL: Final = re.compile(
    r"(?<![A-Za-z0-9+.-])[A-Za-z][A-Za-z0-9+.-]{1,20}://[^\s/:@\"']{0,100}:(?P<secret>[^\s/@\"']{3,300})@"
)
_LONE_IN_URL: Final = re.compile(r"https?://(?P<secret>[A-Za-z0-9_-]{16,200})@")


def _is_url_password(value: str) -> bool:
    return _PLACEHOLDER.fullmatch(value) is None


def _is_header_value(value: str) -> bool:
    return is_secret_value(value) and not value.lower().startswith(("bearer", "basic"))


def _is_bearer(value: str) -> bool:
    return any(letter.isdigit() for letter in value) and is_secret_value(value)


# -- personal data


_EMAIL: Final = re.compile(
    r"(?<![\w.+%/:@-])[A-Za-z0-9._%+-]{1,64}@(?![0-9])(?:[A-Za-z0-9-]{1,63}\.){1,8}[A-Za-z]{2,24}(?![\w-]|\.[A-Za-z]|:[A-Za-z])"
)
# Examples, and names of machines in a home or office: `name@machine.local` is a writer on the blackboard.
_EXAMPLE_HOSTS: Final = re.compile(
    r"(?i).*@(?:(?:.*\.)?(?:example|test|invalid|localhost)(?:\.[a-z]{2,3})?"
    r"|.*\.(?:local|localdomain|lan|home|internal|home\.arpa|fritz\.box))"
)
_PHONE: Final = re.compile(
    r"(?<![\w+.=-])\+[0-9]{1,3}[ .(-][0-9 ().-]{5,20}[0-9](?![\w.])|(?<![\w+.=-])\+[0-9]{10,15}(?![\w.])"
)
_CARD: Final = re.compile(
    r"(?<![\w.+-])[2-6](?:[0-9]{12,18}|[0-9]{3}(?:[ -][0-9]{4}){3}|[0-9]{3}[ -][0-9]{6}[ -][0-9]{5})(?![\w.-])"
)
_IBAN: Final = re.compile(r"(?<!\w)[A-Z]{2}[0-9]{2}(?:[A-Z0-9]{11,30}|(?: [A-Z0-9]{4}){2,7}(?: [A-Z0-9]{1,3})?)(?!\w)")
_HOME_PATH: Final = re.compile(
    r"(?<![\w.~/-])(?P<secret>/(?:Users|home)/(?!(?:you|user|users|username|name|me|runner|someone|linuxbrew|Shared)\b)"
    r"[A-Za-z0-9_][\w.-]{0,63})(?![\w.-])"
)
_WINDOWS_HOME: Final = re.compile(
    r"(?i)(?<![\w])(?P<secret>[A-Z]:[\\/]{1,4}Users[\\/]{1,4}(?!(?:public|default|you|user)\b)[^\\/\s:\"'<>|]{1,64})"
)
_IPV4: Final = re.compile(r"(?<![\w.=~^<>-])(?<![vV]ersion )[0-9]{1,3}(?:\.[0-9]{1,3}){3}(?![\w-]|\.[0-9])")
_IPV6: Final = re.compile(r"(?i)(?<![\w:.])(?:f[cde][0-9a-f]{2}):[0-9a-f:]{2,35}(?![\w.])")
_MAC: Final = re.compile(
    r"(?<![\w:-])(?:[0-9A-Fa-f]{2}:){5}[0-9A-Fa-f]{2}(?![\w:-])|(?<![\w:-])(?:[0-9A-Fa-f]{2}-){5}[0-9A-Fa-f]{2}(?![\w:-])"
)


def _is_personal_email(text: str) -> bool:
    return _EXAMPLE_HOSTS.fullmatch(text) is None and not text.startswith(("git@", "noreply@", "no-reply@"))


def _is_phone(text: str) -> bool:
    return 8 <= sum(letter.isdigit() for letter in text) <= 15


def _is_card(text: str) -> bool:
    """Whether a number passes Luhn's check (ISO/IEC 7812-1) and begins as cards do."""
    digits = [int(letter) for letter in text if letter.isdigit()]
    number = "".join(map(str, digits))
    if not re.fullmatch(
        r"4[0-9]{12}(?:[0-9]{3}){0,2}|(?:5[1-5]|2[2-7])[0-9]{14}|3[47][0-9]{13}|(?:6011|65|35)[0-9]{12,14}", number
    ):
        return False
    doubled = [digit if index % 2 == 0 else digit * 2 - 9 * (digit > 4) for index, digit in enumerate(reversed(digits))]
    return sum(doubled) % 10 == 0


def _is_iban(text: str) -> bool:
    """Whether the check digits of an account number are right (ISO 13616: the remainder by 97 is 1)."""
    compact = text.replace(" ", "")
    turned = compact[4:] + compact[:4]
    return 15 <= len(compact) <= 34 and int("".join(str(int(letter, 36)) for letter in turned)) % 97 == 1


def _is_private_address(text: str) -> bool:
    """Whether an address names a machine of a private network; loopback and examples do not."""
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return False
    return any(address in network for network in _PRIVATE if network.version == address.version)


_PRIVATE: Final = tuple(
    map(
        ipaddress.ip_network,
        ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "169.254.0.0/16", "fc00::/7", "fe80::/10"),
    )
)


_RULES: Final = (
    *SECRET_PATTERNS,
    SecretPattern("password", ("://",), _IN_URL, _is_url_password),
    SecretPattern("token", ("@",), _LONE_IN_URL, _is_bearer),
    SecretPattern("authorization", ("authorization",), _HEADER, _is_header_value),
    SecretPattern("authorization", ("x-",), _API_HEADER, _is_header_value),
    SecretPattern("token", ("bearer",), _BEARER, _is_bearer),
    SecretPattern("cookie", ("cookie",), _COOKIE),
    SecretPattern("secret", ("pass", "pwd", "secret", "credential", "token", "key"), _ASSIGNED, is_secret_value),
    SecretPattern("secret", ("--", "-p", "-t"), _OPTION, is_secret_value),
    SecretPattern("password", ("-u", "--"), _USER_OPTION, _is_url_password),
    SecretPattern("email", ("@",), _EMAIL, _is_personal_email),
    SecretPattern("phone", ("+",), _PHONE, _is_phone),
    SecretPattern("iban", ("0", "1", "2", "3", "4", "5", "6", "7", "8", "9"), _IBAN, _is_iban),
    SecretPattern("card", ("2", "3", "4", "5", "6"), _CARD, _is_card),
    SecretPattern(HOME, ("/users/", "/home/"), _HOME_PATH),
    SecretPattern(HOME, ("users",), _WINDOWS_HOME),
    SecretPattern("private-address", (".",), _IPV4, _is_private_address),
    SecretPattern("private-address", (":",), _IPV6, _is_private_address),
    SecretPattern("mac-address", (":", "-"), _MAC),
)
