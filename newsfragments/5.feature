`tahoe-stream gateway run -d CLIENTNODE` takes files over HTTP while they are being sent: `PUT /uri`, `PUT
/uri/DIRCAP/path/name` and the form of Tahoe's welcome page stream to the helper, with a declared length or chunked
(`curl -T -`), and store nothing on the way; everything else is passed on to the client node, whose web port the
gateway can replace. `tahoe -d CLIENTNODE/streaming` uses it. Settings stand in section [gateway] of streaming.cfg.
Uploads at /uploads/ of the gateway can be resumed: after broken connections, and after the program, the gateway or
the helper were restarted or killed. They speak tus 1.0.0 and the IETF draft "Resumable Uploads for HTTP" (version
12). The page at /uploads/ of the gateway takes files that are dropped on it, shows how much of each is safe at the
helper, pauses, resumes (after a reload of the page, too) and gives the cap; /uploads/?t=json lists uploads in
progress. Upload handles of the gateway survive its restarts and its being killed: what a client was told is durable
at the helper, and what was on its way is in a journal, encrypted, and is sent when the gateway is back, before
anybody asks. Settings handles-max, handle-expiry, result-retention and ring-memory in section [gateway] of
streaming.cfg. HTML files of the grid that are opened through the gateway are in a sandbox: their scripts cannot reach
its uploads, or any other file. Pages of the node itself work as before. Over a slow link to the helper `curl -T -`
has its answer about three seconds after the last byte, whatever the size of the file.
