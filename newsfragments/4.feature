Whatever peers send, with or without the helper's furl, the memory of a helper node stays bounded: who announces more
than the protocol can need is disconnected before it is buffered, and others are not affected. That goes for storage
servers, too. An upload survives a broken connection and a helper that goes away: the client waits (`put --patience`,
the setting patience in section [client] of streaming.cfg; one hour), connects again, and goes on from what is
durable. `tahoe-stream status`, the page /streaming of the helper node's web port and its statistics show the uploads
of a helper: how far each is, on which servers its shares are, and why one is paused; the log says when one pauses and
when it goes on. Uploads survive restarts of the helper, orderly or not: what was acknowledged is there again, staged
shares go on where they were, and an upload whose publication was decided is published. A storage server that hangs,
is slow, full or gone delays no upload; its shares find other homes in seconds. The memory of a helper is bounded
whatever parameters its clients choose: segments whose blocks have more than 12 MiB together, and large files with
tiny segments, are refused with numbers when an upload is opened. A share that a storage node with the staging plugin
has already gets a lease of who uploads it again. Staged shares are limited in number (setting shares), those without
a byte expire after three hours (empty-expiry), and only time in which the node was up counts. The helper's spool has
quotas and leaves disk space free; an upload for which there is no room waits, or is refused with numbers when it is
opened (settings spool-quota, upload-quota, free-disk in streaming.cfg). Time in which the helper is down does not
count towards the expiry of its uploads. An upload that was to be published and never can be, since its servers or its
ciphertext are lost, expires like any other. A helper whose ledger cannot be written, since its disk is full or fails,
says so in its log and status, lets uploads wait that need it, and goes on by itself when it can; before, it had to be
restarted. Shares that an upload has staged on a storage server which is away when the upload ends are removed when
the server is back, also if the helper was restarted meanwhile; what a finish that came to nothing has left on servers
is never published. A helper that lacks descriptors, memory or permissions when it starts, or whose disk does not read
for a while, reads the ciphertext of its uploads later; what is damaged or of no known upload is moved to spool/aside,
and without its ledger the helper does not start. A restart makes no client reveal a storage index, and what was
acknowledged waits ten minutes for servers that are away. A `put --convergent` that was killed no longer keeps the
same file from being uploaded for 7 days. A write that is cancelled fails its upload, and `put --verify` uses no
proxy. Setting connections-max.

Uploads that wait, for servers or for room, keep nobody from getting on: when what they hold takes all the memory that
there is for messages, they give it up, and their clients send it again later (memory-short, protocol.txt §7.5).
