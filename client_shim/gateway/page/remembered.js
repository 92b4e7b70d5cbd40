// What outlives the page, in localStorage: for each upload its handle's path, and by what its file is known again. Never a
// cap or a directory's cap. A handle's path is a secret, too: it is forgotten with the upload, and the gateway forgets
// it (result-retention, handle-expiry).
//
// Of several pages that show the same upload the last that took it up owns it; the others see that and keep quiet.

const PREFIX = "tahoe-upload:";

// Names this page while it lives.
export const OWNER = Array.from(crypto.getRandomValues(new Uint32Array(4)), (n) => n.toString(36)).join("-");

class Forgetful {
  // In place of a localStorage that the browser refuses: then nothing outlives the page.
  constructor() {
    this._items = new Map();
  }
  get length() {
    return this._items.size;
  }
  key(i) {
    return [...this._items.keys()][i] ?? null;
  }
  getItem(key) {
    return this._items.get(key) ?? null;
  }
  setItem(key, value) {
    this._items.set(key, value);
  }
  removeItem(key) {
    this._items.delete(key);
  }
}

function usableStorage() {
  try {
    localStorage.setItem(`${PREFIX}probe`, "");
    localStorage.removeItem(`${PREFIX}probe`);
    return localStorage;
  } catch {
    return new Forgetful();
  }
}

const storage = usableStorage();

// By what a file is known again: not by its content, of which nothing is kept. A file that was changed and has the same
// name, size and time of change would be taken for the one that was begun.
export function fingerprintOf(file) {
  return { name: file.name, size: file.size, changed: file.lastModified };
}

export function isSameFile(entry, file) {
  const { name, size, changed } = fingerprintOf(file);
  return entry.name === name && entry.size === size && entry.changed === changed;
}

function parsed(text) {
  try {
    const entry = JSON.parse(text);
    return typeof entry.name === "string" && Number.isSafeInteger(entry.size) ? entry : null;
  } catch {
    return null;
  }
}

// This page has the upload now, whether it has begun it or takes it up from another, or from an earlier life of its own.
export function remember(path, file) {
  try {
    storage.setItem(PREFIX + path, JSON.stringify({ ...fingerprintOf(file), owner: OWNER, began: Date.now() }));
  } catch {
    // it is full: the upload goes on as long as the page is there
  }
}

export function forget(path) {
  storage.removeItem(PREFIX + path);
}

// Whether another page has taken this upload up, or made an end of it.
export function isOthers(path) {
  const entry = parsed(storage.getItem(PREFIX + path));
  return entry !== null && entry.owner !== OWNER;
}

// All there are, the oldest first: {path, name, size, changed, began, owner}.
export function remembered() {
  const entries = [];
  for (let i = 0; i < storage.length; i += 1) {
    const key = storage.key(i);
    const entry = key !== null && key.startsWith(PREFIX) ? parsed(storage.getItem(key)) : null;
    if (entry !== null) {
      entries.push({ ...entry, path: key.slice(PREFIX.length) });
    }
  }
  return entries.sort((a, b) => a.began - b.began);
}

// Calls back with the path of an upload when another page has taken it up, or forgotten it.
export function onOthers(callback) {
  window.addEventListener("storage", (event) => {
    if (event.key !== null && event.key.startsWith(PREFIX)) {
      callback(event.key.slice(PREFIX.length), event.newValue === null);
    }
  });
}
