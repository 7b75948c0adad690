"""The database that everything durable is kept in: connections, one writer, transactions, leases, migrations.

Knows nothing of what is kept. A package describes its tables as a `Schema` and works on a `Database`."""

from midstream.store.database import Database
from midstream.store.leases import Lease, Leases
from midstream.store.schema import Schema
from midstream.store.transaction import Batch, Transaction

__all__ = ["Batch", "Database", "Lease", "Leases", "Schema", "Transaction"]
