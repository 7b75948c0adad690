"""The database for all durable data: connections, one writer, transactions, leases, migrations.

Independent of what is stored: each package describes its tables as a `Schema` and works on a `Database`."""

from midstream.store.database import Database
from midstream.store.leases import Lease, Leases
from midstream.store.schema import Schema
from midstream.store.transaction import Batch, Transaction

__all__ = ["Batch", "Database", "Lease", "Leases", "Schema", "Transaction"]
