// Requests to the gateway: tus 1.0.0 on upload handles, and what it tells as JSON.

const TUS = { "Tus-Resumable": "1.0.0" };
const OPTIONS = { cache: "no-store", redirect: "error" };
const COLLECTION = "/uploads/";
const AGAIN = 3; // seconds, where the gateway names none
const AGAIN_MAX = 30;

// The gateway, or the helper behind it, cannot do it now.
export class Away extends Error {
  constructor(text, seconds = AGAIN) {
    super(text);
    this.seconds = Math.min(Math.max(seconds, 1), AGAIN_MAX);
  }
}

// It is of no use to ask again. `gone`: there is no such upload any more; `cap`: the file is stored all the same.
export class Refused extends Error {
  constructor(text, { gone = false, cap = null } = {}) {
    super(text);
    Object.assign(this, { gone, cap });
  }
}

// The offset of the upload is another: ask for it.
export class OtherOffset extends Error {}

const AWAY = new Map([
  [408, "The connection to the gateway stood still; trying again."],
  [502, "The gateway could not get it done; trying again."],
  [503, "The helper does not take anything at present; waiting for it."],
  [504, "The gateway could not get it done; trying again."],
  [507, "The helper has no room at present; waiting for it."],
]);

async function send(method, path, headers, signal, body = null) {
  let answer;
  try {
    answer = await fetch(path, { ...OPTIONS, method, headers: { ...TUS, ...headers }, body, signal });
  } catch (error) {
    if (signal?.aborted) {
      throw error;
    }
    throw new Away("The gateway does not answer; waiting for it.");
  }
  if (answer.ok) {
    return answer;
  }
  throw await errorOf(answer, method);
}

function sentence(text) {
  return text.charAt(0).toUpperCase() + text.slice(1) + (text.endsWith(".") ? "" : ".");
}

async function errorOf(answer, method) {
  const text = method === "HEAD" ? "" : (await answer.text().catch(() => "")).trim();
  const cap = answer.headers.get("Tahoe-Cap");
  if (cap !== null) {
    return new Refused(sentence(text.split("\n")[0]), { cap });
  }
  if (answer.status === 409) {
    return new OtherOffset();
  }
  if (AWAY.has(answer.status)) {
    const detail = text ? ` (${text.split("\n")[0]})` : "";
    return new Away(AWAY.get(answer.status) + detail, Number(answer.headers.get("Retry-After")) || AGAIN);
  }
  const gone = answer.status === 404 || answer.status === 410;
  const usual = gone ? "The gateway does not have this upload any more." : `The gateway answered ${answer.status}.`;
  return new Refused(text ? sentence(text) : usual, { gone });
}

function base64(text) {
  return btoa(String.fromCharCode(...new TextEncoder().encode(text)));
}

// What an upload has become: its cap, and whether the grid had the file before; both null until then.
function resultOf({ headers }) {
  return { cap: headers.get("Tahoe-Cap"), dedup: headers.get("Tahoe-Dedup") };
}

// Make an upload for a file. Returns {path, cap, dedup}: an empty file has its cap at once.
export async function create(file, directory) {
  const headers = { "Upload-Length": String(file.size), "Upload-Metadata": `filename ${base64(file.name)}` };
  if (directory) {
    headers["Tahoe-Directory"] = directory;
  }
  const answer = await send("POST", COLLECTION, headers, null);
  return { ...resultOf(answer), path: answer.headers.get("Location") };
}

// Where to go on: {offset, cap, dedup, linkError}. Ends whatever request writes to the upload now.
export async function whereToGoOn(path, signal) {
  const answer = await send("HEAD", path, {}, signal);
  return {
    ...resultOf(answer),
    offset: Number(answer.headers.get("Upload-Offset")),
    linkError: answer.headers.get("Tahoe-Link-Error"),
  };
}

// Send a file from an offset on, in one request: the browser reads the disk as the gateway takes the bytes. Returns
// {cap, dedup}.
export async function append(path, file, offset, signal) {
  const headers = { "Content-Type": "application/offset+octet-stream", "Upload-Offset": String(offset) };
  return resultOf(await send("PATCH", path, headers, signal, file.slice(offset)));
}

export async function cancel(path) {
  try {
    await send("DELETE", path, {}, null);
  } catch (error) {
    if (!(error instanceof Refused && error.gone)) {
      throw error;
    }
  }
}

async function json(path) {
  let answer;
  try {
    answer = await fetch(`${path}?t=json`, OPTIONS);
  } catch {
    throw new Away("The gateway does not answer; waiting for it.");
  }
  if (!answer.ok) {
    throw await errorOf(answer, "GET");
  }
  return answer.json();
}

// What the gateway tells of one upload; this disturbs nobody who writes to it.
export function statusOf(path) {
  return json(path);
}

// What it tells of all.
export function statusOfAll() {
  return json(COLLECTION);
}
