Whatever peers send, with or without the helper's furl, the memory of a helper node stays bounded: who announces more
than the protocol can need is disconnected before it is buffered, and others are not affected.
An upload survives a broken connection and a helper that goes away: the client waits (`put --patience`, the setting
patience in section [client] of streaming.cfg; one hour), connects again, and goes on from what is durable.
`tahoe-stream status`, the page /streaming of the helper node's web port and its statistics show the uploads of a
helper: how far each is, on which servers its shares are, and why one is paused; the log says when one pauses and when
it goes on.
