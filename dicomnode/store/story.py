"""What happened to a study, and where it stands, in sentences: for `cxrnode why` and for the page."""

from dicomnode.domain.commitment import CommitmentState
from dicomnode.domain.job import DeliveryState, JobState
from dicomnode.store.ledger import DeliveryEntry, JobEntry, LedgerEvent
from dicomnode.store.rows import EventKind

_SENTENCES = {
    EventKind.RECEIVED: "An image was received: {}.",
    EventKind.DUPLICATE: "An image was received again; nothing changes: {}.",
    EventKind.OWN_RESULT_RETURNED: "A result of this node came back and was left alone: {}.",
    EventKind.REPLACED: "An image was received again with other content: {}.",
    EventKind.REFUSED: "An image was refused: {}.",
    EventKind.VERSION_OPENED: "Version {version} of the answer was begun: {}.",
    EventKind.CLAIMED: "The study was complete; its analysis began: {}.",
    EventKind.INTERRUPTED: "The analysis was interrupted: {}.",
    EventKind.SUPERSEDED: "Version {version} was superseded: {}.",
    EventKind.DEFERRED: "The analysis failed and will be tried again: {}.",
    EventKind.DEAD: "The analysis failed for good: {}.",
    EventKind.IMAGE_REJECTED: "An image was not analysed: {}.",
    EventKind.IMAGE_UNMENTIONED: "An image was left out of the answer, which is a fault: {}.",
    EventKind.ANSWERED: "Version {version} was answered: {}.",
    EventKind.REJECTED: "Version {version} has nothing to report: {}.",
    EventKind.KEPT: "There is nowhere to send results: {}.",
    EventKind.UNROUTED: "The results have nowhere to go: {}.",
    EventKind.QUEUED: "A result is to be delivered: {}.",
    EventKind.DELIVERED: "A result was delivered: {}.",
    EventKind.DELIVERY_DEFERRED: "A delivery failed and will be tried again: {}.",
    EventKind.DELIVERY_INTERRUPTED: "A delivery was interrupted: {}.",
    EventKind.DELIVERY_DEAD: "A delivery failed for good: {}.",
    EventKind.COMMITMENT_REQUESTED: "A destination was asked whether it keeps a result: {}.",
    EventKind.COMMITMENT_DEFERRED: "A destination could not be asked whether it keeps a result: {}.",
    EventKind.COMMITMENT_OVERDUE: "A destination has not answered in time whether it keeps a result: {}.",
    EventKind.COMMITMENT_FAILED: "A destination does not keep a result: {}.",
    EventKind.COMMITTED: "A destination answered for keeping a result: {}.",
    EventKind.RETRIED: "It was tried again: {}.",
    EventKind.DROPPED: "It was given up: {}.",
    EventKind.PURGED: "Its bytes were removed by the rules of retention: {}.",
}


def sentence(event: LedgerEvent) -> str:
    """Return what happened."""
    return _SENTENCES[event.kind].format(event.detail, version=event.version)


def conclusion(jobs: tuple[JobEntry, ...], deliveries: tuple[DeliveryEntry, ...]) -> str:
    """Return the study's state in one sentence."""
    if not jobs:
        return "The node holds no image of this study that it owes an answer for."
    newest = max(jobs, key=lambda entry: entry.version)
    if newest.state is JobState.WAITING and not newest.attempts and newest.last_error is None:
        return "It waits for its analysis, which an operator asked for."
    if newest.state is not JobState.DONE:
        return _UNANSWERED[newest.state].format(reason=newest.last_error or "no reason recorded")
    if not deliveries:
        return "It is answered; there is no destination, so the results are in the store."
    open_ones = [entry for entry in deliveries if entry.state is not DeliveryState.DELIVERED]
    if not open_ones:
        return "It is answered and everything is delivered." + _commitments(deliveries)
    reasons = sorted(
        {f"{entry.destination} {entry.state.value}: {entry.last_error or 'not tried yet'}" for entry in open_ones}
    )
    return f"It is answered; {len(open_ones)} of {len(deliveries)} deliveries are open ({'; '.join(reasons)})."


def _commitments(deliveries: tuple[DeliveryEntry, ...]) -> str:
    """Return a sentence on what destinations have answered for, or nothing where none is asked."""
    asked = [entry for entry in deliveries if entry.commitment is not None]
    if not asked:
        return ""
    if all(entry.commitment is CommitmentState.COMMITTED for entry in asked):
        return " The destinations that were asked to commit themselves have done so."
    late = sum(entry.commitment is CommitmentState.OVERDUE for entry in asked)
    waiting = sum(entry.commitment is not CommitmentState.COMMITTED for entry in asked)
    return f" Whether they are kept is not yet answered for {waiting} of {len(asked)}, {late} of them overdue."


_UNANSWERED = {
    JobState.COLLECTING: "It is still being received, or its quiet time has not passed.",
    JobState.WAITING: "Its analysis waits for the next attempt: {reason}.",
    JobState.WORKING: "It is being analysed now.",
    JobState.REJECTED: "It was not analysed: every image was rejected, as said above.",
    JobState.DEAD: "It failed for good: {reason}. `cxrnode queue retry` tries again.",
    JobState.DROPPED: "An operator dropped it. `cxrnode queue retry` brings it back.",
    JobState.SUPERSEDED: "A newer version took it over.",
}
