// One upload of this page, as it is shown.

import { State } from "./upload.js";
import { durationText, percentText, sizeText } from "./units.js";

const TEXTS = {
  [State.WAITING]: "Waiting for its turn.",
  [State.SENDING]: "",
  [State.STORING]: "All bytes are safe at the helper; waiting for the cap.",
  [State.PAUSED]: "Paused.",
  [State.INTERRUPTED]: "Interrupted. Drop or choose the same file again, and it goes on from here.",
  [State.ELSEWHERE]: "Another page of this browser has taken this upload up.",
  [State.CANCELLING]: "Cancelling\u2026",
};

const WRITTEN_ELSEWHERE = "In progress in another page. If that is gone, drop or choose the same file again.";

const BUTTONS = {
  [State.WAITING]: ["pause", "cancel"],
  [State.SENDING]: ["pause", "cancel"],
  [State.STORING]: [],
  [State.AWAY]: ["pause", "cancel"],
  [State.PAUSED]: ["resume", "cancel"],
  [State.INTERRUPTED]: ["cancel"],
  [State.ELSEWHERE]: ["resume"],
  [State.CANCELLING]: [],
  [State.FINISHED]: ["remove"],
  [State.FAILED]: ["again", "remove"],
};

async function copy(element) {
  try {
    await navigator.clipboard.writeText(element.textContent);
    return true;
  } catch {
    // not a secure context (plain http on another machine), or not allowed
    getSelection().selectAllChildren(element);
    return document.execCommand("copy");
  }
}

export class Row {
  // `does`: what the buttons do, by name; called with the upload.
  constructor(upload, does) {
    this.upload = upload;
    this.element = document.getElementById("row").content.firstElementChild.cloneNode(true);
    for (const button of this.element.querySelectorAll("[data-does]")) {
      button.addEventListener("click", () => does[button.dataset.does](upload));
    }
    this._part("copy").addEventListener("click", () => this._copy());
    this.show();
  }

  _part(name) {
    return this.element.querySelector(`.${name}`);
  }

  _write(name, text) {
    const part = this._part(name);
    if (part.textContent !== text) {
      part.textContent = text; // what is read aloud is what has changed
    }
  }

  async _copy() {
    const done = await copy(this._part("cap"));
    this._write("copy", done ? "Copied" : "Select and copy it");
    setTimeout(() => this._write("copy", "Copy Cap"), 2000);
  }

  show() {
    const { upload } = this;
    this.element.className = `upload ${upload.state}`;
    this.element.dataset.offset = upload.offset;
    this._write("name", upload.name);
    this._write("short", upload.short);
    this._showProgress();
    const usual = upload.state === State.INTERRUPTED && upload.writing ? WRITTEN_ELSEWHERE : TEXTS[upload.state] ?? "";
    this._write("text", upload.state === State.INTERRUPTED && upload.text ? `${upload.text} ${usual}` : upload.text || usual);
    this._part("result").hidden = upload.cap === null;
    this._write("cap", upload.cap ?? "");
    for (const button of this.element.querySelectorAll("[data-does]")) {
      const possible = (BUTTONS[upload.state] ?? []).includes(button.dataset.does);
      button.hidden = !possible || (button.dataset.does === "again" && upload.file === null);
    }
    this._part("buttons").hidden = !(BUTTONS[upload.state] ?? []).length;
  }

  _showProgress() {
    const { upload } = this;
    const bar = this.element.querySelector("progress");
    bar.max = Math.max(upload.size, 1);
    bar.value = upload.state === State.FINISHED ? bar.max : upload.offset;
    bar.setAttribute("aria-label", `${upload.name}: ${percentText(upload.offset, upload.size)}`);
    this._part("bytes").title = `${upload.offset} of ${upload.size} bytes`;
    this._write("bytes", upload.state === State.FINISHED ? sizeText(upload.size)
      : `${sizeText(upload.offset)} of ${sizeText(upload.size)} (${percentText(upload.offset, upload.size)})`);
    const rate = upload.state === State.SENDING ? upload.rate.perSecond : null;
    this._write("rate", rate === null ? "" : `${sizeText(rate)}/s`);
    this._write("left", rate === null || rate <= 0 ? "" : `${durationText((upload.size - upload.offset) / rate)} left`);
  }
}
