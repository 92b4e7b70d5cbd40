An upload survives a broken connection and a helper that goes away: the client waits (`put --patience`, the setting
patience in section [client] of streaming.cfg; one hour), connects again, and goes on from what is durable.
