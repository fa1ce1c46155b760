"""The language of scenarios: one statement a line, `#` begins a comment.

Settings come first, then actions, done one after the other on virtual time:

    nodes 100            clients 3            seed 7             skew 1%            delay 5ms..40ms
    loss 10%             loss 10% late        (late: sent again, like QUIC; a setting and an action)
    mesh 50..99          a second mesh with the same secret
    rights 5 use,serve,work,invite            (by default all)
    start 0..9           start 10..99 over 20s                start 5 through 0..4,600
    start 6 knowing 7..9                      (it remembers these peers and has no invite)
    join 3 through 50..52                     (a running node gets invites)
    wait 10s             at 60s kill 3        (`at` waits until that time, then does the rest of the line)
    kill 3,7             stop 4               restart them       (them: the nodes of the last action)
    expel 3              (node 0 signs it)     uncertified        (a setting: no mesh key, one secret)
    serve 5 some-model   cut 0..49 | 50..99   cut 3 > 4          heal
    churn 1000 over 600s replay 20            forge 20           measure 60 rounds
    sybils 2000 from 5 around 6 against 7,8   (node 5 makes up nodes that nobody certified; they would be the watchers
                                              of 6, and they report 7 and 8 as failed; `invited`: node 5 invited them)
    weigh 3                                   (how much memory the made-up nodes take in the table of node 3)
    busy 0..4                                 (once a second these report another load, speed and free memory)
    expect within 5s gone 3                   expect within 12 rounds known some-model
    expect deaths 0

Nodes are `3`, `0..9`, `3,7..9`, `all`, `clients`, `random 10` (of those that run) or `them`. A round is a second.
Conditions: `joined NODES`, `gone NODES`, `expelled NODES` (out of every table and link, and told),
`known MODEL`, `whole`, `one mesh`, `deaths N`, `adoptions N` (at most N); `linked` (neighbours on a ring of the nodes
that run have a link), `parted N` (such links were hung up at most N times since the last `sybils`), `suspicions N`
(looks at a node that runs and is suspect); of the last `weigh`: `kilobytes N`;
of the last `measure`: `records N` (each node wrote at most N records an hour), `bytes N` (per node and round, mean).

Parsing has no effects. An error names the line's number.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from meshllm.core.membership.certificates import Right

ROUND_SECONDS = 1.0
_UNITS = {"ms": 0.001, "s": 1.0, "min": 60.0, "h": 3600.0, "rounds": ROUND_SECONDS, "round": ROUND_SECONDS}


class ScenarioError(ValueError):
    """A line that cannot be understood."""


@dataclass(frozen=True, slots=True)
class Nodes:
    """Which nodes are meant: numbers, or a word that is resolved when it is their turn (`all`, `them`, ...)."""

    numbers: tuple[int, ...] = ()
    word: str = ""
    count: int = 0


@dataclass(frozen=True, slots=True)
class Step:
    """One action. Only what its verb needs is set; times in seconds."""

    verb: str
    line: int
    text: str
    nodes: Nodes = Nodes()
    others: Nodes = Nodes()
    seconds: float = 0.0
    number: float = 0.0
    name: str = ""
    flag: bool = False


@dataclass(slots=True)
class Scenario:
    """Settings and steps."""

    nodes: int = 10
    clients: int = 0
    seed: int = 1
    skew: float = 0.0
    loss: float = 0.0
    late: bool = False
    delay: tuple[float, float] = (0.005, 0.040)
    apart: Nodes = Nodes()
    certified: bool = True
    rights: dict[int, Right] = field(default_factory=dict)
    steps: list[Step] = field(default_factory=list)


class _Words:
    """The words of one line, taken from the left."""

    def __init__(self, number: int, text: str) -> None:
        self.number = number
        self.text = text
        self._words = text.split()

    def error(self, words: str) -> ScenarioError:
        return ScenarioError(f"line {self.number}: {words}: {self.text!r}")

    def peek(self) -> str:
        return self._words[0] if self._words else ""

    def take(self, what: str) -> str:
        if not self._words:
            raise self.error(f"{what} is missing at the end")
        return self._words.pop(0)

    def accept(self, word: str) -> bool:
        if self.peek() != word:
            return False
        self._words.pop(0)
        return True

    def end(self) -> None:
        if self._words:
            raise self.error(f"nothing may follow before {self.peek()!r}")

    def integer(self, what: str) -> int:
        word = self.take(what)
        if not word.isascii() or not word.isdigit():
            raise self.error(f"{what} is a whole number, not {word!r}")
        return int(word)

    def percentage(self, what: str) -> float:
        word = self.take(what)
        try:
            value = float(word.removesuffix("%")) / 100
        except ValueError:
            value = -1.0
        if not word.endswith("%") or not 0 <= value < 1:
            raise self.error(f"{what} is a percentage below 100, such as 10%, not {word!r}")
        return value

    def _seconds(self, word: str) -> float:
        digits = word.rstrip("abcdefghijklmnopqrstuvwxyz")
        unit = word[len(digits) :]
        if not unit and self.peek() in ("rounds", "round"):
            unit = self.take("unit")
        try:
            return float(digits) * _UNITS[unit]
        except (ValueError, KeyError):
            raise self.error(f"a time is a number and one of {', '.join(_UNITS)}, not {word!r}") from None

    def time(self) -> float:
        return self._seconds(self.take("a time"))

    def span(self) -> tuple[float, float]:
        low, dots, high = self.take("a span of times").partition("..")
        if not dots:
            raise self.error("a span of times is written 5ms..40ms")
        return self._seconds(low), self._seconds(high)

    def nodes(self) -> Nodes:
        word = self.take("nodes")
        if word in ("all", "them", "clients"):
            return Nodes(word=word)
        if word == "random":
            return Nodes(word=word, count=self.integer("how many"))
        numbers: list[int] = []
        for part in word.split(","):
            first, dots, last = part.partition("..")
            if not (first.isdigit() and (last.isdigit() or not dots)):
                raise self.error(f"nodes are written 3, 0..9, 3,7..9, all, clients, random 10 or them, not {word!r}")
            if dots and int(last) < int(first):
                raise self.error(f"{part} counts down")
            numbers += range(int(first), int(last or first) + 1)
        return Nodes(tuple(numbers))

    def step(self, verb: str, **values: object) -> Step:
        return Step(verb, self.number, self.text, **values)  # type: ignore[arg-type]


def _start(words: _Words) -> Step:
    nodes = words.nodes()
    remembered = words.accept("knowing")
    ways = words.nodes() if remembered or words.accept("through") else Nodes()
    seconds = words.time() if words.accept("over") else 0.0
    return words.step("start", nodes=nodes, others=ways, seconds=seconds, flag=remembered)


def _join(words: _Words) -> Step:
    nodes = words.nodes()
    if not words.accept("through"):
        raise words.error("join needs ways in: join 3 through 50..52")
    return words.step("join", nodes=nodes, others=words.nodes())


def _several(verb: str) -> Callable[[_Words], Step]:
    def parse(words: _Words) -> Step:
        nodes = words.nodes()
        seconds = words.time() if words.accept("over") else 0.0
        return words.step(verb, nodes=nodes, seconds=seconds)

    return parse


def _cut(words: _Words) -> Step:
    nodes = words.nodes()
    sign = words.take("| or >")
    if sign not in ("|", ">"):
        raise words.error(f"a cut is written 0..4 | 5..9, or 0..4 > 5..9 for one way, not with {sign!r}")
    return words.step("cut", nodes=nodes, others=words.nodes(), flag=sign == ">")


def _churn(words: _Words) -> Step:
    number = words.integer("how many")
    if not words.accept("over"):
        raise words.error("churn needs a time: churn 100 over 60s")
    return words.step("churn", number=number, seconds=words.time())


def _loss(words: _Words) -> Step:
    return words.step("loss", number=words.percentage("loss"), flag=words.accept("late"))


def _sybils(words: _Words) -> Step:
    number = words.integer("how many")
    if not words.accept("from"):
        raise words.error("sybils need a member: sybils 2000 from 5")
    owner = words.nodes()
    invited = words.accept("invited")
    if not words.accept("around"):
        raise words.error("sybils stand around a node: sybils 2000 from 5 around 6 against 7,8")
    around = words.integer("a node")
    if not words.accept("against"):
        raise words.error("sybils are against nodes: sybils 2000 from 5 around 6 against 7,8")
    return words.step("sybils", number=number, nodes=owner, flag=invited, name=str(around), others=words.nodes())


def _rights(words: _Words) -> tuple[Nodes, Right]:
    nodes, rights = words.nodes(), Right(0)
    for name in words.take("rights").split(","):
        if name.upper() not in Right.__members__:
            raise words.error(f"rights are {', '.join(right.lower() for right in Right.__members__)}, not {name!r}")
        rights |= Right[name.upper()]
    return nodes, rights


def _expect(words: _Words) -> Step:
    seconds = words.time() if words.accept("within") else 0.0
    name = words.take("a condition")
    if name in ("joined", "gone", "expelled"):
        return words.step("expect", name=name, nodes=words.nodes(), seconds=seconds)
    if name == "known":
        return words.step("expect", name=f"known {words.take('a model')}", seconds=seconds)
    if name in ("deaths", "adoptions", "records", "bytes", "parted", "suspicions", "kilobytes"):
        return words.step("expect", name=name, number=words.integer("how many"), seconds=seconds)
    if name == "one" and words.accept("mesh"):
        return words.step("expect", name="one mesh", seconds=seconds)
    if name in ("whole", "linked"):
        return words.step("expect", name=name, seconds=seconds)
    raise words.error(f"no such condition: {name}")


_ACTIONS: dict[str, Callable[[_Words], Step]] = {
    "start": _start,
    "join": _join,
    "kill": _several("kill"),
    "stop": _several("stop"),
    "expel": _several("expel"),
    "restart": _several("restart"),
    "serve": lambda words: words.step("serve", nodes=words.nodes(), name=words.take("a model")),
    "busy": lambda words: words.step("busy", nodes=words.nodes()),
    "cut": _cut,
    "heal": lambda words: words.step("heal"),
    "churn": _churn,
    "loss": _loss,
    "replay": lambda words: words.step("replay", number=words.integer("how many")),
    "forge": lambda words: words.step("forge", number=words.integer("how many")),
    "sybils": _sybils,
    "weigh": lambda words: words.step("weigh", nodes=words.nodes()),
    "measure": lambda words: words.step("measure", seconds=words.time()),
    "wait": lambda words: words.step("wait", seconds=words.time()),
    "expect": _expect,
}


def _setting(scenario: Scenario, words: _Words) -> bool:
    verb = words.peek()
    if verb in ("nodes", "clients", "seed"):
        words.take(verb)
        setattr(scenario, verb, words.integer(verb))
    elif verb == "skew":
        words.take(verb)
        scenario.skew = words.percentage(verb)
    elif verb == "loss":
        words.take(verb)
        scenario.loss, scenario.late = words.percentage(verb), words.accept("late")
    elif verb == "delay":
        words.take(verb)
        scenario.delay = words.span()
    elif verb == "uncertified":
        words.take(verb)
        scenario.certified = False
    elif verb == "mesh":
        words.take(verb)
        scenario.apart = words.nodes()
    elif verb == "rights":
        words.take(verb)
        nodes, rights = _rights(words)
        scenario.rights.update(dict.fromkeys(nodes.numbers, rights))
    else:
        return False
    words.end()
    return True


def _check(scenario: Scenario) -> None:
    count = scenario.nodes + scenario.clients
    for step in scenario.steps:
        for nodes in (step.nodes, step.others):
            # A way in may lead to a node that never was; whatever is done, is done to one that is.
            if max(nodes.numbers, default=0) >= count and not (step.verb in ("start", "join") and nodes is step.others):
                raise ScenarioError(f"line {step.line}: there are {count} nodes, counted from 0: {step.text!r}")


def parse(text: str) -> Scenario:
    """Read a scenario. Raises ScenarioError, naming the line."""
    scenario = Scenario()
    for number, whole in enumerate(text.splitlines(), 1):
        line = whole.partition("#")[0].strip()
        if not line:
            continue
        words = _Words(number, line)
        if not scenario.steps and _setting(scenario, words):
            continue
        if words.accept("at"):
            scenario.steps.append(words.step("at", seconds=words.time()))
            if not words.peek():
                continue
        verb = words.take("a verb")
        if verb not in _ACTIONS:
            raise words.error(f"no such verb: {verb}")
        scenario.steps.append(_ACTIONS[verb](words))
        words.end()
    _check(scenario)
    return scenario
