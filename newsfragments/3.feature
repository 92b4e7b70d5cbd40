A Tahoe storage plugin, `tahoe-streaming-staging-v1`, keeps shares that have no storage index yet, through disconnects
and restarts of the storage node, and publishes them as ordinary shares. The helper does not use it yet.
`put --reveal-storage-index=auto|early|at-completion`, and the setting reveal-storage-index in section [client] of
streaming.cfg, say when the helper is told the storage index of an upload.
