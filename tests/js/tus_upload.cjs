// Uploads a file with tus-js-client as it comes from npm, and tells what happens in lines of JSON.
//
//     node tus_upload.cjs '{"endpoint": "http://...", "file": "...", "options": {...}}'
//
// further keys: "stream" (true: the file is read as a stream), "abortAt" (bytes after which it is aborted),
// "terminate" (true: an aborted upload is terminated at the server, too). "options" are tus-js-client's.
"use strict";

const fs = require("node:fs");
const { PassThrough } = require("node:stream");
const tus = require("tus-js-client");

const task = JSON.parse(process.argv[2]);
const tell = (event, fields) => process.stdout.write(`${JSON.stringify({ event, ...fields })}\n`);
let aborting = false;

// a stream of a file would be known to have a length
const input = task.stream ? fs.createReadStream(task.file).pipe(new PassThrough()) : fs.readFileSync(task.file);
const upload = new tus.Upload(input, {
  endpoint: task.endpoint,
  ...task.options,
  onUploadUrlAvailable: () => tell("url", { url: upload.url }),
  onAfterResponse: (request, response) =>
    tell("response", { method: request.getMethod(), status: response.getStatus() }),
  onChunkComplete: (_size, accepted) => tell("accepted", { accepted }),
  onProgress: async (sent) => {
    tell("progress", { sent });
    if (task.abortAt !== undefined && sent >= task.abortAt && !aborting) {
      aborting = true;
      await upload.abort(task.terminate === true);
      tell("aborted", {});
    }
  },
  onSuccess: ({ lastResponse }) => tell("success", { cap: lastResponse.getHeader("Tahoe-Cap") }),
  onError: (error) => {
    tell("error", { message: String(error) });
    process.exitCode = 1;
  },
});
upload.start();
