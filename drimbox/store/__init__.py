"""Durable state: inbox, feed jobs, outbox, KOS archive, audit trail and administrator notices.

One relational database holds everything the gateway may not lose (architecture.md rule 4): SQLite in
WAL on a single box, PostgreSQL where several processes share the work. `database` runs transactions in
its own threads; `inbox`, `feed_jobs` and `outbox` are the three queues; `archive`, `audit` and
`notices` are what their names say. A state change and its consequences are always one transaction.
"""
