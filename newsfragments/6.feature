A file that is stored already is found when it is streamed again: one that `tahoe put` has stored gives the cap of
`tahoe put`, one that was streamed before gives the cap of then, and no new share stays on any server. It is taken
only after one random segment of it was read back and compared; `put --dedup=on|trust|off`, and the setting dedup in
section [client] of streaming.cfg, change that; so do ?dedup= and the setting of the gateway, whose answers say it in
Tahoe-Dedup, also for upload handles, whose gateway may have been restarted meanwhile. `put --convergent` asks before
it sends anything. The last line of `put --json`, and the helper's statistics, say what became of an upload.
The upload page, and GET /uploads/ID?t=json as `dedup`, say of a file that the grid had already that it had it.
