// One file on its way. What is shown of it is what the gateway states as durable at the helper, asked for once a second;
// not what the browser has sent, which may only be in buffers on the way.

import { fingerprintOf, forget, isOthers, remember } from "./remembered.js";
import { Away, OtherOffset, Refused, append, cancel, create, statusOf, whereToGoOn } from "./requests.js";
import { Rate } from "./units.js";

// waiting: for its turn · interrupted: its file is needed again · elsewhere: another page has it
export const State = Object.freeze({
  WAITING: "waiting", SENDING: "sending", STORING: "storing", AWAY: "away", PAUSED: "paused", INTERRUPTED: "interrupted",
  ELSEWHERE: "elsewhere", CANCELLING: "cancelling", CANCELLED: "cancelled", FINISHED: "finished", FAILED: "failed",
});

const ACTIVE = new Set([State.SENDING, State.STORING, State.AWAY]);
const POLLED = new Set([State.SENDING, State.STORING, State.AWAY, State.INTERRUPTED, State.ELSEWHERE]);

const UNREADABLE = "The file cannot be read: it was changed, moved or removed since it was chosen.";

function sleep(seconds, signal) {
  return new Promise((resolve) => {
    const timer = setTimeout(resolve, seconds * 1000);
    signal?.addEventListener("abort", () => { clearTimeout(timer); resolve(); }, { once: true });
  });
}

async function canBeRead(file, offset) {
  try {
    await file.slice(offset, offset + 1).arrayBuffer();
    return true;
  } catch {
    return false;
  }
}

function notLinked(code) {
  return `The file is stored, but could not be linked into its directory (${code}).`;
}

// What became of it, where that is worth telling: the values of Tahoe-Dedup.
const OUTCOMES = {
  existing: "The grid has this file already; this is its cap.",
  "streamed-before": "The grid has this file already, from an earlier upload; this is its cap.",
};

export class Upload {
  // Of a file, or of an entry of remembered.js, whose file is to be chosen again. `directory`: the write cap of the one
  // to link into, or nothing. `changed` is called with the upload when something is.
  constructor({ file = null, entry = null, directory = "", changed }) {
    this.fingerprint = entry ?? fingerprintOf(file);
    this.name = this.fingerprint.name;
    this.size = this.fingerprint.size;
    this.file = file;
    this.path = entry === null ? null : entry.path;
    this.state = file === null ? State.INTERRUPTED : State.WAITING;
    this.rate = new Rate();
    this._directory = directory;
    this._changed = changed;
    this._control = null;
    this._creating = null;
    this._begin();
  }

  _begin() {
    Object.assign(this, { offset: 0, cap: null, short: "", text: "", received: false, writing: false });
  }

  get active() {
    return ACTIVE.has(this.state);
  }

  get ended() {
    return this.state === State.FINISHED || this.state === State.FAILED || this.state === State.CANCELLED;
  }

  // -- what people do ----------------------------------------------------------------------------------------------

  // Go on until there is a cap; while gateway or helper are away, try again and again.
  async go() {
    this._stop();
    const control = new AbortController();
    this._control = control;
    this.rate.reset();
    this._become(State.SENDING);
    while (!control.signal.aborted) {
      try {
        await this._attempt(control.signal);
        return;
      } catch (error) {
        if (control.signal.aborted) {
          return;
        }
        await this._after(error, control.signal);
      }
    }
  }

  pause() {
    this._stop();
    this._become(State.PAUSED);
  }

  // In line for its turn.
  queue(text = "") {
    this._become(State.WAITING, text);
  }

  // The file was chosen again.
  attach(file) {
    this.file = file;
    remember(this.path, file); // and this page owns it from now on
    this.queue();
  }

  // Another page has taken it up.
  leave() {
    this._stop();
    this._become(this.file === null ? State.INTERRUPTED : State.ELSEWHERE);
  }

  // Begin anew, with another handle.
  again() {
    if (this.path !== null) {
      forget(this.path);
    }
    this.path = null;
    this._begin();
    this.queue();
  }

  // Give it up, or forget one that has ended; the gateway forgets it, too. A cap stays good.
  async remove() {
    this._stop();
    this._become(State.CANCELLING);
    await this._creating?.catch(() => {});
    while (this.path !== null) {
      try {
        await cancel(this.path);
        break;
      } catch (error) {
        if (!(error instanceof Away)) {
          break;
        }
        this._become(State.CANCELLING, error.message);
        await sleep(error.seconds);
      }
    }
    if (this.path !== null) {
      forget(this.path);
    }
    this._become(State.CANCELLED);
  }

  // -- one attempt -------------------------------------------------------------------------------------------------

  async _attempt(signal) {
    if (this.path === null) {
      await this._create(signal);
    } else if (isOthers(this.path)) {
      this.leave();
    } else {
      await this._goOn(signal);
    }
  }

  // This is not broken off: whoever pauses or cancels must know what was made.
  async _create(signal) {
    this._creating ??= create(this.file, this._directory)
      .then((made) => {
        this.path = made.path;
        remember(made.path, this.file);
        return made;
      })
      .finally(() => { this._creating = null; });
    const made = await this._creating;
    if (made.cap !== null) {
      this._finish(made);
    } else if (!signal.aborted) {
      await this._send(0, signal);
    }
  }

  async _goOn(signal) {
    const { offset, linkError, ...result } = await whereToGoOn(this.path, signal);
    this._progress(offset);
    if (result.cap !== null) {
      this._finish(result, linkError === null ? "" : notLinked(linkError));
    } else {
      await this._send(offset, signal);
    }
  }

  async _send(offset, signal) {
    this.rate.reset();
    this._become(State.SENDING);
    const result = await append(this.path, this.file, offset, signal);
    if (result.cap === null) {
      throw new Away("The gateway ended a request early; trying again.");
    }
    this._finish(result);
  }

  async _after(error, signal) {
    if (error.cap) {
      this._finish(error, error.message);
      this._stop();
    } else if (error instanceof Away && this.file !== null && !(await canBeRead(this.file, this.offset))) {
      this._stop();
      this.file = null;
      this._become(this.path === null ? State.FAILED : State.INTERRUPTED, UNREADABLE);
    } else if (error instanceof Away) {
      this._become(State.AWAY, error.message);
      await sleep(error.seconds, signal);
    } else if (error instanceof OtherOffset) {
      await sleep(1, signal);
    } else {
      this._stop();
      this._become(State.FAILED, error.message);
    }
  }

  // -- what the gateway tells --------------------------------------------------------------------------------------

  // Ask for it, if there is something to be told.
  async poll() {
    if (this.path === null || !POLLED.has(this.state)) {
      return;
    }
    const path = this.path;
    let told;
    try {
      told = await statusOf(path);
    } catch (error) {
      if (error instanceof Refused && error.gone && this.path === path && !this.active) {
        this._become(State.FAILED, "The gateway has given this upload up, or it was cancelled.");
        forget(path);
      }
      return; // who sends notices by itself
    }
    if (this.path === path && POLLED.has(this.state)) {
      this._learn(told);
    }
  }

  _learn(told) {
    this.short = told.upload;
    this.received = told.size !== null && told.received === told.size;
    this._progress(told.offset);
    if (told.cap !== null && told.state === "finished") {
      this._stop();
      this._finish(told, told.error === null ? "" : notLinked(told.error));
    } else if (told.state === "failed") {
      this._stop();
      this._become(State.FAILED, `The upload has failed (${told.error}).`);
    } else if (this.state === State.SENDING || this.state === State.STORING) {
      const waits = told["waits-for"];
      this._become(this.received && told.offset === told.size ? State.STORING : State.SENDING,
        waits === null ? "" : `The helper does not answer (${waits}); waiting for it.`);
    } else if (this.state === State.INTERRUPTED) {
      this._become(State.INTERRUPTED, this.text, { writing: told.writing });
    } else {
      this._changed(this);
    }
  }

  _progress(offset) {
    this.offset = offset;
    this.rate.add(offset, performance.now());
  }

  // -- small things ------------------------------------------------------------------------------------------------

  // `text`: why it is not linked.
  _finish({ cap, dedup }, text = "") {
    this.cap = cap;
    this.offset = this.size;
    this._become(State.FINISHED, text || (OUTCOMES[dedup] ?? ""));
  }

  _stop() {
    this._control?.abort();
    this._control = null;
  }

  _become(state, text = "", { writing = false } = {}) {
    Object.assign(this, { state, text, writing });
    this._changed(this);
  }
}
