A Tahoe storage plugin, `tahoe-streaming-staging-v1`, keeps shares that have no storage index yet, through disconnects
and restarts of the storage node, and publishes them as ordinary shares. With enough such servers nobody but the client
knows a storage index before an upload completes. The demo's storage nodes have it; `demo --stock-servers` shows the
other way.
`put --reveal-storage-index=auto|early|at-completion`, and the setting reveal-storage-index in section [client] of
streaming.cfg, say when the helper is told the storage index of an upload.
