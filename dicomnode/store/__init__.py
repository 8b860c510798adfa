"""The durable store: received instances, jobs, results, deliveries, and a ledger of everything that happened."""

from dicomnode.store.composition import Store

__all__ = ["Store"]
