"""Which destinations get the results of a study, by who sent it, and what each of them wants."""

from collections.abc import Collection
from dataclasses import dataclass
from fnmatch import fnmatchcase

from dicomnode.domain.answer import DEFAULT_OUTPUTS, ResultKind, Wanted
from dicomnode.domain.instance import StudySender


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipient:
    """A destination as the outbox knows it: its name, and which results are for it."""

    name: str
    outputs: frozenset[ResultKind] = DEFAULT_OUTPUTS
    series_description_prefix: str = ""

    def wants(self, kind: ResultKind, prefix: str) -> bool:
        """Tell whether a result of this kind, from the set with this prefix, is for this destination."""
        return kind in self.outputs and prefix == self.series_description_prefix


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """Studies of these senders go to these destinations. The AE titles are shell patterns, with regard to case."""

    calling_ae: str
    called_ae: str = "*"
    destinations: tuple[str, ...]

    def matches(self, sender: StudySender) -> bool:
        """Tell whether the rule speaks of a sender."""
        return fnmatchcase(sender.calling_ae, self.calling_ae) and fnmatchcase(sender.called_ae, self.called_ae)


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """Where the results of one study go; `unrouted` are the senders that no rule speaks of, for want of a default."""

    recipients: tuple[Recipient, ...]
    unrouted: tuple[StudySender, ...] = ()

    @property
    def is_missing(self) -> bool:
        """Whether there are destinations, but none for this study."""
        return bool(self.unrouted) and not self.recipients

    @property
    def calling_aes(self) -> tuple[str, ...]:
        """The AE titles of the senders that no rule speaks of, each once."""
        return tuple(dict.fromkeys(sender.calling_ae for sender in self.unrouted))

    def wanted(self) -> tuple[Wanted, ...]:
        """Return the sets of results that the recipients want in union, one for each prefix.

        Without a recipient the usual results are made all the same, and stay in the store.
        """
        outputs: dict[str, frozenset[ResultKind]] = {}
        for recipient in self.recipients:
            prefix = recipient.series_description_prefix
            outputs[prefix] = outputs.get(prefix, frozenset()) | recipient.outputs
        sets = (Wanted(outputs=kinds, series_description_prefix=prefix) for prefix, kinds in sorted(outputs.items()))
        return tuple(sets) or (Wanted(),)


@dataclass(frozen=True, slots=True, kw_only=True)
class Routing:
    """All destinations, and the rules that choose among them.

    Every rule that matches a sender adds its destinations; a sender that no rule matches gets `default`. A study that
    several peers sent goes to the union.
    """

    recipients: tuple[Recipient, ...] = ()
    rules: tuple[Rule, ...] = ()
    default: tuple[str, ...] = ()

    def route(self, senders: Collection[StudySender]) -> Route:
        """Return where the results of a study go that these peers sent."""
        chosen: set[str] = set() if senders else set(self.default)
        unrouted: list[StudySender] = []
        for sender in sorted(senders, key=lambda entry: (entry.calling_ae, entry.called_ae)):
            names = self._destinations(sender)
            chosen.update(names)
            if not names and self.recipients:
                unrouted.append(sender)
        recipients = tuple(recipient for recipient in self.recipients if recipient.name in chosen)
        return Route(recipients=recipients, unrouted=tuple(unrouted))

    def _destinations(self, sender: StudySender) -> tuple[str, ...]:
        names = tuple(name for rule in self.rules if rule.matches(sender) for name in rule.destinations)
        return names or self.default
