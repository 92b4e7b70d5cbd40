Whatever peers send, with or without the helper's furl, the memory of a helper node stays bounded: who announces more
than the protocol can need is disconnected before it is buffered, and others are not affected.
