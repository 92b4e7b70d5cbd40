"""All upload handles of a gateway: made, found, resumed after a restart, swept. No HTTP in it.

A program writes a file through a handle over any number of requests, and of lives of the gateway. What it is told
(`Writer.offset`) is durable at the helper, or, up to 55 bytes, in the journal: it never goes back, and the next byte
is taken there.
"""
